"""Hypergradients in forward mode, for long trainings and few outer variables. Notation as in `contract`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fewshotseg.hypergradient import contract
from fewshotseg.hypergradient.contract import Hypergradient, mean_over_devices


def forward_mode(
    inner_step: Callable, outer_loss: Callable, *, axis_name: str | None = None
) -> Callable:
    r"""Exact hypergradient by tangents that are carried along (Franceschi et al., ICML 2017).

        T_{k+1} = (dPhi_k/dS) T_k + dPhi_k/dA,    T_0 = 0,        dV/dA = grad_A V + T_K^T grad_S V

    T_k = dS_k/dA has a column for every outer variable, a number each. The numbers are those of
    `unrolled`, with its bias (none, for K steps), but nothing is kept of the steps: memory is that of
    one step and of |A| + 1 states, whatever K. So it is the one for whole trainings of hundreds of
    steps and one to a hundred outer variables. Every step is linearised once and applied to every
    column. Time: about (2 + |A|) K t; the columns are independent, and one program takes all of them
    together. On CPUs, networks with convolutions want `host_loop.forward_mode`.

    The pieces are public: a loop of one's own that calls `start`, `advance` (any number of steps at a
    time) and `finish` can show progress, save state and tangents in between, and ask for the derivative
    of any loss of the state at any step: for one, of the average of the weights, if the state has one.

    Args:
      inner_step: see `unrolled`. Its gradient must be open to forward mode, as `inner_gradient.reverse`
        is: `mixed` and `finite_difference` have a derivative of their own, in reverse mode only.
      outer_loss: likewise.
      axis_name: of the devices, None for one; as in `unrolled`.

    Returns:
      See `unrolled`.

    Raises:
      ValueError: when it is called: see `contract.check`; or the inner gradient bars forward mode.
    """
    take_steps = advance(inner_step, axis_name=axis_name)
    end = finish(outer_loss, axis_name=axis_name)
    return put_together(lambda *problem: check(inner_step, outer_loss, *problem), take_steps, end)


def put_together(check: Callable, take_steps: Callable, end: Callable) -> Callable:
    """The estimator, of `check` and what `advance` and `finish` return."""

    def estimate(theta, inner_state, inner_batches, outer_batch, rngs):
        theta, inner_state = jax.tree.map(jnp.asarray, (theta, inner_state))
        check(theta, inner_state, inner_batches, outer_batch, rngs)
        tangents = start(theta, inner_state)
        state, tangents, metrics = take_steps(inner_state, tangents, theta, inner_batches, rngs)
        loss, grad, outer_metrics = end(state, tangents, theta, outer_batch)
        return Hypergradient(loss, grad, state, {**metrics, **outer_metrics})

    return estimate


def start(theta: Any, inner_state: Any) -> list[jax.Array]:
    """T_0 = 0: the state before the first step does not depend on theta.

    Args:
      theta: outer variables, n numbers in all.
      inner_state: S_0.

    Returns:
      The tangents: for every floating point leaf of the state `[n, *shape]`, in the order of
      `jax.tree.leaves`; others (counts, keys) have none.
    """
    size = sum(jnp.size(x) for x in jax.tree.leaves(theta))
    floats, _ = contract.split_floats(jax.tree.map(jnp.asarray, inner_state))
    return [jnp.zeros((size, *x.shape), x.dtype) for x in floats]


def advance(inner_step: Callable, *, axis_name: str | None = None) -> Callable:
    """K steps of the state and its tangents, by `lax.scan`; see `forward_mode`.

    Returns:
      `(inner_state, tangents, theta, inner_batches, rngs) -> (S_K, T_K, metrics of the last step)`.
    """
    step = linearized(inner_step)

    def take(state, tangents, theta, batches, rngs):
        directions = columns(theta)

        def body(carry, inputs):
            state, tangents = carry
            state, metrics, push = step(state, theta, *inputs)
            return (state, jax.vmap(push)(tangents, directions)), metrics

        (state, tangents), metrics = jax.lax.scan(body, (state, tangents), (batches, rngs))
        return state, tangents, mean_over_devices(contract.last(metrics), axis_name)

    return take


def finish(outer_loss: Callable, *, axis_name: str | None = None) -> Callable:
    """The outer loss of a state, and its derivative by the tangents; see `forward_mode`.

    Args:
      outer_loss: see `unroll.unrolled`; may be another one at every step.
      axis_name: of the devices, None for one.

    Returns:
      `(inner_state, tangents, theta, outer_batch) -> (loss, grad, metrics)`.
    """

    def end(state, tangents, theta, outer_batch):
        floats, rebuild = contract.split_floats(state)
        (loss, metrics), bars = jax.value_and_grad(
            lambda s, a: outer_loss(rebuild(s), a, outer_batch), argnums=(0, 1), has_aux=True
        )(floats, theta)
        loss, metrics, (state_bar, direct) = mean_over_devices((loss, metrics, bars), axis_name)
        pairs = zip(tangents, state_bar, strict=True)
        flat = sum(t.reshape(t.shape[0], -1) @ bar.ravel() for t, bar in pairs)
        leaves, structure = jax.tree.flatten(direct)
        sizes = [x.size for x in leaves]
        begins = [sum(sizes[:i]) for i in range(len(sizes))]
        grad = [
            x + flat[begin : begin + x.size].reshape(x.shape).astype(x.dtype)
            for x, begin in zip(leaves, begins, strict=True)
        ]
        return loss, jax.tree.unflatten(structure, grad), metrics

    return end


def linearized(inner_step: Callable) -> Callable:
    """`(inner_state, theta, batch, rng) -> (inner_state, metrics, push)`.

    `push(tangent, direction)` is the derivative of the step: of the floating point leaves of the state
    and of theta, to those of the new state. It is a pytree.
    """

    def step(state, theta, batch, rng):
        floats, rebuild = contract.split_floats(state)

        def phi(s, a):
            new, metrics = inner_step(rebuild(s), a, batch, rng)
            return contract.split_floats(new)[0], (new, metrics)

        _, push, (new, metrics) = jax.linearize(phi, floats, theta, has_aux=True)
        return new, metrics, push

    return step


def check(
    inner_step: Callable,
    outer_loss: Callable,
    theta: Any,
    inner_state: Any,
    inner_batches: Any,
    outer_batch: Any,
    rngs: jax.Array,
) -> None:
    """`contract.check`, and that the inner step is open to forward mode.

    Raises:
      ValueError: it is not, or what `contract.check` says.
    """
    contract.check(inner_step, outer_loss, theta, inner_state, inner_batches, outer_batch, rngs)

    def first(state, theta, batches, rngs):
        *_, push = linearized(inner_step)(state, theta, *contract.at(0, batches, rngs))
        return jax.vmap(push)(start(theta, state), columns(theta))

    try:
        jax.eval_shape(first, inner_state, theta, inner_batches, rngs)
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
        raise ValueError(
            "inner_step takes a gradient with a reverse rule of its own, which bars forward mode: "
            "make it with inner_gradient.reverse."
        ) from error


def columns(theta: Any) -> Any:
    """The unit directions of theta: `[n, *shape]` for every leaf, n the numbers of all."""
    leaves, structure = jax.tree.flatten(jax.tree.map(jnp.asarray, theta))
    size, begin, rows = sum(x.size for x in leaves), 0, []
    for x in leaves:
        eye = jnp.eye(size, x.size, -begin, dtype=x.dtype)
        rows.append(eye.reshape(size, *x.shape))
        begin += x.size
    return jax.tree.unflatten(structure, rows)
