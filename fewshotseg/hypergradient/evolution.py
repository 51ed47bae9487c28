"""Hypergradients without derivatives. Notation as in `contract`."""

from collections.abc import Callable
from typing import Any, NamedTuple

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
    that training goes on from comes from the unperturbed A. Its horizon is
    the K steps; `pes` sees farther back.

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
    draw, perturb, outer, add = pieces(outer_loss, num_pairs, sigma, axis_name)
    run = trainer(take_steps, outer)

    def estimate(theta, inner_state, inner_batches, outer_batch, rngs):
        theta = jax.tree.map(jnp.asarray, theta)
        problem = inner_batches, outer_batch, rngs
        contract.check(inner_step, outer_loss, theta, inner_state, *problem)

        def pair(i, total):
            noise = draw(theta, rngs, i)
            right, left = (
                run(inner_state, perturb(theta, noise, sign), *problem)[0] for sign in SIGNS
            )
            return add(total, noise, right, left)

        loss, final, metrics = run(inner_state, theta, *problem)
        grad = jax.lax.fori_loop(0, num_pairs, pair, jax.tree.map(jnp.zeros_like, theta))
        return Hypergradient(loss, grad, final, metrics)

    return estimate


def pes(
    inner_step: Callable,
    outer_loss: Callable,
    *,
    num_pairs: int,
    sigma: float,
    num_unrolls: int,
    axis_name: str | None = None,
) -> Callable:
    r"""Persistent evolution strategies (Vicol et al., ICML 2021): a long horizon without a derivative.

        dV/dA ~ 1/N sum_i x_i [V(S_i^+, A + sigma e_i) - V(S_i^-, A - sigma e_i)] / (2 sigma),
        x_i = the sum of the e_i of all estimates since the particles started

    A pair of particles S_i^+ and S_i^- trains under two thetas, and goes on doing so from one estimate
    to the next, with fresh noise e_i ~ N(0, 1) for each: K steps at a time. x_i credits the outer loss
    to all noise that has led to it, so the estimate is unbiased (but for O(sigma^2), as in
    `evolution_strategies`) for the derivative through all steps since the particles started and not
    only through the last K. After `num_unrolls` estimates they start anew at the state that trains,
    under the unperturbed theta; with 1 it is `evolution_strategies`, number for number. The variance
    grows with the estimates since then: of one outer variable to which all n of them have contributed
    alike it is 2 / N of the square, of one that moves the loss in one of them alone (n + 1) / N.

    All steps of a training have to be in an estimate: the particles take no others. Time: (2 N + 1) K t.
    Memory: 2 N + 1 states, whatever K.

    Args:
      inner_step: see `unrolled`; needs no derivative.
      outer_loss: likewise.
      num_pairs: N.
      sigma: standard deviation of the perturbation of theta.
      num_unrolls: estimates until the particles start anew.
      axis_name: of the devices, None for one.

    Returns:
      `(theta, inner_state, inner_batches, outer_batch, rngs, particles) -> Hypergradient`: see `unrolled`,
      but the particles go in, `start_particles` at first, and come out as `carry`.
    """
    take_steps = contract.steps(inner_step)
    draw, perturb, outer, add = pieces(outer_loss, num_pairs, sigma, axis_name)
    run = trainer(take_steps, outer)

    def estimate(theta, inner_state, inner_batches, outer_batch, rngs, particles):
        theta, inner_state = jax.tree.map(jnp.asarray, (theta, inner_state))
        problem = inner_batches, outer_batch, rngs
        contract.check(inner_step, outer_loss, theta, inner_state, *problem)
        states, noise, unrolls = renew(particles, inner_state, num_unrolls)

        def pair(total, inputs):
            i, states, noise = inputs
            fresh = draw(theta, rngs, i)
            noise = jax.tree.map(jnp.add, noise, fresh)
            losses, states, _ = zip(
                *(
                    run(state, perturb(theta, fresh, sign), *problem)
                    for state, sign in zip(states, SIGNS, strict=True)
                ),
                strict=True,
            )
            return add(total, noise, *losses), (states, noise)

        loss, final, metrics = run(inner_state, theta, *problem)
        zeros = jax.tree.map(jnp.zeros_like, theta)
        grad, (states, noise) = jax.lax.scan(pair, zeros, (jnp.arange(num_pairs), states, noise))
        return Hypergradient(loss, grad, final, metrics, Particles(states, noise, unrolls + 1))

    return estimate


