r"""Hypergradients at the end of training: the implicit function theorem instead of the steps.

Notation as in `hypergradient`. If the inner problem has converged, g(w, A) = 0, then dw/dA = -H^{-1} M
and

    dV/dA = grad_A V - M^T q,     H^T q = v.

The estimators differ in how they solve for q. All take K inner steps first and work at S_K, on the last
of the K batches.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fewshotseg.hypergradient import unroll as hypergradient
from fewshotseg.hypergradient.unroll import mean_over_devices


class Stationarity(NamedTuple):
    """The inner problem as an equation, g(w, A) = 0, for the estimators that do not unroll.

    With several players (generator, discriminator, segmenter), w and g hold all of them, each with
    the gradient of its own loss; H is then not symmetric.

    Attributes:
      weights: `inner_state -> w`, a pytree of floating point arrays.
      replace: `(inner_state, w) -> inner_state`.
      gradient: `(inner_state, theta, batch, rng) -> g`, the structure of w; differentiable, and
        averaged over devices.
      update: `(g, inner_state) -> change of w`, what the optimisers make of g. Only for `sama`.
    """

    weights: Callable
    replace: Callable
    gradient: Callable
    update: Callable | None = None


def identity(
    inner_step: Callable,
    outer_loss: Callable,
    stationarity: Stationarity,
    *,
    step_size: float,
    **options,
) -> Callable:
    r"""T1-T2: the inverse of H is taken to be a number (Luketina et al., ICML 2016).

        q = alpha v,      dV/dA ~ grad_A V - alpha M^T v

    What one step of gradient descent from S_K at rate alpha would do, to first order. Time: K t + 2 t,
    no tape. Bias: (1 - alpha H) is dropped. With several players only the direct path is seen: v is
    zero for the generator, whose own training enters with the first Neumann term. Use it as the
    cheapest baseline.

    Args:
      inner_step: see `unrolled`.
      outer_loss: see `unrolled`.
      stationarity: the inner problem as an equation, taken at S_K on the last of the K batches.
      step_size: alpha.
      **options: `loop`, `axis_name`, `compile` and `step` as in `unrolled`.

    Returns:
      See `unrolled`.
    """

    def start(v, transpose_h, update):
        del transpose_h, update
        return _scale(step_size, v)

    return _implicit(inner_step, outer_loss, stationarity, _Solver(start), **options)


def neumann(
    inner_step: Callable,
    outer_loss: Callable,
    stationarity: Stationarity,
    *,
    num_terms: int,
    step_size: float,
    **options,
) -> Callable:
    r"""The inverse of H by its Neumann series (Lorraine et al., AISTATS 2020, algorithm 3).

        q = alpha sum_{j=0}^{n} (1 - alpha H^T)^j v  ->  H^{-T} v    if |1 - alpha lambda| < 1

    n terms at the end equal n + 1 steps of gradient descent unrolled around S_K, so n takes the part
    of K; but nothing is kept: memory does not depend on n. H need not be symmetric: three-level chains
    work. Time: K t + 2.5 n t + 2 t. Bias: (1 - alpha lambda_min)^(n+1), and S_K is not an optimum.
    Diverges for alpha > 2 / lambda_max, which the metrics show: 'neumann/last_term' is the norm of the
    last term over that of the first and should be well below 1. Use it for long horizons.

    Args:
      num_terms: n; 0 is `identity`.
      step_size: alpha.
      Others: see `identity`.
    """

    def start(v, transpose_h, update):
        del transpose_h, update
        return {"sum": v, "term": v, "first": _norm(v)}

    def iterate(carry, transpose_h):
        h_term = transpose_h(carry["term"])
        term = jax.tree.map(lambda x, h: x - step_size * h, carry["term"], h_term)
        return {**carry, "sum": jax.tree.map(jnp.add, carry["sum"], term), "term": term}

    def finish(carry):
        ratio = _norm(carry["term"]) / jnp.maximum(carry["first"], _tiny(carry["first"]))
        return _scale(step_size, carry["sum"]), {"neumann/last_term": ratio}

    solver = _Solver(start, iterate, finish, num_terms)
    return _implicit(inner_step, outer_loss, stationarity, solver, **options)


def conjugate_gradient(
    inner_step: Callable,
    outer_loss: Callable,
    stationarity: Stationarity,
    *,
    num_terms: int,
    damping: float,
    **options,
) -> Callable:
    r"""The inverse of H by conjugate gradients (Pedregosa, ICML 2016; iMAML, Rajeswaran et al., 2019).

        (H + damping) q = v,    n iterations of Hestenes and Stiefel from q = 0

    Exact after P iterations, and close to it after as many as there are clusters of eigenvalues: the
    most efficient one where it applies. H must be symmetric, so w is one player (the segmenter: the
    path through the generator's training is not seen), and H + damping positive on the directions
    met: at the first that is not, the iteration stops where it is. Time: K t + 2.5 n t + 2 t, memory
    3 P. Metrics: 'cg/residual' |v - (H + damping) q| / |v|, 'cg/iterations' done.

    Args:
      num_terms: n, the largest number of iterations.
      damping: added to H; larger is safer and more biased, by lambda / (lambda + damping) per mode.
      Others: see `identity`.
    """

    def start(v, transpose_h, update):
        del transpose_h, update
        zero = jax.tree.map(jnp.zeros_like, v)
        rr = _dot(v, v)
        return {"q": zero, "r": v, "p": v, "rr": rr, "start": rr, "done": jnp.int32(0)}

    def iterate(carry, transpose_h):
        hp = jax.tree.map(lambda h, p: h + damping * p, transpose_h(carry["p"]), carry["p"])
        curvature = _dot(carry["p"], hp)
        going = (curvature > 0) & (carry["rr"] > 1e-20 * carry["start"])
        a = jnp.where(going, carry["rr"] / jnp.where(going, curvature, 1.0), 0.0)
        r = jax.tree.map(lambda r, h: r - a * h, carry["r"], hp)
        rr = _dot(r, r)
        b = jnp.where(going, rr / jnp.where(going, carry["rr"], 1.0), 0.0)
        direction = jax.tree.map(lambda r, p: jnp.where(going, r + b * p, p), r, carry["p"])
        q = jax.tree.map(lambda q, p: q + a * p, carry["q"], carry["p"])
        done = carry["done"] + going.astype(jnp.int32)
        return {**carry, "q": q, "r": r, "p": direction, "rr": rr, "done": done}

    def finish(carry):
        start = jnp.maximum(carry["start"], _tiny(carry["start"]))
        metrics = {"cg/residual": jnp.sqrt(carry["rr"] / start), "cg/iterations": carry["done"]}
        return carry["q"], metrics

    solver = _Solver(start, iterate, finish, num_terms)
    return _implicit(inner_step, outer_loss, stationarity, solver, **options)


def sama(
    inner_step: Callable, outer_loss: Callable, stationarity: Stationarity, **options
) -> Callable:
    r"""The inverse of H is taken to be what the optimiser does to the gradient (Choe et al., NeurIPS 2023).

        q = -(du/dg)^T v,     u(g) the change of w that the optimiser makes of the gradient g at S_K

    For gradient descent u = -eta g, and this is `identity` with alpha = eta; for Adam, v is scaled
    per weight as Adam would scale a gradient, which is what makes the direction right. In SAMA the
    product M^T q is a finite difference: build `stationarity.gradient` with
    `inner_gradient.finite_difference`, and no second derivative is left. Time: K t + 3 t or so, memory
    2 P. Bias: as `identity`. Use it for large models.

    Args and Returns: see `identity`; `stationarity.update` must be given.
    """

    def start(v, transpose_h, update):
        del transpose_h
        return _scale(-1.0, update(v))

    return _implicit(inner_step, outer_loss, stationarity, _Solver(start), **options)


class _Solver(NamedTuple):
    """q ~ H^{-T} v: `start(v, transpose_h, update)`, n times `iterate(carry, transpose_h)`, `finish`.

    `transpose_h` multiplies by H^T, `update` by (du/dg)^T.
    """

    start: Callable
    iterate: Callable | None = None
    finish: Callable = lambda carry: (carry, {})
    num_iterations: int = 0


def _implicit(
    inner_step,
    outer_loss,
    stationarity,
    solver,
    *,
    loop="scan",
    axis_name=None,
    compile=hypergradient.compile_nothing,
    step=None,
):
    """K steps, then v, q and M^T q at S_K. Loops are compiled ('scan') or not ('host')."""
    hypergradient.check_loop(loop)
    weights, replace, gradient, update = stationarity

    def field(state, theta, batches, rngs):
        batch, rng = jax.tree.map(lambda x: x[-1], (batches, rngs))
        return lambda w, a: gradient(replace(state, w), a, batch, rng)

    def multiply(state, theta, batches, rngs):
        def transpose_h(x):
            g = field(state, theta, batches, rngs)
            _, pull_back = jax.vjp(lambda w: g(w, theta), weights(state))
            return mean_over_devices(pull_back(x)[0], axis_name)

        return transpose_h

    def begin(state, theta, batches, rngs, outer_batch):
        (loss, metrics), (v, direct) = jax.value_and_grad(
            lambda w, a: outer_loss(replace(state, w), a, outer_batch), argnums=(0, 1), has_aux=True
        )(weights(state), theta)
        loss, metrics, v, direct = mean_over_devices((loss, metrics, v, direct), axis_name)

        def scale(x):
            g = field(state, theta, batches, rngs)(weights(state), theta)
            return jax.vjp(lambda g: update(g, state), g)[1](x)[0]

        carry = solver.start(v, multiply(state, theta, batches, rngs), scale)
        return loss, metrics, direct, carry

    def iterate(state, theta, batches, rngs, carry):
        return solver.iterate(carry, multiply(state, theta, batches, rngs))

    def end(state, theta, batches, rngs, direct, carry):
        q, metrics = solver.finish(carry)
        g = field(state, theta, batches, rngs)
        _, pull_back = jax.vjp(lambda a: g(weights(state), a), theta)
        cross = mean_over_devices(pull_back(q)[0], axis_name)
        return jax.tree.map(jnp.subtract, direct, cross), metrics

    take_steps = hypergradient.steps(inner_step, loop, compile, step)
    if loop == "host":
        begin, iterate = compile(begin, batched_args=(2, 4)), compile(iterate, batched_args=(2,))
        end = compile(end, batched_args=(2,))

    def estimate(theta, inner_state, inner_batches, outer_batch, rngs):
        state, metrics = take_steps(inner_state, theta, inner_batches, rngs)
        args = (state, theta, inner_batches, rngs)
        loss, outer_metrics, direct, carry = begin(*args, outer_batch)
        if loop == "scan" and solver.num_iterations:
            carry = jax.lax.fori_loop(
                0, solver.num_iterations, lambda _, carry: iterate(*args, carry), carry
            )
        elif solver.num_iterations:
            for _ in range(solver.num_iterations):
                carry = iterate(*args, carry)
        grad, solver_metrics = end(*args, direct, carry)
        return hypergradient.Hypergradient(
            loss, grad, state, {**metrics, **outer_metrics, **solver_metrics}
        )

    return compile(estimate, batched_args=(2, 3)) if loop == "scan" else estimate


def _dot(a, b):
    return sum(jnp.vdot(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def _norm(tree):
    return jnp.sqrt(_dot(tree, tree))


def _tiny(x):
    return jnp.finfo(x.dtype).tiny


def _scale(factor, tree):
    return jax.tree.map(lambda x: factor * x, tree)
