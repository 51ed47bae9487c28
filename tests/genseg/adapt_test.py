"""Zoomed pairs against SciPy and by hand, and the derivative through image and mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from scipy import ndimage

from fewshotseg.genseg import adapt, outer_variables, pair_sources, segmenter
from fewshotseg.labels import IGNORED

SHAPES = [(7, 10), (5, 8, 6)]


def _array(shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal((2, *shape, 2)).astype(dtype)


def _masks(shape, seed=0):
    numbers = np.random.default_rng(seed)
    return numbers.choice([0, 1, 2, IGNORED], (2, *shape), p=(0.6, 0.2, 0.1, 0.1)).astype(np.uint8)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [0.61, 1.0, 1.37, 2.0])
def test_a_zoom_is_that_of_scipy(shape, scale):
    with tiny.float64():
        x = _array(shape)
        found = np.asarray(adapt.zoom(jnp.asarray(x), scale))
    middle = (np.array(shape) - 1) / 2
    for image, zoomed in zip(x, found, strict=True):
        for channel in range(2):
            expected = ndimage.affine_transform(
                image[..., channel],
                np.full(len(shape), 1 / scale),
                middle - middle / scale,
                order=1,
                mode="nearest",
            )
            np.testing.assert_allclose(zoomed[..., channel], expected, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_at_the_start_nothing_changes(shape):
    x, masks = _array(shape, dtype=np.float32), _masks(shape)
    np.testing.assert_array_equal(adapt.zoom(jnp.asarray(x), jnp.float32(1.0)), x)
    pairs = pair_sources.Pairs(jnp.asarray(x), jnp.asarray(masks), None)
    assert adapt.adapt(pairs, {}, 3).masks is pairs.masks
    adapted = adapt.adapt(pairs, {"object_scale": jnp.float32(1.0)}, 3)
    np.testing.assert_array_equal(adapted.images, x)
    np.testing.assert_array_equal(adapt.as_ids(adapted.masks), masks)
    assert adapt.as_ids(pairs.masks) is pairs.masks


@pytest.mark.parametrize("scale", [1.0, 0.71, 1.43])
def test_the_derivative_is_the_limit_of_central_differences_on_kinks_too(scale):
    """At scale 1 every pixel is on one: an index rounded down would give the slope of one side alone."""
    with tiny.float64():
        x, weights = jnp.asarray(_array((7, 10))), jnp.asarray(_array((7, 10), 1))

        def total(s):
            return (weights * adapt.zoom(x, s)).sum()

        expected = (total(scale + 1e-6) - total(scale - 1e-6)) / 2e-6
        np.testing.assert_allclose(jax.grad(total)(scale), expected, rtol=1e-6)
        forward = jax.jvp(total, (scale,), (1.0,))[1]
        np.testing.assert_allclose(forward, expected, rtol=1e-6)


def test_masks_are_enlarged_with_their_images():
    """A square of 4 pixels beside one of 2, and pixels to be ignored, twice as large."""
    mask = np.zeros((1, 12, 12), np.uint8)
    mask[0, 4:8, 4:6], mask[0, 4:8, 6:8], mask[0, 3, 4:8] = 1, 2, IGNORED
    pairs = pair_sources.Pairs(jnp.zeros((1, 12, 12, 1)), jnp.asarray(mask), None)
    soft = adapt.adapt(pairs, {"object_scale": jnp.float32(2.0)}, 3).masks
    assert soft.shape == (1, 12, 12, 3) and soft.min() >= 0
    ids = np.asarray(adapt.as_ids(soft))[0]
    expected = np.zeros((12, 12), np.uint8)
    expected[2:10, 2:6], expected[2:10, 6:10], expected[0:2, 2:10] = 1, 2, IGNORED
    np.testing.assert_array_equal(ids, expected)
    # a pixel between 1 and 2 belongs to both, one between 1 and what is ignored counts in part
    np.testing.assert_allclose(soft[0, 5, 5], [0, 0.75, 0.25], atol=1e-6)
    np.testing.assert_allclose(soft[0, 2, 3], [0, 0.75, 0], atol=1e-6)


def _player(axes):
    """A segmenter of three classes on zoomed pairs, and a batch with pixels to be ignored."""
    shape = (6, 7, 5)[:axes]
    numbers = np.random.default_rng(3)

    def real(state, theta, batch, keys):
        return pair_sources.Pairs(batch["synthetic_image"], batch["synthetic_mask"], None)

    def segment(params, images, keys):
        return tiny.toy_segment(params, images)

    settings = {"synthetic_weight": 2.0, "object_scale": pair_sources.LARGEST_SCALE}
    theta, use = outer_variables.create(settings, ("object_scale",), jax.random.key(0))
    player = segmenter.player(
        segment, lambda x, keys: x, None, sources={"a": real}, use=use, num_classes=3
    )
    shapes = {"in": np.zeros((4, 4)), "bias": np.zeros(4), "out": np.zeros((4, 3))}
    params = jax.tree.map(jnp.asarray, tiny.draw_like(shapes, numbers))
    batch = {
        "image": jnp.asarray(_array(shape, 1)),
        "mask": jnp.asarray(_masks(shape, 1)),
        "synthetic_image": jnp.asarray(_array(shape, 2)),
        "synthetic_mask": jnp.asarray(_masks(shape, 2)),
        "key": jax.random.split(jax.random.key(0), 2),
    }
    return player, params, theta, batch


@pytest.mark.parametrize("axes", [2, 3])
def test_the_loss_of_three_classes_against_central_differences(axes):
    """At the start, where all pixels are on kinks, enlarged, and made smaller."""
    with tiny.float64():
        player, params, _, batch = _player(axes)

        @jax.jit
        def loss(value):
            outer, data = player.inputs({}, {"object_scale": value}, batch)
            return player.loss(params, outer, data)[0]

        slope = jax.jit(jax.grad(loss))
        for start in (0.0, 1.5, -2.0):
            numeric = (loss(start + 1e-6) - loss(start - 1e-6)) / 2e-6
            assert abs(numeric) > 1e-4
            np.testing.assert_allclose(slope(start), numeric, rtol=1e-5)


def test_half_of_the_derivative_is_that_of_the_mask():
    """With the mask held, another number comes out: class ids would have lost it."""
    with tiny.float64():
        player, params, _, batch = _player(2)

        def loss(value, follow):
            outer, data = player.inputs({}, {"object_scale": value}, batch)
            masks = outer["masks"] if follow else jax.lax.stop_gradient(outer["masks"])
            return player.loss(params, {**outer, "masks": masks}, data)[0]

        grad = jax.jit(jax.grad(loss), static_argnames="follow")
        both, image = (grad(1.5, follow=follow) for follow in (True, False))
        assert abs(both - image) > 0.1 * abs(both)


def test_at_the_start_the_loss_is_that_of_class_ids():
    with tiny.float64():
        player, params, theta, batch = _player(2)
        outer, data = player.inputs({}, theta, batch)
        found = player.loss(params, outer, data)[0]
        ids = jnp.concatenate([data["masks"], batch["synthetic_mask"]])
        hard = {name: outer[name] for name in ("synthetic", "weight")}
        expected = player.loss(params, hard, {**data, "masks": ids})[0]
        np.testing.assert_allclose(found, expected, rtol=1e-12)
