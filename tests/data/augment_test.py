"""Augmentation: image and mask move together, keys decide, and intensity is differentiable."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewshotseg.data import augment
from fewshotseg.data import batches as input_pipeline

NONE = augment.Geometry(flip=0, scale=0, translate=0, rotate=0, shear=0)
FULL = augment.Geometry(flip_axes=(-1, -2), elastic=0.03)


def disc(shape, value=1):
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    return jnp.asarray((np.sum((grid - 0.1) ** 2, 0) < 0.3) * value, jnp.uint8)


@pytest.mark.parametrize("shape", [(16, 12), (6, 8, 10)])
def test_no_strength_changes_nothing(shape):
    image = jax.random.normal(jax.random.key(0), (*shape, 2))
    mask = disc(shape, 2)
    out, out_mask = augment.augment_pair(
        image, mask, jax.random.key(1), strength=NONE, num_classes=3
    )
    np.testing.assert_allclose(out, image, atol=1e-5)
    np.testing.assert_array_equal(out_mask, mask)


@pytest.mark.parametrize("shape", [(24, 20), (10, 12, 14)])
def test_image_and_mask_stay_aligned(shape):
    mask = disc(shape)
    image = mask[..., None].astype(jnp.float32)
    moved = 0
    for seed in range(5):
        out, out_mask = augment.augment_pair(
            image, mask, jax.random.key(seed), strength=FULL, num_classes=2
        )
        np.testing.assert_array_equal(out[..., 0] > 0.5, out_mask == 1)
        moved += int((out_mask != mask).sum())
    assert moved > 50


def test_a_certain_flip_is_a_flip():
    strength = dataclasses.replace(NONE, flip=1.0)
    mask = disc((9, 7))
    out = augment.augment_mask(mask, jax.random.key(0), strength=strength, num_classes=2)
    np.testing.assert_array_equal(out, mask[:, ::-1])


def test_class_ids_stay_class_ids():
    mask = jnp.maximum(disc((20, 20)), disc((20, 20))[::-1] * 3)
    out = augment.augment_mask(mask, jax.random.key(3), strength=FULL, num_classes=4)
    assert out.dtype == jnp.uint8 and set(np.unique(out)) <= {0, 1, 3}


def test_affine_parts_have_the_stated_strength():
    strength = dataclasses.replace(NONE, rotate=20.0)
    matrices = jax.vmap(lambda k: augment.random_affine(k, (9, 9), strength))(
        jax.random.split(jax.random.key(0), 200)
    )
    angles = np.rad2deg(np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0]))
    assert 15 < np.abs(angles).max() <= 20
    np.testing.assert_allclose(np.linalg.det(matrices), 1, atol=1e-5)


@pytest.mark.parametrize("sizes", [(5, 33), (9, 17, 5)])
def test_angles_are_those_between_pixels(sizes):
    """On canvases that are no squares, a turn keeps all distances in pixels."""
    strength = dataclasses.replace(NONE, rotate=20.0)
    matrix = augment.random_affine(jax.random.key(0), sizes, strength)[: len(sizes), : len(sizes)]
    half = (np.array(sizes) - 1) / 2
    in_pixels = half[:, None] * np.asarray(matrix) / half
    np.testing.assert_allclose(in_pixels @ in_pixels.T, np.eye(len(sizes)), atol=1e-5)
    assert np.abs(in_pixels - np.eye(len(sizes))).max() > 0.05


def test_the_strongest_jitter_leaves_an_image():
    strongest = augment.Intensity(brightness=2.0, contrast=1.0, gamma=1.0)
    image = jnp.linspace(-1, 1, 48).reshape(4, 4, 3)[None]
    keys = jax.random.split(jax.random.key(0), 200)
    found = jax.vmap(lambda k: augment.jitter(image, k[None], strength=strongest))(keys)
    assert np.abs(found).max() < 10


def test_jitter_is_differentiable_even_at_black():
    image = jnp.full((2, 6, 6, 3), -1.0).at[0, 2:4].set(0.8)
    keys = jax.random.split(jax.random.key(0), 2)
    jitter = functools.partial(augment.jitter, keys=keys, strength=augment.Intensity())
    grad = jax.grad(lambda x: (jitter(x) ** 2).sum())(image)
    assert np.isfinite(grad).all() and np.abs(grad).max() > 0
    direction = jax.random.normal(jax.random.key(1), image.shape)
    inside = 0.5 * jnp.tanh(direction)
    _, forward = jax.jvp(lambda x: (jitter(x) ** 2).sum(), (inside,), (direction,))
    h = 1e-2
    numeric = (jitter(inside + h * direction) ** 2).sum() - (
        jitter(inside - h * direction) ** 2
    ).sum()
    assert forward == pytest.approx(float(numeric / (2 * h)), rel=0.02)


def test_jitter_depends_on_the_key_alone():
    images = jax.random.uniform(jax.random.key(0), (3, 5, 5, 1), minval=-1)
    keys = jax.random.split(jax.random.key(1), 3)
    whole = augment.jitter(images, keys, strength=augment.Intensity())
    single = augment.jitter(images[1:2], keys[1:2], strength=augment.Intensity())
    np.testing.assert_allclose(whole[1:2], single, atol=1e-6)
    assert np.abs(whole - images).max() > 0.01


# --- Batches -------------------------------------------------------------------------------------------

DATA = {
    "image": jnp.arange(5.0)[:, None, None, None] * jnp.ones((5, 8, 8, 1)),
    "mask": jnp.stack([disc((8, 8))] * 5),
}
DRAW = functools.partial(
    input_pipeline.draw_batch, geometry=FULL, mask_geometry=FULL, num_classes=2, num_synthetic=4
)


def test_shards_make_up_the_global_batch():
    key = jax.random.key(4)
    draw = functools.partial(
        DRAW, DATA, key, batch_size=4, synthetic_images=True, donor_geometry=FULL
    )
    whole = jax.jit(draw)()
    shards = jax.vmap(lambda _: draw(axis_name="d"), axis_name="d", axis_size=2)
    parts = jax.jit(shards)(jnp.arange(2))
    for name in whole.keys() - {"key"}:
        joined = parts[name].reshape(whole[name].shape)
        np.testing.assert_allclose(joined, whole[name], atol=1e-6)
    keys = jax.random.key_data(parts["key"]).reshape(4, -1)
    np.testing.assert_array_equal(keys, jax.random.key_data(whole["key"]))


def test_no_case_twice_while_they_last():
    draw = jax.jit(functools.partial(DRAW, DATA), static_argnames="batch_size")
    batch = draw(jax.random.key(0), batch_size=5)
    assert sorted(np.round(batch["image"][:, 4, 4, 0]).tolist()) == [0, 1, 2, 3, 4]
    batch = draw(jax.random.key(0), batch_size=12)
    counts = np.bincount(np.round(batch["image"][:, 4, 4, 0]).astype(int), minlength=5)
    assert counts.sum() == 12 and counts.min() >= 2


FLIP = dataclasses.replace(NONE, flip=1.0)
CORNER = jnp.zeros((5, 8, 8), jnp.uint8).at[:, :3, :2].set(1)


def test_real_pairs_and_masks_have_their_own_geometry():
    data = {**DATA, "mask": CORNER}
    draw = functools.partial(
        input_pipeline.draw_batch,
        data,
        jax.random.key(0),
        batch_size=5,
        num_synthetic=5,
        num_classes=2,
    )
    batch = draw(geometry=NONE, mask_geometry=FLIP)
    np.testing.assert_array_equal(batch["mask"], CORNER)
    np.testing.assert_array_equal(batch["synthetic_mask"], CORNER[:, :, ::-1])


def test_another_key_is_another_batch():
    batches = [
        DRAW(DATA, jax.random.key(seed), batch_size=3, geometry=NONE, mask_geometry=NONE)
        for seed in (0, 1, 2)
    ]
    drawn = {tuple(np.round(batch["image"][:, 4, 4, 0]).astype(int).tolist()) for batch in batches}
    assert len(drawn) > 1


def test_outer_batch_is_padded_with_weight_zero():
    batch = input_pipeline.draw_outer_batch(DATA, jax.random.key(0), batch_size=8)
    np.testing.assert_array_equal(batch["weight"], [1] * 5 + [0] * 3)
    assert sorted(batch["image"][:5, 0, 0, 0].tolist()) == [0, 1, 2, 3, 4]
