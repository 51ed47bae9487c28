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
from fewshotseg.genseg.outer_variables import OUTER_VARIABLES
from fewshotseg.hypergradient import inner_gradient
from fewshotseg.training import build_search, cross_fit, optimizers, search

CASES, SIZE, FOLDS, STEPS = 20, 10, 5, 100
FIELDS = {"num_rounds": 2, "rate": 2.0, "level": 0.1}
FREE = ("colour_shift", "object_scale")  # which start as no change


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
    segment=tiny.toy_segment,
    jitter=tiny.toy_jitter,
    learning_rate=0.05,
    pooled=0,
):
    settings = {"synthetic_weight": synthetic_weight, "mixture": tuple(sources)}
    settings |= {"colour_shift": 1, "object_scale": pair_sources.LARGEST_SCALE}
    settings = {name: s for name, s in settings.items() if name not in FREE or name in variables}
    theta, use = outer_variables.create(settings, variables, jax.random.key(0))
    theta = jax.tree.map(lambda x: x.astype(dtype), theta)
    optimizer = optimizers.create_optimizer(
        "adam", learning_rate, STEPS, schedule="cosine", differentiable=True
    )
    examples = segmenter.create_examples(jitter, sources=sources, use=use)
    player = segmenter.player(
        segment,
        jitter,
        optimizer,
        sources=sources,
        use=use,
        average_decay=0.9,
        examples=(lambda state, theta, batch: batch) if pooled else examples,
    )
    step = functools.partial(
        levels.inner_step,
        players={"segmenter": player},
        moving=("segmenter",),
        gradient=inner_gradient.reverse,
    )
    terms = ((1.0, segmenter.validation_loss(segment)),)
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

    make_pool = build_search.create_pool(
        lambda batch: examples({}, theta, batch), draw, lambda images: (images,), pooled
    )
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
        make_pool=make_pool if pooled else None,
        judged=judged,
        key=jax.random.key(0),
    )


SOURCES = {"augmented": _augmented, "poisoned": _poisoned}


def _segment_features(params, images, keys=None):
    """Takes what is in a pool, too."""
    return tiny.toy_segment(params, images[0] if isinstance(images, tuple) else images, keys)


@pytest.mark.parametrize("pooled", [0, 3])
def test_derivative_of_a_whole_training_is_that_of_finite_differences(pooled):
    """Adam, cosine schedule and average included."""
    with tiny.float64():
        problem = _problem(SOURCES, dtype=jnp.float64, pooled=pooled, segment=_segment_features)
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


@pytest.mark.parametrize("pooled", [0, 3])
def test_a_trial_knows_nothing_of_the_fold_held_out(pooled):
    """A case of fold 0 changes, its own loss is not counted: where it is held out, all stays the same."""
    changed = _data()
    changed["image"][0] = -changed["image"][0]

    def uncounted(loss):
        return lambda state, theta, batch: loss(
            state, theta, {**batch, "weight": batch["weight"].at[0].set(0.0)}
        )

    options = {"term": uncounted, "pooled": pooled, "segment": _segment_features}
    before, after = (_problem(SOURCES, data=d, **options) for d in (_data(), changed))
    losses = [[p.run(p.theta, fold, 0, False).loss for fold in (0, 1)] for p in (before, after)]
    assert losses[0][0] == losses[1][0] and losses[0][1] != losses[1][1]


def test_a_poisoned_source_is_switched_off(tmp_path):
    theta = search.run("hypergradient", _problem(SOURCES), FIELDS, tmp_path / "s.json", seed=0)
    weights = np.asarray(OUTER_VARIABLES["mixture"].use(theta["mixture"], ()))
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
    shift = OUTER_VARIABLES["colour_shift"].use(theta["colour_shift"], 1)
    assert 0.2 < float(shift[0]) < 0.4


def _discs(scale):
    """Discs, brighter or less, labelled with the dark ring around them; it is as wide as their radius."""
    numbers = np.random.default_rng(0)
    centres, heights = numbers.uniform(-1, 1, (CASES, 2, 1, 1)), numbers.uniform(0.7, 1.3, CASES)
    distance = np.hypot(*np.moveaxis(np.indices((16, 16)) - 7.5 - scale * centres, 1, 0))
    images = heights[:, None, None] * np.clip(2 * scale + 0.5 - distance, 0, 1) - 0.5
    images += 0.1 * numbers.normal(size=images.shape)
    masks = (distance < 4 * scale).astype(np.uint8)
    return {"image": images[..., None].astype(np.float32), "mask": masks}


