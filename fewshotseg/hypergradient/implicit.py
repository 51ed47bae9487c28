r"""Hypergradients at the end of training: the implicit function theorem instead of the steps.

Notation as in `contract`. If the inner problem has converged, g(w, A) = 0, then dw/dA = -H^{-1} M and

    dV/dA = grad_A V - M^T q,     H^T q = v.

`implicit_gradient` does all of that but solve for q, which is a value: a `Solver`. Four are here.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fewshotseg.hypergradient import contract
from fewshotseg.hypergradient.contract import Hypergradient, mean_over_devices


class Stationarity(NamedTuple):
    """The inner problem as an equation, g(w, A) = 0, for the estimators that do not unroll.

    With several players (generator, discriminator, segmenter), w and g hold all of them, each with
    the gradient of its own loss; H is then not symmetric. For one player, `one_player.stationarity`
    makes it from the loss.

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


class Solver(NamedTuple):
    """How q ~ H^{-T} v is found: `start`, then n times `iterate`, then `finish`.

    One from another library needs no loop of ours and is a `start` alone:

        def start(v, transpose_h, transpose_u):
            return jax.scipy.sparse.linalg.cg(transpose_h, v, maxiter=20)[0]

        implicit_gradient(inner_step, outer_loss, equation, Solver(start))

    Attributes:
      start: `(v, transpose_h, transpose_u) -> carry`. `transpose_h(x)` is H^T x; `transpose_u(x)` is
        (du/dg)^T x with u(g) the change of w that the optimiser makes of the gradient g. Both take and
        return the structure of w, as v has it.
      iterate: `(carry, transpose_h) -> carry`.
      finish: `carry -> (q, metrics)`.
      num_iterations: n.
    """

    start: Callable
    iterate: Callable | None = None
    finish: Callable = lambda carry: (carry, {})
    num_iterations: int = 0


def implicit_gradient(
    inner_step: Callable,
    outer_loss: Callable,
    stationarity: Stationarity,
    solver: Solver,
    *,
    axis_name: str | None = None,
) -> Callable:
    r"""The hypergradient of the implicit function theorem: dV/dA ~ grad_A V - M^T q, q ~ H^{-T} v.

    Takes the K inner steps, then works at S_K, on the last of the K batches. Time: K t, 2 t for v
    and M^T q, and what the solver takes; nothing of the steps is kept. Bias: S_K is not an optimum,
    and what the solver leaves.

    Args:
      inner_step: see `unrolled`; not differentiated.
      outer_loss: see `unrolled`.
      stationarity: the inner problem as an equation.
      solver: `identity`, `neumann`, `conjugate_gradient`, `sama`, or one of your own.
      axis_name: of the devices, None for one.

    Returns:
      See `unrolled`.
    """
    take_steps = contract.steps(inner_step)
    begin, iterate, end = pieces(outer_loss, stationarity, solver, axis_name)

    def estimate(theta, inner_state, inner_batches, outer_batch, rngs):
        theta = jax.tree.map(jnp.asarray, theta)
        problem = inner_batches, outer_batch, rngs
        contract.check(inner_step, outer_loss, theta, inner_state, *problem)
        state, metrics = take_steps(inner_state, theta, inner_batches, rngs)
        args = state, theta, inner_batches, rngs
        loss, outer_metrics, direct, carry = begin(*args, outer_batch)
        if solver.num_iterations:
            carry = jax.lax.fori_loop(
                0, solver.num_iterations, lambda _, carry: iterate(*args, carry), carry
            )
        grad, solver_metrics = end(*args, direct, carry)
        return Hypergradient(loss, grad, state, {**metrics, **outer_metrics, **solver_metrics})

    return estimate


def identity(*, step_size: float) -> Solver:
    r"""T1-T2: the inverse of H is taken to be a number (Luketina et al., ICML 2016).

        q = alpha v,      dV/dA ~ grad_A V - alpha M^T v

    What one step of gradient descent from S_K at rate alpha would do, to first order. Time: K t + 2 t,
    no tape. Bias: (1 - alpha H) is dropped. With several players only the direct path is seen: v is
    zero for the generator, whose own training enters with the first Neumann term. Use it as the
    cheapest baseline.

    Args:
      step_size: alpha.
    """
    return Solver(lambda v, transpose_h, transpose_u: _scale(step_size, v))


