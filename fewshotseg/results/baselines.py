"""What anything trained must beat."""

from collections.abc import Iterable

import numpy as np

from fewshotseg.errors import InputError
from fewshotseg.types import Case


def best_threshold_dice(
    train_cases: Iterable[Case], test_cases: Iterable[Case]
) -> tuple[int, str, float]:
    """The naive baseline: one threshold on the grey value, for all images.

    The threshold and the side of it that counts as foreground maximise the mean Dice over the
    training cases, tried exhaustively; classes are merged into one foreground. A case where both
    the mask and the prediction are empty has no Dice and is left out of the mean; where only one
    of them is empty the Dice is 0.

    Args:
      train_cases: labelled cases to choose the threshold on.
      test_cases: labelled cases to measure it on.

    Returns:
      (threshold, polarity, dice): the grey value 0..255; 'dark' if a pixel is foreground where
      grey <= threshold, 'bright' where grey >= threshold; the mean Dice in [0, 1] over the test
      cases, NaN if none of them has one.

    Raises:
      InputError: there are no test cases, or no training case has any foreground.
    """
    train, has_foreground = _threshold_dice_table(train_cases)
    if not has_foreground:
        raise InputError("the threshold baseline needs at least one training case with foreground.")
    test, _ = _threshold_dice_table(test_cases)
    polarity, threshold = np.unravel_index(np.nanargmax(train), train.shape)
    return int(threshold), ("dark", "bright")[polarity], float(test[polarity, threshold])


def _threshold_dice_table(cases: Iterable[Case]) -> tuple[np.ndarray, bool]:
    """Mean Dice over cases of every threshold, `[2 (dark, bright), 256]`, NaN where undefined; and
    whether any case has foreground."""
    rows, has_foreground = [], False
    for case in cases:
        grey = np.round(case.image.astype(np.float64).mean(axis=-1)).astype(np.int64)
        inside = np.bincount(grey[case.mask > 0], minlength=256)
        everything = np.bincount(grey.ravel(), minlength=256)
        hits = np.stack([np.cumsum(inside), np.cumsum(inside[::-1])[::-1]])
        size = np.stack([np.cumsum(everything), np.cumsum(everything[::-1])[::-1]]) + inside.sum()
        rows.append(np.divide(2.0 * hits, size, out=np.full(hits.shape, np.nan), where=size > 0))
        has_foreground |= bool(inside.any())
    if not rows:
        raise InputError("the threshold baseline needs at least one case to look at.")
    count = np.sum(np.isfinite(rows), axis=0)
    means = np.where(count > 0, np.nansum(rows, axis=0) / np.maximum(count, 1), np.nan)
    return means, has_foreground