class Particles(NamedTuple):
    """What `pes` remembers.

    Attributes:
      states: inner states of the N pairs, `(right, left)`, with a leading axis N each.
      noise: x, the structure of theta with a leading axis N.
      unrolls: int32 scalar, estimates since they started.
    """

    states: tuple[Any, Any]
    noise: Any
    unrolls: jax.Array


def start_particles(theta: Any, inner_state: Any, num_pairs: int) -> Particles:
    """The particles of `pes` before its first estimate, which starts them at the state it is given."""

    def repeat(x):
        return jnp.broadcast_to(x, (num_pairs, *jnp.shape(x)))

    states = jax.tree.map(repeat, inner_state)
    noise = jax.tree.map(lambda x: jnp.zeros((num_pairs, *jnp.shape(x)), jnp.result_type(x)), theta)
    return Particles((states, states), noise, jnp.int32(0))


def renew(particles: Particles, inner_state: Any, num_unrolls: int) -> Particles:
    """The particles, started anew at `inner_state` if it is time."""
    over = particles.unrolls % num_unrolls == 0
    states = tuple(
        jax.tree.map(lambda x, new: jnp.where(over, new, x), states, inner_state)
        for states in particles.states
    )
    noise = jax.tree.map(lambda x: jnp.where(over, 0.0, x), particles.noise)
    return Particles(states, noise, jnp.where(over, 0, particles.unrolls))


SIGNS = (1.0, -1.0)


class Pieces(NamedTuple):
    """What happens outside of the inner steps; a loop over the pairs puts them together.

    Attributes:
      draw: `(theta, rngs, i) -> noise` of the i-th pair, the structure of theta.
      perturb: `(theta, noise, sign) -> theta`.
      outer: `(inner_state, theta, outer_batch) -> (loss, metrics)`, means over devices.
      add: `(total, noise, right, left) -> total`, with a pair's share.
    """

    draw: Callable
    perturb: Callable
    outer: Callable
    add: Callable


def pieces(outer_loss: Callable, num_pairs: int, sigma: float, axis_name: str | None) -> Pieces:
    """The pieces of `evolution_strategies` and `pes`, whose arguments see."""

    def draw(theta, rngs, i):
        key = jax.random.fold_in(jax.random.fold_in(rngs[0], 0x5E5), i)
        leaves, structure = jax.tree.flatten(theta)
        keys = jax.random.split(key, len(leaves))
        noise = [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
        return jax.tree.unflatten(structure, noise)

    def perturb(theta, noise, sign):
        return jax.tree.map(lambda x, e: x + sign * sigma * e, theta, noise)

    def outer(state, theta, batch):
        return mean_over_devices(outer_loss(state, theta, batch), axis_name)

    def add(total, noise, right, left):
        slope = (right - left) / (2 * sigma * num_pairs)
        return jax.tree.map(lambda t, e: t + slope * e, total, noise)

    return Pieces(draw, perturb, outer, add)


def trainer(take_steps: Callable, outer: Callable) -> Callable:
    """`(state, theta, batches, outer_batch, rngs) -> (outer loss after K steps, S_K, metrics)`."""

    def run(state, theta, batches, outer_batch, rngs):
        state, metrics = take_steps(state, theta, batches, rngs)
        loss, outer_metrics = outer(state, theta, outer_batch)
        return loss, state, {**metrics, **outer_metrics}

    return run
