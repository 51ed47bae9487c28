"""The common bilevel problem, with one network and one optimiser, in two calls. Notation as in `contract`.

Everything else in this package takes an inner step and an inner equation of any shape; here they are made
from a loss and an optimiser.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from fewshotseg.hypergradient import inner_gradient
from fewshotseg.hypergradient.contract import mean_over_devices
from fewshotseg.hypergradient.implicit import Stationarity


class TrainState(NamedTuple):
    """The inner state of one player.

    Attributes:
      params: w, a pytree of floating point arrays.
      opt_state: of the optimiser, `optimizer.init(params)`.
    """

    params: Any
    opt_state: Any


def gradient_step(
    inner_loss: Callable,
    optimizer: Any,
    *,
    gradient: Callable = inner_gradient.mixed,
    axis_name: str | None = None,
) -> Callable:
    """An inner step that any estimator differentiates: one update of the weights by an optimiser.

    Args:
      inner_loss: `(params, theta, batch, rng) -> (loss, metrics)`, a mean over its batch.
      optimizer: an optax transformation. Of Adam, RMSProp and their like, take one whose derivative is
        finite where a gradient is 0 (in optax, `adam(..., eps_root=...)`): stock ones give NaN there.
      gradient: of `inner_gradient`: how the inner gradient is differentiated once more.
      axis_name: of the devices, None for one.

    Returns:
      `(TrainState, theta, batch, rng) -> (TrainState, metrics)`; to the metrics of the loss is added
      'inner/loss'.
    """
    differentiable = _gradient(inner_loss, gradient)

    def inner_step(state, theta, batch, rng):
        (loss, metrics), grads = differentiable(state.params, theta, (batch, rng))
        grads, metrics = mean_over_devices((grads, {"inner/loss": loss, **metrics}), axis_name)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = jax.tree.map(lambda p, u: (p + u).astype(p.dtype), state.params, updates)
        return TrainState(params, opt_state), metrics

    return inner_step


def stationarity(
    inner_loss: Callable,
    optimizer: Any = None,
    *,
    gradient: Callable = inner_gradient.mixed,
    axis_name: str | None = None,
) -> Stationarity:
    """The inner problem as the equation that the gradient of `inner_loss` is 0.

    Args:
      inner_loss: `(params, theta, batch, rng) -> (loss, metrics)`, a mean over its batch.
      optimizer: the optax transformation that trains the weights; only `sama` needs it.
      gradient: as in `gradient_step`.
      axis_name: of the devices, None for one.

    Returns:
      The equation of a state that is the weights themselves, or holds them as `params` beside
      `opt_state`: a `TrainState`, or Flax's. For any other, make a `Stationarity` by hand.
    """
    differentiable = _gradient(inner_loss, gradient)

    def weights(state):
        return state.params if hasattr(state, "params") else state

    def replace(state, w):
        if not hasattr(state, "params"):
            return w
        return state._replace(params=w) if isinstance(state, tuple) else state.replace(params=w)

    def gradient_at(state, theta, batch, rng):
        _, grads = differentiable(weights(state), theta, (batch, rng))
        return mean_over_devices(grads, axis_name)

    def update(grads, state):
        return optimizer.update(grads, state.opt_state, state.params)[0]

    return Stationarity(weights, replace, gradient_at, None if optimizer is None else update)


def _gradient(inner_loss, gradient):
    return gradient(lambda params, theta, data: inner_loss(params, theta, *data))
