"""Metrics against hand-computed values, MedPy and SciPy."""

import math

import numpy as np
import pytest
from scipy import stats

from fewshotseg.results import metrics


def _blobs(rng, shape, share):
    """Irregular masks: smooth-ish noise cut at a quantile, some parts touching the edge."""
    noise = rng.random(shape)
    for axis in range(len(shape)):
        noise = noise + np.roll(noise, 1, axis) + np.roll(noise, 2, axis)
    return (noise > np.quantile(noise, 1 - share)).astype(np.uint8)


def _binary(prediction, reference, **kwargs):
    (row,) = metrics.case_metrics(np.array(prediction), np.array(reference), 2, **kwargs)
    return row


def test_hand_computed():
    # 2 pixels common, 3 predicted, 4 wanted.
    row = _binary([[1, 1, 1, 0], [0, 0, 0, 0]], [[0, 1, 1, 0], [0, 1, 1, 0]])
    assert row["dice"] == pytest.approx(4 / 7)
    assert row["jaccard"] == pytest.approx(2 / 5)
    assert row["sensitivity"] == pytest.approx(2 / 4)
    assert row["precision"] == pytest.approx(2 / 3)
    assert (row["prediction_size"], row["reference_size"], row["intersection"]) == (3, 4, 2)
    assert row["status"] == "ok" and math.isnan(row["false_positive_area"])


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((31, 40), None), ((31, 40), (0.5, 2.0)), ((9, 14, 12), None), ((9, 14, 12), (3.0, 0.7, 1.1))],
)
def test_agrees_with_medpy(shape, spacing):
    medpy = pytest.importorskip("medpy.metric.binary")
    rng = np.random.default_rng(0)
    for share_a, share_b in [(0.3, 0.3), (0.05, 0.4), (0.002, 0.003), (0.9, 0.5)]:
        a, b = _blobs(rng, shape, share_a), _blobs(rng, shape, share_b)
        row = _binary(a, b, spacing=spacing)
        assert row["dice"] == pytest.approx(medpy.dc(a, b), abs=1e-12)
        assert row["jaccard"] == pytest.approx(medpy.jc(a, b), abs=1e-12)
        assert row["sensitivity"] == pytest.approx(medpy.sensitivity(a, b), abs=1e-12)
        assert row["precision"] == pytest.approx(medpy.precision(a, b), abs=1e-12)
        assert row["hd95"] == pytest.approx(medpy.hd95(a, b, voxelspacing=spacing), abs=1e-9)


def test_hd95_and_surface_dice_of_two_pixels():
    a, b = np.zeros((10, 10), int), np.zeros((10, 10), int)
    a[2, 2], b[5, 6] = 1, 1
    assert _binary(a, b)["hd95"] == 5.0
    assert _binary(a, b, spacing=(2.0, 0.5))["hd95"] == pytest.approx(math.hypot(6, 2))
    assert _binary(a, b, tolerance=4.9)["nsd"] == 0.0
    assert _binary(a, b, tolerance=5.0)["nsd"] == 1.0
    assert "nsd" not in _binary(a, b)


def test_surface_dice_counts_both_surfaces():
    # Columns 0 and 1 of 4 rows against column 0: 8 surface pixels and 4; the 4 of column 1 are off.
    a, b = np.zeros((4, 5), int), np.zeros((4, 5), int)
    a[:, :2], b[:, 0] = 1, 1
    assert _binary(a, b, tolerance=0.5)["nsd"] == pytest.approx(8 / 12)


def test_each_class_is_measured_on_its_own():
    prediction, reference = np.array([[1, 1, 2, 2, 0]]), np.array([[1, 2, 2, 2, 3]])
    one, two, three = metrics.case_metrics(prediction, reference, 4)
    assert one["dice"] == pytest.approx(2 / 3)
    assert two["dice"] == pytest.approx(4 / 5)
    assert three["dice"] == 0.0 and three["status"] == "prediction_empty"


def test_empty_masks():
    empty, some = np.zeros((3, 4), int), np.eye(3, 4, dtype=int)
    both = _binary(empty, empty, tolerance=1)
    assert both["status"] == "both_empty"
    for name in metrics.METRICS:
        assert math.isnan(both[name]), name
    false_alarm = _binary(some, empty, tolerance=1, spacing=(2.0, 3.0))
    assert false_alarm["status"] == "reference_empty"
    assert false_alarm["false_positive_area"] == 3
    assert (false_alarm["dice"], false_alarm["precision"], false_alarm["nsd"]) == (0, 0, 0)
    assert math.isnan(false_alarm["sensitivity"])
    assert false_alarm["hd95"] == pytest.approx(math.hypot(6, 12))
    missed = _binary(empty, some)
    assert missed["status"] == "prediction_empty"
    assert (missed["dice"], missed["sensitivity"], missed["hd95"]) == (0, 0, 5)
    assert math.isnan(missed["precision"]) and math.isnan(missed["false_positive_area"])


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="shapes differ"):
        metrics.case_metrics(np.zeros((2, 3)), np.zeros((3, 2)), 2)
    with pytest.raises(ValueError, match="reference holds class ids 0 to 2, expected 0 to 1"):
        metrics.case_metrics(np.zeros((1, 2)), np.array([[0, 2]]), 2)


