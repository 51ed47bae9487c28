"""How well a predicted mask agrees with a reference mask, per case and over cases.

All functions work on the host with NumPy and SciPy, on 2-D images and on volumes alike. Distances
follow the definition that MedPy uses: the surface of a region are its pixels with at least one
4-neighbour (6-neighbour in 3-D) outside it or outside the image, and HD95 is the 95th percentile of
the distances of all surface pixels of either mask to the nearest surface pixel of the other.

See A. A. Taha and A. Hanbury, "Metrics for evaluating 3D medical image segmentation", BMC Medical
Imaging 15:29, 2015, and L. Maier-Hein et al., "Metrics reloaded", Nature Methods 21, 2024.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import ndimage, stats

CONVENTION = (
    "Each class of each case is measured at the image's original size. "
    "Both masks empty: every metric is undefined (NaN, written as null or an empty cell), left out "
    "of means and counted in n_nan and both_empty. "
    "Only the reference empty: Dice, Jaccard and precision are 0, sensitivity is undefined, and "
    "false_positive_area is the number of predicted pixels; it is undefined for all other cases. "
    "Only the prediction empty: Dice, Jaccard and sensitivity are 0, precision is undefined. "
    "One of the two empty: HD95 is the image's diagonal and surface Dice is 0; such cases are "
    "counted in reference_empty and prediction_empty. "
    "sd is over cases (n - 1); ci95 is a bootstrap interval of the mean over cases, which says "
    "nothing about the spread over training seeds. "
    "pooled_dice adds the pixels of all cases before it divides, so large regions weigh more."
)
METRICS = ("dice", "jaccard", "hd95", "nsd", "sensitivity", "precision", "false_positive_area")


def case_metrics(
    prediction: np.ndarray,
    reference: np.ndarray,
    num_classes: int,
    spacing: float | Sequence[float] | None = None,
    tolerance: float | None = None,
) -> list[dict[str, Any]]:
    """Measures one case. `CONVENTION` says what empty masks give.

    Args:
      prediction: class ids, `[H, W]` or `[D, H, W]`.
      reference: class ids of the same shape.
      num_classes: including the background, whose id is 0.
      spacing: size of a pixel along each axis, or one number for all; distances are then in its
        unit (mm), otherwise in pixels.
      tolerance: if given, also the normalised surface Dice (`nsd`), the share of surface pixels of
        both masks within this distance of the other's surface, in the unit of `spacing`.

    Returns:
      One row for each class from 1: `class_id`, `status` ('ok', 'both_empty', 'reference_empty' or
      'prediction_empty'), the metrics in [0, 1], `hd95` >= 0, and in pixels `reference_size`,
      `prediction_size`, `intersection` and `false_positive_area`.

    Raises:
      ValueError: shapes differ, or an id lies outside 0 ... num_classes - 1.
    """
    prediction, reference = np.asarray(prediction), np.asarray(reference)
    if prediction.shape != reference.shape:
        raise ValueError(f"shapes differ: {prediction.shape} predicted, {reference.shape} wanted")
    for name, mask in (("prediction", prediction), ("reference", reference)):
        if mask.size and (mask.min() < 0 or mask.max() >= num_classes):
            raise ValueError(
                f"{name} holds class ids {mask.min()} to {mask.max()}, "
                f"expected 0 to {num_classes - 1}"
            )
    steps = np.broadcast_to(np.asarray(1.0 if spacing is None else spacing, float), prediction.ndim)
    return [
        {"class_id": k, **_binary_metrics(prediction == k, reference == k, steps, tolerance)}
        for k in range(1, num_classes)
    ]


def surface_distances(
    a: np.ndarray, b: np.ndarray, spacing: float | Sequence[float] = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Distance of every surface pixel of a mask to the nearest surface pixel of the other.

    Args:
      a: bool `[H, W]` or `[D, H, W]`, not empty.
      b: the same.
      spacing: of the pixels along each axis.

    Returns:
      The distances from a to b, one per surface pixel of a, and those from b to a.
    """
    steps = np.broadcast_to(np.asarray(spacing, float), a.ndim)
    # Beyond the box around both masks there is no surface: leaving it out changes nothing.
    box = ndimage.find_objects((a | b).astype(np.uint8))[0]
    surfaces = []
    for mask in (a[box], b[box]):
        surfaces.append(mask & ~ndimage.binary_erosion(mask))
    to_a, to_b = (ndimage.distance_transform_edt(~s, sampling=steps) for s in surfaces)
    return to_b[surfaces[0]], to_a[surfaces[1]]


def aggregate(
    rows: Sequence[Mapping[str, Any]],
    groups: Sequence[str] | None = None,
    *,
    seed: int = 0,
    resamples: int = 5000,
) -> dict[str, Any]:
    """Summarises one class over cases.

    Args:
      rows: one of `case_metrics` per case, all of the same class.
      groups: patient of each case. Whole groups are then drawn in the bootstrap, because cases of
        one patient resemble each other; a case with the group '' is a group of its own.
      seed: of the bootstrap.
      resamples: of the bootstrap.

    Returns:
      `num_cases`; counts of `both_empty`, `reference_empty` and `prediction_empty`; `pooled_dice`;
      and for each metric a dict of `mean`, `sd`, `median`, `n`, `n_nan` and `ci95`, a pair. What
      cannot be computed is NaN.
    """
    summary: dict[str, Any] = {"num_cases": len(rows)}
    for status in ("both_empty", "reference_empty", "prediction_empty"):
        summary[status] = sum(row.get("status") == status for row in rows)
    if all("intersection" in row for row in rows):
        sizes = sum(row["reference_size"] + row["prediction_size"] for row in rows)
        overlap = sum(row["intersection"] for row in rows)
        summary["pooled_dice"] = _ratio(2.0 * overlap, sizes)
    for metric in METRICS:
        if rows and metric in rows[0]:
            values = np.array([row[metric] for row in rows], float)
            summary[metric] = _summarise(values, groups, seed, resamples)
    return summary


