"""What training carries from step to step: pytrees of arrays, nothing else.

No optimiser, no key, no configuration, no device axis: the same value is a scan carry, a checkpoint
and a test value.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from fewshotseg.types import Params, Theta


@flax.struct.dataclass
class GanState:
    """Generator (G) and discriminator (H), with the states of their optimisers."""

    generator: Params
    discriminator: Params
    generator_opt: Any
    discriminator_opt: Any


@flax.struct.dataclass
class SegmenterState:
    """Segmenter (S), its optimiser, and the running average of its weights for evaluation."""

    params: Params
    opt: Any
    ema: Params


@flax.struct.dataclass
class InnerState:
    """Everything an inner step moves."""

    gan: GanState
    segmenter: SegmenterState


@flax.struct.dataclass
class GenSegState:
    """The state of the whole training.

    Attributes:
      inner: the inner players.
      theta: outer variables; `theta['architecture']` holds the generator's architecture weights.
      theta_opt: state of the outer optimiser.
      step: int32 scalar, number of segmenter (or, in the first stage, generator) steps done.
    """

    inner: InnerState
    theta: Theta
    theta_opt: Any
    step: jax.Array


def init_gan(
    generator: Params,
    discriminator: Params,
    generator_optimizer: optax.GradientTransformation,
    discriminator_optimizer: optax.GradientTransformation,
) -> GanState:
    """A fresh pair of players with fresh optimisers."""
    return GanState(
        generator,
        discriminator,
        generator_optimizer.init(generator),
        discriminator_optimizer.init(discriminator),
    )


def init_segmenter(params: Params, optimizer: optax.GradientTransformation) -> SegmenterState:
    """A fresh segmenter; the average starts at the initial weights."""
    return SegmenterState(params, optimizer.init(params), jax.tree.map(jnp.copy, params))
