r"""What all estimators share: the notation, what they return, and what they ask of a problem.

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

All of them are pure functions of the same arguments, to be wrapped by the caller as any other, and
all take the K inner steps, so that training goes on from there:

    estimate = jax.jit(unrolled(inner_step, outer_loss))
    result = estimate(theta, inner_state, inner_batches, outer_batch, rngs)   # leading axis K
    theta = theta - rate * result.grad
    inner_state = result.inner_state

Over devices, it goes into `jax.pmap` with axis_name="i", in_axes=(None, None, 0, 0, None) and
out_axes=None, if the estimator and the inner step were made with axis_name="i".

Worked through on the smallest example: L = h/2 (w - A)^2, V = 1/2 (w - t)^2, gradient descent at rate
eta. Then g = h (w - A), H = h, M = -h, w_K - A = (1 - eta h)^K (w_0 - A), and with D = w_K - t

    training to convergence     D
    unrolled                    (1 - (1 - eta h)^K) D        K steps back
    truncated, horizon k        (1 - (1 - eta h)^k) D        the last k of them
    one_step                    eta h D                      the last one
    forward_mode                as unrolled                  tangents carried along
    identity                    alpha h D                    H^{-1} ~ alpha
    neumann, n terms            (1 - (1 - alpha h)^{n+1}) D  a series for H^{-1}
    conjugate_gradient          h / (h + damping) D          H^{-1}, but for the damping
    sama                        eta h D                      H^{-1} ~ what the optimiser does to g
    evolution_strategies        as unrolled, on average      no derivative at all
    pes, j-th estimate          (1 - (1 - eta h)^{jK}) D     likewise, through all j K steps

How the gradient g is differentiated (reverse over reverse, forward over reverse, finite differences)
is no matter of the estimator but of the inner step: see `inner_gradient`. Cost, bias and source of
each are in its docstring; the numbers there take `inner_gradient.mixed` for granted, with which a
product with H and M together costs about 2 t beyond the gradient itself.

Files: `unroll` has the first family, `forward` its member in forward mode, `implicit` the second family,
`evolution` the one without derivatives, `host_loop` and `host_evolution` the twins for CPUs, `one_player`
the pieces of the common problem with one network and one optimiser. They import JAX alone and each other,
and can be lifted into another project.
"""

from collections.abc import Callable, Mapping
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
      carry: what an estimator with a memory (`pes`) wants to be given at the next estimate, after the
        keys; () of the others.
    """

    loss: jax.Array
    grad: Any
    inner_state: Any
    metrics: dict
    carry: Any = ()


def mean_over_devices(tree: Any, axis_name: str | None) -> Any:
    """Mean over `axis_name`; what comes in if there is none."""
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def indexed(inner_step: Callable) -> Callable:
    """`(inner_state, theta, inner_batches, rngs, k)`: the inner step on the k-th of K batches."""

    def step(state, theta, batches, rngs, k):
        return inner_step(state, theta, *at(k, batches, rngs))

    return step


def at(k: jax.Array | int, batches: Any, rngs: jax.Array) -> tuple[Any, jax.Array]:
    """The k-th batch and key."""
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, k, 0, False), (batches, rngs))


def steps(inner_step: Callable) -> Callable:
    """`(inner_state, theta, inner_batches, rngs) -> (S_K, metrics of the last step)`, by `lax.scan`."""

    def take(state, theta, batches, rngs):
        state, metrics = jax.lax.scan(
            lambda state, inputs: inner_step(state, theta, *inputs), state, (batches, rngs)
        )
        return state, last(metrics)

    return take


def last(tree: Any) -> Any:
    """The last entry of every leaf's leading axis."""
    return jax.tree.map(lambda x: x[-1], tree)


def split_floats(tree: Any) -> tuple[list[jax.Array], Callable]:
    """The floating point leaves of a pytree, and the function that puts them back."""
    leaves, structure = jax.tree.flatten(tree)
    is_float = [jnp.issubdtype(x.dtype, jnp.floating) for x in leaves]

    def rebuild(floats):
        floats = iter(floats)
        merged = [next(floats) if f else x for f, x in zip(is_float, leaves, strict=True)]
        return jax.tree.unflatten(structure, merged)

    return [x for f, x in zip(is_float, leaves, strict=True) if f], rebuild


