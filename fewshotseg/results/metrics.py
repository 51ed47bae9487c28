"""How well a predicted mask agrees with a reference mask, case by case.

All functions work on the host with NumPy and SciPy, on 2-D images and on volumes alike. `METRICS` is
the one table of what is measured; `CONVENTION` is the one rule for empty masks, the same where a
model is selected and where it is tested. What happens over cases is in `statistics`.

The distances of HD95 follow the definition that MedPy uses: the surface of a region are its pixels with
at least one 4-neighbour (6-neighbour in 3-D) outside it or outside the image. NSD weighs every element
of a surface by its area, as papers quote it (`surfaces`).

A. A. Taha and A. Hanbury, "Metrics for evaluating 3D medical image segmentation", BMC Medical Imaging
15:29, 2015; L. Maier-Hein et al., "Metrics reloaded", Nature Methods 21, 2024; S. Nikolov et al.,
"Clinically applicable segmentation of head and neck anatomy", JMIR 23, 2021 (surface Dice);
M. P. Naeini et al., "Obtaining well calibrated probabilities using Bayesian binning", AAAI 2015 (ECE).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from fewshotseg import labels
from fewshotseg.results import centre_lines, surfaces

EMPTY_MASKS = (
    "Both masks of a case empty: it has no score and is left out of means. "
    "Only the reference empty, a false alarm: Dice, NSD, clDice and precision are 0, HD95 is the "
    "image's diagonal, sensitivity is undefined. "
    "Only the prediction empty, a miss: Dice, NSD, clDice and sensitivity are 0, HD95 is the image's "
    "diagonal, precision is undefined. "
    "The same rule holds on the validation images, also where they choose a checkpoint."
)
CONVENTION = (
    f"Each class of each case is measured at the image's original size. {EMPTY_MASKS} "
    "Pixels that the reference leaves out (an ignore label) are background in both masks. "
    "What is undefined is null, or an empty cell, and counted in n_nan; the kinds of empty masks are "
    "counted in both_empty, reference_empty and prediction_empty. Jaccard is 0 where Dice is 0. "
    "false_positive_area is the number of predicted pixels where only the reference is empty, and "
    "undefined elsewhere. "
    "sd is over cases (n - 1); ci95 is a bootstrap interval of the mean over cases (whole clusters "
    "or groups are drawn where they are known), which says nothing about the spread over training "
    "seeds, and is null over fewer than 6 of what is drawn. "
    "pooled_dice and ece add the pixels of all cases before they divide, so large regions weigh more."
)
CALIBRATION_BINS = 10


@dataclasses.dataclass(frozen=True)
class Pair:
    """A predicted and a reference region of one class in one case.

    Attributes:
      prediction: bool `[H, W]` or `[D, H, W]`.
      reference: the same.
      spacing: of the pixels along each axis.
      tolerance: of the surface Dice, in the unit of `spacing`; None if it is not wanted.
      thin: whether clDice is wanted.
    """

    prediction: np.ndarray
    reference: np.ndarray
    spacing: np.ndarray
    tolerance: float | None = None
    thin: bool = False

    @functools.cached_property
    def predicted(self) -> int:
        return int(self.prediction.sum())

    @functools.cached_property
    def wanted(self) -> int:
        return int(self.reference.sum())

    @functools.cached_property
    def common(self) -> int:
        return int((self.prediction & self.reference).sum())

    @functools.cached_property
    def distances(self) -> np.ndarray | None:
        """From every surface pixel to the other surface; None if one region is empty."""
        if not self.predicted or not self.wanted:
            return None
        return np.concatenate(surface_distances(self.prediction, self.reference, self.spacing))

    @property
    def status(self) -> str:
        if self.predicted and self.wanted:
            return "ok"
        if self.predicted:
            return "reference_empty"
        return "prediction_empty" if self.wanted else "both_empty"


def _dice(pair: Pair) -> float:
    return ratio(2.0 * pair.common, pair.predicted + pair.wanted)


def _jaccard(pair: Pair) -> float:
    return ratio(pair.common, pair.predicted + pair.wanted - pair.common)


def _hd95(pair: Pair) -> float:
    """95th percentile of the distances of all surface pixels of either mask to the other's."""
    if pair.distances is None:
        return float(np.linalg.norm(np.array(pair.reference.shape) * pair.spacing))
    return float(np.percentile(pair.distances, 95))


def _nsd(pair: Pair) -> float:
    """Share of the area of both surfaces that is within the tolerance of the other one."""
    if not pair.predicted or not pair.wanted:
        return 0.0
    distances, areas = surfaces.elements(pair.prediction, pair.reference, pair.spacing)
    return float(areas[distances <= pair.tolerance].sum() / areas.sum())


def _sensitivity(pair: Pair) -> float:
    return ratio(pair.common, pair.wanted)


def _precision(pair: Pair) -> float:
    return ratio(pair.common, pair.predicted)


def _false_positive_area(pair: Pair) -> float:
    return math.nan if pair.wanted else float(pair.predicted)


def _cldice(pair: Pair) -> float:
    return centre_lines.cldice(pair.prediction, pair.reference)


@dataclasses.dataclass(frozen=True)
class Metric:
    """A row of `METRICS`.

    Attributes:
      compute: of a `Pair` whose masks are not both empty; NaN where it is undefined.
      title: for people, without the unit.
      unit: '' for shares.
      higher_is_better: direction.
      digits: after the point, in tables.
      wanted: whether it is measured of a `Pair` at all.
    """

    compute: Callable[[Pair], float]
    title: str
    unit: str = ""
    higher_is_better: bool = True
    digits: int = 3
    wanted: Callable[[Pair], bool] = lambda pair: True

    @property
    def heading(self) -> str:
        return f"{self.title} ({self.unit})" if self.unit else self.title


