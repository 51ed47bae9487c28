"""Files in, files out, with networks whose answer is known."""

import csv
import hashlib
import json
import os
import threading

import numpy as np
import pytest
from PIL import Image

from fewshotseg.errors import InputError
from fewshotseg.results import predict_files as predict
from fewshotseg.results.predictor import Predictor, probabilities_of

SIZE = 32


def _predictor(function=None, class_names=("lesion",), channels=1):
    def bright(images):
        return (images.mean(axis=-1, keepdims=True) + 1) / 2

    return Predictor(function or bright, SIZE, channels, class_names, 0.5, "test")


def _picture(height=48, width=64):
    image = np.zeros((height, width), np.uint8)
    image[height // 4 : height // 2, width // 4 : width // 2] = 255
    return image


def _save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def _read(path):
    with Image.open(path) as image:
        return np.asarray(image)


def _table(folder):
    with open(folder / "areas.csv", newline="") as file:
        return list(csv.DictReader(file))


def _run(source, target, predictor=None, batch_size=4, log=lambda _: None, **options):
    return predict.predict_files(
        predictor or _predictor(), source, target, batch_size=batch_size, log=log, **options
    )


def test_masks_beside_their_images_are_left_alone(tmp_path):
    for name in ("a.png", "a_mask.png", "a_mask_1.png", "b_mask.png", "b_seg.png"):
        _save(tmp_path / "in" / name, _picture())
    said = []
    rows = _run(tmp_path / "in", tmp_path / "out", log=said.append)
    assert [row["file"] for row in rows] == ["a.png", "b_mask.png", "b_seg.png"]
    assert said[0] == "2 masks lie beside their images and are left alone, e.g. a_mask.png"


def test_one_file(tmp_path):
    _save(tmp_path / "in" / "a.png", _picture())
    rows = _run(tmp_path / "in" / "a.png", tmp_path / "out")
    mask = _read(tmp_path / "out" / "masks" / "a.png")
    assert mask.shape == (48, 64) and set(np.unique(mask)) == {0, 255}
    wrong = (mask > 0) != (_picture() > 0)
    assert wrong.mean() < 0.01
    (row,) = rows
    assert row["area_pixels"] == (mask > 0).sum()
    assert row["share_of_image"] == pytest.approx(row["area_pixels"] / (48 * 64), abs=1e-6)
    assert (row["height"], row["width"], row["class"], row["error"]) == (48, 64, "lesion", "")
    assert (tmp_path / "out" / "overlays" / "a.png").is_file()
    assert _table(tmp_path / "out")[0]["area_pixels"] == str(row["area_pixels"])


def test_folder_of_many_sizes_in_batches(tmp_path):
    sizes = {f"sub/{i}.png" if i % 2 else f"{i}.png": (20 + 7 * i, 60 - 5 * i) for i in range(5)}
    for name, size in sizes.items():
        _save(tmp_path / "in" / name, _picture(*size))
    seen = []

    def bright(images):
        seen.append(images.shape)
        return (images.mean(axis=-1, keepdims=True) + 1) / 2

    _run(tmp_path / "in", tmp_path / "out", _predictor(bright, channels=3), batch_size=2)
    assert set(seen) == {(2, SIZE, SIZE, 3)}
    for name, size in sizes.items():
        mask = _read(tmp_path / "out" / "masks" / name)
        assert mask.shape == size
        assert ((mask > 0) != (_picture(*size) > 0)).mean() < 0.04
    assert {row["file"] for row in _table(tmp_path / "out")} == set(sizes)


def test_several_classes_are_written_as_ids(tmp_path):
    image = _picture()
    image[30:40, 40:60] = 128
    _save(tmp_path / "in" / "a.png", image)

    def three(images):
        level = images[..., 0]
        parts = [level < -0.5, (level >= -0.5) & (level < 0.5), level >= 0.5]
        return np.stack(parts, axis=-1).astype(np.float32)

    rows = _run(tmp_path / "in", tmp_path / "out", _predictor(three, ("grey", "white")))
    mask = _read(tmp_path / "out" / "masks" / "a.png")
    assert set(np.unique(mask)) == {0, 1, 2}
    assert mask[35, 50] == 1 and mask[18, 24] == 2
    assert [(row["class"], row["area_pixels"]) for row in rows] == [
        ("grey", (mask == 1).sum()),
        ("white", (mask == 2).sum()),
    ]


def test_unreadable_files_do_not_stop_the_others(tmp_path):
    folder = tmp_path / "in"
    _save(folder / "a.png", _picture())
    _save(folder / "z.png", _picture())
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n no picture")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "scan.dcm").write_bytes(b"DICM")
    (folder / "notes.txt").write_text("hello")
    lines = []
    rows = _run(folder, tmp_path / "out", log=lines.append)
    errors = {row["file"]: row["error"] for row in rows if row["error"]}
    assert set(errors) == {"broken.png", "empty.jpg", "scan.dcm"}
    assert "empty" in errors["empty.jpg"] and "DICOM" in errors["scan.dcm"]
    assert {row["file"] for row in rows if not row["error"]} == {"a.png", "z.png"}
    assert {p.name for p in (tmp_path / "out" / "masks").iterdir()} == {"a.png", "z.png"}
    assert len(_table(tmp_path / "out")) == 5
    assert any("notes.txt" in line for line in lines)


def test_same_stem_in_other_formats(tmp_path):
    for name in ("a.png", "a.tif", "b.png", "a.tif.png"):
        _save(tmp_path / "in" / name, _picture())
    rows = _run(tmp_path / "in", tmp_path / "out")
    masks = {row["file"]: row["mask"] for row in rows}
    assert len(set(masks.values())) == 4
    assert masks["a.png"] == "masks/a.png.png" and masks["b.png"] == "masks/b.png"
    assert len(list((tmp_path / "out" / "masks").iterdir())) == 4


def test_predicting_again_replaces_and_keeps(tmp_path):
    for name in ("a.png", "b.png", "other/a.tif"):
        _save(tmp_path / "in" / name, _picture())
    out = tmp_path / "out"
    _run(tmp_path / "in", out)
    _save(tmp_path / "in" / "a.png", _picture() * 0)
    lines = []
    _run(tmp_path / "in" / "a.png", out, log=lines.append)
    assert any("before" in line for line in lines)
    assert not _read(out / "masks" / "a.png").any() and _read(out / "masks" / "b.png").any()
    areas = {row["file"]: row["area_pixels"] for row in _table(out)}
    assert set(areas) == {"a.png", "b.png", "other/a.tif"}
    assert areas["a.png"] == "0" and areas["b.png"] != "0"
    # Another file with the stem of one already there does not take its name.
    _run(tmp_path / "in" / "other" / "a.tif", out)
    masks = {row["file"]: row["mask"] for row in _table(out)}
    assert masks["a.png"] == "masks/a.png" and masks["a.tif"] == "masks/a.tif.png"


def test_input_folder_is_never_written(tmp_path):
    _save(tmp_path / "in" / "a.png", _picture())
    before = _fingerprint(tmp_path / "in")
    for target in (tmp_path / "in", tmp_path / "in" / "out"):
        with pytest.raises(InputError, match="output folder is in the input folder"):
            _run(tmp_path / "in", target)
    with pytest.raises(InputError, match="output folder is in the input folder"):
        _run(tmp_path / "in" / "a.png", tmp_path / "in")
    _run(tmp_path / "in", tmp_path / "out")
    assert _fingerprint(tmp_path / "in") == before


def _fingerprint(folder):
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else ""
        for p in folder.rglob("*")
    }


