"""Phantoms: procedural images with exactly known masks, in the manner of two kinds of photograph.

They are the data set that needs no download. Nothing here is a picture of a patient, and a score on
phantoms says nothing about a clinic; it says whether a method works at all, and it leaves room to
be better: one threshold on the grey value fails, 32 labelled images are too few, 1,000 are far better.

A case is drawn by a generator seeded with (style, seed, index, shifted), so it never depends on how
many others there are, and it looks alike at every `image_size`.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from fewshotseg.data import phantom_scenes
from fewshotseg.errors import InputError
from fewshotseg.types import Case

STYLES = ("dermoscopy", "ultrasound")
_PREFIX = "phantom_"


class PhantomSource:
    """A `CaseSource` of procedural images with one foreground class, 'lesion'.

    Args:
      style: 'dermoscopy' (RGB) or 'ultrasound' (one grey channel).
      num_cases: how many ids to list; case i is the same whatever this number is.
      seed: any non-negative integer; another seed gives entirely different cases.
      image_size: height and width in pixels, at least 16.
      shifted: another camera (colour cast, blur, noise; for ultrasound another gain, speckle size
        and depth of focus) looking at other cases: a test set from outside the training domain.
      name: of the data set; by default 'phantom_<style>' with '_shifted' appended where it applies.

    Raises:
      InputError: an argument is out of range.
    """

    class_names = ("lesion",)

    def __init__(
        self,
        style: str = "dermoscopy",
        num_cases: int = 400,
        seed: int = 0,
        image_size: int = 64,
        shifted: bool = False,
        name: str | None = None,
    ):
        if style not in STYLES:
            raise InputError(f"phantom style {style!r} is unknown: choose one of {list(STYLES)}.")
        if num_cases < 1 or seed < 0 or image_size < 16:
            raise InputError(
                "a phantom data set needs num_cases >= 1, seed >= 0 and image_size >= 16, but got "
                f"num_cases={num_cases}, seed={seed}, image_size={image_size}."
            )
        self.style, self.seed, self.image_size, self.shifted = style, seed, image_size, shifted
        self.name = name or _PREFIX + style + ("_shifted" if shifted else "")
        digits = max(5, len(str(num_cases - 1)))
        self.ids = tuple(f"{_PREFIX}{i:0{digits}d}" for i in range(num_cases))
        self.official_splits: Mapping[str, tuple[str, ...]] = {}

    def load(self, case_id: str) -> Case:
        """Draws one case: image uint8 `[S, S, 3]` or `[S, S, 1]`, mask uint8 `[S, S]` of 0 and 1.

        Raises:
          InputError: `case_id` is not one of `ids`.
        """
        number = case_id.removeprefix(_PREFIX)
        index = int(number) if number.isascii() and number.isdigit() else -1
        if not 0 <= index < len(self.ids) or self.ids[index] != case_id:
            raise InputError(
                f"{self.name} has no case {case_id!r}: its ids run from {self.ids[0]!r} to "
                f"{self.ids[-1]!r}."
            )
        rng = np.random.default_rng([STYLES.index(self.style), self.seed, index, self.shifted])
        canvas = phantom_scenes.Canvas(rng, self.image_size)
        if self.style == "dermoscopy":
            image, mask = phantom_scenes.draw_dermoscopy(canvas, self.shifted)
        else:
            image, mask = phantom_scenes.draw_ultrasound(canvas, self.shifted)
        image = np.round(255.0 * np.clip(image, 0.0, 1.0)).astype(np.uint8)
        return Case(id=case_id, image=image, mask=mask.astype(np.uint8))


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
