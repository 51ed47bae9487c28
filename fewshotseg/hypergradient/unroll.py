r"""The mathematics: the derivative of a validation loss through the training that precedes it.

Notation, used in every docstring here:

    A       theta, the outer variables
    S_k     inner state after k inner steps (weights and optimiser state of all inner players)
    Phi     one inner step: S_{k+1} = Phi(S_k, A; batch_k)
    V       outer loss, V(S_K, A), on the validation images;  v = grad_w V
    w       the weights within S;  P of them
    g       inner gradient, g(w, A): of every player's own loss with respect to its own weights
    H, M    its derivatives: H = dg/dw [P, P],  M = dg/dA [P, |A|]
    t       time of one inner gradient

Two families of estimators. The first differentiates the K steps that were taken:

    dV/dA = grad_A V + sum_k (dPhi_k/dA)^T s_{k+1},    s_K = grad_S V,   s_k = (dPhi_k/dS)^T s_{k+1}.

The second assumes that training has converged, g(w, A) = 0, where the implicit function theorem gives
dw/dA = -H^{-1} M without looking at the steps at all:

    dV/dA = grad_A V - M^T q,     q ~ H^{-T} v.

All of them answer the same call, and all take the K inner steps, so that training goes on from there:

    estimate = unrolled(inner_step, outer_loss)
    result = estimate(theta, inner_state, inner_batches, outer_batch, rngs)   # leading axis K
    theta = theta - rate * result.grad
    inner_state = result.inner_state

Worked through on the smallest example: L = h/2 (w - A)^2, V = 1/2 (w - t)^2, gradient descent at rate
eta. Then g = h (w - A), H = h, M = -h, w_K - A = (1 - eta h)^K (w_0 - A), and with D = w_K - t

    training to convergence     D
    unrolled                    (1 - (1 - eta h)^K) D        K steps back
    truncated, horizon k        (1 - (1 - eta h)^k) D        the last k of them
    one_step                    eta h D                      the last one
    identity                    alpha h D                    H^{-1} ~ alpha
    neumann, n terms            (1 - (1 - alpha h)^{n+1}) D  a series for H^{-1}
    conjugate_gradient          h / (h + damping) D          H^{-1}, but for the damping
    sama                        eta h D                      H^{-1} ~ what the optimiser does to g
    evolution_strategies        as unrolled, on average      no derivative at all

How the gradient g is differentiated (reverse over reverse, forward over reverse, finite differences)
is no matter of the estimator but of the inner step: see `inner_gradient`. Cost, bias and source of
each are in its docstring; the numbers there take `inner_gradient.mixed` for granted, with which a
product with H and M together costs about 2 t beyond the gradient itself.

This file has the contract and the first family; `implicit` has the second, `evolution` the one without
derivatives. The four import nothing but JAX and each other, and can be lifted into another project.
"""

