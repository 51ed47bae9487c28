"""Trials: their derivative, what is held out, and what a search finds where the truth is known.

Twenty images of bright boxes and a segmenter of a few numbers; everything else is what users train with.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from fewshotseg.data import augment, batches
from fewshotseg.genseg import levels, outer_variables, pair_sources, segmenter
from fewshotseg.hypergradient import inner_gradient
from fewshotseg.training import cross_fit, optimizers, search

CASES, SIZE, FOLDS, STEPS = 20, 10, 5, 100
FIELDS = {"num_rounds": 2, "rate": 2.0, "level": 0.1}


def _data(dtype=np.float32):
    rng = np.random.default_rng(0)
    masks = np.zeros((CASES, SIZE, SIZE), np.uint8)
    for mask in masks:
        top, left = rng.integers(0, SIZE - 4, 2)
        mask[top : top + 4, left : left + 3] = 1
    images = 0.8 * masks - 0.4 + 0.3 * rng.normal(size=masks.shape)
    return {"image": images[..., None].astype(dtype), "mask": masks}


def _augmented(state, theta, batch, keys):
    del state, theta, keys
    return pair_sources.Pairs(
        batch["synthetic_image"], batch["synthetic_mask"], batch["synthetic_case"][:, None]
    )


def _poisoned(state, theta, batch, keys):
    """The labels are beside the objects."""
    pairs = _augmented(state, theta, batch, keys)
    return pairs._replace(masks=jnp.roll(pairs.masks, 4, (1, 2)))


def _problem(
    sources,
    *,
    dtype=jnp.float32,
    num_starts=1,
    data=None,
    term=lambda loss: loss,
    variables=("mixture",),
    judged=None,
    synthetic_weight=2.0,
):
    settings = {"synthetic_weight": synthetic_weight, "mixture": tuple(sources), "colour_shift": 1}
    theta, use = outer_variables.create(settings, variables, jax.random.key(0))
    theta = jax.tree.map(lambda x: x.astype(dtype), theta)
    optimizer = optimizers.create_optimizer(
        "adam", 0.05, STEPS, schedule="cosine", differentiable=True
    )
    player = segmenter.player(
        tiny.toy_segment, tiny.toy_jitter, optimizer, sources=sources, use=use, average_decay=0.9
    )
    step = functools.partial(
        levels.inner_step,
        players={"segmenter": player},
        moving=("segmenter",),
        gradient=inner_gradient.reverse,
    )
    terms = ((1.0, segmenter.validation_loss(tiny.toy_segment)),)
    none = augment.Geometry(flip=0.0, scale=0.0, translate=0.0, rotate=0.0, shear=0.0)
    draw = functools.partial(
        batches.draw_batch,
        batch_size=4,
        num_synthetic=4,
        geometry=None,
        mask_geometry=none,
        num_classes=2,
        synthetic_images=True,
    )

    def init(key):
        keys = jax.random.split(key, 3)
        shapes = {"in": (2, 4), "bias": (4,), "out": (4, 1)}
        params = {
            name: 0.5 * jax.random.normal(k, shape, dtype)
            for k, (name, shape) in zip(keys, shapes.items(), strict=True)
        }
        return {"segmenter": levels.init_player(params, player)}

    folds = np.arange(CASES).reshape(FOLDS, -1)
    return cross_fit.create_problem(
        step,
        term(cross_fit.of_average(functools.partial(levels.outer_loss, terms=terms))),
        init,
        draw,
        _data(dtype) if data is None else data,
        folds,
        theta,
        num_steps=STEPS,
        num_starts=num_starts,
        judged=judged,
        key=jax.random.key(0),
    )


SOURCES = {"augmented": _augmented, "poisoned": _poisoned}


def test_derivative_of_a_whole_training_is_that_of_finite_differences():
    """Adam, cosine schedule and average included."""
    with tiny.float64():
        problem = _problem(SOURCES, dtype=jnp.float64)
        theta = {"mixture": np.array([0.3, -0.2])}
        trial = problem.run(theta, 1, 0, True)
        assert trial.loss == pytest.approx(problem.run(theta, 1, 0, False).loss, rel=1e-12)
        for i, step in enumerate(1e-5 * np.eye(2)):
            right, left = (
                problem.run({"mixture": theta["mixture"] + s * step}, 1, 0, False).loss
                for s in (1.0, -1.0)
            )
            numeric = (right - left) / 2e-5
            assert trial.gradient["mixture"][i] == pytest.approx(numeric, rel=1e-5)
            assert abs(numeric) > 1e-4


def test_a_trial_knows_nothing_of_the_fold_held_out():
    """A case of fold 0 changes, its own loss is not counted: where it is held out, all stays the same."""
    changed = _data()
    changed["image"][0] = -changed["image"][0]

    def uncounted(loss):
        return lambda state, theta, batch: loss(
            state, theta, {**batch, "weight": batch["weight"].at[0].set(0.0)}
        )

    before, after = (_problem(SOURCES, data=d, term=uncounted) for d in (_data(), changed))
    losses = [[p.run(p.theta, fold, 0, False).loss for fold in (0, 1)] for p in (before, after)]
    assert losses[0][0] == losses[1][0] and losses[0][1] != losses[1][1]


def test_a_poisoned_source_is_switched_off(tmp_path):
    theta = search.run("hypergradient", _problem(SOURCES), FIELDS, tmp_path / "s.json", seed=0)
    weights = np.asarray(outer_variables.OUTER_VARIABLES["mixture"].use(theta["mixture"], ()))
    assert weights[1] < 0.05


def test_the_colours_of_another_camera_are_found(tmp_path):
    """Images held out are 0.3 brighter than those to train on; synthetic ones may be shifted, too."""
    brighter = _data()
    brighter["image"] += 0.3
    problem = _problem(
        {"augmented": _augmented},
        variables=("colour_shift",),
        judged=brighter,
        synthetic_weight=20.0,
    )
    fields = {**FIELDS, "rate": 0.3}
    theta = search.run("hypergradient", problem, fields, tmp_path / "s.json", seed=0)
    shift = outer_variables.OUTER_VARIABLES["colour_shift"].use(theta["colour_shift"], 1)
    assert 0.2 < float(shift[0]) < 0.4


def test_where_sources_are_alike_nothing_moves(tmp_path):
    """Two sources that differ by the draw alone; five searches, from other weights and draws."""
    problem = _problem({"one": _augmented, "other": _augmented}, num_starts=5)
    moved = 0
    for i in range(5):
        run = functools.partial(_run_start, problem, i)
        one = dataclasses.replace(problem, num_starts=1, run=run)
        theta = search.run("hypergradient", one, FIELDS, tmp_path / f"{i}.json", seed=0)
        moved += bool(np.any(theta["mixture"]))
    assert moved <= 1


def _run_start(problem, start, theta, fold, _, differentiate):
    return problem.run(theta, fold, start, differentiate)


def test_starts_are_other_trainings_and_trials_repeat_bit_for_bit():
    problem = _problem(SOURCES, num_starts=2)
    first, again = (problem.run(problem.theta, 0, 0, True) for _ in range(2))
    assert first.loss == again.loss
    np.testing.assert_array_equal(first.gradient["mixture"], again.gradient["mixture"])
    assert problem.run(problem.theta, 0, 1, False).loss != first.loss


def test_padding_of_a_smaller_fold_counts_for_nothing():
    arrays = jax.tree.map(jnp.asarray, _data())
    small = cross_fit._held_out(arrays, (3, 4), 4)
    np.testing.assert_array_equal(small["weight"], [1, 1, 0, 0])
    np.testing.assert_array_equal(small["mask"][:2], arrays["mask"][3:5])
