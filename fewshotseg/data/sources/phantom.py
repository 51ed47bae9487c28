"""Phantoms: procedural images with exactly known masks, in the manner of two kinds of photograph.

They are the data set that needs no download. Nothing here is a picture of a patient, and a score on
phantoms says nothing about a clinic; it says whether a method works at all, and it leaves room to
be better: one threshold on the grey value fails, 32 labelled images are too few, 1,000 are far better.

A case is drawn by a generator seeded with (style, seed, index, shifted), so it never depends on how
many others there are, and it looks alike at every `image_size`.
"""

from collections.abc import Mapping

import numpy as np

from fewshotseg.data.sources import phantom_scenes
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
