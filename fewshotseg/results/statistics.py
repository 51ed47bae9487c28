"""From cases to statements: means, intervals, differences between methods.

Two spreads are kept apart. Over test cases (bootstrap): how far the score of one trained model would
move with other test images. Over seeds (Student's t): how far it moves when training is repeated.
Cases that resemble each other (frames of one series, images of one patient, look-alikes) are one
`unit`: the bootstrap draws whole units, and the rank test ranks their means.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from fewshotseg.results.metrics import METRICS, ratio

# With fewer units there is no interval: that of two to five excluded 0 in 13 to 49 percent of draws without
# any effect. Six are the fewest of which a two-sided sign test can reach 0.05.
MIN_UNITS = 6
STATUSES = ("both_empty", "reference_empty", "prediction_empty")


def aggregate(
    rows: Sequence[Mapping[str, Any]],
    units: Sequence[str] | None = None,
    *,
    seed: int = 0,
    resamples: int = 5000,
) -> dict[str, Any]:
    """Summarises one class over cases.

    Args:
      rows: one of `metrics.case_metrics` per case, all of the same class.
      units: cluster, patient or series of each case; '' is a unit of its own.
      seed: of the bootstrap.
      resamples: of the bootstrap.

    Returns:
      `num_cases`; counts of `STATUSES`; `pooled_dice`; and for each metric a dict of `mean`, `sd`,
      `median`, `n`, `n_nan` and `ci95`, a pair. What cannot be computed is NaN.
    """
    summary: dict[str, Any] = {"num_cases": len(rows)}
    for status in STATUSES:
        summary[status] = sum(row.get("status") == status for row in rows)
    if all("intersection" in row for row in rows):
        sizes = sum(row["reference_size"] + row["prediction_size"] for row in rows)
        overlap = sum(row["intersection"] for row in rows)
        summary["pooled_dice"] = ratio(2.0 * overlap, sizes)
    for metric in METRICS:
        if rows and metric in rows[0]:
            values = np.array([row[metric] for row in rows], float)
            summary[metric] = _summarise(values, units, seed, resamples)
    return summary


def units_of(
    cases: Sequence[str],
    groups: Mapping[str, str] | None = None,
    clusters: Mapping[str, int] | None = None,
) -> tuple[list[str], str]:
    """What the bootstrap draws, and the word for it.

    Args:
      cases: ids.
      groups: patient or series by case id; '' or missing if unknown.
      clusters: number by case id of the set of cases linked by a group or by near-identical
        images; where there are any they count, because they contain the groups.

    Returns:
      A unit per case ('' for a case alone), and such as '12 clusters', '12 groups' or '40 cases'.
    """
    groups, clusters = groups or {}, clusters or {}
    by_cluster = any(case in clusters for case in cases)
    if by_cluster:
        units = [f"cluster {clusters[case]}" if case in clusters else "" for case in cases]
    else:
        units = [groups.get(case) or "" for case in cases]
    number = len(set(units) - {""}) + units.count("")
    if number == len(cases):  # every case is alone
        return [""] * number, f"{number} cases"
    return units, f"{number} {'clusters' if by_cluster else 'groups'}"


def of_test_set(mapping: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The clusters or groups of one test set, from what splits.json has.

    Args:
      mapping: by name of a test set a mapping from case id, or one mapping for all of them.
      name: of the test set.
    """
    if isinstance(mapping.get(name), Mapping):
        return mapping[name]
    return {case: value for case, value in mapping.items() if not isinstance(value, Mapping)}


