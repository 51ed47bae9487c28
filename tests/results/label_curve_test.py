"""Labels saved, as benchmarks/label_curve.py reads them off, on curves that are known by hand."""

import math

import label_curve as curve
import pytest


def _rows(method, levels, spread=(-0.1, 0.0, 0.1), dataset="busi", steps=400, units=("",) * 9):
    setting = dict(dataset=dataset, segmenter="unet", size=96, steps=steps, method=method, draw=0)
    return [
        setting | dict(labels=n, case=f"c{i}", unit=units[i], dice=round(level + move, 6), hd95=1.0)
        for n, level in levels.items()
        for i, move in enumerate(spread)
    ]


def test_the_factor_is_read_off_between_points_on_a_logarithmic_axis():
    numbers, baseline = [10, 40, 160], [0.4, 0.6, 0.8]
    assert curve.saving(0.7, 40, numbers, baseline) == pytest.approx(2.0)  # 80 = sqrt(40 * 160)
    assert curve.saving(0.6, 40, numbers, baseline) == pytest.approx(1.0)
    assert curve.saving(0.8, 40, numbers, baseline) == pytest.approx(4.0)
    assert curve.saving(0.5, 40, numbers, baseline) == pytest.approx(
        0.5
    )  # a method can cost labels
    assert math.isinf(curve.saving(0.81, 40, numbers, baseline))
    assert curve.saving(0.4, 40, numbers, baseline) == 0.0
    # A fall is evened out: 0.65 is passed between the 0.6 with 40 and 0.7, the mean of 0.75 and 0.65.
    falling = curve.saving(0.65, 40, [40, 80, 160], [0.6, 0.75, 0.65])
    assert falling == pytest.approx(math.sqrt(2))


def test_the_interval_pairs_cases_and_draws_whole_clusters():
    ours, theirs = {40: 0.7}, {10: 0.4, 40: 0.6, 160: 0.8}
    rows = _rows("ours", ours) + _rows("theirs", theirs)
    curves = curve.read_curves(rows)["busi"]
    found = curve.saving_interval(curves["unet: ours"], curves["unet: theirs"], 40, {})
    # The same difference in every case: drawing cases changes nothing, drawing them apart would.
    assert found == pytest.approx((2.0, 2.0, 2.0))
    spread = (-0.08, -0.08, 0.08, 0.08, 0.0)
    rows = _rows("ours", ours, spread) + _rows("theirs", theirs, (0.0,) * 5)
    curves = curve.read_curves(rows)["busi"]
    ours, theirs = (curves[f"unet: {name}"] for name in ("ours", "theirs"))
    _, low, high = curve.saving_interval(ours, theirs, 40, {})
    units = {f"c{i}": unit for i, unit in enumerate("aabb")}
    _, wider, further = curve.saving_interval(ours, theirs, 40, units)
    assert low < 2 < high and wider < low and further > high


def test_the_table_says_where_the_curve_of_the_baseline_ends():
    rows = _rows("plain", {10: 0.3, 40: 0.5, 160: 0.6}) + _rows("best", {40: 0.75})
    rows += _rows("poor", {40: 0.2})
    head, _, *lines = curve.table(rows).splitlines()
    cells = {line.split(" | ")[1]: [c.strip() for c in line.split("|")[1:-1]] for line in lines}
    assert head.startswith("| data set | segmenter: method | 10 | 40 | 160 | x, unet: plain |")
    assert cells["unet: best"][2:] == ["", "0.750", "", "> 4 (> 4 to > 4)", ""]
    assert cells["unet: poor"][-2] == "< 0.25 (< 0.25 to < 0.25)"
    assert cells["unet: plain"][2:6] == ["0.300", "0.500", "0.600", ""]


def test_rows_that_were_not_measured_alike_are_not_joined():
    rows = _rows("a", {10: 0.3}) + _rows("a", {40: 0.5}, steps=800)
    with pytest.raises(ValueError, match="one size and number of steps"):
        curve.table(rows)


def test_a_case_that_one_point_lacks_counts_nowhere():
    rows = _rows("a", {10: 0.3, 40: 0.5}) + _rows("b", {10: 0.3, 40: 0.5})[:-1]
    curves = curve.read_curves(rows)["busi"]
    assert {c for found in curves.values() for by in found.values() for c in by} == {"c0", "c1"}


def test_it_draws(tmp_path):
    rows = _rows("a", {10: 0.3, 40: 0.5}) + _rows("b", {40: 0.7})
    curve.draw(rows, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000