def check(
    inner_step: Callable,
    outer_loss: Callable,
    theta: Any,
    inner_state: Any,
    inner_batches: Any,
    outer_batch: Any,
    rngs: jax.Array,
) -> None:
    """Checks that a problem is one, by shapes alone: nothing is computed or compiled.

    Every estimator calls it while it is traced, so a compiled one pays once.

    Raises:
      ValueError: theta is not floating point, batches and keys do not have the same K, the inner step
        does not return the state it was given and a dict, or the outer loss is not a scalar and a dict.
    """
    _check_theta(theta)
    _check_steps(inner_batches, rngs)
    inner_state = jax.tree.map(jnp.asarray, inner_state)
    found = jax.eval_shape(indexed(inner_step), inner_state, theta, inner_batches, rngs, 0)
    _check_pair("inner_step", "(inner_state, metrics)", found)
    _check_same_state(inner_state, found[0])
    found = jax.eval_shape(outer_loss, found[0], theta, outer_batch)
    _check_pair("outer_loss", "(loss, metrics)", found)
    loss = found[0]
    if not hasattr(loss, "shape") or loss.shape or not jnp.issubdtype(loss.dtype, jnp.floating):
        raise ValueError(
            f"outer_loss returned {_kind(loss)} as its loss: it must be one floating point number, "
            "the mean over its batch."
        )


def _check_theta(theta):
    leaves = jax.tree_util.tree_leaves_with_path(theta)
    if not leaves:
        raise ValueError("theta holds no array: there is nothing to differentiate with respect to.")
    for path, x in leaves:
        if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
            raise ValueError(
                f"theta{jax.tree_util.keystr(path)} is {_kind(x)}: outer variables are differentiated "
                "and must be floating point; hand anything else to inner_step another way."
            )


def _check_steps(batches, rngs):
    if not jnp.ndim(rngs):
        raise ValueError(
            "rngs is a single key: give K of them, one per inner step, as in jax.random.split(key, K)."
        )
    num_steps = jnp.shape(rngs)[0]
    if num_steps == 0:
        raise ValueError("rngs has no keys (K = 0): take at least one inner step.")
    for path, x in jax.tree_util.tree_leaves_with_path(batches):
        if jnp.shape(x)[:1] != (num_steps,):
            raise ValueError(
                f"inner_batches{jax.tree_util.keystr(path)} is {_kind(x)}, but there are {num_steps} "
                f"rngs: the leading axis of both is K, so it should be {num_steps}."
            )


def _check_pair(name, pair, found):
    if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], Mapping)):
        raise ValueError(
            f"{name} returned {_kind(found)}: it must return the pair {pair}, metrics a dict of "
            "arrays, {} if there are none."
        )


def _check_same_state(before, after):
    old, new = (
        {jax.tree_util.keystr(p): x for p, x in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (before, after)
    )
    if jax.tree.structure(before) != jax.tree.structure(after):
        lost, more = (sorted(set(a) - set(b)) for a, b in ((old, new), (new, old)))
        what = [f"inner_state{path} is missing" for path in lost[:1]]
        what += [f"inner_state{path} is new" for path in more[:1]]
        raise ValueError(
            "inner_step returned another structure than that of the inner_state it was given "
            f"({', '.join(what) or 'a container has another type'}): it must keep it, to be taken K times."
        )
    for path, x in old.items():
        if (x.shape, x.dtype) != (new[path].shape, new[path].dtype):
            raise ValueError(
                f"inner_step made {_kind(new[path])} of inner_state{path}, which was {_kind(x)}: it must "
                "keep shape and type, to be taken K times."
            )


def _kind(x):
    """What something is, for people: 'float32[3, 4]', 'a tuple of 3'."""
    if isinstance(x, tuple | list) and not hasattr(x, "_fields"):
        return f"a {type(x).__name__} of {len(x)}"
    if hasattr(x, "dtype") or isinstance(x, int | float | complex):
        return f"{jnp.result_type(x)}{list(jnp.shape(x))}"
    return f"a {type(x).__name__}" if x is not None else "None"
