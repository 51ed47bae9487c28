"""Trials: whole trainings of the segmenter on all folds but one, judged on the one, and differentiated.

Every pair of a trial, real or synthetic, is made of the cases of its own folds, so the cases held out have
gone into nothing; and every labelled case is held out once. The derivative runs through the whole training,
optimiser, schedule and average of the weights included, in forward mode: its memory does not grow with the
number of steps.
"""

import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fewshotseg.genseg import levels
from fewshotseg.hypergradient import forward, host_loop
from fewshotseg.training import search
from fewshotseg.types import Batch, PRNGKey, Theta

CHUNK = 10  # steps between two signs of life
POOL = 2**31 - 1  # folded into the key of a trial; beyond its steps


def create_problem(
    inner_step: Callable,
    outer_loss: Callable,
    init: Callable[[PRNGKey], levels.State],
    draw: Callable[[Batch, PRNGKey], Batch] | None,
    arrays: Mapping[str, np.ndarray],
    folds: Sequence[Sequence[int]],
    theta: Theta,
    *,
    num_steps: int,
    num_starts: int,
    key: PRNGKey,
    make_pool: Callable[[Batch, PRNGKey], Batch] | None = None,
    judged: Mapping[str, np.ndarray] | None = None,
    describe: Callable[[Theta], Mapping[str, Mapping[str, float]]] = lambda theta: {},
    report: Callable[[int, int, int], None] = lambda fold, start, step: None,
) -> search.Problem:
    """The trials of one data set and one network.

    Args:
      inner_step: see `hypergradient.unrolled`, open to forward mode.
      outer_loss: likewise, of the weights that a training ends with; see `of_average`.
      init: key -> state before the first step.
      draw: `(arrays of some cases, key) -> batch`, drawn inside the step; not used with `make_pool`.
      arrays: of all labelled cases, see `batches.load_arrays`.
      folds: positions of the cases of every fold.
      theta: where to begin.
      num_steps: of a trial, K.
      num_starts: trials per fold, each from other weights.
      key: of everything; the starts and the folds have keys of their own.
      make_pool: `(arrays of some cases, key) -> batches [N, B, ...]`, drawn once for a trial: each of its
        steps takes anew, for every place in a batch, what one of the N has there. The pairs must not depend
        on theta.
      judged: the same cases as those that are held out should look, say as another camera sees them; None:
        as they are.
      describe: see `search.Problem`.
      report: told fold, start and how many steps were taken: 0 before the first, then every few.
    """
    arrays = jax.tree.map(jnp.asarray, dict(arrays))
    judged = arrays if judged is None else jax.tree.map(jnp.asarray, dict(judged))
    theta = jax.tree.map(np.asarray, theta)
    largest = max(map(len, folds))

    def draw_and_step(state, theta, cases, rng):
        return inner_step(state, theta, draw(cases, rng), rng)

    step = inner_step if make_pool else draw_and_step
    # Handed over, not closed over: the compiled step is the same for all data sets of one size.
    give = jax.jit(jax.vmap(_deal, (None, 0))) if make_pool else _repeat
    differentiated = host_loop.advance(step)
    plain = host_loop.steps(step)
    judge = jax.jit(lambda state, theta, batch: outer_loss(state, theta, batch)[0])
    finish = jax.jit(forward.finish(outer_loss))
    initial = jax.jit(init)

    def key_of(fold, start):
        return jax.random.fold_in(jax.random.fold_in(key, start), fold)

    @functools.lru_cache(maxsize=1)  # once for all trials of it in a row, and for the warm-up
    def data_of(fold, start):
        members = jnp.array([i for j, other in enumerate(folds) if j != fold for i in other])
        cases = jax.tree.map(lambda x: x[members], arrays)
        return (
            make_pool(cases, jax.random.fold_in(key_of(fold, start), POOL)) if make_pool else cases
        )

    def train(theta, fold, start, differentiate, last=num_steps):
        trial_key, cases = key_of(fold, start), data_of(fold, start)
        theta = jax.tree.map(jnp.asarray, theta)
        state = initial(jax.random.fold_in(key, start))
        tangents = forward.start(theta, state) if differentiate else None
        for begin in range(0, last, CHUNK):
            count = min(CHUNK, last - begin)
            report(fold, start, 0)
            rngs = jax.vmap(lambda k: jax.random.fold_in(trial_key, k))(begin + jnp.arange(count))
            batches = give(cases, rngs)
            if differentiate:
                state, tangents, _ = differentiated(state, tangents, theta, batches, rngs)
            else:
                state, _ = plain(state, theta, batches, rngs)
            jax.block_until_ready(state)
            report(fold, start, count)
        return theta, state, tangents

    def run(theta, fold, start, differentiate):
        theta, state, tangents = train(theta, fold, start, differentiate)
        held_out = _held_out(judged, folds[fold], largest)
        if not differentiate:
            return search.Trial(float(judge(state, theta, held_out)), None)
        loss, gradient, _ = finish(state, tangents, theta, held_out)
        return search.Trial(float(loss), jax.tree.map(np.asarray, gradient))

    def warm_up(differentiate):
        few = min(CHUNK, num_steps)
        jax.block_until_ready(train(theta, 0, 0, differentiate, few)[1])
        return few

    return search.Problem(theta, len(folds), num_starts, run, describe, warm_up, num_steps)


def of_average(outer_loss: Callable) -> Callable:
    """An outer loss of the average of the segmenter's weights, which is what predicts."""

    def loss(state, theta, batch):
        segmenter = state["segmenter"]
        predicting = segmenter.replace(params=levels.average_of(segmenter))
        return outer_loss({**state, "segmenter": predicting}, theta, batch)

    return loss


def _repeat(arrays, rngs):
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (len(rngs), *x.shape)), arrays)


def _deal(pool, rng):
    """A batch whose example j is example j of any batch of a pool."""

    def deal(x):
        numbers = jax.random.randint(rng, x.shape[1:2], 0, x.shape[0])
        return x[numbers, jnp.arange(x.shape[1])]

    return jax.tree.map(deal, pool)


def _held_out(arrays, fold, size):
    """An outer batch of all cases of a fold, padded to one size for all folds."""
    padded = jnp.array([*fold, *[fold[0]] * (size - len(fold))])
    weight = (jnp.arange(size) < len(fold)).astype(jnp.float32)
    return {"image": arrays["image"][padded], "mask": arrays["mask"][padded], "weight": weight}
