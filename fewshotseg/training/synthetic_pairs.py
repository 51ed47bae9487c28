"""Synthetic pairs, batch by batch, as the sources of a trained run make them; and which are kept."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fewshotseg import errors, pictures
from fewshotseg.data import canvas, cases
from fewshotseg.genseg import adapt, levels, pair_sources, segmenter
from fewshotseg.methods import Method
from fewshotseg.results import metrics, predictor
from fewshotseg.training import build_parts, stages


class Candidate(NamedTuple):
    """One synthetic pair, kept.

    Attributes:
      image: uint8 `[*spatial, C]`.
      mask: uint8 class ids `[*spatial]`.
      cases: positions of the training cases that went in.
      consistency: Dice of the judge's mask with this one; NaN if both are empty or nobody judges.
      draw: number of the batch.
      example: place in it.
    """

    image: np.ndarray
    mask: np.ndarray
    cases: tuple[int, ...]
    consistency: float
    draw: int
    example: int


def create_makers(
    config, parts: stages.Parts, method: Method, model: Mapping[str, Any], data: cases.Data
) -> dict[str, Callable[[int], pair_sources.Pairs]]:
    """For every source of a method, `number -> Pairs`: a batch of them, another one for every number.

    Args:
      config: of the run; `config.seed` and `config.synthesize.seed` decide all draws.
      parts: of the method.
      method: its row.
      model: of a checkpoint.
      data: whose training cases the pairs are made of.
    """
    draw = build_parts.create_draw(config, data.num_classes, method, config.train.batch_size)
    arrays = jax.tree.map(jnp.asarray, dict(data.train))
    state = {
        player: levels.PlayerState(params, (), None, jnp.int32(0))
        for player, params in model["players"].items()
    }
    key = stages.step_key(config.seed, "synthesize", config.synthesize.seed)

    def maker(index, make):
        @jax.jit  # with the draw inside, what the source does not look at is never computed
        def made(state, theta, arrays, key):
            batch = draw(arrays, key)
            keys = levels.example_keys(batch, segmenter.SYNTHETIC_NOISE)
            pairs = make(state, theta, batch, keys)
            pairs = adapt.adapt(pairs, parts.use(theta), data.num_classes)
            return pairs._replace(masks=adapt.as_ids(pairs.masks))

        def pairs(number):
            of_source = jax.random.fold_in(key, index)
            return made(state, model["theta"], arrays, jax.random.fold_in(of_source, number))

        return pairs

    return {name: maker(i, make) for i, (name, make) in enumerate(parts.sources.items())}


def shares_of(parts: stages.Parts, method: Method, theta) -> dict[str, float]:
    """The share of every source, as the run found it: the weights of the mixture, which sum to 1."""
    if len(method.sources) == 1:
        return {method.sources[0]: 1.0}
    weights = np.asarray(parts.use(theta)["mixture"], float)
    return dict(zip(method.sources, weights.tolist(), strict=True))


def interleave(shares: Sequence[float], num: int) -> list[int]:
    """`num` positions in `shares`, so that every beginning has them as nearly as it can."""
    counts, order = np.zeros(len(shares)), []
    for length in range(1, num + 1):
        chosen = int(np.argmax(np.asarray(shares) * length - counts))
        counts[chosen] += 1
        order.append(chosen)
    return order


class Filled(NamedTuple):
    """The pairs that were kept, and how many were made."""

    pairs: list[Candidate]
    tried: int


def fill(
    make: Callable[[int], pair_sources.Pairs],
    wanted: int,
    *,
    judge: Callable[[np.ndarray, np.ndarray], Sequence[float]] | None,
    least: float,
    max_tries: int,
    what: str,
    report: Callable[[int], Any] = lambda kept: None,
) -> Filled:
    """Makes batches of pairs until `wanted` are consistent.

    Args:
      make: number of a batch -> pairs.
      wanted: how many.
      judge: `(uint8 images, masks) -> Dice`, one per pair, NaN where both masks are empty; None keeps all.
      least: Dice from which a pair is kept; NaN is.
      max_tries: at most so many pairs are made for one that is wanted.
      what: the source, for messages.
      report: told how many were kept, batch by batch.

    Raises:
      InputError: too few are consistent.
    """
    kept: list[Candidate] = []
    found: list[float] = []
    tried = number = 0
    while len(kept) < wanted:
        if tried >= max_tries * wanted:
            raise errors.InputError(
                f"of {tried} pairs of {what}, only {len(kept)} of the {wanted} wanted reach "
                f"synthesize.min_consistency={least:g} (median: {np.nanmedian(found):.2f}): lower it, "
                f"raise synthesize.max_tries={max_tries}, or train longer."
            )
        pairs = jax.device_get(make(number))
        images = pictures.to_uint8(pairs.images)[..., : pairs.images.shape[-1]]
        scores = judge(images, pairs.masks) if judge else [np.nan] * len(images)
        found += scores
        before = len(kept)
        for example, score in enumerate(scores):
            if score < least or len(kept) == wanted:  # NaN is not below anything
                continue
            went_in = pairs.provenance[example]
            used = tuple(int(i) for i in went_in if i != pair_sources.NO_CASE)
            mask = np.asarray(pairs.masks[example], np.uint8)
            args = images[example], mask, used, float(score), number, example
            kept.append(Candidate(*args))
        tried, number = tried + len(images), number + 1
        report(len(kept) - before)
    return Filled(kept, tried)


def agreement(judge: predictor.Predictor, images: np.ndarray, masks: np.ndarray) -> list[float]:
    """Dice of what a model predicts for images as they are written with their masks, one per pair.

    Args:
      judge: the model.
      images: uint8 `[B, *spatial, C]`.
      masks: class ids `[B, *spatial]`.

    Returns:
      In [0, 1], the mean over classes; NaN where all masks are empty and nothing is predicted.
    """
    probabilities = judge.predict_probabilities(images.astype(np.float32) / 127.5 - 1.0)
    num_classes = len(judge.class_names) + 1
    rows = [
        metrics.case_metrics(canvas.probabilities_to_mask(p, judge.threshold), mask, num_classes)
        for p, mask in zip(probabilities, masks, strict=True)
    ]
    return [metrics.mean_over_classes(row)["dice"] for row in rows]
