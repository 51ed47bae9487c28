"""The estimators as Python loops over compiled pieces, for CPUs. Notation as in `contract`.

Why twice: XLA's CPU backend does not put convolutions inside a compiled loop (`lax.scan`, `fori_loop`)
on its fast path, and their gradients are about 20 times slower there; and what is compiled here does not
depend on K. On accelerators use the pure functions of `unroll`, `forward`, `implicit` and `evolution`
(whose twins are in `host_evolution`): the same mathematics, the same numbers, one program. The functions
here cannot be compiled as a whole, so they take what compiles their pieces:

    compile(function, batched_args=(), batched_results=()) -> compiled function

`batched_args` are the positions of arguments that are sharded over devices and `batched_results` those of
results that differ per device, for a `pmap`; the default, `jit`, is `jax.jit` and needs neither.

A training loop that already has a compiled inner step hands it over as `step`: the step that trains is
then the very program whose steps are differentiated.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from fewshotseg.hypergradient import contract, forward, implicit, unroll
from fewshotseg.hypergradient.contract import Hypergradient, mean_over_devices


def jit(function: Callable, batched_args: tuple = (), batched_results: tuple = ()) -> Callable:
    """`jax.jit`, as the `compile` of this file."""
    del batched_args, batched_results
    return jax.jit(function)


def steps(
    inner_step: Callable, *, compile: Callable = jit, step: Callable | None = None
) -> Callable:
    """`(inner_state, theta, inner_batches, rngs) -> (S_K, metrics of the last step)`.

    Args:
      inner_step: see `unroll.unrolled`.
      compile: see above.
      step: `compile(contract.indexed(inner_step), batched_args=(2,))` if the caller already has it.
    """
    step = step or compile(contract.indexed(inner_step), batched_args=(2,))

    def take(state, theta, batches, rngs):
        metrics = {}
        for k in range(rngs.shape[0]):
            state, metrics = step(state, theta, batches, rngs, k)
        return state, metrics

    return take


def unrolled(
    inner_step: Callable,
    outer_loss: Callable,
    *,
    horizon: int | None = None,
    remat: str = "step",
    axis_name: str | None = None,
    compile: Callable = jit,
    step: Callable | None = None,
) -> Callable:
    """`unroll.unrolled`, and with `horizon` `truncated` and `one_step`; compiles its own pieces.

    Args:
      inner_step: see `unroll.unrolled`, as for the other arguments.
      compile: see above.
      step: see `steps`.
    """
    unroll.check_options(horizon, remat)
    check = compile_check(inner_step, outer_loss, compile)
    step = step or compile(contract.indexed(inner_step), batched_args=(2,))

    def record(state, theta, batches, rngs, k):
        """An inner step, with its transpose: a pytree, different on every device."""
        floats, rebuild = contract.split_floats(state)

        def advance(s, a):
            new, metrics = inner_step(rebuild(s), a, *contract.at(k, batches, rngs))
            return contract.split_floats(new)[0], (new, metrics)

        _, transpose, (new, metrics) = jax.vjp(advance, floats, theta, has_aux=True)
        return new, metrics, transpose

    # Cotangents are averaged at every boundary, not only at the end: they stay equal on all
    # devices, and the mean of what they are pulled back to is the same, since a pull-back is linear.
    def play(transpose, state_bar, theta_bar):
        state_bar, contribution = mean_over_devices(transpose(state_bar), axis_name)
        return state_bar, jax.tree.map(jnp.add, theta_bar, contribution)

    def redo(state, theta, batches, rngs, k, state_bar, theta_bar):
        return play(record(state, theta, batches, rngs, k)[2], state_bar, theta_bar)

    def last(state, theta, batches, rngs, k, outer_batch):
        """The last step and the outer loss, pulled back to before that step."""
        new, metrics, transpose = record(state, theta, batches, rngs, k)
        floats, rebuild = contract.split_floats(new)
        (loss, outer_metrics), bars = jax.value_and_grad(
            lambda s, a: outer_loss(rebuild(s), a, outer_batch), argnums=(0, 1), has_aux=True
        )(floats, theta)
        loss, outer_metrics, bars = mean_over_devices((loss, outer_metrics, bars), axis_name)
        state_bar, theta_bar = play(transpose, *bars)
        return state_bar, Hypergradient(loss, theta_bar, new, {**metrics, **outer_metrics})

    def without_state_bar(function, batched_args):
        """Nobody asks for the derivative with respect to the state before the first step; without
        it, XLA leaves out the second derivatives of all weights, a third of the work."""
        return compile(lambda *args: function(*args)[1], batched_args=batched_args)

    first_play, first_redo = without_state_bar(play, (0,)), without_state_bar(redo, (2,))
    only_step = without_state_bar(last, (2, 5))
    record_step = compile(record, batched_args=(2,), batched_results=(2,))
    play_step, redo_step = compile(play, batched_args=(0,)), compile(redo, batched_args=(2,))
    last_step = compile(last, batched_args=(2, 5))

    def estimate(theta, inner_state, inner_batches, outer_batch, rngs):
        check(theta, inner_state, inner_batches, outer_batch, rngs)
        begin, end = unroll.first_differentiated(rngs.shape[0], horizon), rngs.shape[0] - 1
        length = max(1, math.isqrt(end - begin)) if remat == "sqrt" else 1
        inputs = (theta, inner_batches, rngs)
        state, states, tapes = inner_state, {}, {}
        for k in range(end):
            if k >= begin and remat == "none":
                state, _, tapes[k] = record_step(state, *inputs, k)
                continue
            if k >= begin and (k - begin) % length == 0:
                states[k] = state
            state, _ = step(state, *inputs, k)
        if begin == end:
            return only_step(state, *inputs, end, outer_batch)
        state_bar, result = last_step(state, *inputs, end, outer_batch)
        bars = state_bar, result.grad
        for k in reversed(range(begin, end)):
            if remat == "none":
                bars = (play_step if k > begin else first_play)(tapes.pop(k), *bars)
                continue
            for j in range(k - (k - begin) % length, k):
                if j + 1 not in states:
                    states[j + 1], _ = step(states[j], *inputs, j)
            bars = (redo_step if k > begin else first_redo)(states.pop(k), *inputs, k, *bars)
        return result._replace(grad=bars)

    return estimate


def forward_mode(
    inner_step: Callable,
    outer_loss: Callable,
    *,
    axis_name: str | None = None,
    compile: Callable = jit,
    step: Callable | None = None,
) -> Callable:
    """`forward.forward_mode`; compiles its own pieces.

    Args:
      inner_step: see `forward.forward_mode`, as for the other arguments.
      compile: see above.
      step: not needed; here, a step comes with its linearisation.
    """
    del step
    check = compile_check(inner_step, outer_loss, compile, forward.check)
    take_steps = advance(inner_step, axis_name=axis_name, compile=compile)
    end = compile(forward.finish(outer_loss, axis_name=axis_name), batched_args=(3,))

    return forward.put_together(check, take_steps, end)


def advance(
    inner_step: Callable, *, axis_name: str | None = None, compile: Callable = jit
) -> Callable:
    """`forward.advance`; compiles its own pieces, whose number does not depend on that of variables.

    A step is linearised by one program and pushed forward by another, once per outer variable: on
    CPUs the fastest way whose compilation does not grow with their number (`benchmarks/forward_mode.py`).
    """
    linearized = forward.linearized(inner_step)

    def linearize(state, theta, batches, rngs, k):
        state, metrics, push = linearized(state, theta, *contract.at(k, batches, rngs))
        return state, mean_over_devices(metrics, axis_name), push

    def push_one(push, tangent, direction):  # equal on all devices; the mean says so
        return mean_over_devices(push(tangent, direction), axis_name)

    linearize = compile(linearize, batched_args=(2,), batched_results=(2,))
    push_one = compile(push_one, batched_args=(0,))

    def take(state, tangents, theta, batches, rngs):
        directions = forward.columns(theta)
        size = jax.tree.leaves(directions)[0].shape[0]
        directions = [jax.tree.map(lambda x, i=i: x[i], directions) for i in range(size)]
        tangents = [[x[i] for x in tangents] for i in range(size)]
        metrics = {}
        for k in range(rngs.shape[0]):
            state, metrics, push = linearize(state, theta, batches, rngs, k)
            tangents = [push_one(push, t, e) for t, e in zip(tangents, directions, strict=True)]
        return state, [jnp.stack(x) for x in zip(*tangents, strict=True)], metrics

    return take


def implicit_gradient(
    inner_step: Callable,
    outer_loss: Callable,
    stationarity: implicit.Stationarity,
    solver: implicit.Solver,
    *,
    axis_name: str | None = None,
    compile: Callable = jit,
    step: Callable | None = None,
) -> Callable:
    """`implicit.implicit_gradient`; compiles its own pieces, one iteration of the solver among them.

    Args:
      inner_step: see `implicit.implicit_gradient`, as for the other arguments.
      compile: see above.
      step: see `steps`.
    """
    check = compile_check(inner_step, outer_loss, compile)
    take_steps = steps(inner_step, compile=compile, step=step)
    begin, iterate, end = implicit.pieces(outer_loss, stationarity, solver, axis_name)
    begin, iterate = compile(begin, batched_args=(2, 4)), compile(iterate, batched_args=(2,))
    end = compile(end, batched_args=(2,))

    def estimate(theta, inner_state, inner_batches, outer_batch, rngs):
        check(theta, inner_state, inner_batches, outer_batch, rngs)
        state, metrics = take_steps(inner_state, theta, inner_batches, rngs)
        args = state, theta, inner_batches, rngs
        loss, outer_metrics, direct, carry = begin(*args, outer_batch)
        for _ in range(solver.num_iterations):
            carry = iterate(*args, carry)
        grad, solver_metrics = end(*args, direct, carry)
        return Hypergradient(loss, grad, state, {**metrics, **outer_metrics, **solver_metrics})

    return estimate


def compile_check(inner_step, outer_loss, compile, check_problem=contract.check):
    """`check_problem`, as a program of nothing: traced once, under the same devices as the rest."""

    def check(*problem):
        check_problem(inner_step, outer_loss, *problem)
        return jnp.zeros(())

    return compile(check, batched_args=(2, 3))
