"""Which pairs a person is shown.

Pairs are shown where an answer would tell most: where fits of R to resampled answers disagree, times how
much a pair moves the outer loss, and unlike what is on the sheet already. The influence of a pair is the
exact inner product of the gradient of its loss with the gradient v of the validation loss, at the weights
as they are: one forward-mode derivative along v for a whole batch of pairs (Koh and Liang, ICML 2017,
without the inverse Hessian; v is what every estimator of the hypergradient begins with).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fewshotseg.genseg import losses
from fewshotseg.runs import ratings as store
from fewshotseg.training import fit_reward


@dataclasses.dataclass(frozen=True)
class Pair:
    """A pair that may be shown.

    Attributes:
      image: uint8 `[H, W, C]`.
      mask: uint8 class ids `[H, W]`.
      kind: 'synthetic', 'redraw' (for a mask that somebody painted) or 'real'.
      source: of pairs; '' of a real one.
      number: in the pool; -1 of a real one.
      cases: ids of the training cases that went in.
      influence: see `influence`.
      described: standardised features, `[F]`.
    """

    image: np.ndarray
    mask: np.ndarray
    kind: str
    source: str
    number: int
    cases: tuple[str, ...]
    influence: float
    described: np.ndarray

    @property
    def name(self) -> str:
        """Hash of its contents."""
        return store.hash_arrays(self.image, self.mask)


def influence(
    segment: Callable, weights: Any, pairs: tuple, validation: Mapping[str, Any], overlap: str
) -> np.ndarray:
    """Decrease of the validation loss per unit of a plain gradient step on each pair: `[N]`.

    Args:
      segment: `(weights, images, keys) -> logits`.
      weights: of the segmenter.
      pairs: images `[N, H, W, C]` in [-1, 1] and masks `[N, H, W]`.
      validation: 'image' and 'mask'.
      overlap: see `losses.segmentation_loss`.
    """

    def loss(weights, images, masks):
        return losses.segmentation_loss(segment(weights, images, None), masks, overlap)

    @jax.jit
    def direction(weights, images, masks):
        return jax.grad(lambda w: loss(w, images, masks).mean())(weights)

    @jax.jit
    def along(weights, v, images, masks):
        return jax.jvp(lambda w: loss(w, images, masks), (weights,), (v,))[1]

    v = direction(weights, validation["image"], validation["mask"])
    return fit_reward.in_chunks(lambda *pair: along(weights, v, *pair), *pairs)


def choose(
    pairs: Sequence[Pair], count: int, disagreement: np.ndarray, diversity: float
) -> list[int]:
    """Positions of the pairs to show, the most telling first.

    Args:
      pairs: to choose from.
      count: at most so many.
      disagreement: of R about each, at least 0; ones where there is no R yet.
      diversity: weight of the distance from what is chosen already, against disagreement times
        influence; both are in [0, 1].
    """
    score = _unit(disagreement) * _unit(np.abs([pair.influence for pair in pairs]))
    described = np.stack([pair.described for pair in pairs])
    nearest = np.full(len(pairs), np.inf)
    chosen: list[int] = []
    while len(chosen) < min(count, len(pairs)):
        far = np.zeros(len(pairs)) if not chosen else _unit(nearest)
        value = score + diversity * far
        value[chosen] = -np.inf
        chosen.append(int(value.argmax()))
        distance = np.linalg.norm(described - described[chosen[-1]], axis=1)
        nearest = np.minimum(nearest, distance)
    return chosen


def _unit(values):
    values = np.asarray(values, float)
    largest = values.max(initial=0.0)
    return values / largest if largest > 0 else np.zeros_like(values)
