"""Optax chains, and their twins whose steps can be differentiated.

Adam and RMSProp divide by the square root of the second moment, whose derivative at 0 is infinite: the
hypergradient through a weight that has never had a gradient (a dead unit) is NaN with the stock chains.
The twins take exactly the same steps, and give that root the derivative 0 where it is 0: there, the
first moment is 0 too, and the step moves by `d m / eps` alone.

How exact the derivative is in float32: to about 1e-6 for any size of gradient. But a step of Adam depends
on a gradient g like `1 / |g|` (up to `1 / eps`), so it amplifies the rounding of g itself. A float32 sum
of terms of size s is uncertain by about 1e-7 s: where |g| is below that, say below 1e-7 in a loss of
size 1, the step is rounding, and so is its derivative. Remedies: a larger `eps`, which bounds the
amplification (and changes the training of the weights whose gradients are smaller), or
`second_moment='given'`, which leaves the cancellation between the two moments out of the derivative, and
is biased; or 64 bits.
"""

from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fewshotseg import errors

SECOND_MOMENTS = ("differentiated", "given")


def learning_rate_schedule(
    learning_rate: float,
    num_steps: int,
    schedule: str,
    warmup_steps: int = 0,
    start: int = 0,
) -> optax.Schedule:
    """Step -> learning rate.

    Args:
      learning_rate: peak value.
      num_steps: length of the training, in steps.
      schedule: 'constant' or 'cosine' (down to 0 at `num_steps`).
      warmup_steps: linear rise from 0 to the peak before it.
      start: count of the optimiser at the first step, where it has already been in use.

    Raises:
      InputError: an unknown schedule.
    """
    if schedule == "constant":
        body = optax.constant_schedule(learning_rate)
    elif schedule == "cosine":
        body = optax.cosine_decay_schedule(learning_rate, max(1, num_steps - warmup_steps))
    else:
        raise errors.InputError(f"schedule is {schedule!r}: use 'constant' or 'cosine'.")
    if warmup_steps:
        warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
        body = optax.join_schedules([warmup, body], [warmup_steps])
    return (lambda count: body(count - start)) if start else body


def create_optimizer(
    name: str,
    learning_rate: float,
    num_steps: int,
    *,
    schedule: str = "constant",
    warmup_steps: int = 0,
    start: int = 0,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    second_moment: str = "differentiated",
    clip: float = 0.0,
    differentiable: bool = False,
    rates: Mapping[str, float] | None = None,
) -> optax.GradientTransformation:
    """An optimiser of a player or of theta.

    Args:
      name: 'sgd', 'adam', 'adamw' or 'rmsprop'.
      learning_rate: peak value.
      num_steps: over which the schedule runs.
      schedule: see `learning_rate_schedule`.
      warmup_steps: likewise.
      start: likewise.
      weight_decay: decoupled for 'adamw', added to the gradient for the others.
      momentum: of 'sgd' and 'rmsprop'.
      b1: decay of Adam's first moment.
      b2: decay of Adam's and RMSProp's second moment.
      eps: added to the root of the second moment, as in Kingma and Ba (2015) and in PyTorch.
      second_moment: 'differentiated', or 'given': a derivative takes it for a constant.
      clip: largest norm of the gradient of all parts that move; a longer one is scaled down to it before
        anything else. 0: none.
      differentiable: the twin of the stock chain whose derivative is finite everywhere.
      rates: factors of the learning rate (and so of decoupled decay) for parts of the parameters, by the
        first part of their names, '' for all others, above 0; a part with 0 never moves, has no moments,
        and does not count in `clip`.

    Raises:
      InputError: an unknown name, schedule or way with the second moment.
    """
    if second_moment not in SECOND_MOMENTS:
        raise errors.InputError(
            f"second_moment is {second_moment!r}: use 'differentiated' or 'given'."
        )
    rate = learning_rate_schedule(learning_rate, num_steps, schedule, warmup_steps, start)
    decay = [optax.add_decayed_weights(weight_decay)] if weight_decay else []
    momentum_ = [optax.trace(momentum)] if momentum else []
    given = second_moment == "given"
    adam = optax.scale_by_adam(b1, b2, eps)
    rms = optax.scale_by_rms(b2, eps, eps_in_sqrt=False)
    if differentiable:
        adam, rms = _differentiable_adam(b1, b2, eps, given), _differentiable_rms(b2, eps, given)
    descend = optax.scale_by_learning_rate(rate)
    chains = {  # in the order of `optax.sgd`, `optax.adam`, `optax.adamw` and `optax.rmsprop`
        "sgd": [*decay, *momentum_, descend],
        "adam": [*decay, adam, descend],
        "adamw": [adam, *decay, descend],
        "rmsprop": [*decay, rms, descend, *momentum_],
    }
    if name not in chains:
        raise errors.InputError(f"optimizer is {name!r}: use one of {', '.join(chains)}.")
    shorten = [optax.clip_by_global_norm(clip)] if clip else []
    if clip and differentiable:
        shorten = [optax.stateless(lambda grads, params: _clip(grads, clip))]
    rates = {part: factor for part, factor in (rates or {}).items() if factor != 1.0}
    scale = [_scale_parts(rates)] if any(rates.values()) else []
    optimizer = optax.chain(*shorten, *chains[name], *scale)
    frozen = {part for part, factor in rates.items() if factor == 0.0}
    return _without_parts(optimizer, frozen) if frozen else optimizer


