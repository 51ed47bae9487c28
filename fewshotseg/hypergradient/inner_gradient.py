r"""Gradients of inner losses, and three ways of differentiating them once more.

Pulling a cotangent back through a training step needs products with the second derivatives of the
loss. There are three ways to get them, and they differ only in how the gradient is differentiated;
the rest of the step (optimiser, averaging over devices, generator) is plain reverse mode:

    reverse             reverse over reverse: what JAX does if nothing is said
    mixed               forward over reverse: one directional derivative of the gradient
    finite_difference   two gradients, first order only (DARTS)

`GRADIENTS` maps these names to functions that make a differentiable gradient out of a loss. An inner
step is built with one of them, and any estimator of `hypergradient` then differentiates it so.
The module imports nothing but JAX.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


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
    derivative: d/de G(p + e w, o) at e = 0. The gradient is linearised once, when it is taken, and
    applied to `w` in the backward pass: about two gradients more, and the activations of one are kept
    (MixFlow-MG, Kemaev et al., ICML 2025). On CPUs, reverse over reverse would also leave XLA's fast
    convolutions.

    Args:
      loss: see `reverse`; `params` and `outer` must hold floating point arrays only.

    Returns:
      See `reverse`. `aux` is not differentiated, and nothing flows back into `data`.
    """

    @jax.custom_vjp
    def value_and_grad(params, outer, data):
        return jax.value_and_grad(loss, has_aux=True)(params, outer, data)

    def forward(*tracked):
        params, outer, data = jax.tree.map(lambda x: x.value, tracked, is_leaf=_is_tracked)

        def both(p):
            value_and_aux, grads = jax.value_and_grad(
                lambda p, o: loss(p, o, data), argnums=(0, 1), has_aux=True
            )(p, outer)
            # A frozen weight's gradient is 0 whatever the weights are: as such a constant, JAX 0.7 loses
            # it on its way out of a scan.
            kept = jax.tree.map(lambda g, x: g + 0 * x, grads[0], p)
            return (kept, grads[1]), value_and_aux

        grads, directional, value_and_aux = jax.linearize(both, params, has_aux=True)
        return (value_and_aux, grads[0]), (directional, grads)

    def backward(residuals, cotangents):
        directional, grads = residuals
        (value_bar, _), w = cotangents
        w = jax.tree.map(lambda x, g: jnp.zeros_like(g) if _is_zero(x) else x, w, grads[0])
        total = directional(w)
        if not _is_zero(value_bar):
            total = jax.tree.map(lambda t, g: t + value_bar * g, total, grads)
        return *total, None

    value_and_grad.defvjp(forward, backward, symbolic_zeros=True)
    return value_and_grad


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

    def forward(*tracked):
        inputs = jax.tree.map(lambda x: x.value, tracked, is_leaf=_is_tracked)
        return value_and_grad(*inputs), inputs

    def backward(residuals, cotangents):
        params, outer, data = residuals
        (value_bar, _), w = cotangents
        w = jax.tree.map(lambda x, p: jnp.zeros_like(p) if _is_zero(x) else x, w, params)
        total = pull(params, outer, data, w)
        if not _is_zero(value_bar):  # training hands on the gradient alone: one gradient saved
            first = jax.grad(lambda p, o: value_bar * loss(p, o, data)[0], argnums=(0, 1))
            total = jax.tree.map(jnp.add, first(params, outer), total)
        return *total, None

    value_and_grad.defvjp(forward, backward, symbolic_zeros=True)
    return value_and_grad


def _is_tracked(x):
    return isinstance(x, jax.custom_derivatives.CustomVJPPrimal)


def _is_zero(x):
    return isinstance(x, jax.custom_derivatives.SymbolicZero)


GRADIENTS = {"mixed": mixed, "reverse": reverse, "finite_difference": finite_difference}
