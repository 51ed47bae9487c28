"""Statistics over cases and seeds against hand-computed values and SciPy."""

import math

import numpy as np
import pytest
from scipy import stats

from fewshotseg.results import metrics, statistics


def _binary(prediction, reference, **kwargs):
    (row,) = metrics.case_metrics(np.array(prediction), np.array(reference), 2, **kwargs)
    return row


def test_aggregate_counts_and_pools():
    masks = np.zeros((4, 1, 8), int)
    masks[0, 0, :8], masks[1, 0, 0], masks[2, 0, :3] = 1, 1, 1
    references = masks.copy()
    references[1], references[2] = 0, 0
    references[2, 0, 0] = 1
    rows = [_binary(m, r) for m, r in zip(masks, references, strict=True)]
    result = statistics.aggregate(rows)  # Dice 1, 0 (false alarm), 2/4, undefined
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
    dice = statistics.aggregate([_binary(empty, empty)] * 3)["dice"]
    assert math.isnan(dice["mean"]) and (dice["n"], dice["n_nan"]) == (0, 3)
    assert all(math.isnan(end) for end in dice["ci95"])


def test_bootstrap_interval_is_near_the_normal_one():
    values = np.random.default_rng(1).normal(0.7, 0.1, 400)
    low, high = statistics.bootstrap_interval(values)
    half = 1.96 * values.std(ddof=1) / 20
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert (low, high) == statistics.bootstrap_interval(values)
    assert (low, high) != statistics.bootstrap_interval(values, seed=1)


def test_bootstrap_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(2)
    hits = 0
    for i in range(200):
        low, high = statistics.bootstrap_interval(rng.beta(4, 2, 40), seed=i, resamples=500)
        hits += low <= 4 / 6 <= high
    assert 0.90 <= hits / 200 <= 0.985


def test_bootstrap_draws_whole_groups():
    # Ten identical copies of each of eight values say no more than the eight values do.
    values = np.random.default_rng(3).random(8)
    groups = [f"patient {i}" for i in range(8) for _ in range(10)]
    grouped = statistics.bootstrap_interval(np.repeat(values, 10), groups)
    assert grouped == pytest.approx(statistics.bootstrap_interval(values), abs=0.003)
    alone = statistics.bootstrap_interval(np.repeat(values, 10))
    assert (grouped[1] - grouped[0]) > 2.5 * (alone[1] - alone[0])
    unknown = statistics.bootstrap_interval(np.repeat(values, 10), [""] * 80)
    assert unknown[1] - unknown[0] == pytest.approx(alone[1] - alone[0], rel=0.1)


def test_aggregate_draws_whole_groups_of_defined_cases():
    dice = [0.1, 0.2, 0.9, 0.8, math.nan, 0.7, 0.3, 0.4, 0.5]
    groups = ["a", "a", "b", "b", "b", "c", "d", "e", "f"]
    result = statistics.aggregate([{"dice": value} for value in dice], groups)
    kept = dice[:4] + dice[5:], groups[:4] + groups[5:]
    expected = statistics.bootstrap_interval(*kept)
    assert result["dice"]["ci95"] == expected
    assert expected != statistics.bootstrap_interval(kept[0])


def test_bootstrap_interval_without_spread():
    assert statistics.bootstrap_interval([0.5] * 6) == (0.5, 0.5)


@pytest.mark.parametrize("values", [[0.5], [0.5] * 5, [0.1, 0.2, 0.3, 0.4, 0.5]])
def test_too_few_cases_have_no_interval(values):
    """Five differences of one sign are no evidence: the sign test's p is 2 / 2 ** 5."""
    assert all(math.isnan(end) for end in statistics.bootstrap_interval(values))
    units = [str(i) for i in range(len(values))] * 3
    assert all(math.isnan(end) for end in statistics.bootstrap_interval(values * 3, units))
    assert not math.isnan(statistics.bootstrap_interval(values + list(range(5)))[0])


def test_summarise_seeds():
    result = statistics.summarise_seeds([0.70, 0.74, 0.78])
    assert result["mean"] == pytest.approx(0.74) and result["sd"] == pytest.approx(0.04)
    # Student's t with 2 degrees of freedom has its 97.5 % point at 4.3027.
    half = 4.302653 * 0.04 / math.sqrt(3)
    assert result["ci95"] == pytest.approx((0.74 - half, 0.74 + half), abs=1e-6)
    single = statistics.summarise_seeds([0.7])
    assert single["mean"] == 0.7 and single["n"] == 1 and math.isnan(single["sd"])