def neumann(*, num_terms: int, step_size: float) -> Solver:
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
    """

    def start(v, transpose_h, transpose_u):
        del transpose_h, transpose_u
        return {"sum": v, "term": v, "first": _norm(v)}

    def iterate(carry, transpose_h):
        h_term = transpose_h(carry["term"])
        term = jax.tree.map(lambda x, h: x - step_size * h, carry["term"], h_term)
        return {**carry, "sum": jax.tree.map(jnp.add, carry["sum"], term), "term": term}

    def finish(carry):
        ratio = _norm(carry["term"]) / jnp.maximum(carry["first"], _tiny(carry["first"]))
        return _scale(step_size, carry["sum"]), {"neumann/last_term": ratio}

    return Solver(start, iterate, finish, num_terms)


def conjugate_gradient(*, num_terms: int, damping: float) -> Solver:
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
    """

    def start(v, transpose_h, transpose_u):
        del transpose_h, transpose_u
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

    return Solver(start, iterate, finish, num_terms)


def sama() -> Solver:
    r"""The inverse of H is taken to be what the optimiser does to the gradient (Choe et al., NeurIPS 2023).

        q = -(du/dg)^T v,     u(g) the change of w that the optimiser makes of the gradient g at S_K

    For gradient descent u = -eta g, and this is `identity` with alpha = eta; for Adam, v is scaled
    per weight as Adam would scale a gradient, which is what makes the direction right. In SAMA the
    product M^T q is a finite difference: build `stationarity.gradient` with
    `inner_gradient.finite_difference`, and no second derivative is left. Time: K t + 3 t or so, memory
    2 P. Bias: as `identity`. Use it for large models. `stationarity.update` must be given.
    """
    return Solver(lambda v, transpose_h, transpose_u: _scale(-1.0, transpose_u(v)))


class Pieces(NamedTuple):
    """What happens at S_K; a loop over the solver's iterations puts the pieces together.

    Attributes:
      begin: `(inner_state, theta, batches, rngs, outer_batch) -> (loss, metrics, grad_A V, carry)`.
      iterate: `(inner_state, theta, batches, rngs, carry) -> carry`.
      end: `(inner_state, theta, batches, rngs, grad_A V, carry) -> (dV/dA, metrics)`.
    """

    begin: Callable
    iterate: Callable
    end: Callable


def pieces(
    outer_loss: Callable, stationarity: Stationarity, solver: Solver, axis_name: str | None
) -> Pieces:
    """The pieces of `implicit_gradient`, whose arguments see."""
    weights, replace, gradient, update = stationarity

    def field(state, batches, rngs):
        batch, rng = contract.last((batches, rngs))
        return lambda w, a: gradient(replace(state, w), a, batch, rng)

    def transposed_h(state, theta, batches, rngs):
        def multiply(x):
            g = field(state, batches, rngs)
            _, pull_back = jax.vjp(lambda w: g(w, theta), weights(state))
            return mean_over_devices(pull_back(x)[0], axis_name)

        return multiply

    def transposed_u(state, theta, batches, rngs):
        def multiply(x):
            if update is None:
                raise ValueError(
                    "the solver asks what the optimiser does to a gradient, and the stationarity has "
                    "no `update`: give it one (`optimizer=` of one_player.stationarity)."
                )
            g = field(state, batches, rngs)(weights(state), theta)
            return jax.vjp(lambda g: update(g, state), g)[1](x)[0]

        return multiply

    def begin(state, theta, batches, rngs, outer_batch):
        (loss, metrics), (v, direct) = jax.value_and_grad(
            lambda w, a: outer_loss(replace(state, w), a, outer_batch), argnums=(0, 1), has_aux=True
        )(weights(state), theta)
        loss, metrics, v, direct = mean_over_devices((loss, metrics, v, direct), axis_name)
        at = state, theta, batches, rngs
        return loss, metrics, direct, solver.start(v, transposed_h(*at), transposed_u(*at))

    def iterate(state, theta, batches, rngs, carry):
        return solver.iterate(carry, transposed_h(state, theta, batches, rngs))

    def end(state, theta, batches, rngs, direct, carry):
        q, metrics = solver.finish(carry)
        g = field(state, batches, rngs)
        _, pull_back = jax.vjp(lambda a: g(weights(state), a), theta)
        cross = mean_over_devices(pull_back(q)[0], axis_name)
        return jax.tree.map(jnp.subtract, direct, cross), metrics

    return Pieces(begin, iterate, end)


def _dot(a, b):
    return sum(jnp.vdot(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def _norm(tree):
    return jnp.sqrt(_dot(tree, tree))


def _tiny(x):
    return jnp.finfo(x.dtype).tiny


def _scale(factor, tree):
    return jax.tree.map(lambda x: factor * x, tree)