def test_aggregate_counts_and_pools():
    masks = np.zeros((4, 1, 8), int)
    masks[0, 0, :8], masks[1, 0, 0], masks[2, 0, :3] = 1, 1, 1
    references = masks.copy()
    references[1], references[2] = 0, 0
    references[2, 0, 0] = 1
    rows = [_binary(m, r) for m, r in zip(masks, references, strict=True)]
    result = metrics.aggregate(rows)  # Dice 1, 0 (false alarm), 2/4, undefined
    assert result["num_cases"] == 4
    assert (result["both_empty"], result["reference_empty"], result["prediction_empty"]) == (
        (1, 1, 0)
    )
    dice = result["dice"]
    assert (dice["n"], dice["n_nan"]) == (3, 1)
    assert dice["mean"] == pytest.approx(0.5) and dice["median"] == 0.5
    assert dice["sd"] == pytest.approx(0.5)
    assert result["pooled_dice"] == pytest.approx(2 * 9 / (8 + 8 + 1 + 3 + 1))
    assert result["false_positive_area"]["mean"] == 1 and result["false_positive_area"]["n"] == 1


def test_aggregate_of_only_undefined_cases():
    empty = np.zeros((2, 2), int)
    dice = metrics.aggregate([_binary(empty, empty)] * 3)["dice"]
    assert math.isnan(dice["mean"]) and (dice["n"], dice["n_nan"]) == (0, 3)
    assert all(math.isnan(end) for end in dice["ci95"])


def test_bootstrap_interval_is_near_the_normal_one():
    values = np.random.default_rng(1).normal(0.7, 0.1, 400)
    low, high = metrics.bootstrap_interval(values)
    half = 1.96 * values.std(ddof=1) / 20
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert (low, high) == metrics.bootstrap_interval(values)
    assert (low, high) != metrics.bootstrap_interval(values, seed=1)


def test_bootstrap_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(2)
    hits = 0
    for i in range(200):
        low, high = metrics.bootstrap_interval(rng.beta(4, 2, 40), seed=i, resamples=500)
        hits += low <= 4 / 6 <= high
    assert 0.90 <= hits / 200 <= 0.985


def test_bootstrap_draws_whole_groups():
    # Ten identical copies of each of eight values say no more than the eight values do.
    values = np.random.default_rng(3).random(8)
    groups = [f"patient {i}" for i in range(8) for _ in range(10)]
    grouped = metrics.bootstrap_interval(np.repeat(values, 10), groups)
    assert grouped == pytest.approx(metrics.bootstrap_interval(values), abs=0.003)
    alone = metrics.bootstrap_interval(np.repeat(values, 10))
    assert (grouped[1] - grouped[0]) > 2.5 * (alone[1] - alone[0])
    unknown = metrics.bootstrap_interval(np.repeat(values, 10), [""] * 80)
    assert unknown[1] - unknown[0] == pytest.approx(alone[1] - alone[0], rel=0.1)


def test_aggregate_draws_whole_groups_of_defined_cases():
    dice = [0.1, 0.2, 0.9, 0.8, math.nan, 0.7]
    groups = ["a", "a", "b", "b", "b", "c"]
    result = metrics.aggregate([{"dice": value} for value in dice], groups)
    expected = metrics.bootstrap_interval([0.1, 0.2, 0.9, 0.8, 0.7], ["a", "a", "b", "b", "c"])
    assert result["dice"]["ci95"] == expected
    assert expected != metrics.bootstrap_interval([0.1, 0.2, 0.9, 0.8, 0.7])


def test_bootstrap_interval_without_spread():
    assert metrics.bootstrap_interval([0.5, 0.5, 0.5]) == (0.5, 0.5)
    assert all(math.isnan(end) for end in metrics.bootstrap_interval([0.5]))
    assert all(math.isnan(end) for end in metrics.bootstrap_interval([0.5, 0.6], ["a", "a"]))


def test_mean_over_classes_leaves_out_undefined_ones():
    rows = metrics.case_metrics(np.array([[1, 1, 0, 2]]), np.array([[1, 1, 2, 0]]), 4)
    assert metrics.mean_over_classes(rows)["dice"] == pytest.approx((1 + 0) / 2)


def test_summarise_seeds():
    result = metrics.summarise_seeds([0.70, 0.74, 0.78])
    assert result["mean"] == pytest.approx(0.74) and result["sd"] == pytest.approx(0.04)
    # Student's t with 2 degrees of freedom has its 97.5 % point at 4.3027.
    half = 4.302653 * 0.04 / math.sqrt(3)
    assert result["ci95"] == pytest.approx((0.74 - half, 0.74 + half), abs=1e-6)
    single = metrics.summarise_seeds([0.7])
    assert single["mean"] == 0.7 and single["n"] == 1 and math.isnan(single["sd"])


def test_paired_difference():
    rng = np.random.default_rng(4)
    b = {f"case {i}": value for i, value in enumerate(rng.random(30))}
    a = {name: value + 0.05 + 0.02 * rng.normal() for name, value in b.items()}
    result = metrics.paired_difference(a, b)
    differences = [a[name] - b[name] for name in b]
    assert result["mean"] == pytest.approx(np.mean(differences))
    assert result["ci95"][0] > 0.03 and result["ci95"][1] < 0.07
    assert result["p_wilcoxon"] == pytest.approx(stats.wilcoxon(differences).pvalue)
    assert (result["n"], result["n_left_out"]) == (30, 0)


def test_paired_difference_of_few_and_equal_cases():
    # All five differences positive: the exact two-sided p is 2 / 2 ** 5.
    a = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0, "e": 5.0, "lost": 1.0, "undefined": math.nan}
    b = {**dict.fromkeys("abcde", 0.0), "undefined": 0.5}
    result = metrics.paired_difference(a, b)
    assert result["p_wilcoxon"] == pytest.approx(2 / 32)
    assert (result["n"], result["n_left_out"]) == (5, 2)
    assert metrics.paired_difference(a, a)["p_wilcoxon"] == 1.0
