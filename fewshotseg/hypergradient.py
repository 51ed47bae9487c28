r"""The mathematics: the derivative of a validation loss through the training that precedes it.

Notation, used in every docstring here:

    A       theta, the outer variables
    S_k     inner state after k inner steps (weights and optimiser state of all inner players)
    Phi     one inner step: S_{k+1} = Phi(S_k, A; batch_k)
    g       inner gradient: g(S, A) = grad_S L(S, A), which Phi hands to an optimiser
    V       outer loss, V(S_K, A), on the validation images

The hypergradient of K inner steps is the total derivative

    dV/dA = grad_A V + sum_k (dPhi_k/dA)^T s_{k+1},    s_K = grad_S V,   s_k = (dPhi_k/dS)^T s_{k+1}.

Pulling a cotangent back through Phi needs products of `s` with the second derivatives of L. There
are three ways to get them, and they differ only in how the inner gradient is differentiated; the
rest of the step (optimiser, averaging over devices, generator) is plain reverse mode:

    reverse             reverse over reverse: what JAX does if nothing is said
    mixed               forward over reverse: one directional derivative of the gradient
    finite_difference   two gradients, first order only (DARTS)

`GRADIENTS` maps these names to functions that make a differentiable gradient out of a loss; an inner
step is built with one of them (`gradient=`) and any estimator then differentiates it accordingly.
The module imports nothing but JAX and can be lifted into another project.

A minimal use, two inner steps of gradient descent:

    loss = lambda S, A, batch: (0.5 * jnp.sum((S - A * batch) ** 2), {})
    gradient = mixed(loss)

    def inner_step(S, A, batch, rng):
        (value, _), g = gradient(S, A, batch)
        return S - 0.1 * g, {"loss": value}

    def outer_loss(S, A, batch):
        return 0.5 * jnp.sum((S - batch) ** 2), {}

    estimate = unrolled(inner_step, outer_loss)
    result = estimate(A, S, batches, validation, rngs)     # batches, rngs: leading axis K
    A = A - 0.01 * result.grad
    S = result.inner_state
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Hypergradient(NamedTuple):
    """What an estimator returns.

    Attributes:
      loss: outer loss after the K inner steps, a scalar.
      grad: estimate of dV/dA, the structure of theta.
      inner_state: S_K; training goes on from here, so the K steps are not lost.
      metrics: of the last inner step and of the outer loss.
    """

    loss: jax.Array
    grad: Any
    inner_state: Any
    metrics: dict


# --- Differentiable inner gradients ----------------------------------------------------------------


def reverse(loss: Callable) -> Callable:
    """`jax.value_and_grad`: its derivative is reverse mode over reverse mode.

    Args:
      loss: `(params, outer, data) -> (scalar, aux)`; `outer` holds everything that depends on theta
        (theta itself, synthetic images, other players' weights), `data` everything that does not.

    Returns:
      `(params, outer, data) -> ((scalar, aux), gradient with respect to params)`.
    """
    return jax.value_and_grad(loss, has_aux=True)


def mixed(loss: Callable) -> Callable:
    r"""Like `reverse`, with the same derivatives computed forward over reverse.

    Let G(p, o) = (grad_p L, grad_o L). For a cotangent `w` of the gradient g = grad_p L,

        (dg/dp)^T w = (d^2 L/dp^2) w       and      (dg/do)^T w = (d^2 L/do dp) w

    because second derivatives are symmetric, and both are the two halves of one directional
    derivative: d/de G(p + e w, o) at e = 0, a single `jax.jvp` of the gradient. It costs about 2.5
    gradients, keeps the activations of one of them, and none of the inner graph (MixFlow-MG, Kemaev
    et al., ICML 2025). On CPUs, reverse over reverse would also leave XLA's fast convolutions.

    Args:
      loss: see `reverse`; `params` and `outer` must hold floating point arrays only.

    Returns:
      See `reverse`. `aux` is not differentiated, and nothing flows back into `data`.
    """

    def pull(params, outer, data, w):
        def both(p):
            return jax.grad(lambda p, o: loss(p, o, data)[0], argnums=(0, 1))(p, outer)

        return jax.jvp(both, (params,), (w,))[1]

    return _with_pullback(loss, pull)


def finite_difference(loss: Callable, radius: float = 1e-2) -> Callable:
    r"""Like `mixed`, with the directional derivative replaced by a central difference.

        d/de G(p + e w, o) ~ [G(p + h w, o) - G(p - h w, o)] / 2h,      h = radius / ||w||

    Two first-order gradients and no second derivative at all. With one inner step of gradient
    descent at rate eta, w = -eta grad_S V and this is the estimator of DARTS (Liu et al., 2019, eq.
    8), whose error falls with radius^2 until rounding takes over; in float32 a radius of 1e-2 is a
    good compromise. It also works for any other optimiser, since only the gradient is replaced.

    Args:
      loss: see `mixed`. Both evaluations see the same `data`, hence the same random numbers.
      radius: norm of the displacement of the parameters.

    Returns:
      See `mixed`.
    """

    def pull(params, outer, data, w):
        squares = sum(jnp.vdot(x, x) for x in jax.tree.leaves(w))
        norm = jnp.sqrt(squares)
        h = jnp.where(norm > 0, radius / jnp.where(norm > 0, norm, 1.0), 1.0)

        def displaced(sign):
            p = jax.tree.map(lambda x, d: x + (sign * h * d).astype(x.dtype), params, w)
            return jax.grad(lambda p, o: loss(p, o, data)[0], argnums=(0, 1))(p, outer)

        difference = jax.tree.map(lambda a, b: (a - b) / (2 * h), displaced(1.0), displaced(-1.0))
        return jax.tree.map(lambda d, x: d.astype(x.dtype), difference, (params, outer))

    return _with_pullback(loss, pull)


def _with_pullback(loss, pull):
    """Value and gradient of `loss` whose gradient is differentiated by `pull(p, o, data, w)`."""

    @jax.custom_vjp
    def value_and_grad(params, outer, data):
        return jax.value_and_grad(loss, has_aux=True)(params, outer, data)

    def forward(params, outer, data):
        return value_and_grad(params, outer, data), (params, outer, data)

    def backward(residuals, cotangents):
        params, outer, data = residuals
        (value_bar, _), w = cotangents
        first = jax.grad(lambda p, o: value_bar * loss(p, o, data)[0], argnums=(0, 1))
        second = pull(params, outer, data, w)
        total = jax.tree.map(jnp.add, first(params, outer), second)
        return *total, None

    value_and_grad.defvjp(forward, backward)
    return value_and_grad


GRADIENTS = {"mixed": mixed, "reverse": reverse, "finite_difference": finite_difference}


# --- Estimators --------------------------------------------------------------------------------------


def unrolled(
    inner_step: Callable,
    outer_loss: Callable,
    *,
    loop: str = "scan",
    checkpoint: bool = True,
    axis_name: str | None = None,
    compile: Callable = lambda function, batched_args=(): function,
    step: Callable | None = None,
) -> Callable:
    r"""Exact hypergradient through K inner steps (backpropagation through training).

    Exact for the K-step problem: its only bias against the hypergradient of training to convergence
    is the truncation of the horizon, which decays like (1 - eta mu)^K for a mu-strongly convex
    inner loss and step size eta, and makes K = 1 short-sighted (Wu et al., 2018).
    Time: K steps and K pull-backs, about 3.5 inner gradients each with `mixed`. Memory: K inner states
    plus the activations of one step (with `checkpoint`).

    Several devices: every device holds a shard of each batch; `inner_step` averages its gradients
    over `axis_name`; the outer loss stays local and its gradient is averaged here, at the end. The
    transpose of an average is an average, so this is the gradient of the mean loss.

    Args:
      inner_step: `(inner_state, theta, batch, rng) -> (inner_state, metrics)`.
      outer_loss: `(inner_state, theta, outer_batch) -> (loss, metrics)`, a mean over its batch.
      loop: 'scan': one compiled loop, for accelerators. 'host': a Python loop over a compiled step
        and a compiled pull-back; XLA's CPU backend is about 20 times slower on convolution gradients
        inside a compiled loop, and compile time does not depend on K.
      checkpoint: recompute the activations of a step in its pull-back ('host' always does).
      axis_name: of the devices, None for one.
      compile: turns a function of arrays into a compiled one, e.g. `jax.jit`; `batched_args` says
        which arguments are sharded over devices. The default compiles nothing (for use inside `jit`
        and in tests).
      step: `compile(indexed(inner_step), batched_args=(2,))` if the caller already has it ('host').

    Returns:
      `(theta, inner_state, inner_batches, outer_batch, rngs) -> Hypergradient`, with a leading axis
      K on the leaves of `inner_batches` and on `rngs`.

    Raises:
      ValueError: `loop` is neither 'scan' nor 'host'.
    """
    if loop == "scan":
        scanned = _unrolled_scan(inner_step, outer_loss, checkpoint, axis_name)
        return compile(scanned, batched_args=(2, 3))
    if loop == "host":
        step = step or compile(indexed(inner_step), batched_args=(2,))
        return _unrolled_host(inner_step, outer_loss, axis_name, compile, step)
    raise ValueError(f"loop is 'scan' or 'host', not {loop!r}")


def _mean_over_devices(tree, axis_name):
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def _unrolled_scan(inner_step, outer_loss, checkpoint, axis_name):
    def estimate(theta, inner_state, inner_batches, outer_batch, rngs):
        def objective(theta):
            def body(state, inputs):
                return inner_step(state, theta, *inputs)

            # prevent_cse is only needed outside of a scan.
            step = jax.checkpoint(body, prevent_cse=False) if checkpoint else body
            final, inner_metrics = jax.lax.scan(step, inner_state, (inner_batches, rngs))
            loss, outer_metrics = outer_loss(final, theta, outer_batch)
            last = jax.tree.map(lambda x: x[-1], inner_metrics)
            return loss, (final, {**last, **outer_metrics})

        (loss, (final, metrics)), grad = jax.value_and_grad(objective, has_aux=True)(theta)
        loss, grad, metrics = _mean_over_devices((loss, grad, metrics), axis_name)
        return Hypergradient(loss, grad, final, metrics)

    return estimate


def indexed(inner_step: Callable) -> Callable:
    """`(inner_state, theta, inner_batches, rngs, k)`: the inner step on the k-th of K batches."""

    def step(state, theta, batches, rngs, k):
        return inner_step(state, theta, *_at(k, batches, rngs))

    return step


def _at(k, batches, rngs):
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, k, 0, False), (batches, rngs))


def _unrolled_host(inner_step, outer_loss, axis_name, compile, step):
    def outer(state, theta, batch):
        floats, rebuild = _split_floats(state)
        (loss, metrics), bars = jax.value_and_grad(
            lambda s, a: outer_loss(rebuild(s), a, batch), argnums=(0, 1), has_aux=True
        )(floats, theta)
        return _mean_over_devices((loss, metrics, *bars), axis_name)

    # Cotangents are averaged at every boundary, not only at the end: they stay equal on all
    # devices, and the mean of what they are pulled back to is the same, since a pull-back is linear.
    def pull(state, theta, batches, rngs, k, state_bar, theta_bar):
        floats, rebuild = _split_floats(state)
        batch, rng = _at(k, batches, rngs)

        def advance(s, a):
            return _split_floats(inner_step(rebuild(s), a, batch, rng)[0])[0]

        _, pull_back = jax.vjp(advance, floats, theta)
        state_bar, contribution = _mean_over_devices(pull_back(state_bar), axis_name)
        return state_bar, jax.tree.map(jnp.add, theta_bar, contribution)

    outer = compile(outer, batched_args=(2,))
    pull = compile(pull, batched_args=(2,))

    def estimate(theta, inner_state, inner_batches, outer_batch, rngs):
        states, metrics = [inner_state], {}
        num_steps = rngs.shape[0]
        for k in range(num_steps):
            state, metrics = step(states[-1], theta, inner_batches, rngs, k)
            states.append(state)
        final = states.pop()
        loss, outer_metrics, state_bar, theta_bar = outer(final, theta, outer_batch)
        for k in reversed(range(num_steps)):
            state_bar, theta_bar = pull(
                states.pop(), theta, inner_batches, rngs, k, state_bar, theta_bar
            )
        return Hypergradient(loss, theta_bar, final, {**metrics, **outer_metrics})

    return estimate


def _split_floats(tree):
    """The floating point leaves of a pytree, and the function that puts them back."""
    leaves, structure = jax.tree.flatten(tree)
    is_float = [jnp.issubdtype(x.dtype, jnp.floating) for x in leaves]

    def rebuild(floats):
        floats = iter(floats)
        merged = [next(floats) if f else x for f, x in zip(is_float, leaves, strict=True)]
        return jax.tree.unflatten(structure, merged)

    return [x for f, x in zip(is_float, leaves, strict=True) if f], rebuild