METRICS = {
    "dice": Metric(_dice, "Dice"),
    "jaccard": Metric(_jaccard, "Jaccard"),
    "hd95": Metric(_hd95, "HD95", "px", higher_is_better=False, digits=1),
    "nsd": Metric(_nsd, "NSD", wanted=lambda pair: pair.tolerance is not None),
    "sensitivity": Metric(_sensitivity, "sensitivity"),
    "precision": Metric(_precision, "precision"),
    "false_positive_area": Metric(
        _false_positive_area, "false-alarm area", "px", higher_is_better=False, digits=0
    ),
    "cldice": Metric(_cldice, "clDice", wanted=lambda pair: pair.thin),
}


def case_metrics(
    prediction: np.ndarray,
    reference: np.ndarray,
    num_classes: int,
    spacing: float | Sequence[float] | None = None,
    tolerance: float | None = None,
    thin: bool = False,
) -> list[dict[str, Any]]:
    """Measures one case. `CONVENTION` says what empty masks give.

    Args:
      prediction: class ids, `[H, W]` or `[D, H, W]`.
      reference: class ids of the same shape; what has `labels.IGNORED` counts as background in both.
      num_classes: including the background, whose id is 0.
      spacing: size of a pixel along each axis, or one number for all; distances are then in its
        unit (mm), otherwise in pixels.
      tolerance: of `nsd`, the normalised surface Dice, in the unit of `spacing`; without it `nsd`
        is left out.
      thin: whether `cldice` is measured, of structures with a centre line; needs scikit-image.

    Returns:
      One row for each class from 1: `class_id`, `status` ('ok', 'both_empty', 'reference_empty' or
      'prediction_empty'), the `METRICS`, and in pixels `reference_size`, `prediction_size` and
      `intersection`.

    Raises:
      ValueError: shapes differ, or an id lies outside 0 ... num_classes - 1.
    """
    prediction, reference = np.asarray(prediction), np.asarray(reference)
    if prediction.shape != reference.shape:
        raise ValueError(f"shapes differ: {prediction.shape} predicted, {reference.shape} wanted")
    counted = labels.counts(reference)
    prediction, reference = (np.where(counted, mask, 0) for mask in (prediction, reference))
    for name, mask in (("prediction", prediction), ("reference", reference)):
        if mask.size and (mask.min() < 0 or mask.max() >= num_classes):
            raise ValueError(
                f"{name} holds class ids {mask.min()} to {mask.max()}, "
                f"expected 0 to {num_classes - 1}"
            )
    steps = np.broadcast_to(np.asarray(1.0 if spacing is None else spacing, float), prediction.ndim)
    return [
        {"class_id": k, **_measure(Pair(prediction == k, reference == k, steps, tolerance, thin))}
        for k in range(1, num_classes)
    ]


def _measure(pair: Pair) -> dict[str, Any]:
    undefined = pair.status == "both_empty"
    measured = {
        name: math.nan if undefined else metric.compute(pair)
        for name, metric in METRICS.items()
        if metric.wanted(pair)
    }
    sizes = {
        "reference_size": pair.wanted,
        "prediction_size": pair.predicted,
        "intersection": pair.common,
    }
    return {"status": pair.status, **measured, **sizes}


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


def rows_by_case(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Rows with a `case`, one per class, by that case."""
    by_case: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_case.setdefault(str(row["case"]), []).append(row)
    return by_case


def mean_over_classes(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One row for a case from the rows of its classes: the mean of the classes that are defined."""
    statuses = {row["status"] for row in rows}
    combined: dict[str, Any] = {"status": statuses.pop() if len(statuses) == 1 else "ok"}
    for metric in METRICS:
        if metric in rows[0]:
            values = [row[metric] for row in rows if not math.isnan(row[metric])]
            combined[metric] = float(np.mean(values)) if values else math.nan
    return combined


def mean_dice(cases: Sequence[Sequence[Mapping[str, Any]]]) -> float:
    """What is measured on the validation images, by the same rule as the tests: see `CONVENTION`.

    Args:
      cases: what `case_metrics` returned, of every case.

    Returns:
      Mean Dice in [0, 1] over the cases that have one (of each, the mean over its classes); NaN if
      none has, because every mask is empty and nothing was predicted.
    """
    values = [mean_over_classes(rows)["dice"] for rows in cases]
    values = [value for value in values if not math.isnan(value)]
    return float(np.mean(values)) if values else math.nan


def calibration_counts(probability: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Sorts pixels by predicted probability; add the counts of several cases to pool them.

    Args:
      probability: of one class, in [0, 1], any shape.
      target: whether the pixel is of that class, the same shape.

    Returns:
      float64 `[3, CALIBRATION_BINS]`: of every bin of probability the number of pixels, the sum of
      their probabilities, and how many are of the class.
    """
    p = np.asarray(probability, np.float64).ravel()
    index = np.minimum((p * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    weights = (None, p, np.asarray(target, np.float64).ravel())
    return np.stack([np.bincount(index, w, CALIBRATION_BINS) for w in weights])


def expected_calibration_error(counts: np.ndarray) -> float:
    """`sum_b n_b / n |mean probability_b - frequency_b|`, in [0, 1]; NaN without pixels.

    Args:
      counts: of `calibration_counts`.
    """
    number, probability, hits = counts
    return ratio(float(np.abs(probability - hits).sum()), float(number.sum()))


def ratio(numerator: float, denominator: float) -> float:
    """NaN where the denominator is 0."""
    return numerator / denominator if denominator else math.nan