def bootstrap_interval(
    values: Sequence[float],
    units: Sequence[str] | None = None,
    *,
    seed: int = 0,
    resamples: int = 5000,
) -> tuple[float, float]:
    """95 % bootstrap interval (BCa) of the mean.

    Args:
      values: finite, one per case.
      units: as in `aggregate`; the mean is over the cases of the units drawn.
      seed: same seed, same interval.
      resamples: number of draws.

    Returns:
      Lower and upper end; NaN with fewer than `MIN_UNITS` cases or units.

    B. Efron, "Better bootstrap confidence intervals", JASA 82, 1987.
    """
    values = np.asarray(values, float)
    sums, counts = _by_unit(values, units)
    if len(counts) < MIN_UNITS:
        return math.nan, math.nan
    means = sums / counts
    if np.ptp(means) <= 1e-12 * max(1.0, np.abs(means).max()):
        return float(means.mean()), float(means.mean())  # nothing varies: BCa would divide by 0

    def mean(sums, counts, axis):
        return np.sum(sums, axis=axis) / np.sum(counts, axis=axis)

    interval = stats.bootstrap(
        (sums, counts),
        mean,
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        batch=500,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def summarise_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Mean over training seeds with a 95 % interval from Student's t.

    Args:
      values: one number per seed, for example the mean Dice of a run.

    Returns:
      `mean`, `sd` (n - 1), `n`, `ci95`; sd and interval are NaN for a single seed.
    """
    values = np.asarray(values, float)
    n = len(values)
    mean = float(values.mean()) if n else math.nan
    if n < 2:
        return {"mean": mean, "sd": math.nan, "n": n, "ci95": (math.nan, math.nan)}
    sd = float(values.std(ddof=1))
    half = float(stats.t.ppf(0.975, n - 1)) * sd / math.sqrt(n)
    return {"mean": mean, "sd": sd, "n": n, "ci95": (mean - half, mean + half)}


def common_cases(values: Sequence[Mapping[str, float]]) -> tuple[list[str], int]:
    """The cases that every method has a number for, so that means are over the same cases.

    Args:
      values: of each method, a metric by case id; NaN where it is undefined.

    Returns:
      The ids in the order of the first method, and how many ids of any method are left out.
    """
    everything = {case for by_case in values for case in by_case}
    shared = [
        case
        for case in (values[0] if values else ())
        if all(math.isfinite(by_case.get(case, math.nan)) for by_case in values)
    ]
    return shared, len(everything) - len(shared)


def paired_difference(
    a_by_case: Mapping[str, float],
    b_by_case: Mapping[str, float],
    units: Mapping[str, str] | None = None,
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """Compares two methods case by case: a - b.

    Args:
      a_by_case: value of a metric by case id; average over seeds first if there are several.
      b_by_case: the same of the other method.
      units: cluster, patient or series by case id, '' or missing for a case alone.
      seed: of the bootstrap.

    Returns:
      `mean`, `median` (over cases), `ci95` (bootstrap over units, of the mean), `p_wilcoxon`
      (signed-rank over the means of the units, two-sided; 1 if none differs), `n` cases,
      `num_units`, and `n_left_out`: cases that only one side has or where a value is NaN.
    """
    ids, left_out = common_cases([a_by_case, b_by_case])
    differences = np.array([a_by_case[i] - b_by_case[i] for i in ids], float)
    names = [units.get(i, "") for i in ids] if units else None
    sums, counts = _by_unit(differences, names)
    n = len(differences)
    p_value = math.nan
    if n:
        p_value = float(stats.wilcoxon(sums / counts).pvalue) if np.any(sums) else 1.0
    return {
        "mean": float(differences.mean()) if n else math.nan,
        "median": float(np.median(differences)) if n else math.nan,
        "ci95": bootstrap_interval(differences, names, seed=seed),
        "p_wilcoxon": p_value,
        "n": n,
        "num_units": len(counts),
        "n_left_out": left_out,
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusts p values for being several, so that any below 0.05 may be called significant.

    Args:
      p_values: of one family of comparisons; NaN (no test was possible) stays NaN and counts not.

    Returns:
      Adjusted p values in the same order, in [0, 1].

    S. Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6, 1979.
    """
    adjusted, largest = [math.nan] * len(p_values), 0.0
    order = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    for rank, (p, index) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[index] = largest
    return adjusted


def _by_unit(values: np.ndarray, units: Sequence[str] | None) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of the values of every unit, `[U]` each."""
    if not len(values):
        return np.zeros(0), np.zeros(0)
    names = [unit or f"\0{i}" for i, unit in enumerate(units or [""] * len(values))]
    _, member = np.unique(names, return_inverse=True)
    return np.bincount(member, values), np.bincount(member).astype(float)


def _summarise(values, units, seed, resamples) -> dict[str, Any]:
    defined = np.isfinite(values)
    kept = values[defined]
    names = None if units is None else [u for u, d in zip(units, defined, strict=True) if d]
    n = len(kept)
    return {
        "mean": float(kept.mean()) if n else math.nan,
        "sd": float(kept.std(ddof=1)) if n > 1 else math.nan,
        "median": float(np.median(kept)) if n else math.nan,
        "n": n,
        "n_nan": int(len(values) - n),
        "ci95": bootstrap_interval(kept, names, seed=seed, resamples=resamples),
    }