import math
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
      metrics: of the last inner step, of the outer loss, and of the estimator.
    """

    loss: jax.Array
    grad: Any
    inner_state: Any
    metrics: dict


def compile_nothing(
    function: Callable, batched_args: tuple = (), batched_results: tuple = ()
) -> Callable:
    """The default of `compile=`."""
    del batched_args, batched_results
    return function


def mean_over_devices(tree: Any, axis_name: str | None) -> Any:
    """Mean over `axis_name`; what comes in if there is none."""
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def unrolled(
    inner_step: Callable,
    outer_loss: Callable,
    *,
    horizon: int | None = None,
    remat: str = "step",
    loop: str = "scan",
    axis_name: str | None = None,
    compile: Callable = compile_nothing,
    step: Callable | None = None,
) -> Callable:
    r"""Exact hypergradient through K inner steps (backpropagation through training).

    Exact for the K-step problem: its only bias against the hypergradient of training to convergence
    is the truncation of the horizon, which decays like (1 - eta mu)^K for a mu-strongly convex
    inner loss and step size eta, and makes K = 1 short-sighted (Wu et al., ICLR 2018). With the
    gradient `inner_gradient.mixed` this is MixFlow-MG (Kemaev et al., ICML 2025): the same numbers,
    several times less time and memory than reverse over reverse. Use it unless K states do not fit.

    Time: K (t + 2 t), with another t per step for remat='step' and two for 'sqrt'. Memory: all
    activations, twice ('none'); K inner states plus the activations of one step ('step'); about
    2 sqrt(K) states plus the activations of one step ('sqrt').

    Several devices: every device holds a shard of each batch; `inner_step` averages its gradients
    over `axis_name`; the outer loss stays local and its gradient is averaged here, at the end. The
    transpose of an average is an average, so this is the gradient of the mean loss.

    Args:
      inner_step: `(inner_state, theta, batch, rng) -> (inner_state, metrics)`.
      outer_loss: `(inner_state, theta, outer_batch) -> (loss, metrics)`, a mean over its batch.
      horizon: differentiate only the last so many steps; None: all. See `truncated`.
      remat: 'none': keep the activations of all steps, the fastest. 'step': keep the K states and
        recompute a step when it is pulled back. 'sqrt': keep every sqrt(K)-th state and recompute
        the rest.
      loop: 'scan': one compiled loop, for accelerators. 'host': a Python loop over a compiled step
        and a compiled pull-back; XLA's CPU backend is about 20 times slower on convolution gradients
        inside a compiled loop, and compile time does not depend on K.
      axis_name: of the devices, None for one.
      compile: turns a function of arrays into a compiled one, e.g. `jax.jit`; `batched_args` says
        which arguments are sharded over devices, `batched_results` which of the results differ per
        device. The default compiles nothing (for use inside `jit` and in tests).
      step: `compile(indexed(inner_step), batched_args=(2,))` if the caller already has it ('host').

    Returns:
      `(theta, inner_state, inner_batches, outer_batch, rngs) -> Hypergradient`, with a leading axis
      K on the leaves of `inner_batches` and on `rngs`.

    Raises:
      ValueError: an unknown `loop` or `remat`, or a horizon below 1.
    """
    check_loop(loop)
    if remat not in ("none", "step", "sqrt"):
        raise ValueError(f"remat is 'none', 'step' or 'sqrt', not {remat!r}")
    if horizon is not None and horizon < 1:
        raise ValueError(f"horizon is {horizon}: differentiate at least one step")
    if loop == "scan":
        scanned = _unrolled_scan(inner_step, outer_loss, horizon, remat, axis_name)
        return compile(scanned, batched_args=(2, 3))
    step = step or compile(indexed(inner_step), batched_args=(2,))
    return _unrolled_host(inner_step, outer_loss, horizon, remat, axis_name, compile, step)


def truncated(inner_step: Callable, outer_loss: Callable, *, horizon: int, **options) -> Callable:
    r"""Backpropagation through the last `horizon` = k of K steps (Shaban et al., AISTATS 2019).

        dV/dA ~ grad_A V + sum_{j > K-k} (dPhi_j/dA)^T s_{j+1}

    The earlier steps are taken, not differentiated. Bias: what those k steps do not see; it decays
    like (1 - eta mu)^k and points, where the inner loss is convex around S_K, less than 90 degrees
    away from the exact one. Time: K t + 2.5 k t. Memory: k states. Use it when K states do not fit.

    Args and Returns: see `unrolled`.
    """
    return unrolled(inner_step, outer_loss, horizon=horizon, **options)


def one_step(inner_step: Callable, outer_loss: Callable, **options) -> Callable:
    r"""Only the last step is differentiated: second-order DARTS (Liu et al., ICLR 2019, eq. 7).

        dV/dA ~ grad_A V + (dPhi/dA)^T grad_S V        = grad_A V - eta M^T v   for gradient descent

    v is taken after the step and M before it. Time: K t + 2.5 t, no tape. Bias: as `truncated` with
    horizon 1, that is, large: it sees what the synthetic images do to the segmenter in one step. With
    the gradient `inner_gradient.finite_difference` it is DARTS as published (eq. 8): two first-order
    gradients instead of the product with M, and an error of order radius^2 on top; no longer
    cheaper than the exact one, but for code that cannot be differentiated twice.

    Args and Returns: see `unrolled`.
    """
    return unrolled(inner_step, outer_loss, horizon=1, **options)


def check_loop(loop: str) -> None:
    """Raises ValueError unless `loop` is 'scan' or 'host'."""
    if loop not in ("scan", "host"):
        raise ValueError(f"loop is 'scan' or 'host', not {loop!r}")


def indexed(inner_step: Callable) -> Callable:
    """`(inner_state, theta, inner_batches, rngs, k)`: the inner step on the k-th of K batches."""

    def step(state, theta, batches, rngs, k):
        return inner_step(state, theta, *_at(k, batches, rngs))

    return step


def _at(k, batches, rngs):
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, k, 0, False), (batches, rngs))


def _segment_length(num_steps):
    """The largest divisor of `num_steps` that is not above its square root."""
    return max(n for n in range(1, num_steps + 1) if num_steps % n == 0 and n * n <= num_steps)


def steps(inner_step: Callable, loop: str, compile: Callable, step: Callable | None) -> Callable:
    """`(state, theta, batches, rngs) -> (S_K, metrics of the last step)`, not to be differentiated."""
    if loop == "scan":
        return lambda state, theta, *inputs: _scan_steps(inner_step, state, theta, inputs, "none")
    step = step or compile(indexed(inner_step), batched_args=(2,))

    def run(state, theta, batches, rngs):
        metrics = {}
        for k in range(rngs.shape[0]):
            state, metrics = step(state, theta, batches, rngs, k)
        return state, metrics

    return run


def _scan_steps(inner_step, state, theta, inputs, remat):
    """All steps of `inputs`, and the metrics of the last."""

    def body(state, inputs):
        return inner_step(state, theta, *inputs)

    def last(carry):
        return carry[0], jax.tree.map(lambda x: x[-1], carry[1])

    if remat == "none":
        return last(jax.lax.scan(body, state, inputs))
    # prevent_cse is only needed outside of a scan.
    body = jax.checkpoint(body, prevent_cse=False)
    num_steps = inputs[1].shape[0]
    length = _segment_length(num_steps) if remat == "sqrt" else 1
    if length == 1:
        return last(jax.lax.scan(body, state, inputs))

    def segment(state, inputs):
        return last(jax.lax.scan(body, state, inputs))

    segments = jax.tree.map(lambda x: x.reshape(-1, length, *x.shape[1:]), inputs)
    return last(jax.lax.scan(jax.checkpoint(segment, prevent_cse=False), state, segments))


def _unrolled_scan(inner_step, outer_loss, horizon, remat, axis_name):
    def estimate(theta, inner_state, inner_batches, outer_batch, rngs):
        num_steps = rngs.shape[0]
        begin = 0 if horizon is None else max(0, num_steps - horizon)
        parts = [
            jax.tree.map(lambda x, s=s: x[s], (inner_batches, rngs))
            for s in (slice(0, begin), slice(begin, None))
        ]
        if begin:
            inner_state, _ = _scan_steps(inner_step, inner_state, theta, parts[0], "none")

        def objective(theta):
            final, metrics = _scan_steps(inner_step, inner_state, theta, parts[1], remat)
            loss, outer_metrics = outer_loss(final, theta, outer_batch)
            return loss, (final, {**metrics, **outer_metrics})

        (loss, (final, metrics)), grad = jax.value_and_grad(objective, has_aux=True)(theta)
        loss, grad, metrics = mean_over_devices((loss, grad, metrics), axis_name)
        return Hypergradient(loss, grad, final, metrics)

    return estimate


def _unrolled_host(inner_step, outer_loss, horizon, remat, axis_name, compile, step):
    def record(state, theta, batches, rngs, k):
        """An inner step, with its transpose: a pytree, different on every device."""
        floats, rebuild = _split_floats(state)

        def advance(s, a):
            new, metrics = inner_step(rebuild(s), a, *_at(k, batches, rngs))
            return _split_floats(new)[0], (new, metrics)

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
        floats, rebuild = _split_floats(new)
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
        end = rngs.shape[0] - 1
        begin = 0 if horizon is None else max(0, end + 1 - horizon)
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


def _split_floats(tree):
    """The floating point leaves of a pytree, and the function that puts them back."""
    leaves, structure = jax.tree.flatten(tree)
    is_float = [jnp.issubdtype(x.dtype, jnp.floating) for x in leaves]

    def rebuild(floats):
        floats = iter(floats)
        merged = [next(floats) if f else x for f, x in zip(is_float, leaves, strict=True)]
        return jax.tree.unflatten(structure, merged)

    return [x for f, x in zip(is_float, leaves, strict=True) if f], rebuild