def _segment_by_neighbourhood(params, images, keys=None):
    """Linear in a pixel and in the mean around it, which depends on the size: trained to its end in STEPS.

    Where a training ends early, larger objects may serve it better than those of the right size.
    """
    del keys
    around = images
    for axis in (1, 2):
        weights = pair_sources.gaussian_weights(images.shape[axis], 2.0, images.dtype)
        around = jnp.moveaxis(jnp.tensordot(around, weights, axes=(axis, 1)), -1, axis)
    x = jnp.concatenate([2.0 * images + 0.8, 8.0 * around + 3.2], -1)
    return (x @ params["in"] + params["bias"]) @ params["out"]


def _scale_problem(train, judged, **options):
    return _problem(
        {"augmented": _augmented},
        variables=("object_scale",),
        data=_discs(train),
        judged=_discs(judged),
        synthetic_weight=20.0,
        segment=_segment_by_neighbourhood,
        jitter=lambda images, keys: images,
        learning_rate=0.1,
        **options,
    )


@pytest.mark.parametrize(("train", "judged"), [(1.0, 1.4), (1.4, 1.0)])
def test_the_size_of_others_objects_is_found(train, judged, tmp_path):
    """Those held out are 1.4 times as large as those to train on, or as small; pairs may be zoomed."""
    problem, fields = _scale_problem(train, judged), {**FIELDS, "num_rounds": 4}
    theta = search.run("hypergradient", problem, fields, tmp_path / "s.json", seed=0)
    scale = OUTER_VARIABLES["object_scale"].use(theta["object_scale"], pair_sources.LARGEST_SCALE)
    assert abs(np.log(float(scale) * train / judged)) < np.log(1.1)


def test_where_objects_are_alike_their_size_stays(tmp_path):
    """Five searches, from other weights and draws."""
    problem = _scale_problem(1.0, 1.0, num_starts=5)
    assert _num_moved(problem, "object_scale", tmp_path) <= 1


def test_where_sources_are_alike_nothing_moves(tmp_path):
    """Two sources that differ by the draw alone; five searches, from other weights and draws."""
    problem = _problem({"one": _augmented, "other": _augmented}, num_starts=5)
    assert _num_moved(problem, "mixture", tmp_path) <= 1


def _num_moved(problem, variable, folder):
    """Of as many searches as there are starts, how many moved an outer variable."""
    moved = 0
    for i in range(problem.num_starts):
        run = functools.partial(_run_start, problem, i)
        one = dataclasses.replace(problem, num_starts=1, run=run)
        theta = search.run("hypergradient", one, FIELDS, folder / f"{i}.json", seed=0)
        moved += bool(np.any(theta[variable]))
    return moved


def _run_start(problem, start, theta, fold, _, differentiate):
    return problem.run(theta, fold, start, differentiate)


def test_starts_are_other_trainings_and_trials_repeat_bit_for_bit():
    problem = _problem(SOURCES, num_starts=2)
    first, again = (problem.run(problem.theta, 0, 0, True) for _ in range(2))
    assert first.loss == again.loss
    np.testing.assert_array_equal(first.gradient["mixture"], again.gradient["mixture"])
    assert problem.run(problem.theta, 0, 1, False).loss != first.loss


def test_a_pool_is_dealt_place_by_place():
    """Every place keeps its source; each comes from any batch, all parts of an example from the same."""
    numbers = jnp.arange(30).reshape(5, 6)  # of batch n at place j, 6 n + j
    keys = jax.random.split(jax.random.key(1), 40)
    deal = jax.vmap(cross_fit._deal, (None, 0))
    dealt = deal({"images": (numbers, 2.0 * numbers), "masks": -numbers}, keys)
    found = np.asarray(dealt["images"][0])
    np.testing.assert_array_equal(found % 6, np.broadcast_to(np.arange(6), (40, 6)))
    np.testing.assert_array_equal(dealt["images"][1], 2.0 * found)
    np.testing.assert_array_equal(dealt["masks"], -found)
    assert set(found.ravel()) == set(range(30))
    assert len({*map(tuple, found.tolist())}) > 30  # nearly all are mixed in other ways


def test_padding_of_a_smaller_fold_counts_for_nothing():
    arrays = jax.tree.map(jnp.asarray, _data())
    small = cross_fit._held_out(arrays, (3, 4), 4)
    np.testing.assert_array_equal(small["weight"], [1, 1, 0, 0])
    np.testing.assert_array_equal(small["mask"][:2], arrays["mask"][3:5])
