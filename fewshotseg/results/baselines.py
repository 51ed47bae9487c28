"""What anything trained must beat."""

from collections.abc import Iterable

import numpy as np

from fewshotseg import labels
from fewshotseg.errors import InputError
from fewshotseg.types import Case

POLARITIES = ("dark", "bright")


def best_threshold(cases: Iterable[Case]) -> tuple[int, str]:
    """The naive model: one threshold on the grey value, for all images.

    The threshold and the side of it that counts as foreground maximise the mean Dice over the
    cases, tried exhaustively; classes are merged into one foreground. Empty masks count as in
    `metrics.CONVENTION`.

    Args:
      cases: labelled cases to choose the threshold on.

    Returns:
      (threshold, polarity): the grey value 0..255; 'dark' if a pixel is foreground where
      grey <= threshold, 'bright' where grey >= threshold.

    Raises:
      InputError: no case has any foreground.
    """
    rows, has_foreground = [], False
    for case in cases:
        rows.append(_dice_table(case))
        has_foreground |= bool(labels.is_foreground(case.mask).any())
    if not has_foreground:
        raise InputError("the threshold baseline needs at least one training case with foreground.")
    count = np.sum(np.isfinite(rows), axis=0)
    means = np.where(count > 0, np.nansum(rows, axis=0) / np.maximum(count, 1), np.nan)
    polarity, threshold = np.unravel_index(np.nanargmax(means), means.shape)
    return int(threshold), POLARITIES[polarity]


def threshold_dice(case: Case, threshold: int, polarity: str) -> float:
    """Dice in [0, 1] of one case under a threshold; NaN where both masks are empty."""
    return float(_dice_table(case)[POLARITIES.index(polarity), threshold])


def _dice_table(case: Case) -> np.ndarray:
    """Dice of every threshold, `[2 (dark, bright), 256]`, NaN where both masks are empty."""
    grey = np.round(case.image.astype(np.float64).mean(axis=-1)).astype(np.int64)
    inside = np.bincount(grey[labels.is_foreground(case.mask)], minlength=256)
    everything = np.bincount(grey[labels.counts(case.mask)], minlength=256)
    hits = np.stack([np.cumsum(inside), np.cumsum(inside[::-1])[::-1]])
    size = np.stack([np.cumsum(everything), np.cumsum(everything[::-1])[::-1]]) + inside.sum()
    return np.divide(2.0 * hits, size, out=np.full(hits.shape, np.nan), where=size > 0)
