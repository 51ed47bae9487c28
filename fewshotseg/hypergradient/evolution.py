"""Hypergradients without derivatives. Notation as in `contract`."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fewshotseg.hypergradient import contract
from fewshotseg.hypergradient.contract import Hypergradient, mean_over_devices


def evolution_strategies(
    inner_step: Callable,
    outer_loss: Callable,
    *,
    num_pairs: int,
    sigma: float,
    axis_name: str | None = None,
) -> Callable:
    r"""Antithetic evolution strategies (Salimans et al., 2017): for pieces without a derivative.

        dV/dA ~ 1/N sum_i e_i [V_K(A + sigma e_i) - V_K(A - sigma e_i)] / (2 sigma),    e_i ~ N(0, 1)

    V_K(A) is the outer loss after the K steps, taken anew from the same state, batches and keys. It
    is unbiased for the outer loss smoothed by sigma, whose gradient differs from that of V_K by
    O(sigma^2); its variance is about (|A| + 1) / N of the squared norm, so the cosine to the gradient
    to be expected is about (1 + (|A| + 1) / N)^(-1/2), and it wants few outer variables. The noise is
    drawn from the first of the K keys. Time: (2 N + 1) K t. Memory: two states, whatever K. The state
    that training goes on from comes from the unperturbed A. (PES, Vicol et al., ICML 2021, corrects
    for truncated horizons by particles that live across outer steps; the contract has no place for
    them, and it is not here.)

    Args:
      inner_step: see `unrolled`; needs no derivative.
      outer_loss: likewise.
      num_pairs: N.
      sigma: standard deviation of the perturbation of theta.
      axis_name: of the devices, None for one.

    Returns:
      See `unrolled`.
    """
    take_steps = contract.steps(inner_step)
    perturb, outer, add = pieces(outer_loss, num_pairs, sigma, axis_name)

    def run(state, theta, batches, outer_batch, rngs):
        state, metrics = take_steps(state, theta, batches, rngs)
        loss, outer_metrics = outer(state, theta, outer_batch)
        return loss, state, {**metrics, **outer_metrics}

    def estimate(theta, inner_state, inner_batches, outer_batch, rngs):
        theta = jax.tree.map(jnp.asarray, theta)
        problem = inner_batches, outer_batch, rngs
        contract.check(inner_step, outer_loss, theta, inner_state, *problem)

        def pair(i, total):
            right, left = (
                run(inner_state, perturb(theta, rngs, i, sign), *problem)[0] for sign in (1.0, -1.0)
            )
            return add(total, theta, rngs, i, right, left)

        loss, final, metrics = run(inner_state, theta, *problem)
        grad = jax.lax.fori_loop(0, num_pairs, pair, jax.tree.map(jnp.zeros_like, theta))
        return Hypergradient(loss, grad, final, metrics)

    return estimate


class Pieces(NamedTuple):
    """What happens outside of the inner steps; a loop over the pairs puts them together.

    Attributes:
      perturb: `(theta, rngs, i, sign) -> theta`.
      outer: `(inner_state, theta, outer_batch) -> (loss, metrics)`, means over devices.
      add: `(total, theta, rngs, i, right, left) -> total`, with the i-th pair's share.
    """

    perturb: Callable
    outer: Callable
    add: Callable


def pieces(outer_loss: Callable, num_pairs: int, sigma: float, axis_name: str | None) -> Pieces:
    """The pieces of `evolution_strategies`, whose arguments see."""

    def draw(theta, rngs, i):
        key = jax.random.fold_in(jax.random.fold_in(rngs[0], 0x5E5), i)
        leaves, structure = jax.tree.flatten(theta)
        keys = jax.random.split(key, len(leaves))
        noise = [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
        return jax.tree.unflatten(structure, noise)

    def perturb(theta, rngs, i, sign):
        return jax.tree.map(lambda x, e: x + sign * sigma * e, theta, draw(theta, rngs, i))

    def outer(state, theta, batch):
        return mean_over_devices(outer_loss(state, theta, batch), axis_name)

    def add(total, theta, rngs, i, right, left):
        slope = (right - left) / (2 * sigma * num_pairs)
        return jax.tree.map(lambda t, e: t + slope * e, total, draw(theta, rngs, i))

    return Pieces(perturb, outer, add)
