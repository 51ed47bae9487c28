"""Metrics of a case against hand-computed values and MedPy."""

import math

import numpy as np
import pytest

from fewshotseg.results import metrics, statistics


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
    # Four elements each, at the corners: 5, sqrt(18), sqrt(20) and sqrt(13) from the other pixel's.
    for tolerance, share in ((3.6, 0.0), (4.0, 0.25), (4.9, 0.75), (5.0, 1.0)):
        assert _binary(a, b, tolerance=tolerance)["nsd"] == pytest.approx(share)
    assert "nsd" not in _binary(a, b)


def test_surface_dice_counts_both_surfaces():
    # Columns 0 and 1 of 4 rows against column 0: outlines through the corners of pixels, cut at the
    # ends, 4 sqrt(1/2) + 2 + 6 and 4 sqrt(1/2) + 6 long. Off are the outer side of the wide one, with
    # its ends, and the inner side of the narrow one.
    a, b = np.zeros((4, 5), int), np.zeros((4, 5), int)
    a[:, :2], b[:, 0] = 1, 1
    ends = 4 * math.sqrt(0.5)
    common = (ends + 8) - (ends / 2 + 3) + (ends + 6) - 3
    assert _binary(a, b, tolerance=0.5)["nsd"] == pytest.approx(common / (2 * ends + 14))


def test_each_class_is_measured_on_its_own():
    prediction, reference = np.array([[1, 1, 2, 2, 0]]), np.array([[1, 2, 2, 2, 3]])
    one, two, three = metrics.case_metrics(prediction, reference, 4)
    assert one["dice"] == pytest.approx(2 / 3)
    assert two["dice"] == pytest.approx(4 / 5)
    assert three["dice"] == 0.0 and three["status"] == "prediction_empty"


def test_empty_masks():
    empty, some = np.zeros((3, 4), int), np.eye(3, 4, dtype=int)
    both = _binary(empty, empty, tolerance=1, thin=True)
    assert both["status"] == "both_empty"
    for name in metrics.METRICS:
        assert math.isnan(both[name]), name
    false_alarm = _binary(some, empty, tolerance=1, spacing=(2.0, 3.0), thin=True)
    assert false_alarm["status"] == "reference_empty"
    assert false_alarm["false_positive_area"] == 3
    assert (false_alarm["dice"], false_alarm["precision"], false_alarm["nsd"]) == (0, 0, 0)
    assert false_alarm["cldice"] == 0
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


def test_mean_over_classes_leaves_out_undefined_ones():
    rows = metrics.case_metrics(np.array([[1, 1, 0, 2]]), np.array([[1, 1, 2, 0]]), 4)
    assert metrics.mean_over_classes(rows)["dice"] == pytest.approx((1 + 0) / 2)


def test_selection_follows_the_same_rule_for_empty_masks():
    """By hand: Dice 1, 0 (false alarm), left out (both empty): 1 / 2, as `aggregate` says."""
    empty, some = np.zeros((3, 4), int), np.eye(3, 4, dtype=int)
    cases = [
        metrics.case_metrics(a, b, 2) for a, b in ((some, some), (some, empty), (empty, empty))
    ]
    assert metrics.mean_dice(cases) == 0.5
    summary = statistics.aggregate([rows[0] for rows in cases])
    assert metrics.mean_dice(cases) == summary["dice"]["mean"]
    assert math.isnan(metrics.mean_dice(cases[2:]))
    # Two classes: the mean over the classes of a case first.
    two = metrics.case_metrics(np.array([[1, 1, 0, 2]]), np.array([[1, 1, 2, 0]]), 3)
    assert metrics.mean_dice([two, cases[0]]) == pytest.approx((0.5 + 1) / 2)


def test_table_of_metrics():
    """Worse predictions score worse in the direction that the table says."""
    reference = np.zeros((20, 20), int)
    reference[5:14, 5:15] = 1
    good, bad = np.roll(reference, 1, 0), np.roll(reference, 6, 0)
    good_row, bad_row = (_binary(m, reference, tolerance=1.0, thin=True) for m in (good, bad))
    for name, metric in metrics.METRICS.items():
        if name == "false_positive_area":
            continue
        assert (good_row[name] > bad_row[name]) == metric.higher_is_better, name
    assert metrics.METRICS["hd95"].heading == "HD95 (px)"


def test_calibration_by_hand():
    # Two pixels near 0.25 and two at 0.95 and 1, in bins 2 and 9; one of each is foreground: too
    # low in one bin and too high in the other, which must not cancel.
    probability, target = np.array([[0.21, 0.29], [0.95, 1.0]]), np.array([[1, 0], [0, 1]])
    counts = metrics.calibration_counts(probability, target)
    assert counts[0].tolist() == [0, 0, 2, 0, 0, 0, 0, 0, 0, 2]
    assert counts[1, [2, 9]] == pytest.approx([0.5, 1.95])
    assert counts[2].tolist() == [0, 0, 1, 0, 0, 0, 0, 0, 0, 1]
    # |0.25 - 0.5| for half of the pixels, |0.975 - 0.5| for the other half.
    expected = 0.5 * 0.25 + 0.5 * 0.475
    assert metrics.expected_calibration_error(counts) == pytest.approx(expected)
    assert math.isnan(metrics.expected_calibration_error(np.zeros((3, 10))))


def test_calibrated_probabilities_have_no_error():
    rng = np.random.default_rng(0)
    p = rng.random(200_000)
    ece = [
        metrics.expected_calibration_error(metrics.calibration_counts(q, rng.random(p.size) < p))
        for q in (p, p**2)
    ]
    assert ece[0] < 0.005
    assert ece[1] == pytest.approx(1 / 6, abs=0.005)  # the integral of p - p^2