def test_masks_from_elsewhere_are_not_overwritten(tmp_path):
    _save(tmp_path / "data" / "images" / "a.png", _picture())
    _save(tmp_path / "data" / "masks" / "a.png", _picture())
    with pytest.raises(InputError, match="not written by a prediction"):
        _run(tmp_path / "data" / "images", tmp_path / "data")
    (tmp_path / "sheet").mkdir()
    (tmp_path / "sheet" / "areas.csv").write_text("field,area\nnorth,3\n")
    with pytest.raises(InputError, match="no table of predictions"):
        _run(tmp_path / "data" / "images", tmp_path / "sheet")


def test_no_input(tmp_path):
    with pytest.raises(InputError, match="no such file or folder"):
        _run(tmp_path / "nothing", tmp_path / "out")
    (tmp_path / "in").mkdir()
    with pytest.raises(InputError, match="no images in this folder"):
        _run(tmp_path / "in", tmp_path / "out")


def test_a_network_of_nan_is_named_and_finished_files_stay(tmp_path):
    for name in ("a.png", "b.png"):
        _save(tmp_path / "in" / name, _picture() if name == "a.png" else _picture() * 0)

    def fails_in_the_dark(images):
        return np.where(images.max() > 0, (images + 1) / 2, np.nan)

    with pytest.raises(InputError, match="b.png: the model predicts NaN"):
        _run(tmp_path / "in", tmp_path / "out", _predictor(fails_in_the_dark), batch_size=1)
    assert [row["file"] for row in _table(tmp_path / "out")] == ["a.png"]


