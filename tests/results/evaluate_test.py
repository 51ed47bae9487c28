"""Evaluation with networks whose answer is known."""

import csv
import json
import math
import pathlib

import numpy as np
import pytest

from fewshotseg import files
from fewshotseg.data import canvas
from fewshotseg.errors import InputError
from fewshotseg.results import examples, metrics, statistics
from fewshotseg.results.evaluate import evaluate, evaluate_model, threshold_baseline
from fewshotseg.results.predictor import Predictor
from fewshotseg.types import Case

SIZE = 16


class _Source:
    """Cases in memory; the image shows the mask, brighter for a higher class id."""

    name = "bright squares"
    official_splits: dict = {}

    def __init__(self, masks, class_names=("lesion",), groups=None):
        self.class_names = class_names
        self.masks = {f"case/{i:02d}": np.asarray(m, np.uint8) for i, m in enumerate(masks)}
        self.ids = tuple(self.masks)
        self.groups = dict(zip(self.ids, groups or [""] * len(self.ids), strict=True))

    def load(self, case_id):
        mask = self.masks[case_id]
        image = (mask * np.uint8(255 // len(self.class_names)))[..., None]
        return Case(case_id, image, mask, self.groups[case_id])


def _square(rows, columns, size=SIZE):
    mask = np.zeros((size, size), np.uint8)
    mask[:rows, :columns] = 1
    return mask


def _brightness(images):
    """The perfect network for one class."""
    return (images.mean(axis=-1, keepdims=True) + 1) / 2


def _run(predict, source, folder, ids=None, **settings):
    channels = settings.pop("channels", 1)
    predictor = Predictor(predict, SIZE, channels, source.class_names, 0.5, "test")
    return evaluate(predictor, source, source.ids if ids is None else ids, folder, **settings)


def test_perfect_network(tmp_path):
    source = _Source([_square(8, 8), _square(4, 16), _square(16, 3)])
    summary = _run(_brightness, source, tmp_path, channels=3)
    assert summary["num_cases"] == 3 and summary["num_empty"] == 0
    assert summary["mean"]["dice"]["mean"] == 1.0 and summary["mean"]["hd95"]["mean"] == 0.0
    assert summary["classes"]["lesion"]["dice"]["n"] == 3
    assert summary["classes"]["lesion"]["pooled_dice"] == 1.0


def test_last_batch_is_filled_up_and_the_filling_does_not_count(tmp_path):
    shapes, steps = [], []

    def left_half(images):
        shapes.append(images.shape)
        assert images.dtype == np.float32 and images.min() >= -1 and images.max() <= 1
        return np.broadcast_to(_square(16, 8)[None, ..., None], images.shape).astype(np.float32)

    source = _Source([_square(16, 8)] * 3 + [_square(16, 16)] * 4)
    summary = _run(
        left_half, source, tmp_path, batch_size=3, progress=lambda *step: steps.append(step)
    )
    assert set(shapes) == {(3, SIZE, SIZE, 1)}
    assert steps == [(3, 7), (6, 7), (7, 7)]
    assert summary["mean"]["dice"]["n"] == 7
    assert summary["mean"]["dice"]["mean"] == pytest.approx((3 * 1 + 4 * 2 / 3) / 7)
    assert summary["mean"]["sensitivity"]["mean"] == pytest.approx((3 * 1 + 4 * 0.5) / 7)


def test_batch_size_changes_nothing(tmp_path):
    source = _Source([_square(3 + i, 9) for i in range(7)])

    def left(images):
        return _brightness(images) * (np.arange(SIZE) < 7)[None, None, :, None]

    one = _run(left, source, tmp_path / "a", batch_size=1)
    five = _run(left, source, tmp_path / "b", batch_size=5)
    assert {**one, "seconds": 0} == {**five, "seconds": 0}


def test_metrics_are_taken_at_the_original_size(tmp_path):
    medpy = pytest.importorskip("medpy.metric.binary")
    masks = [np.zeros(shape, np.uint8) for shape in ((50, 30), (23, 61))]
    masks[0][10:31, 7:20], masks[1][4:17, 20:47] = 1, 1
    source = _Source(masks)
    _run(_brightness, source, tmp_path)
    rows = json.loads((tmp_path / "cases.json").read_text())
    for row, mask, case_id in zip(rows, masks, source.ids, strict=True):
        seen = canvas.to_network_image(source.load(case_id).image, SIZE, 1)
        restored = canvas.restore_probabilities((seen + 1) / 2, mask.shape)
        expected = restored[..., 0] >= 0.5
        assert (row["height"], row["width"]) == mask.shape
        assert row["reference_size"] == mask.sum()
        assert row["prediction_size"] == expected.sum()
        assert row["dice"] == pytest.approx(medpy.dc(expected, mask))
        assert row["hd95"] == pytest.approx(medpy.hd95(expected, mask))
        assert 0.8 < row["dice"] < 1


def test_empty_masks_and_files(tmp_path):
    # Right nothing, false alarm, miss, hit.
    answers = [_square(0, 0), _square(2, 5), _square(0, 0), _square(4, 4)]
    masks = [_square(0, 0), _square(0, 0), _square(3, 3), _square(4, 4)]
    summary = _run(lambda _: np.float32(answers)[..., None], _Source(masks), tmp_path, batch_size=4)
    lesion = summary["classes"]["lesion"]
    assert (summary["num_cases"], summary["num_empty"]) == (4, 2)
    assert (lesion["dice"]["n"], lesion["dice"]["n_nan"]) == (3, 1)
    assert lesion["dice"]["mean"] == pytest.approx(1 / 3)
    assert lesion["hd95"]["mean"] == pytest.approx(2 / 3 * math.hypot(SIZE, SIZE))
    assert (lesion["both_empty"], lesion["reference_empty"], lesion["prediction_empty"]) == (
        (1, 1, 1)
    )
    assert lesion["false_positive_area"]["mean"] == 10
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written["convention"] == metrics.CONVENTION
    assert written["classes"]["lesion"]["false_positive_area"]["sd"] is None
    assert "NaN" not in (tmp_path / "cases.json").read_text()
    with open(tmp_path / "cases.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["dice"] for row in rows] == ["", "0.0", "0.0", "1.0"]
    assert [row["status"] for row in rows][:2] == ["both_empty", "reference_empty"]
    assert {p.suffix for p in tmp_path.iterdir()} == {".csv", ".json", ""}


def test_several_classes(tmp_path):
    masks = [_square(8, 8) + _square(4, 4), _square(8, 8)]  # class 2 inside class 1; class 1 alone
    source = _Source(masks, ("lesion", "core"))

    def always_class_one(images):
        found = images[..., 0] > -0.5
        return np.stack([~found, found * 0.6, found * 0.4], axis=-1).astype(np.float32)

    summary = _run(always_class_one, source, tmp_path)
    lesion, core = summary["classes"]["lesion"], summary["classes"]["core"]
    first = 2 * 48 / (48 + 64)
    assert lesion["dice"]["mean"] == pytest.approx((first + 1) / 2)
    assert (core["dice"]["mean"], core["dice"]["n"], core["dice"]["n_nan"]) == (0, 1, 1)
    assert summary["mean"]["dice"]["mean"] == pytest.approx((first / 2 + 1) / 2)
    assert summary["mean"]["pooled_dice"] == pytest.approx((2 * 112 / (112 + 128) + 0) / 2)


def test_groups_widen_the_interval(tmp_path):
    masks = [_square(16, 8)] * 15 + [_square(16, 16)] * 15

    def left_half(images):
        return np.broadcast_to(_square(16, 8)[None, ..., None], images.shape).astype(np.float32)

    widths = []
    for groups in (None, [letter for letter in "abcdef" for _ in range(5)]):
        summary = _run(left_half, _Source(masks, groups=groups), tmp_path)
        low, high = summary["mean"]["dice"]["ci95"]
        widths.append(high - low)
    assert summary["num_groups"] == 6
    assert widths[1] > 1.5 * widths[0]


def test_examples(tmp_path):
    source = _Source([_square(16, 1 + i) for i in range(15)])

    def full(images):
        return np.ones_like(images)

    summary = _run(full, source, tmp_path, batch_size=4)
    names = sorted(path.name for path in (tmp_path / "examples").iterdir())
    assert len(names) == 5 + 4 + 4 and names == sorted(
        pathlib.Path(example["file"]).name for example in summary["examples"]
    )
    assert "worst_1_case_00.png" in names and "best_1_case_14.png" in names
    assert "median_1_case_06.png" in names
    _run(full, source, tmp_path, ids=source.ids[:3])
    assert sorted(path.name for path in (tmp_path / "examples").iterdir()) == [
        "best_1_case_02.png",
        "median_1_case_01.png",
        "worst_1_case_00.png",
    ]


@pytest.mark.parametrize("count", range(7))
def test_no_example_twice(count):
    dice = {**{str(i): i / 10 for i in range(count)}, "undefined": math.nan}
    ids = [case_id for _, case_id in examples.choose(dice)]
    assert len(ids) == len(set(ids)) and "undefined" not in ids
    assert len(ids) >= min(count, 3)


def test_what_is_refused(tmp_path):
    source = _Source([_square(8, 8), _square(4, 4)])

    def broken(images):
        probabilities = _brightness(images)
        probabilities[1, 3, 3] = np.nan
        return probabilities

    with pytest.raises(InputError, match="bright squares, case case/01: .*NaN"):
        _run(broken, source, tmp_path)
    with pytest.raises(InputError, match="no test cases"):
        _run(_brightness, source, tmp_path, ids=[])
    with pytest.raises(InputError, match="case/00 is listed twice"):
        _run(_brightness, source, tmp_path, ids=["case/00", "case/01", "case/00"])
    with pytest.raises(InputError, match=r"case case/00: .*class ids up to 2.*knows 1 class"):
        _run(_brightness, _Source([2 * _square(8, 8)]), tmp_path)
    with pytest.raises(ValueError, match="network returned"):
        _run(lambda images: np.zeros((*images.shape[:3], 3)), source, tmp_path)
    assert not (tmp_path / "summary.json").exists()


def test_filling_with_nan_does_not_count(tmp_path):
    def nan_after_first(images):
        probabilities = _brightness(images)
        probabilities[1:] = np.nan
        return probabilities

    assert _run(nan_after_first, _Source([_square(8, 8)]), tmp_path)["num_cases"] == 1


def test_surface_dice_pooled_dice_and_calibration_by_hand(tmp_path):
    """Columns 0 to 7 wanted of 16; predicted one column too many, with probability 0.75."""
    source = _Source([_square(16, 8)])

    def wide(images):
        return np.broadcast_to(0.75 * _square(16, 9)[None, ..., None], images.shape)

    summary = _run(wide, source, tmp_path, nsd_tolerance=0.01)
    lesion = summary["classes"]["lesion"]
    assert lesion["pooled_dice"] == pytest.approx(2 * 128 / (128 + 144))
    # Outlines of 8 and 9 columns of 16 rows, with their cut corners: 44 + 2 sqrt(2), 46 + 2 sqrt(2).
    # Within 0.01 * 16 * sqrt(2) = 0.2 pixels: all but the right side, 15 and 15 + sqrt(2).
    corners = 2 * math.sqrt(2)
    within = 44 + corners - 15 + 46 + corners - 15 - math.sqrt(2)
    assert lesion["nsd"]["mean"] == pytest.approx(within / (90 + 2 * corners))
    assert _run(wide, source, tmp_path, nsd_tolerance=0.05)["mean"]["nsd"]["mean"] == 1.0
    # 144 pixels at 0.75, of which 128 are foreground; 112 at 0, all background.
    assert lesion["ece"] == pytest.approx(144 / 256 * (128 / 144 - 0.75))
    assert lesion["calibration"]["pixels"] == [112] + [0] * 6 + [144, 0, 0]
    assert lesion["calibration"]["frequency"][7] == pytest.approx(128 / 144)
    assert summary["mean"]["ece"] == lesion["ece"]
    assert summary["nsd_tolerance"] == "0.01 of the image's diagonal"


def test_calibration_of_several_classes(tmp_path):
    masks = [_square(8, 8) + _square(4, 4)]

    def unsure(images):
        shape = (*images.shape[:3], 3)
        return np.broadcast_to(np.float32([0.25, 0.5, 0.25]), shape)

    classes = _run(unsure, _Source(masks, ("lesion", "core")), tmp_path)["classes"]
    assert classes["lesion"]["ece"] == pytest.approx(0.5 - 48 / 256)
    assert classes["core"]["ece"] == pytest.approx(0.25 - 16 / 256)


def test_clusters_are_drawn_whole(tmp_path):
    """Copies of six images are six clusters: the interval is that of the six."""
    masks = [_square(16, width) for width in (8, 9, 10, 12, 14, 16) for _ in range(6)]

    def left_half(images):
        return np.broadcast_to(_square(16, 8)[None, ..., None], images.shape).astype(np.float32)

    source = _Source(masks)
    clusters = {case_id: i // 6 for i, case_id in enumerate(source.ids)}
    alone = _run(left_half, source, tmp_path)
    linked = _run(left_half, source, tmp_path, clusters=clusters)
    assert (alone["bootstrap_over"], linked["bootstrap_over"]) == ("36 cases", "6 clusters")
    dice = [2 * 8 / (8 + width) for width in (8, 9, 10, 12, 14, 16)]
    expected = statistics.bootstrap_interval(dice)
    assert linked["mean"]["dice"]["ci95"] == pytest.approx(expected, abs=0.01)
    assert np.ptp(linked["mean"]["dice"]["ci95"]) > 1.7 * np.ptp(alone["mean"]["dice"]["ci95"])


def test_clusters_come_from_the_splits_of_the_run(tmp_path):
    masks = [_square(16, 8)] * 3 + [_square(16, 12)] * 3
    source = _Source(masks)
    clusters = {case_id: i // 3 for i, case_id in enumerate(source.ids)}
    files.write_json(
        tmp_path / "splits.json", {"train": [], "clusters": {"near": clusters, "far": {}}}
    )
    predictor = Predictor(_brightness, SIZE, 1, source.class_names, 0.5, "test")
    evaluate_model(predictor, {"near": (source, source.ids)}, tmp_path / "real_only")
    summary = json.loads(
        (tmp_path / "real_only" / "evaluation" / "near" / "summary.json").read_text()
    )
    assert summary["bootstrap_over"] == "2 clusters"


def test_of_equal_dice_the_case_with_more_wrong_pixels_is_worse(tmp_path):
    masks = [_square(1 + i % 5, 3) for i in range(20)] + [_square(9, 9), _square(0, 0)]
    dice = dict.fromkeys(("a", "b", "c", "d", "e", "f"), 0.0)
    missed = {"a": 5, "b": 50, "c": 7, "d": 100, "e": 1, "f": 2}
    assert [i for _, i in examples.choose(dice, missed)][:2] == ["d", "b"]
    summary = _run(lambda images: np.zeros_like(images), _Source(masks), tmp_path)
    assert summary["examples"][0]["case"] == "case/20"


def test_threshold_baseline_per_case(tmp_path):
    """Bright squares are found by one threshold; the mean leaves out what has no Dice."""
    source = _Source([_square(8, 8), _square(4, 4), _square(0, 0)])
    test = {"test": (source, source.ids)}
    found = threshold_baseline([source.load(source.ids[0])], test, tmp_path)
    assert found == {"test": 1.0}
    written = json.loads((tmp_path / "threshold.json").read_text())["test"]
    assert written["polarity"] == "bright" and written["threshold"] == 1
    assert written["by_case"] == {"case/00": 1.0, "case/01": 1.0, "case/02": None}
