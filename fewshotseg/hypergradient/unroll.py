"""Hypergradients by differentiating the inner steps that were taken. Notation as in `contract`."""

import math
from collections.abc import Callable

import jax

from fewshotseg.hypergradient import contract
from fewshotseg.hypergradient.contract import Hypergradient, mean_over_devices


def unrolled(
    inner_step: Callable,
    outer_loss: Callable,
    *,
    horizon: int | None = None,
    remat: str = "step",
    axis_name: str | None = None,
) -> Callable:
    r"""Exact hypergradient through K inner steps (backpropagation through training).

        dV/dA = grad_A V + sum_k (dPhi_k/dA)^T s_{k+1},    s_K = grad_S V,   s_k = (dPhi_k/dS)^T s_{k+1}

    Exact for the K-step problem: its only bias against the hypergradient of training to convergence
    is the truncation of the horizon, which decays like (1 - eta mu)^K for a mu-strongly convex
    inner loss and step size eta, and makes K = 1 short-sighted (Wu et al., ICLR 2018). With the
    gradient `inner_gradient.mixed` this is MixFlow-MG (Kemaev et al., ICML 2025): the same numbers,
    several times less time and memory than reverse over reverse. Use it unless K states do not fit.

    Time: K (t + 2 t), with another t per step for remat='step' and two for 'sqrt'. Memory: all
    activations, twice ('none'); K inner states plus the activations of one step ('step'); about
    2 sqrt(K) states plus the activations of one step ('sqrt'). On CPUs, networks with convolutions
    want `host_loop.unrolled` instead: the same numbers, about 20 times faster there.

    Several devices: every device holds a shard of each batch; `inner_step` averages its gradients
    over `axis_name`; the outer loss stays local and its gradient is averaged here, at the end. The
    transpose of an average is an average, so this is the gradient of the mean loss. With sharded
    arrays under `jax.jit`, nothing needs to be averaged: leave `axis_name` out everywhere.

    Args:
      inner_step: `(inner_state, theta, batch, rng) -> (inner_state, metrics)`; the state is any
        pytree and keeps its structure, `metrics` is a dict of arrays. See `one_player.gradient_step`.
      outer_loss: `(inner_state, theta, outer_batch) -> (loss, metrics)`, a mean over its batch.
      horizon: differentiate only the last so many steps; None: all. See `truncated`.
      remat: 'none': keep the activations of all steps, the fastest. 'step': keep the K states and
        recompute a step when it is pulled back. 'sqrt': keep every sqrt(K)-th state and recompute
        the rest.
      axis_name: of the devices, None for one.

    Returns:
      `(theta, inner_state, inner_batches, outer_batch, rngs) -> Hypergradient`, pure, with a leading
      axis K on the leaves of `inner_batches` (None if the steps need no data) and on `rngs`.

    Raises:
      ValueError: an unknown `remat`, or a horizon below 1; when it is called, see `contract.check`.
    """
    check_options(horizon, remat)

    def estimate(theta, inner_state, inner_batches, outer_batch, rngs):
        problem = theta, inner_state, inner_batches, outer_batch, rngs
        contract.check(inner_step, outer_loss, *problem)
        begin = first_differentiated(rngs.shape[0], horizon)
        early, late = (
            jax.tree.map(lambda x, s=s: x[s], (inner_batches, rngs))
            for s in (slice(0, begin), slice(begin, None))
        )
        if begin:
            inner_state, _ = contract.steps(inner_step)(inner_state, theta, *early)

        def objective(theta):
            final, metrics = _steps_to_pull_back(inner_step, inner_state, theta, late, remat)
            loss, outer_metrics = outer_loss(final, theta, outer_batch)
            return loss, (final, {**metrics, **outer_metrics})

        (loss, (final, metrics)), grad = jax.value_and_grad(objective, has_aux=True)(theta)
        loss, grad, metrics = mean_over_devices((loss, grad, metrics), axis_name)
        return Hypergradient(loss, grad, final, metrics)

    return estimate


def truncated(
    inner_step: Callable,
    outer_loss: Callable,
    *,
    horizon: int,
    remat: str = "step",
    axis_name: str | None = None,
) -> Callable:
    r"""Backpropagation through the last `horizon` = k of K steps (Shaban et al., AISTATS 2019).

        dV/dA ~ grad_A V + sum_{j > K-k} (dPhi_j/dA)^T s_{j+1}

    The earlier steps are taken, not differentiated. Bias: what those k steps do not see; it decays
    like (1 - eta mu)^k and points, where the inner loss is convex around S_K, less than 90 degrees
    away from the exact one. Time: K t + 2.5 k t. Memory: k states. Use it when K states do not fit.

    Args and Returns: see `unrolled`.
    """
    return unrolled(inner_step, outer_loss, horizon=horizon, remat=remat, axis_name=axis_name)


def one_step(
    inner_step: Callable, outer_loss: Callable, *, axis_name: str | None = None
) -> Callable:
    r"""Only the last step is differentiated: second-order DARTS (Liu et al., ICLR 2019, eq. 7).

        dV/dA ~ grad_A V + (dPhi/dA)^T grad_S V        = grad_A V - eta M^T v   for gradient descent

    v is taken after the step and M before it. Time: K t + 2.5 t, no tape. Bias: as `truncated` with
    horizon 1, that is, large: it sees what the synthetic images do to the segmenter in one step. With
    the gradient `inner_gradient.finite_difference` it is DARTS as published (eq. 8): two first-order
    gradients instead of the product with M, and an error of order radius^2 on top; no longer
    cheaper than the exact one, but for code that cannot be differentiated twice.

    Args and Returns: see `unrolled`.
    """
    return unrolled(inner_step, outer_loss, horizon=1, remat="none", axis_name=axis_name)


def check_options(horizon: int | None, remat: str) -> None:
    """Raises ValueError for an unknown `remat`, or a horizon below 1."""
    if remat not in ("none", "step", "sqrt"):
        raise ValueError(f"remat is 'none', 'step' or 'sqrt', not {remat!r}")
    if horizon is not None and horizon < 1:
        raise ValueError(f"horizon is {horizon}: differentiate at least one step")


def first_differentiated(num_steps: int, horizon: int | None) -> int:
    """Index of the first of the K steps that is differentiated."""
    return 0 if horizon is None else max(0, num_steps - horizon)


def _steps_to_pull_back(inner_step, state, theta, inputs, remat):
    """All steps of `inputs`, and the metrics of the last; what is kept of them is as `remat` says."""

    def body(state, inputs):
        return inner_step(state, theta, *inputs)

    def segment(state, inputs):
        state, metrics = jax.lax.scan(body, state, inputs)
        return state, contract.last(metrics)

    if remat == "none":
        return segment(state, inputs)
    # prevent_cse is only needed outside of a scan.
    body = jax.checkpoint(body, prevent_cse=False)
    num_steps = inputs[1].shape[0]
    length = math.isqrt(num_steps) if remat == "sqrt" else 1
    if length == 1:
        return segment(state, inputs)
    whole = num_steps - num_steps % length
    segments = jax.tree.map(lambda x: x[:whole].reshape(-1, length, *x.shape[1:]), inputs)
    state, metrics = jax.lax.scan(jax.checkpoint(segment, prevent_cse=False), state, segments)
    if whole == num_steps:
        return state, contract.last(metrics)
    return jax.checkpoint(segment)(state, jax.tree.map(lambda x: x[whole:], inputs))
