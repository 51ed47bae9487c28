"""A predictor that looks at mirror images, too."""

import dataclasses
import itertools

from fewshotseg.results.predictor import Predictor

_FLIPS = {2: "four", 3: "eight"}


def with_flips(predictor: Predictor) -> Predictor:
    """The mean over an image and its mirror images: four in all, of a volume eight.

    Only where left and right, top and bottom mean nothing for the classes.
    """

    def mean(segment):
        def of_all(images):
            spatial = range(1, images.ndim - 1)
            axes = [a for n in range(images.ndim - 1) for a in itertools.combinations(spatial, n)]
            return sum(_flip(segment(_flip(images, a)), a) for a in axes) / len(axes)

        return of_all

    network = mean(predictor.network) if predictor.network else None
    return dataclasses.replace(
        predictor,
        predict_probabilities=mean(predictor.predict_probabilities),
        network=network,
        source=f"{predictor.source}, over {_FLIPS[predictor.spatial_axes]} flips",
    )


def _flip(images, axes):
    return images[tuple(slice(None, None, -1 if i in axes else None) for i in range(images.ndim))]
