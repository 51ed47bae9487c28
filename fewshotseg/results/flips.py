"""A predictor that looks at mirror images, too."""

import dataclasses
import itertools

from fewshotseg.errors import InputError
from fewshotseg.results.predictor import Predictor


def with_flips(predictor: Predictor) -> Predictor:
    """The mean over an image and its mirror images, along the axes that the training mirrored.

    Others the network has never seen: of ultrasound, whose shadows fall downwards, the upside-down image
    cost 5 points of Dice.

    Raises:
      InputError: the training mirrored nothing.
    """
    axes = predictor.flip_axes
    if not axes:
        raise InputError(
            f"predict.flips is True, but {predictor.source} was trained without mirror images "
            "(augment.real.flip_axes): leave it out."
        )
    each = [a for n in range(len(axes) + 1) for a in itertools.combinations(axes, n)]

    def mean(segment):
        def of_all(images):
            return sum(_flip(segment(_flip(images, a)), a) for a in each) / len(each)

        return of_all

    network = mean(predictor.network) if predictor.network else None
    return dataclasses.replace(
        predictor,
        predict_probabilities=mean(predictor.predict_probabilities),
        network=network,
        source=f"{predictor.source}, over {len(each)} mirror images",
    )


def _flip(images, axes):
    last = images.ndim - 1  # channels
    return images[
        tuple(slice(None, None, -1 if i - last in axes else None) for i in range(last + 1))
    ]
