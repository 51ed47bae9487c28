"""The check before training: numbers by hand, faults all listed, a picture to look at."""

import dataclasses
import json
import re

import numpy as np
import pytest
from PIL import Image

from fewshotseg.data import cases as cases_lib
from fewshotseg.data.check import check_source, describe, format_report
from fewshotseg.data.sources.folder import FolderSource
from fewshotseg.data.sources.phantom import PhantomSource
from fewshotseg.data.survey import Survey
from fewshotseg.errors import InputError
from fewshotseg.types import Case


class _Source:
    name = "toy"
    official_splits = {}

    def __init__(self, cases, class_names=("disc", "cup")):
        self.class_names = class_names
        self._cases = {case.id: case for case in cases}
        self.ids = tuple(sorted(self._cases))

    def load(self, case_id):
        if case_id.startswith("bad"):
            raise InputError(f"{case_id}.png: damaged.")
        return self._cases[case_id]


def _case(case_id, height, width, boxes, channels=3, group="", notes=(), seed=None):
    rng = np.random.default_rng(sum(map(ord, case_id)) if seed is None else seed)
    image = rng.integers(0, 256, (height, width, channels), np.uint8)
    mask = np.zeros((height, width), np.uint8)
    for class_id, rows, columns in boxes:
        mask[:rows, :columns] = class_id
    return Case(case_id, image, mask, group, notes)


def test_report_by_hand(tmp_path, capsys):
    cases = [
        _case("a", 20, 40, [(1, 10, 20)], group="p", notes=("alpha channel dropped",), seed=1),
        _case("b", 30, 40, [(1, 30, 20), (2, 30, 10)], group="p", notes=("alpha channel dropped",)),
        _case("c", 40, 40, [], channels=1),
        _case("d", 20, 40, [(2, 1, 1)], seed=1),
        _case("bad1", 9, 9, []),
        _case("bad2", 9, 9, []),
    ]
    report = check_source(_Source(cases), tmp_path / "new", 10)
    assert (report["count"], report["loaded"]) == (6, 4)
    assert report["height"] == {"min": 20, "median": 25, "max": 40}
    assert report["width"] == {"min": 40, "median": 40, "max": 40}
    assert report["channels"] == {"1": 1, "3": 3}
    assert report["groups"] == 1
    assert report["classes"]["disc"] == {
        "images": 2,
        "share": {"min": 0.25, "median": 0.25, "max": 0.25},
    }
    cup = report["classes"]["cup"]
    assert cup["images"] == 2 and cup["share"]["max"] == 0.25
    assert cup["share"]["min"] == pytest.approx(1 / 800)
    assert report["empty_masks"] == ["c"] and report["vanishing"] == ["d"]
    assert report["duplicates"] == [["a", "d", 1.0]]
    assert report["notes"] == {"alpha channel dropped": 2}
    assert [fault["id"] for fault in report["faults"]] == ["bad1", "bad2"]
    assert json.loads((tmp_path / "new" / "check.json").read_text()) == report
    printed = capsys.readouterr().out
    assert printed.startswith(format_report(report))


def test_table_says_what_a_user_needs(tmp_path):
    cases = [_case(name, 32, 48, [(1, 16, 12)]) for name in ("a", "b", "c", "bad")]
    report = check_source(_Source(cases, ("lesion",)), tmp_path, 16, quiet=True)
    lines = dict(line.split("  ", 1) for line in format_report(report).splitlines())
    lines = {label.strip(): text.strip() for label, text in lines.items()}
    assert lines["cases"] == "4, of which 3 can be read"
    assert lines["height"] == "32 pixels" and lines["width"] == "48 pixels"
    assert lines["images"] == "3 colour"
    assert lines["class lesion"] == "12.50% of the pixels, in 3 of 3 masks"
    assert lines["empty masks"] == lines["look-alikes"] == "none"
    assert lines["faults"] == "1" and lines["FAULT"] == "bad.png: damaged."


