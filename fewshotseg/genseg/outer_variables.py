"""The outer variables: what theta may hold, how each starts, and how it is used. A row each.

Each is bounded by its `use`: a free variable runs away under a short horizon (a weight on the synthetic
loss went from 1 to 107). Only those that move are in theta; the others stay as they started.
"""

import dataclasses
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fewshotseg.types import PRNGKey, Theta


@dataclasses.dataclass(frozen=True)
class OuterVariable:
    """One outer variable.

    Attributes:
      init: `(key, setting) -> value`, a pytree of floating point arrays.
      use: `(value, setting) -> what the players are given`, differentiable.
      discretize: `value -> value`, where the search ends: of mixtures, the strongest part alone.
    """

    init: Callable
    use: Callable
    discretize: Callable = lambda value: value


def _init_architecture(key, shapes: Mapping[str, tuple[int, int]]):
    keys = jax.random.split(key, len(shapes)) if shapes else ()
    pairs = zip(shapes.items(), keys, strict=True)
    return {side: 1e-3 * jax.random.normal(k, shape) for (side, shape), k in pairs}


def _mixing_weights(logits, shapes):
    del shapes
    return {side: jax.nn.softmax(alpha, axis=-1) for side, alpha in logits.items()}


def _strongest_candidate(logits):
    """Logits whose softmax is exactly one-hot."""

    def one_hot(alpha):
        best = jax.nn.one_hot(alpha.argmax(-1), alpha.shape[-1], dtype=alpha.dtype)
        return jnp.where(best == 1, 0.0, -jnp.inf).astype(alpha.dtype)

    return jax.tree.map(one_hot, logits)


def _within(x, limit):
    """Between -limit and limit, and `x` near 0."""
    return limit * jnp.tanh(x / limit)


def _zeros(key, size):
    del key
    return jnp.zeros(size, jnp.float32)


OUTER_VARIABLES = {
    # Logits [levels, candidates] per searchable side of the generator; used as their softmax.
    # Setting: {side: (levels, candidates)}.
    "architecture": OuterVariable(_init_architecture, _mixing_weights, _strongest_candidate),
    # gamma, the weight of the synthetic loss: starts at the setting and stays between 0 and twice that.
    "synthetic_weight": OuterVariable(
        lambda key, gamma: jnp.float32(0.0), lambda x, gamma: 2.0 * gamma * jax.nn.sigmoid(x)
    ),
    # Weights of the sources of synthetic pairs, equal at the start: the softmax of logits [S] that stay
    # within +-4, so that no source is ever lost. Setting: the names of the sources.
    "mixture": OuterVariable(
        lambda key, sources: _zeros(key, len(sources)),
        lambda x, sources: jax.nn.softmax(_within(x, 4.0)),
    ),
    # Of the feathered edge of what is pasted, in pixels: starts at the setting, and stays between a quarter
    # and four times that.
    "blend_width": OuterVariable(
        lambda key, width: jnp.float32(0.0), lambda x, width: width * 4.0 ** jnp.tanh(x)
    ),
    # Of what a generator adds to a composite: starts at the setting, and stays between 0 and twice that.
    "residual_gain": OuterVariable(
        lambda key, gain: jnp.float32(0.0), lambda x, gain: 2.0 * gain * jax.nn.sigmoid(x)
    ),
    # A factor [C] between 1/2 and 2 and a shift [C] within +-0.5 of the colours of synthetic images, for
    # images to come from another camera; none at the start. Setting: C, the number of channels.
    "colour_gain": OuterVariable(_zeros, lambda x, channels: 2.0 ** jnp.tanh(x)),
    "colour_shift": OuterVariable(_zeros, lambda x, channels: _within(x, 0.5)),
    # The factor by which synthetic pairs, image and mask, are enlarged, for objects to have the size that
    # they have elsewhere: 1 at the start. Setting: the largest; the smallest is its inverse. As long a way
    # as that of a logit of the mixture, so that one length of step suits both.
    "object_scale": OuterVariable(
        lambda key, largest: jnp.float32(0.0), lambda x, largest: largest ** jnp.tanh(x / 4.0)
    ),
}


def create(
    settings: Mapping[str, Any], moving: Sequence[str], key: PRNGKey
) -> tuple[Theta, Callable[[Theta], dict[str, Any]]]:
    """Theta at its start, and the function from theta to the outer variables in use.

    Args:
      settings: for every outer variable that the players look at, what its `init` and `use` are told.
      moving: names of those that theta holds; the others are fixed at their start.
      key: of the start.

    Returns:
      `theta` and `use(theta)`, a dictionary with the keys of `settings`.
    """
    start = {
        name: OUTER_VARIABLES[name].init(
            jax.random.fold_in(key, zlib.crc32(name.encode())), setting
        )
        for name, setting in settings.items()
    }
    theta = {name: start[name] for name in settings if name in moving}
    fixed = {name: value for name, value in start.items() if name not in theta}

    def use(theta):
        values = {**fixed, **theta}
        return {name: OUTER_VARIABLES[name].use(values[name], s) for name, s in settings.items()}

    return theta, use


def discretize(theta: Theta) -> Theta:
    """Theta after the search: every cell of the generator keeps its strongest candidate alone."""
    return {name: OUTER_VARIABLES[name].discretize(value) for name, value in theta.items()}