def _scale_parts(rates: Mapping[str, float]):
    """Multiplies updates by the factor of the part they belong to."""

    def scale(updates, params=None):
        del params
        others = rates.get("", 1.0)
        return {name: optax.tree.scale(rates.get(name, others), u) for name, u in updates.items()}

    return optax.stateless(scale)


def _without_parts(optimizer: optax.GradientTransformation, frozen: Collection[str]):
    """The optimiser of all parts but the frozen ones, whose updates are 0."""

    def rest(tree):
        return {name: part for name, part in tree.items() if name not in frozen}

    def update(grads, state, params=None):
        updates, state = optimizer.update(
            rest(grads), state, None if params is None else rest(params)
        )
        still = {name: optax.tree.zeros_like(grads[name]) for name in grads.keys() & frozen}
        return {**updates, **still}, state

    return optax.GradientTransformation(lambda params: optimizer.init(rest(params)), update)


def _clip(grads: Any, most: float) -> Any:
    """`optax.clip_by_global_norm`, with a finite derivative where the norm is 0."""
    norm = _safe_sqrt(sum(jnp.vdot(g, g) for g in jax.tree.leaves(grads)))
    longer = norm >= most
    divisor = jnp.where(longer, norm, 1.0)

    def scale(g):
        return jnp.where(longer, (g / divisor.astype(g.dtype)) * most, g)

    return jax.tree.map(scale, grads)


def _differentiable_adam(b1: float, b2: float, eps: float, given: bool):
    """`optax.scale_by_adam`: m / (sqrt(v) + eps), both without their bias towards 0."""
    stock = optax.scale_by_adam(b1, b2, eps)

    def update(grads, state, params=None):
        del params
        mu = optax.tree.update_moment(grads, state.mu, b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(grads, state.nu, b2, 2)
        count = optax.safe_increment(state.count)
        mu_hat = optax.tree.bias_correction(mu, b1, count)
        nu_hat = optax.tree.bias_correction(nu, b2, count)
        scaled = _divide_by_root(mu_hat, nu_hat, eps, given)
        return scaled, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(stock.init, update)


def _differentiable_rms(decay: float, eps: float, given: bool):
    """`optax.scale_by_rms`: g / (sqrt(v) + eps)."""
    stock = optax.scale_by_rms(decay, eps, eps_in_sqrt=False)

    def update(grads, state, params=None):
        del params
        nu = optax.tree.update_moment_per_elem_norm(grads, state.nu, decay, 2)
        return _divide_by_root(grads, nu, eps, given), optax.ScaleByRmsState(nu=nu)

    return optax.GradientTransformation(stock.init, update)


def _divide_by_root(numerators: Any, squares: Any, eps: float, given: bool) -> Any:
    roots = jax.tree.map(_safe_sqrt, jax.lax.stop_gradient(squares) if given else squares)
    return jax.tree.map(lambda n, root: n / (root + eps), numerators, roots)


def _safe_sqrt(x: jax.Array) -> jax.Array:
    """The square root, with derivative 0 at 0."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)