def test_classes_of_few_pixels_are_told_with_a_size_that_has_enough(tmp_path):
    """1/256 of an image is 4 pixels at 32 px; 32 are there from sqrt(8) times the size on, 96 px."""

    def warned(name, *sides, image_size=32):
        boxes = [[(1, height // 16, width // 16)] for height, width in sides]
        cases = [
            _case(f"c{i}", *s, box) for i, (s, box) in enumerate(zip(sides, boxes, strict=True))
        ]
        cases.append(_case("large", *sides[0], [(1, sides[0][0], sides[0][1] // 2)]))
        folder = tmp_path / name
        report = check_source(_Source(cases, ("lesion",)), folder, image_size, quiet=True)
        return report, " ".join(text for text in report["warnings"] if "fewer than" in text)

    report, warning = warned("a", (128, 128), (128, 128))
    assert report["small"] == {"c0": 4, "c1": 4} and not report["vanishing"]
    assert "fewer than 32 pixels at 32 px in 2 masks" in warning
    assert warning.endswith("there: try --config.data.image_size=96, or --config.data.fit=tiles")
    _, warning = warned("b", (64, 48), (64, 48), (512, 512))  # most are no larger than 64
    assert warning.endswith("there: try --config.data.fit=tiles")
    report, warning = warned("c", (48, 48), (48, 48), image_size=64)  # there is no more to see
    assert report["small"] and not warning


@pytest.mark.parametrize("root, shown", [("", "/data/a.png"), ("/data", "a.png")])
def test_only_the_root_is_left_out_and_only_at_the_start(tmp_path, root, shown):
    source = _Source([_case("a", 9, 9, []), _case("b", 9, 9, [(1, 4, 4)])])
    source.faults = {"a": "/data/a.png: not /other/data/b.png: mend it."}
    if root:
        source.root = root
    report = check_source(source, tmp_path, 9, quiet=True)
    assert report["faults"][0]["message"] == f"{shown}: not /other/data/b.png: mend it."


def test_contact_sheet_shows_the_outline(tmp_path):
    plain, marked = tmp_path / "plain", tmp_path / "marked"
    for folder, boxes in ((plain, []), (marked, [(1, 20, 20)])):
        cases = [_case(name, 40, 40, boxes) for name in "abcd"]
        check_source(_Source([*cases, _case("e", 40, 40, [(1, 9, 9)])]), folder, 16, quiet=True)
    pictures = [
        np.asarray(Image.open(folder / "contact_sheet.png").convert("RGB"), int)
        for folder in (plain, marked)
    ]
    assert pictures[0].shape == pictures[1].shape
    assert (np.abs(pictures[0] - pictures[1]).max(axis=-1) > 60).mean() > 0.002


def test_large_sets_are_sampled_for_the_sheet(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "fewshotseg.figures.contact_sheet", lambda cases, path, columns: drawn.extend(cases)
    )
    cases = [_case(f"c{index:03d}", 16, 700, [(1, 4, 4)]) for index in range(100)]
    check_source(_Source(cases), tmp_path, 16, quiet=True)
    assert len(drawn) == 64 and {drawn[0].id, drawn[-1].id} == {"c000", "c099"}
    assert drawn[0].image.shape == (6, 234, 3) and drawn[0].mask.shape == (6, 234)


def test_suspicions_are_warned_of(tmp_path):
    inverted = [_case(name, 16, 16, [(1, 14, 16)]) for name in "abc"]
    warnings = " ".join(check_source(_Source(inverted), tmp_path, 16, quiet=True)["warnings"])
    assert "masks inverted" in warnings and "no mask shows the class cup" in warnings
    mixed = [_case("a", 16, 16, [(1, 4, 4)]), _case("b", 16, 16, [(2, 4, 4)], channels=1)]
    assert "mixed" in " ".join(check_source(_Source(mixed), tmp_path, 16, quiet=True)["warnings"])
    good = [_case(name, 16, 16, [(1, 12, 9), (2, 4, 8)]) for name in "abc"]
    assert check_source(_Source(good), tmp_path, 16, quiet=True)["warnings"] == []


def test_no_foreground_is_a_fault(tmp_path):
    report = check_source(_Source([_case("a", 9, 9, [])]), tmp_path, 16, quiet=True)
    assert "none of the 1 masks has any foreground" in report["faults"][0]["message"]
    assert re.search("class cup +in 0 of 1 masks", format_report(report))


def test_pictures_that_show_nothing_are_told(tmp_path):
    cases = [_case(name, 40, 40, [(1, 9, 9), (2, 4, 4)]) for name in "abc"]
    flat = dataclasses.replace(_case("flat", 40, 40, [(2, 9, 9)]))
    flat.image[...] = 7
    report = check_source(
        _Source([*cases, flat, _case("dot", 1, 1, [(1, 1, 1)])]), tmp_path, (40, 50), quiet=True
    )
    warnings = " ".join(report["warnings"])
    assert "single grey value or colour: 2: dot, flat" in warnings
    assert "a side below 8 pixels: 1: dot" in warnings and "enlarged" not in warnings
    report = check_source(_Source(cases), tmp_path, (60, 80), quiet=True)
    assert "enlarged, from 40 x 40 pixels to 60 x 80 px" in report["warnings"][0]


def _draw(survey, **fields):
    return cases_lib.create_split(
        survey, **{"num_train": 6, "num_validation": 2, "seed": 0} | fields
    )


def test_the_split_is_tried_and_told(tmp_path, capsys):
    cases = [
        _case(f"c{i:02d}", 16, 16, [(1, 6, 6), (2, 3, 3)], group=f"p{i // 2}", seed=i)
        for i in range(20)
    ]
    source = _Source([*cases, _case("bad", 9, 9, [])])
    report = check_source(source, tmp_path, 16, draw=_draw)
    assert report["split"] == {
        "train": {"cases": 6}, "validation": {"cases": 2}, "test": {"cases": 4, "clusters": 2}
    }  # fmt: skip
    printed = capsys.readouterr().out
    assert re.search(r"^train +6 cases$", printed, re.MULTILINE)
    assert re.search(r"^test +4 cases in 2 clusters", printed, re.MULTILINE)
    assert "10 (patients or series)" in printed and printed.count("contact_sheet.png") == 1
    assert [fault["id"] for fault in report["faults"]] == ["bad"]
    one = [dataclasses.replace(case, group="p") for case in cases]
    report = check_source(_Source(one), tmp_path, 16, quiet=True, draw=_draw)
    assert "'p' alone has 20 of all 20 cases" in report["faults"][0]["message"]


def test_training_is_described_in_the_same_words(tmp_path):
    groups = {f"phantom_0000{i}": "p" for i in range(3)}
    source = PhantomSource(num_cases=30, image_size=32)
    load = source.load
    source.load = lambda i: dataclasses.replace(load(i), group=groups.get(i, ""), notes=("odd",))
    further = {"shifted": PhantomSource(num_cases=3, image_size=32, shifted=True, seed=4)}
    data = cases_lib.create_data(
        source, image_size=(16, 32), channels=3, test_sources=further, num_train=6,
        num_validation=2, seed=0,
    )  # fmt: skip
    assert data.train["image"].shape == (6, 16, 32, 3) and data.train["mask"].shape == (6, 16, 32)
    text = describe(data)
    for line in ("30, of which 30 can be read", "30 x odd", "1 (patients or series)"):
        assert line in text
    for part, count in (("train", 6), ("validation", 2), ("test", 6), ("test set shifted", 3)):
        assert re.search(rf"^{part} +{count} cases", text, re.MULTILINE), text


def test_further_test_sets_must_fit():
    source = PhantomSource(num_cases=30, image_size=32)
    other = _Source([_case(name, 16, 16, [(1, 6, 6)]) for name in "abcd"])
    for name, words in (("clinic", "clinic has the classes disc, cup"), ("test", "another name")):
        with pytest.raises(InputError, match=words):
            _draw(Survey(source), test_sources={name: other})


def test_nothing_readable(tmp_path):
    report = check_source(_Source([_case("bad", 9, 9, [])]), tmp_path, 16, quiet=True)
    assert report["loaded"] == 0 and len(report["faults"]) == 1
    assert "0 can be read" in format_report(report)
    assert not (tmp_path / "contact_sheet.png").exists()


def test_unwritable_output_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file.*cannot be created"):
        check_source(_Source([_case("a", 9, 9, [])]), tmp_path / "file" / "out", 16, quiet=True)


def test_all_faults_of_a_folder_are_listed(tmp_path):
    for index in range(6):
        array = np.random.default_rng(index).integers(0, 256, (12, 12, 3), np.uint8)
        mask = np.zeros((12, 12), np.uint8)
        mask[:5, :5] = 255
        for kind, content in (("images", array), ("masks", mask)):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(content).save(tmp_path / kind / f"c{index}.png")
    (tmp_path / "images" / "c0.png").write_bytes(b"")
    (tmp_path / "masks" / "c1.png").write_bytes(b"damaged")
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(tmp_path / "masks" / "c2.png")
    legend = np.zeros((12, 12, 3), np.uint8)
    legend[:3] = (255, 0, 0)
    Image.fromarray(legend).save(tmp_path / "masks" / "c3.png")
    source = FolderSource(tmp_path / "images", tmp_path / "masks", strict=False)
    report = check_source(source, tmp_path / "out", 16, quiet=True)
    words = ["file is empty", "not a readable image", "5 x 5", "colour legend"]
    assert [fault["id"] for fault in report["faults"]] == ["c0", "c1", "c2", "c3"]
    assert report["faults"][0]["message"].startswith("images/c0.png: the file is empty")
    for fault, word in zip(report["faults"], words, strict=True):
        assert word in fault["message"]


def test_real_busi(shared_data, tmp_path):
    root = shared_data / "busi" / "Dataset_BUSI_with_GT"
    report = check_source(FolderSource(root, root), tmp_path, 64, quiet=True)
    assert (report["count"], report["loaded"], report["faults"]) == (184, 184, [])
    assert report["channels"] == {"1": 182, "3": 2}
    assert len(report["empty_masks"]) == 4
    assert all(case_id.startswith("normal/") for case_id in report["empty_masks"])
    assert report["duplicates"] == []
