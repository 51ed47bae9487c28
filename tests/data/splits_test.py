"""Few-shot draws: deterministic, nested, and without leaks."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from fewshotseg.data import split_files, splits
from fewshotseg.data.sources.folder import FolderSource
from fewshotseg.data.survey import Survey
from fewshotseg.errors import InputError
from fewshotseg.types import Case


class _Source:
    """Random pictures; `copies` maps an id to the one whose picture it repeats, brighter."""

    class_names = ("lesion",)

    def __init__(self, number, name="toy", official=None, groups=None, copies=None):
        self.name = name
        self.ids = tuple(f"c{index:03d}" for index in range(number))
        self.official_splits = official or {}
        self._groups = groups or {}
        self._copies = copies or {}

    def load(self, case_id):
        seed = int(self._copies.get(case_id, case_id)[1:])
        image = np.random.default_rng(seed).integers(0, 200, (24, 24, 1), np.uint8)
        if case_id in self._copies:
            image = image + np.uint8(20)
        mask = np.zeros((24, 24), np.uint8)
        return Case(case_id, image, mask, self._groups.get(case_id, ""))


def _disjoint(*parts):
    return len({i for part in parts for i in part}) == sum(map(len, parts))


def test_draw_depends_on_name_and_seed_only():
    draw = splits.few_shot_split(_Source(60), 16, 4, seed=0)
    assert draw == splits.few_shot_split(_Source(60), 16, 4, seed=0)
    assert (len(draw.train), len(draw.validation), len(draw.test)) == (16, 4, 12)
    assert _disjoint(draw.train, draw.validation, draw.test) and draw.notes == ()
    assert draw.test != tuple(sorted(draw.test))  # so that the first few are a fair sample
    other = splits.few_shot_split(_Source(60), 16, 4, seed=1)
    assert set(other.train) != set(draw.train) and other.test == draw.test
    renamed = splits.few_shot_split(_Source(60, name="else"), 16, 4, seed=0)
    assert set(renamed.train) != set(draw.train) and renamed.test != draw.test


def test_draw_is_the_same_in_another_process():
    code = (
        "import splits_test as t; from fewshotseg.data import splits;"
        "print(splits.few_shot_split(t._Source(30), 5, 2, seed=3).train)"
    )
    there = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "1", "JAX_PLATFORMS": "cpu"},
        cwd=os.path.dirname(os.path.abspath(__file__)),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert there == f"{splits.few_shot_split(_Source(30), 5, 2, seed=3).train}\n"


def test_larger_draws_contain_smaller_ones():
    source = _Source(80)
    small = splits.few_shot_split(source, 16, 4, seed=5)
    large = splits.few_shot_split(source, 32, 8, seed=5)
    assert large.train[:16] == small.train and large.validation[:4] == small.validation
    assert large.test == small.test
    assert large.train != tuple(sorted(large.train))
    more_training = splits.few_shot_split(source, 40, 4, seed=5)
    assert more_training.train[:32] == large.train
    assert more_training.validation == small.validation


def test_larger_draws_contain_smaller_ones_with_patients():
    groups = {f"c{index:03d}": f"p{index // 6}" for index in range(96)}
    source = _Source(96, groups=groups)
    small = splits.few_shot_split(source, 16, 4, seed=5)
    large = splits.few_shot_split(source, 32, 8, seed=5)
    assert large.train[:16] == small.train and large.validation[:4] == small.validation


def test_patients_and_copies_never_straddle():
    groups = {f"c{index:03d}": f"p{index // 4}" for index in range(60)}
    copies = {f"c{index:03d}": f"c{index - 30:03d}" for index in range(90, 100)}
    source = _Source(100, groups=groups, copies=copies)
    survey = Survey(source)
    for seed in range(10):
        draw = splits.few_shot_split(source, 40, 10, seed, test_fraction=0.2, survey=survey)
        assert (len(draw.train), len(draw.validation)) == (40, 10)
        assert len(draw.test) in range(20, 24)
        sides = [
            {groups.get(copies.get(i, i), copies.get(i, i)) for i in part}
            for part in (draw.train, draw.validation, draw.test)
        ]
        assert _disjoint(*sides)


def test_a_draw_shows_many_patients():
    groups = {f"c{index:03d}": f"p{index // 10}" for index in range(200)}
    draw = splits.few_shot_split(_Source(200, groups=groups), 12, 3, seed=0)
    assert len({groups[i] for i in draw.train}) == 12
    assert len({groups[i] for i in draw.validation}) == 3


def test_one_huge_series_does_not_become_the_test_set():
    groups = {f"c{index:03d}": "video" for index in range(40)}
    for name in "abcdefgh":
        source = _Source(60, name=name, groups=groups)
        assert len(splits.few_shot_split(source, 20, 5, seed=0).test) == 12


def test_official_parts_are_respected():
    ids = _Source(50).ids
    official = {"train": ids[:30], "validation": ids[30:40], "test": ids[40:]}
    draw = splits.few_shot_split(_Source(50, official=official), 20, 5, seed=0)
    assert draw.test == ids[40:]
    assert {*draw.train, *draw.validation} <= set(ids[:30])
    del official["test"]
    draw = splits.few_shot_split(_Source(50, official=official), 20, 5, seed=0)
    assert draw.test == ids[30:40] and {*draw.train, *draw.validation} <= set(ids[:30])


def test_copies_of_official_test_cases_are_not_drawn():
    ids = _Source(20).ids
    official = {"train": ids[:12], "test": ids[12:]}
    source = _Source(20, official=official, copies={"c015": "c003", "c016": "c004"})
    draw = splits.few_shot_split(source, 8, 2, seed=0)
    assert sorted(draw.train + draw.validation) == sorted(set(ids[:12]) - {"c003", "c004"})
    assert draw.test == ids[12:] and draw.notes[0].startswith("2 cases were left out")


def test_explicit_test_ids():
    draw = splits.few_shot_split(_Source(10), 6, 2, seed=0, test_ids=["c003", "c007.png"])
    assert draw.test == ("c003", "c007") and draw.notes == ()
    assert sorted(draw.train + draw.validation + draw.test) == list(_Source(10).ids)


def test_listed_split_wins(tmp_path):
    official = {"train": ("c009",), "test": ("c000",)}
    source = _Source(12, official=official, copies={"c004": "c002"})
    lists = {"train": ["c005", "c000", "c002"], "validation": ["c001"], "test": ["c004"]}
    expected = (("c005", "c000", "c002"), ("c001",), ("c004",))
    (tmp_path / "lists.json").write_text(json.dumps(lists))
    for name, ids in {"train": lists["train"], "val": ["c001"], "test": ["c004"]}.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(ids))
    by_file = {"train": tmp_path / "train.txt", "val": ["c001"], "test": tmp_path / "test.txt"}
    for given in (lists, tmp_path / "lists.json", tmp_path, by_file):
        draw = splits.few_shot_split(source, 99, 99, seed=0, lists=given)
        assert (draw.train, draw.validation, draw.test) == expected
        assert draw.notes[0].startswith(
            "1 patient, series or set of look-alike images on two sides"
        )


def test_listed_training_part_is_a_pool():
    source = _Source(40)
    lists = {"train": source.ids[:20], "test": source.ids[30:]}
    draw = splits.few_shot_split(source, 16, 4, seed=0, lists=lists)
    assert sorted(draw.train + draw.validation) == list(source.ids[:20])
    assert draw.test == source.ids[30:]
    kept = splits.few_shot_split(
        source, 16, 4, seed=0, lists={**lists, "validation": source.ids[25:27]}
    )
    assert kept.train == source.ids[:20] and kept.validation == source.ids[25:27]


def test_listed_training_cases_never_test():
    source = _Source(20, copies={"c010": "c001"})
    lists = {"train": source.ids[:4], "validation": source.ids[4:6]}
    draw = splits.few_shot_split(source, 1, 1, seed=0, lists=lists, test_fraction=1.0)
    assert (draw.train, draw.validation) == (source.ids[:4], source.ids[4:6])
    assert sorted(draw.test) == [i for i in source.ids[6:] if i != "c010"] and draw.notes == ()
    official = _Source(20, official={"train": source.ids[10:], "test": source.ids[:10]})
    for parts in (lists, {"train": source.ids[:6]}):
        draw = splits.few_shot_split(official, 4, 2, seed=0, lists=parts)
        assert sorted(draw.train + draw.validation) == list(source.ids[:6])
        assert draw.test == source.ids[6:10]


def _further(number, copies, groups=None):
    source = _Source(number, name="elsewhere", copies=copies, groups=groups)
    return {"clinic": (Survey(source), source.ids)}


def test_what_resembles_a_further_test_set_is_not_drawn():
    # c000 to c002 of the other set repeat c003 to c005 of ours; the rest is drawn anew.
    copies = {f"c{i:03d}": f"c{i + 3:03d}" for i in range(3)}
    copies |= {f"c{i:03d}": f"c{i + 500}" for i in range(3, 8)}
    source, further = _Source(20), _further(8, copies)
    lists = {"test": source.ids[15:]}
    draw = splits.few_shot_split(source, 9, 3, seed=0, lists=lists, further=further)
    free = {*source.ids[:15]} - {"c003", "c004", "c005"}
    assert {*draw.train, *draw.validation} == free and draw.test == source.ids[15:]
    assert draw.notes[0].startswith("3 cases were left out of the draw")
    assert draw.notes[0].endswith("is in the test set clinic")
    assert sorted(draw.clusters["clinic"].values()) == list(range(5, 13))  # all independent
    listed = {"train": ["c003", "c004", "c000"], "validation": ["c005"], "test": ["c010"]}
    draw = splits.few_shot_split(source, 9, 3, seed=0, lists=listed, further=further)
    assert draw.train == ("c003", "c004", "c000")
    assert draw.notes[0].startswith("3 of 8 cases of the test set clinic look like training")


def test_groups_of_the_same_name_elsewhere_are_told():
    groups = {f"c{i:03d}": f"p{i}" for i in range(20)}
    copies = {f"c{i:03d}": f"c{i + 500}" for i in range(4)}
    source, further = _Source(20, groups=groups), _further(4, copies, {"c000": "p7", "c001": "q"})
    draw = splits.few_shot_split(
        source, 10, 4, seed=0, lists={"test": source.ids[14:]}, further=further
    )
    assert len(draw.notes) == 1 and "groups of the same name" in draw.notes[0]
    assert "1, for example p7" in draw.notes[0]
    assert draw.groups["clinic"] == {"c000": "p7", "c001": "q"}
    assert draw.groups["train"] == {i: groups[i] for i in draw.train}


def test_test_cases_are_numbered_by_cluster():
    groups = {"c012": "p", "c014": "p"}
    source = _Source(20, groups=groups, copies={"c016": "c013"})
    draw = splits.few_shot_split(source, 8, 4, seed=0, lists={"test": source.ids[12:18]})
    assert draw.clusters == {
        "test": {"c012": 0, "c013": 1, "c014": 0, "c015": 2, "c016": 1, "c017": 3}
    }
    assert draw.groups == {"test": groups}


def test_every_draw_is_pairwise_disjoint():
    groups = {f"c{index:03d}": f"p{index // 3}" for index in range(30)}
    copies = {f"c{index:03d}": f"c{index - 20:03d}" for index in range(50, 60)}
    source = _Source(60, groups=groups, copies=copies)
    survey, ids = Survey(source), source.ids
    for lists in (
        None, {"test": ids[40:]}, {"train": ids[:40]}, {"pool": ids[:45], "test": ids[40:]},
        {"pool": ids[:40], "validation": ids[5:9]}, {"pool": ids, "exclude": ids[:6], "test": ids[50:]},
    ):  # fmt: skip
        for seed in range(4):
            draw = splits.few_shot_split(source, 12, 4, seed, lists=lists, survey=survey)
            parts = [set(draw.train), set(draw.validation), set(draw.test)]
            for i in range(3):
                assert len(parts[i]) == len((draw.train, draw.validation, draw.test)[i]) > 0
                assert not parts[i] & parts[(i + 1) % 3]
            excluded = set((lists or {}).get("exclude", ()))
            assert not excluded & set().union(*parts)


def test_a_pool_larger_than_the_draw():
    source = _Source(60, copies={"c010": "c050", "c011": "c059"})
    lists = {"pool": source.ids[:46], "exclude": source.ids[44:52], "test": source.ids[54:]}
    draws = [splits.few_shot_split(source, 16, 4, seed, lists=lists) for seed in range(5)]
    free = set(source.ids[:44]) - {"c010", "c011"}  # look like an excluded and a test case
    drawn = [{*draw.train, *draw.validation} for draw in draws]
    assert all(len(ids) == 20 and ids <= free for ids in drawn)
    assert len(set().union(*drawn)) > 35  # other seeds, other cases
    assert {draw.test for draw in draws} == {source.ids[54:]}
    assert draws[0].notes[0].startswith("2 cases of the pool were not drawn")
    assert draws[0].notes[1].startswith("2 cases were left out of the draw")
    with pytest.raises(InputError, match="both 'train' and 'pool'"):
        splits.few_shot_split(source, 4, 2, 0, lists={**lists, "train": ["c001"]})
    fixed = {**lists, "validation": source.ids[20:24]}
    draw = splits.few_shot_split(source, 16, 99, 0, lists=fixed)
    assert draw.validation == source.ids[20:24] and not {*draw.train} & {*draw.validation}


def test_bad_lists_are_refused(tmp_path):
    source = _Source(12)
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "numbers.json").write_text('{"train": [1, 2]}')
    (tmp_path / "empty.txt").write_text("# nothing\n")
    (tmp_path / "typo.txt").write_text("c001\nc0O2\n")
    for lists, words in [
        (
            {"train": ["c001"], "validation": ["c002"], "test": ["c001"]},
            "share 1 case, for.*'c001'",
        ),
        ({"train": tmp_path / "typo.txt"}, r"typo\.txt: there is no case 'c0O2'; the closest is"),
        ({"training": ["c001"]}, "'training' is none of train, validation, test, pool"),
        (tmp_path / "broken.json", r"broken\.json: not valid JSON"),
        (tmp_path / "numbers.json", r"numbers\.json: expected JSON like"),
        (tmp_path / "missing.json", r"missing\.json: the list cannot be read"),
        ({"train": tmp_path / "empty.txt"}, r"empty\.txt: the list is empty"),
        (tmp_path, "neither train.txt nor test.txt"),
    ]:
        with pytest.raises(InputError, match=words):
            splits.few_shot_split(source, 1, 1, seed=0, lists=lists)


def test_too_few_cases_are_counted():
    groups = {f"c{index:03d}": f"p{index % 2}" for index in range(20)}
    with pytest.raises(InputError, match="30 training and 5 validation.*only 24.*6 test"):
        splits.few_shot_split(_Source(30), 30, 5, seed=0)
    with pytest.raises(InputError, match="in 1 independent clusters"):
        splits.few_shot_split(_Source(20, groups=groups), 4, 2, seed=0)
    groups = {f"c{index:03d}": "Ms Miller" for index in range(19)}
    with pytest.raises(InputError, match="'Ms Miller' alone has 19 of all 20 cases, such as c000"):
        splits.few_shot_split(_Source(20, groups=groups), 4, 2, seed=0, test_fraction=0.5)
    copies = {f"c{index:03d}": "c000" for index in range(1, 12)}
    with pytest.raises(InputError, match="one set of look-alikes alone has 12 of all 20"):
        splits.few_shot_split(_Source(20, copies=copies), 15, 2, seed=0)


def test_real_lists(shared_data):
    kvasir = shared_data / "kvasir_seg" / "Kvasir-SEG"
    source = FolderSource(kvasir / "images", kvasir / "masks", name="kvasir_seg")
    lists = shared_data / "splits" / "kvasir_seg"
    parts = {"train": lists / "train.txt", "test": lists / "test.txt"}
    draw = splits.few_shot_split(source, 32, 8, seed=0, lists=parts)
    assert (len(draw.train), len(draw.validation), len(draw.test)) == (32, 8, 100)
    assert {*draw.train, *draw.validation} == set(split_files.read_ids(parts["train"]))
    assert draw.notes == ()


@pytest.mark.parametrize("name", ["isic2017", "kvasir_seg"])
def test_draws_from_a_large_pool_of_real_images(name, shared_data):
    """Seeds share only some of the 40 labelled images when they are drawn from hundreds."""
    folders = {
        "isic2017": [
            ("isic2017/ISIC-2017_Training_Data", "isic2017/ISIC-2017_Training_Part1_GroundTruth"),
            (
                "isic2017/ISIC-2017_Validation_Data",
                "isic2017/ISIC-2017_Validation_Part1_GroundTruth",
            ),
            (
                "isic2017_curve/ISIC-2017_Training_Data",
                "isic2017_curve/ISIC-2017_Training_Part1_GroundTruth",
            ),
        ],
        "kvasir_seg": [
            (f"{part}/Kvasir-SEG/images", f"{part}/Kvasir-SEG/masks")
            for part in ("kvasir_seg", "kvasir_seg_curve")
        ],
    }[name]
    images, masks = ([shared_data / pair[side] for pair in folders] for side in (0, 1))
    source, listed = FolderSource(images, masks, name=name), shared_data / "splits" / name
    survey = Survey(source)
    lists = {
        "pool": [listed / f"{part}.txt" for part in ("train", "extra", "curve")],
        "test": listed / "test.txt",
        "exclude": [listed / "val.txt"],
    }
    draws = [
        splits.few_shot_split(source, 32, 8, seed, lists=lists, survey=survey) for seed in range(3)
    ]
    labelled = [{*draw.train, *draw.validation} for draw in draws]
    pool = {i for part in lists["pool"] for i in split_files.read_ids(part)}
    closed = {*split_files.read_ids(lists["test"]), *split_files.read_ids(listed / "val.txt")}
    for ids, draw in zip(labelled, draws, strict=True):
        assert len(ids) == 40 and ids <= pool and not ids & closed and len(draw.test) == 100
    assert max(len(a & b) for a, b in zip(labelled, labelled[1:], strict=False)) < 10


def test_what_is_not_held_out_trains():
    """The same cases, those that would have validated last; what straddles is then on one side."""
    groups = {f"c{i:03d}": f"patient{i // 2}" for i in range(40)}
    source = _Source(40, groups=groups)
    divided = splits.few_shot_split(source, 12, 4, seed=0)
    whole = splits.few_shot_split(source, 12, 4, seed=0, hold_out=False)
    assert whole.train == (*divided.train, *divided.validation) and whole.validation == ()
    assert whole.test == divided.test and whole.clusters == divided.clusters
    assert whole.groups["train"] == {**divided.groups["train"], **divided.groups["validation"]}
    assert whole.notes == ("no case is held out to validate: all 16 labelled cases train",)
    lists = {"train": ["c000", "c002"], "validation": ["c001"], "test": ["c010"]}
    assert "on two sides" in splits.few_shot_split(source, 0, 0, seed=0, lists=lists).notes[0]
    listed = splits.few_shot_split(source, 0, 0, seed=0, lists=lists, hold_out=False)
    assert listed.train == ("c000", "c002", "c001") and "on two sides" not in listed.notes[0]
