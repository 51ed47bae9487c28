"""Augmentation: identities, alignment, ranges, valid ids, and keys that belong to examples."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewshotseg import augment

NO_GEOMETRY = augment.Geometry(0, (-1,), 0, 0, 0, 0, 0)
NO_INTENSITY = augment.Intensity(0, 0, 0, 0, 0, 0)
SIZES = {2: (12, 9), 3: (8, 7, 6)}


def _keys(n=64, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def _blob(rank, seed=0, classes=2):
    """A mask `[*spatial]` with a box per class."""
    numbers = np.random.default_rng(seed)
    mask = np.zeros(SIZES[rank], np.uint8)
    for k in range(1, classes):
        lower = [numbers.integers(0, n // 2) for n in mask.shape]
        mask[tuple(slice(a, a + n // 2) for a, n in zip(lower, mask.shape, strict=True))] = k
    return jnp.asarray(mask)


def _grid(sizes):
    return np.stack(np.meshgrid(*map(np.arange, sizes), indexing="ij"))


# --- Geometry --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [2, 3])
def test_no_strength_no_change(rank):
    key, mask = jax.random.key(0), _blob(rank, classes=3)
    image = jax.random.normal(key, (*mask.shape, 2))
    coordinates = augment.sampling_coordinates(key, mask.shape, NO_GEOMETRY)
    np.testing.assert_allclose(coordinates, _grid(mask.shape), atol=1e-5)
    new_image, new_mask = augment.augment_pair(
        image, mask, key, strength=NO_GEOMETRY, num_classes=3
    )
    np.testing.assert_allclose(new_image, image, atol=1e-4)
    np.testing.assert_array_equal(new_mask, mask)


@pytest.mark.parametrize(
    ("rank", "axes"), [(2, (-1,)), (2, (-2,)), (2, (-1, -2)), (2, ()), (3, (-3,)), (3, (-1, -3))]
)
def test_flips_by_hand(rank, axes):
    strength = dataclasses.replace(NO_GEOMETRY, flip=1.0, flip_axes=axes)
    mask = _blob(rank)
    flipped = augment.augment_mask(mask, jax.random.key(0), strength=strength, num_classes=2)
    np.testing.assert_array_equal(flipped, np.flip(mask, [a % rank for a in axes]))


def test_sampling_by_hand():
    image = jnp.arange(12.0).reshape(3, 4, 1)
    grid = jnp.asarray(_grid((3, 4)), jnp.float32)
    right = augment.warp_image(image, grid + jnp.array([0.0, 1.0]).reshape(2, 1, 1))[..., 0]
    np.testing.assert_allclose(right[0], [1, 2, 3, 3])  # edges repeat
    between = augment.warp_image(image, grid + 0.5)[..., 0]
    np.testing.assert_allclose(between[0, 0], (0 + 1 + 4 + 5) / 4)
    mask = jnp.array([[0, 0, 2, 2]], jnp.uint8)
    grid = jnp.asarray(_grid((1, 4)), jnp.float32)
    for shift, expected in ((0.4, [0, 0, 2, 2]), (0.6, [0, 2, 2, 2])):
        moved = augment.warp_mask(mask, grid + jnp.array([0.0, shift]).reshape(2, 1, 1), 3)
        assert moved.tolist() == [expected] and moved.dtype == jnp.uint8


def _matrices(rank, n=400, **strength):
    strength = dataclasses.replace(NO_GEOMETRY, **strength)
    draw = functools.partial(augment.random_affine, rank=rank, strength=strength)
    return np.asarray(jax.jit(jax.vmap(draw))(_keys(n)))


@pytest.mark.parametrize("rank", [2, 3])
def test_ranges_of_scale_and_translation(rank):
    eye = np.eye(rank + 1)
    scales = _matrices(rank, scale=0.2)
    diagonal = scales[:, range(rank), range(rank)]
    np.testing.assert_array_equal(scales * (1 - eye), 0)
    assert 0.8 <= diagonal.min() < 0.82 and 1.18 < diagonal.max() <= 1.2
    assert abs(np.corrcoef(diagonal.T)[0, 1]) < 0.2  # per axis
    # 10 % of the size is 0.2 of the interval from -1 to 1
    shifts = _matrices(rank, translate=0.1)
    np.testing.assert_array_equal(
        shifts[:, :, :rank], np.broadcast_to(eye[:, :rank], shifts[:, :, :rank].shape)
    )
    column = shifts[:, :rank, rank]
    assert -0.2 <= column.min() < -0.19 and 0.19 < column.max() <= 0.2


@pytest.mark.parametrize("rank", [2, 3])
def test_ranges_of_rotation_and_shear(rank):
    turns = _matrices(rank, rotate=15.0)[:, :rank, :rank]
    np.testing.assert_allclose(
        turns @ turns.transpose(0, 2, 1), np.broadcast_to(np.eye(rank), turns.shape), atol=1e-5
    )
    assert np.linalg.det(turns) == pytest.approx(1, abs=1e-5)
    if rank == 2:
        angles = np.rad2deg(np.arctan2(turns[:, 1, 0], turns[:, 0, 0]))
        assert -15.001 <= angles.min() < -14 and 14 < angles.max() <= 15.001
    slopes = _matrices(rank, shear=8.0)[:, :rank, :rank] - np.eye(rank)
    limit = np.tan(np.deg2rad(8.0))
    off = slopes[:, ~np.eye(rank, dtype=bool)]
    assert np.abs(off).max() < 1.2 * limit and np.abs(off).max(0).min() > 0.9 * limit


def test_order_of_the_parts_is_random():
    """Scaling after a translation scales it; before, it does not."""
    matrices = _matrices(2, scale=0.2, translate=0.1)
    column, diagonal = matrices[:, :2, 2], matrices[:, range(2), range(2)]
    alone = _matrices(2, translate=0.1)[:, :2, 2]
    after = np.isclose(column, alone, rtol=1e-4).all(1)
    before = np.isclose(column, diagonal * alone, rtol=1e-4).all(1)
    assert (after | before).all()
    assert 0.4 < after.mean() < 0.6


@pytest.mark.parametrize("rank", [2, 3])
def test_elastic_displacement_is_smooth_and_bounded(rank):
    sizes = (24,) * rank
    strength = dataclasses.replace(NO_GEOMETRY, elastic=0.05)
    draw = functools.partial(augment.sampling_coordinates, sizes=sizes, strength=strength)
    moved = np.asarray(jax.jit(jax.vmap(draw))(_keys(8))) - _grid(sizes)
    largest = 0.05 * 24
    assert 0.5 * largest < np.abs(moved).max() < 1.3 * largest
    steps = max(np.abs(np.diff(moved, axis=2 + i)).max() for i in range(rank))
    assert steps < 0.5 * largest


@pytest.mark.parametrize("rank", [2, 3])
def test_image_and_mask_stay_aligned(rank):
    strength = augment.Geometry(flip_axes=(-1, -2), elastic=0.03)
    masks = jnp.stack([_blob(rank, seed) for seed in range(16)])
    images = 2.0 * masks.astype(jnp.float32)[..., None] - 1.0
    warp = functools.partial(augment.augment_pair, strength=strength, num_classes=2)
    new_images, new_masks = jax.jit(jax.vmap(warp))(images, masks, _keys(16))
    inside = np.asarray(new_images[..., 0])
    clear = np.abs(inside) > 1e-4  # where sampling falls halfway, rounding decides
    np.testing.assert_array_equal((inside > 0)[clear], np.asarray(new_masks)[clear] == 1)
    assert clear.mean() > 0.98
    assert (np.asarray(new_masks) != np.asarray(masks)).mean() > 0.05
    assert new_masks.any(axis=tuple(range(1, rank + 1))).mean() > 0.9


def test_masks_keep_valid_ids():
    mask = _blob(2, classes=4)
    mask = jnp.where(mask == 2, 0, mask)  # ids 0, 1, 3: nothing may appear in between
    strength = augment.Geometry(elastic=0.1, rotate=90.0)
    warp = functools.partial(augment.augment_mask, mask, strength=strength, num_classes=4)
    drawn = jax.jit(jax.vmap(warp))(_keys(32))
    assert drawn.dtype == jnp.uint8 and drawn.shape == (32, *mask.shape)
    assert set(np.unique(drawn)) == {0, 1, 3}


def test_geometry_belongs_to_the_key():
    image = jax.random.normal(jax.random.key(1), (12, 9, 1))
    mask, strength = _blob(2), augment.Geometry()
    warp = functools.partial(augment.augment_pair, strength=strength, num_classes=2)
    many = jax.jit(jax.vmap(warp, (None, None, 0)))(image, mask, _keys(4))
    for i, key in enumerate(_keys(4)):
        one = jax.jit(warp)(image, mask, key)
        np.testing.assert_allclose(one[0], many[0][i], atol=1e-5)
        np.testing.assert_array_equal(one[1], many[1][i])
    assert len({np.asarray(x).tobytes() for x in many[0]}) == 4


# --- Intensity -------------------------------------------------------------------------------------


def _jitter(images, n=None, seed=0, **strength):
    n = n or images.shape[0]
    strength = dataclasses.replace(NO_INTENSITY, **strength)
    images = jnp.broadcast_to(images, (n, *images.shape[1:]))
    jitter = functools.partial(augment.jitter, strength=strength)
    return np.asarray(jax.jit(jitter)(images, _keys(n, seed)))


def _picture(channels=3, low=-0.9, high=0.9):
    return jax.random.uniform(jax.random.key(7), (1, 8, 10, channels), minval=low, maxval=high)


def test_no_jitter_no_change():
    image = _picture()
    np.testing.assert_allclose(_jitter(image), image, atol=1e-6)
    edges = jnp.array([-1.0, 1.0]).reshape(1, 1, 2, 1)  # kept a little away from black
    np.testing.assert_allclose(_jitter(edges), edges, atol=0.0021)


def test_brightness_and_contrast():
    image = _picture()
    bright = _jitter(image, 200, brightness=0.2) - image
    assert bright.std(axis=(1, 2, 3)).max() < 1e-6
    assert -0.2 <= bright.min() < -0.18 and 0.18 < bright.max() <= 0.2 + 1e-6
    contrast = _jitter(0.5 * image, 200, contrast=0.2)
    mean = 0.5 * float(image.mean())
    factors = (contrast - mean) / (0.5 * image - mean)
    assert factors.std(axis=(1, 2, 3)).max() < 1e-3
    factors = factors.mean(axis=(1, 2, 3))
    assert 0.8 <= factors.min() < 0.82 and 1.18 < factors.max() <= 1.2


def test_colour_is_a_factor_per_channel():
    image = 0.5 * _picture()
    factors = _jitter(image, 200, colour=0.1) / image
    assert factors.std(axis=(1, 2)).max() < 1e-4
    factors = factors.mean(axis=(1, 2))
    assert 0.9 <= factors.min() < 0.91 and 1.09 < factors.max() <= 1.1
    assert abs(np.corrcoef(factors.T)[0, 1]) < 0.2
    grey = 0.5 * _picture(channels=1)
    np.testing.assert_allclose(_jitter(grey, 4, colour=0.1), np.repeat(grey, 4, 0), atol=1e-6)


def test_gamma_is_an_exponent_of_the_unit_interval():
    image = _picture()
    new = (_jitter(image, 200, gamma=0.2) + 1) / 2
    exponents = np.log(np.log(new) / np.log((np.asarray(image) + 1) / 2))
    assert exponents.std(axis=(1, 2, 3)).max() < 1e-3
    exponents = exponents.mean(axis=(1, 2, 3))
    assert -0.2 <= exponents.min() < -0.18 and 0.18 < exponents.max() <= 0.2


@pytest.mark.parametrize("rank", [2, 3])
def test_blur_spreads_a_point_over_its_neighbours(rank):
    point = np.full((1, *(7,) * rank, 1), -0.5, np.float32)
    point[(0, *(3,) * rank, 0)] = 0.5
    blurred = _jitter(jnp.asarray(point), 50, blur=0.3) + 0.5
    neighbour = blurred[(slice(None), 2, *(3,) * (rank - 1), 0)]
    corner = blurred[(slice(None), *(2,) * rank, 0)]
    centre = blurred[(slice(None), *(3,) * rank, 0)]
    share = neighbour * 3**rank
    assert 0 <= share.min() < 0.05 and 0.25 < share.max() <= 0.3001
    np.testing.assert_allclose(corner, neighbour, atol=1e-6)
    np.testing.assert_allclose(centre, 1 - share + neighbour, atol=1e-5)
    np.testing.assert_allclose(blurred.sum(axis=tuple(range(1, rank + 2))), 1, atol=1e-3)


def test_noise_has_the_stated_deviation():
    flat = jnp.zeros((1, 32, 32, 1))
    noisy = _jitter(flat, 100, noise=0.05)
    deviations = noisy.std(axis=(1, 2, 3))
    assert deviations.min() < 0.01 and 0.04 < deviations.max() < 0.053
    assert np.abs(noisy.mean(axis=(1, 2, 3))).max() < 0.01


@pytest.mark.parametrize("shape", [(3, 8, 10, 3), (3, 5, 6, 4, 1)])
def test_jitter_belongs_to_the_key(shape):
    images = jnp.broadcast_to(jax.random.uniform(jax.random.key(0), shape[1:], minval=-1), shape)
    jitter = jax.jit(functools.partial(augment.jitter, strength=augment.Intensity()))
    together = jitter(images, _keys(3))
    assert together.shape == shape
    for i in range(3):
        alone = jitter(images[i : i + 1], _keys(3)[i : i + 1])
        np.testing.assert_allclose(alone[0], together[i], atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 0.05


def test_jitter_is_differentiable_up_to_black_and_white():
    jitter = functools.partial(augment.jitter, strength=augment.Intensity())
    values = jnp.array([-1.0, -0.999, 0.0, 0.5, 1.0, 1.2]).reshape(1, 2, 3, 1)
    images = jnp.broadcast_to(values, (64, 2, 3, 1))
    out, pull = jax.vjp(lambda x: jitter(x, _keys(64)), images)
    (grad,) = pull(jnp.ones_like(images))
    assert np.isfinite(out).all() and np.isfinite(grad).all()
    assert np.abs(grad[:, 0, 2]).min() > 0.1  # a grey pixel always counts
    black = jnp.full((64, 2, 3, 1), -1.0)
    (grad,) = jax.vjp(lambda x: jitter(x, _keys(64)), black)[1](jnp.ones_like(black))
    assert np.isfinite(grad).all()