def test_paired_difference():
    rng = np.random.default_rng(4)
    b = {f"case {i}": value for i, value in enumerate(rng.random(30))}
    a = {name: value + 0.05 + 0.02 * rng.normal() for name, value in b.items()}
    result = statistics.paired_difference(a, b)
    differences = [a[name] - b[name] for name in b]
    assert result["mean"] == pytest.approx(np.mean(differences))
    assert result["ci95"][0] > 0.03 and result["ci95"][1] < 0.07
    assert result["p_wilcoxon"] == pytest.approx(stats.wilcoxon(differences).pvalue)
    assert (result["n"], result["n_left_out"]) == (30, 0)


def test_paired_difference_of_few_and_equal_cases():
    # All five differences positive: the exact two-sided p is 2 / 2 ** 5.
    a = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0, "e": 5.0, "lost": 1.0, "undefined": math.nan}
    b = {**dict.fromkeys("abcde", 0.0), "undefined": 0.5}
    result = statistics.paired_difference(a, b)
    assert result["p_wilcoxon"] == pytest.approx(2 / 32)
    assert (result["n"], result["n_left_out"]) == (5, 2)
    assert statistics.paired_difference(a, a)["p_wilcoxon"] == 1.0


def test_paired_difference_over_clusters():
    """Copies of a case add nothing: interval and p value are those of one copy each."""
    rng = np.random.default_rng(5)
    gains = rng.normal(0.02, 0.05, 12)
    a = {f"{i} {copy}": gain for i, gain in enumerate(gains) for copy in range(6)}
    b = dict.fromkeys(a, 0.0)
    units = {name: f"cluster {name.split()[0]}" for name in a}
    result = statistics.paired_difference(a, b, units)
    assert (result["n"], result["num_units"]) == (72, 12)
    assert result["p_wilcoxon"] == pytest.approx(stats.wilcoxon(gains).pvalue)
    assert result["ci95"] == pytest.approx(statistics.bootstrap_interval(gains), abs=0.003)
    alone = statistics.paired_difference(a, b)
    assert alone["p_wilcoxon"] < 0.05 < result["p_wilcoxon"]
    width, narrow = np.ptp(result["ci95"]), np.ptp(alone["ci95"])
    assert width > 2 * narrow


def test_units_are_clusters_then_groups_then_cases():
    cases = ["a", "b", "c", "d"]
    assert statistics.units_of(cases) == ([""] * 4, "4 cases")
    groups = {"a": "p1", "b": "p1", "c": ""}
    assert statistics.units_of(cases, groups) == (["p1", "p1", "", ""], "3 groups")
    units, words = statistics.units_of(cases, groups, {"a": 7, "b": 7, "c": 7, "x": 1})
    assert units == ["cluster 7"] * 3 + [""] and words == "2 clusters"
    # Clusters of one case each are cases.
    assert statistics.units_of(cases, {}, {c: i for i, c in enumerate(cases)}) == (
        [""] * 4,
        "4 cases",
    )
    # Numbers of other cases say nothing about these.
    assert statistics.units_of(cases, groups, {"x": 1})[1] == "3 groups"


def test_clusters_of_each_test_set():
    """Two sets may have cases of the same name."""
    nested = {"test": {"a": 1, "b": 1}, "shifted": {"a": 2}}
    assert statistics.of_test_set(nested, "test") == {"a": 1, "b": 1}
    assert statistics.of_test_set(nested, "shifted") == {"a": 2}
    assert statistics.of_test_set(nested, "other") == {}
    assert statistics.of_test_set({"a": 1}, "test") == {"a": 1}


def test_same_cases_for_all_methods():
    nan = math.nan
    values = [{"a": 1.0, "b": 0.5, "c": nan}, {"b": 0.4, "a": 0.2, "c": 0.0, "d": 0.3}]
    assert statistics.common_cases(values) == (["a", "b"], 2)
    assert statistics.common_cases([values[1]]) == (["b", "a", "c", "d"], 0)
    assert statistics.common_cases([]) == ([], 0)


def test_holm_by_hand():
    # Sorted 0.01, 0.03, 0.04: times 3, 2, 1, never falling.
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([0.6, math.nan, 0.5])[::2] == [1.0, 1.0]
    assert math.isnan(statistics.holm([0.6, math.nan])[1]) and statistics.holm([0.6]) == [0.6]


def test_holm_keeps_the_family_wise_error():
    """Of 400 families of 5 null comparisons, about 5 % have any below 0.05; without it 23 %."""
    rng = np.random.default_rng(6)
    families = [[stats.wilcoxon(rng.normal(size=20)).pvalue for _ in range(5)] for _ in range(400)]
    wrong = np.mean([min(statistics.holm(p)) < 0.05 for p in families])
    assert wrong < 0.09 and np.mean([min(p) < 0.05 for p in families]) > 0.15