def test_speed_is_reported_without_compilation(tmp_path, monkeypatch):
    for name in ("a.png", "b.png"):
        _save(tmp_path / "in" / name, _picture())
    lines, clock = [], [0.0]
    monkeypatch.setattr(predict.time, "perf_counter", lambda: clock[0])

    def slow_at_first(images):
        clock[0] += 0.5 if clock[0] else 30.0
        return (images + 1) / 2

    rows = _run(tmp_path / "in", tmp_path / "out", _predictor(slow_at_first), log=lines.append)
    assert "2 of 2 images in 0.50 s: 4.0 images per second" in lines[-1]
    assert "250.0 ms of the network for each" in lines[-1]
    assert "compilation, 30.00 s" in lines[-1]
    assert [row["seconds"] for row in rows] == [0.25, 0.25]


def test_broken_headers_are_told_before_the_network_is_compiled(tmp_path):
    _save(tmp_path / "in" / "a.png", _picture())
    (tmp_path / "in" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n no picture")
    (tmp_path / "in" / "scan.dcm").write_bytes(b"DICM")
    events = []

    def bright(images):
        events.append("network")
        return (images.mean(axis=-1, keepdims=True) + 1) / 2

    rows = _run(tmp_path / "in", tmp_path / "out", _predictor(bright), log=events.append)
    told = next(i for i, event in enumerate(events) if event.startswith("2 of 3 files cannot"))
    assert told < events.index("network")
    assert "broken.png, scan.dcm" in events[told]
    assert {row["file"]: bool(row["error"]) for row in rows} == {
        "broken.png": True, "scan.dcm": True, "a.png": False
    }  # fmt: skip
    # Nothing to segment: nothing is compiled, and the table says why.
    events.clear()
    (tmp_path / "in" / "a.png").unlink()
    _run(tmp_path / "in", tmp_path / "out2", _predictor(bright), log=events.append)
    assert "network" not in events
    assert [row["file"] for row in _table(tmp_path / "out2")] == ["broken.png", "scan.dcm"]


def test_a_file_that_ends_too_early_is_found_when_it_is_read(tmp_path):
    for name in ("a.png", "b.png"):
        _save(tmp_path / "in" / name, _picture(200, 200))
    data = (tmp_path / "in" / "a.png").read_bytes()
    (tmp_path / "in" / "a.png").write_bytes(data[: len(data) - 40])
    rows = _run(tmp_path / "in", tmp_path / "out")
    assert [(row["file"], bool(row["error"])) for row in rows] == [
        ("a.png", True),
        ("b.png", False),
    ]


def test_overlays_can_be_left_out_and_are_compressed_fast(tmp_path):
    _save(tmp_path / "in" / "a.png", _picture())
    _run(tmp_path / "in", tmp_path / "without", overlays=False)
    names = {p.name for p in (tmp_path / "without").iterdir()}
    assert names == {"areas.csv", "manifest.json", "masks"}
    _run(tmp_path / "in", tmp_path / "out")
    data = (tmp_path / "out" / "overlays" / "a.png").read_bytes()
    start = data.index(b"IDAT") + 4
    assert data[start : start + 2] == b"\x78\x01"  # zlib's mark of its fastest level


def test_batches_at_a_time_are_in_the_order_of_the_files(tmp_path):
    """The first batch waits in the network until the second one has come, too."""
    for i in range(4):
        _save(tmp_path / "in" / f"{i}.png", _picture() // (i + 1))
    both, calls = threading.Barrier(2, timeout=60), []

    def meets(images):
        calls.append(len(images))
        if len(calls) in (2, 3):  # after the one that compiles
            both.wait()
        return (images + 1) / 2

    rows = _run(tmp_path / "in", tmp_path / "out", _predictor(meets), batch_size=2)
    assert [row["file"] for row in rows] == [f"{i}.png" for i in range(4)] and calls == [2, 2, 2]
    alone = _run(tmp_path / "in", tmp_path / "alone", batch_size=2, workers=1)
    assert [r["area_pixels"] for r in rows] == [r["area_pixels"] for r in alone]


def test_probabilities_can_be_kept(tmp_path):
    image = _picture()
    _save(tmp_path / "in" / "sub" / "a.png", image)
    _run(tmp_path / "in", tmp_path / "out", probabilities=True)
    found = np.load(tmp_path / "out" / "probabilities" / "sub" / "a.npy")
    (wanted,) = probabilities_of(_predictor(), [image[..., None]], ["a"], 1)
    assert found.dtype == np.float32 and found.shape == (48, 64, 1)
    np.testing.assert_array_equal(found, wanted)
    mask = _read(tmp_path / "out" / "masks" / "sub" / "a.png") > 0
    np.testing.assert_array_equal(mask, found[..., 0] >= 0.5)


def test_the_manifest_says_what_was_done(tmp_path, monkeypatch):
    for name in ("a.png", "b.png", "c.png"):
        _save(tmp_path / "in" / name, _picture())
    (tmp_path / "in" / "broken.png").write_bytes(b"no picture")
    clock = [0.0]
    monkeypatch.setattr(predict.time, "perf_counter", lambda: clock[0])

    def slow(images):
        clock[0] += 2.0
        return (images + 1) / 2

    _run(tmp_path / "in", tmp_path / "out", _predictor(slow), batch_size=2, workers=1)
    found = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (found["files"], found["failed"], found["threshold"]) == (3, 1, 0.5)
    assert found["seconds"]["compilation"] == 2.0 and found["seconds"]["network"] == 4.0
    assert found["seconds"]["total"] == 4.0 and found["seconds"]["writing"] == 0.0
    assert found["model"] == "test" and found["versions"]["numpy"] == np.__version__


def test_a_file_that_cannot_be_read_any_more_keeps_no_mask(tmp_path):
    for name in ("a.png", "b.png", "late.png"):
        _save(tmp_path / "in" / name, _picture(200, 200))
    out, said = tmp_path / "out", []
    _run(tmp_path / "in", out, probabilities=True)
    (tmp_path / "in" / "a.png").write_bytes(b"")
    data = (tmp_path / "in" / "late.png").read_bytes()
    (tmp_path / "in" / "late.png").write_bytes(data[: len(data) - 40])
    rows = _run(tmp_path / "in", out, log=said.append)
    assert [row["file"] for row in rows if not row["error"]] == ["b.png"]
    for folder, name in (("masks", "b.png"), ("overlays", "b.png"), ("probabilities", "b.npy")):
        assert [p.name for p in (out / folder).iterdir()] == [name]
    assert any("2 file(s) were predicted" in line and "are replaced" in line for line in said)
    assert any("masks are removed: a.png, late.png" in line for line in said)
    # A mask of a file that has not been asked for stays, and nothing outside of the folder goes.
    (tmp_path / "in" / "b.png").write_bytes(b"")
    table = (out / "areas.csv").read_text()
    (out / "areas.csv").write_text(table.replace("masks/b.png", "../in/b.png"))
    _run(tmp_path / "in" / "b.png", out)
    assert (tmp_path / "in" / "b.png").exists()


def test_a_table_that_another_program_has_saved(tmp_path):
    _save(tmp_path / "in" / "Müller.png", _picture())
    table = tmp_path / "out" / "areas.csv"
    _run(tmp_path / "in", tmp_path / "out")
    text = table.read_text(encoding="utf-8")
    table.write_text(text, encoding="utf-8-sig")
    _run(tmp_path / "in", tmp_path / "out")
    assert len(_table(tmp_path / "out")) == 1
    table.write_text(text, encoding="cp1252")
    with pytest.raises(InputError, match=r"areas.csv: is no table of predictions. Choose another"):
        _run(tmp_path / "in", tmp_path / "out")


def test_links_to_folders_and_names_that_are_not_utf8(tmp_path):
    for name in ("_b/b.png", ".hidden/c.png", "__MACOSX/d.png"):
        _save(tmp_path / "in" / name, _picture())
    _save(tmp_path / "elsewhere" / "e.png", _picture())
    (tmp_path / "in" / "site").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "site" / "back").symlink_to(tmp_path / "in")
    _save(tmp_path / "in" / os.fsdecode(b"M\xfc.png"), _picture())
    (tmp_path / "in" / os.fsdecode(b"M\xfc.txt")).write_text("of the ward")
    said = []
    rows = _run(tmp_path / "in", tmp_path / "out", log=lambda line: said.append(line.encode()))
    assert {row["file"]: bool(row["error"]) for row in rows} == {
        "M\\xfc.png": True, "_b/b.png": False, "site/e.png": False
    }  # fmt: skip
    assert rows[0]["error"].endswith("the name is not UTF-8: rename it.")
