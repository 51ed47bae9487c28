"""Sheets of made-up pairs: discs on grey, whose right answers are known, and no training."""

import dataclasses

import numpy as np

from fewshotseg import errors
from fewshotseg.training import review, review_choice

SIZE = 32
ABOUT = {"seed": 0, "method": "end2end", "checkpoint": "c" * 16, "theta": "t" * 16}


def make_pair(number, kind="synthetic"):
    """A disc whose place and colour are its number's."""
    numbers = np.random.default_rng((number, kind == "real"))
    row, column = np.indices((SIZE, SIZE))
    centre, radius = numbers.uniform(10, 22, 2), numbers.uniform(4, 8)
    mask = ((row - centre[0]) ** 2 + (column - centre[1]) ** 2 < radius**2).astype(np.uint8)
    image = np.full((SIZE, SIZE, 3), numbers.integers(40, 200, 3), np.uint8)
    image[mask > 0] = numbers.integers(40, 200, 3)
    image = np.clip(image + numbers.normal(0, 6, image.shape), 0, 255).astype(np.uint8)
    source = "" if kind == "real" else "generator"
    where = -1 if kind == "real" else number
    case = f"case{number}"
    return review_choice.Pair(
        image, mask, kind, source, where, (case,), numbers.normal(), numbers.normal(size=4)
    )


def draw_again(pair, mask):
    """White where the mask is."""
    if pair.number % 7 == 6:
        raise errors.InputError("only a generator draws one for any mask.")
    image = np.full((SIZE, SIZE, 3), 60, np.uint8)
    image[mask > 0] = 250
    return dataclasses.replace(pair, image=image, mask=mask, kind="redraw")


def make_session(folder, num_pairs=80, **options):
    fields = dict(
        redraw=draw_again, fit=lambda rows: None, disagree=None, num_shown=12, real_share=0.1,
        repeat_share=0.1, diversity=0.5, seed=0,
    )  # fmt: skip
    pairs = [make_pair(i) for i in range(num_pairs)]
    real = [make_pair(i, "real") for i in range(10)]
    return review.Session(folder, pairs, real, ("lesion",), ABOUT, **{**fields, **options})
