"""Hypergradients without derivatives. Notation as in `hypergradient`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fewshotseg.hypergradient import unroll as hypergradient
from fewshotseg.hypergradient.unroll import mean_over_devices


def evolution_strategies(
    inner_step: Callable,
    outer_loss: Callable,
    *,
    num_pairs: int,
    sigma: float,
    loop: str = "scan",
    axis_name: str | None = None,
    compile: Callable = hypergradient.compile_nothing,
    step: Callable | None = None,
) -> Callable:
    r"""Antithetic evolution strategies (Salimans et al., 2017): for pieces without a derivative.

        dV/dA ~ 1/N sum_i e_i [V_K(A + sigma e_i) - V_K(A - sigma e_i)] / (2 sigma),    e_i ~ N(0, 1)

    V_K(A) is the outer loss after the K steps, taken anew from the same state, batches and keys. It
    is unbiased for the outer loss smoothed by sigma, whose gradient differs from that of V_K by
    O(sigma^2); its variance is about (|A| + 1) / N of the squared norm, so it wants few outer
    variables. Time: (2 N + 1) K t. Memory: two states, whatever K. The state that training goes on
    from comes from the unperturbed A. (PES, Vicol et al., ICML 2021, corrects for truncated horizons
    by particles that live across outer steps; the contract has no place for them, and it is not here.)

    Args:
      num_pairs: N.
      sigma: standard deviation of the perturbation of theta.
      Others: see `unrolled`.
    """
    hypergradient.check_loop(loop)

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

    take_steps = hypergradient.steps(inner_step, loop, compile, step)
    if loop == "host":
        outer = compile(outer, batched_args=(2,))
        perturb, add = compile(perturb), compile(add)

    def run(state, theta, batches, outer_batch, rngs):
        state, metrics = take_steps(state, theta, batches, rngs)
        loss, outer_metrics = outer(state, theta, outer_batch)
        return loss, state, {**metrics, **outer_metrics}

    def estimate(theta, inner_state, inner_batches, outer_batch, rngs):
        def pair(i, total):
            right, left = (
                run(inner_state, perturb(theta, rngs, i, sign), inner_batches, outer_batch, rngs)
                for sign in (1.0, -1.0)
            )
            return add(total, theta, rngs, i, right[0], left[0])

        loss, final, metrics = run(inner_state, theta, inner_batches, outer_batch, rngs)
        grad = jax.tree.map(jnp.zeros_like, theta)
        if loop == "scan":
            grad = jax.lax.fori_loop(0, num_pairs, pair, grad)
        else:
            for i in range(num_pairs):
                grad = pair(i, grad)
        return hypergradient.Hypergradient(loss, grad, final, metrics)

    return compile(estimate, batched_args=(2, 3)) if loop == "scan" else estimate