def mean_over_classes(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One row for a case from the rows of its classes: the mean of the classes that are defined."""
    statuses = {row["status"] for row in rows}
    combined: dict[str, Any] = {"status": statuses.pop() if len(statuses) == 1 else "ok"}
    for metric in METRICS:
        if metric in rows[0]:
            values = [row[metric] for row in rows if not math.isnan(row[metric])]
            combined[metric] = float(np.mean(values)) if values else math.nan
    return combined


def bootstrap_interval(
    values: Sequence[float],
    groups: Sequence[str] | None = None,
    *,
    seed: int = 0,
    resamples: int = 5000,
) -> tuple[float, float]:
    """95 % bootstrap interval (BCa) of the mean.

    Args:
      values: finite, one per case.
      groups: as in `aggregate`; the mean is over the cases of the groups drawn.
      seed: same seed, same interval.
      resamples: number of draws.

    Returns:
      Lower and upper end; NaN with fewer than two cases or groups.

    B. Efron, "Better bootstrap confidence intervals", JASA 82, 1987.
    """
    values = np.asarray(values, float)
    names = [group or f"\0{i}" for i, group in enumerate(groups or [""] * len(values))]
    _, member = np.unique(names, return_inverse=True)
    counts = np.bincount(member).astype(float) if len(values) else np.zeros(0)
    if len(counts) < 2:
        return math.nan, math.nan
    sums = np.bincount(member, weights=values)
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


def paired_difference(
    a_by_case: Mapping[str, float],
    b_by_case: Mapping[str, float],
    groups: Mapping[str, str] | None = None,
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """Compares two methods case by case: a - b.

    Args:
      a_by_case: value of a metric by case id; average over seeds first if there are several.
      b_by_case: the same of the other method.
      groups: patient by case id, for the bootstrap as in `aggregate`. The rank test takes all
        cases for independent.
      seed: of the bootstrap.

    Returns:
      `mean`, `median`, `ci95` (bootstrap, of the mean), `p_wilcoxon` (signed-rank, two-sided; 1 if
      no case differs), `n`, and `n_left_out`: cases that only one side has or where a value is NaN.
    """
    ids = sorted(set(a_by_case) & set(b_by_case))
    pairs = [(i, float(a_by_case[i]) - float(b_by_case[i])) for i in ids]
    kept = [(i, d) for i, d in pairs if math.isfinite(d)]
    differences = np.array([d for _, d in kept], float)
    names = [groups.get(i, "") for i, _ in kept] if groups else None
    n = len(differences)
    p_value = math.nan
    if n:
        p_value = float(stats.wilcoxon(differences).pvalue) if np.any(differences) else 1.0
    return {
        "mean": float(differences.mean()) if n else math.nan,
        "median": float(np.median(differences)) if n else math.nan,
        "ci95": bootstrap_interval(differences, names, seed=seed),
        "p_wilcoxon": p_value,
        "n": n,
        "n_left_out": len(set(a_by_case) | set(b_by_case)) - n,
    }


def _binary_metrics(prediction, reference, spacing, tolerance) -> dict[str, Any]:
    predicted, wanted = int(prediction.sum()), int(reference.sum())
    common = int((prediction & reference).sum())
    row = {
        "status": "ok",
        "dice": _ratio(2.0 * common, predicted + wanted),
        "jaccard": _ratio(common, predicted + wanted - common),
        "hd95": math.nan,
        "sensitivity": _ratio(common, wanted),
        "precision": _ratio(common, predicted),
        "reference_size": wanted,
        "prediction_size": predicted,
        "intersection": common,
        "false_positive_area": math.nan,
    }
    if tolerance is not None:
        row["nsd"] = math.nan
    if not predicted and not wanted:
        row["status"] = "both_empty"
    elif not predicted or not wanted:
        row["status"] = "prediction_empty" if wanted else "reference_empty"
        row["hd95"] = float(np.linalg.norm(np.array(prediction.shape) * spacing))
        if not wanted:
            row["false_positive_area"] = float(predicted)
        if tolerance is not None:
            row["nsd"] = 0.0
    else:
        distances = np.concatenate(surface_distances(prediction, reference, spacing))
        row["hd95"] = float(np.percentile(distances, 95))
        if tolerance is not None:
            row["nsd"] = float(np.mean(distances <= tolerance))
    return row


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan


def _summarise(values, groups, seed, resamples) -> dict[str, Any]:
    defined = np.isfinite(values)
    kept = values[defined]
    names = None if groups is None else [g for g, d in zip(groups, defined, strict=True) if d]
    n = len(kept)
    return {
        "mean": float(kept.mean()) if n else math.nan,
        "sd": float(kept.std(ddof=1)) if n > 1 else math.nan,
        "median": float(np.median(kept)) if n else math.nan,
        "n": n,
        "n_nan": int(len(values) - n),
        "ci95": bootstrap_interval(kept, names, seed=seed, resamples=resamples),
    }
