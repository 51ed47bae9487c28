"""What happens to pairs before a discriminator sees them, real and drawn alike.

Zhao et al., "Differentiable augmentation for data-efficient GAN training" (NeurIPS 2020): with few images a
discriminator learns them by heart; shown augmented ones, real and drawn, it cannot, and the generator is
not led to draw the augmentation. Mask and image move together. Differentiable in the images.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

LONGEST_SHIFT = 0.125  # share of the size
CUT_OUT = 0.5  # side of what is cut out, share of the size
BRIGHTNESS, SATURATION, CONTRAST = 0.5, (0.0, 2.0), (0.5, 1.5)


def augment(
    masks: jax.Array, images: jax.Array, keys: jax.Array, names: Sequence[str]
) -> tuple[jax.Array, jax.Array]:
    """Pairs, augmented.

    Args:
      masks: `[B, *spatial, K]`, one-hot or probabilities.
      images: `[B, *spatial, C]` in [-1, 1]; the colours may leave that range.
      keys: `[B]`, one per pair.
      names: of `OPERATIONS`, in order.

    Returns:
      Masks and images of the same shapes.
    """

    def one(mask, image, key):
        for i, name in enumerate(names):
            mask, image = OPERATIONS[name](mask, image, jax.random.fold_in(key, i))
        return mask, image

    return jax.vmap(one)(masks, images, keys)


def _colour(mask, image, key):
    """Brightness, saturation and contrast of the image."""
    k_brightness, k_saturation, k_contrast = jax.random.split(key, 3)
    image = image + jax.random.uniform(k_brightness, (), image.dtype, -BRIGHTNESS, BRIGHTNESS)
    grey = image.mean(-1, keepdims=True)
    image = grey + (image - grey) * jax.random.uniform(k_saturation, (), image.dtype, *SATURATION)
    mean = image.mean()
    image = mean + (image - mean) * jax.random.uniform(k_contrast, (), image.dtype, *CONTRAST)
    return mask, image


def _translation(mask, image, key):
    """A shift by whole pixels; what comes in is background, and grey."""
    spatial = mask.shape[:-1]
    reach = [int(LONGEST_SHIFT * n + 0.5) for n in spatial]
    keys = jax.random.split(key, len(spatial))
    start = [jax.random.randint(k, (), 0, 2 * r + 1) for k, r in zip(keys, reach, strict=True)]

    def shifted(x):
        padded = jnp.pad(x, [*((r, r) for r in reach), (0, 0)])
        return jax.lax.dynamic_slice(padded, (*start, 0), x.shape)

    return shifted(mask), shifted(image)


def _cutout(mask, image, key):
    """A box with half the size of the image, background and grey; part of it may lie outside."""
    spatial = mask.shape[:-1]
    inside = jnp.ones((*spatial, 1), bool)
    for axis, (size, k) in enumerate(
        zip(spatial, jax.random.split(key, len(spatial)), strict=True)
    ):
        side = int(CUT_OUT * size + 0.5)
        first = jax.random.randint(k, (), 0, size + 1 - side % 2) - side // 2
        at = jnp.arange(size)
        within = (at >= first) & (at < first + side)
        inside &= within.reshape([-1 if i == axis else 1 for i in range(len(spatial) + 1)])
    return jnp.where(inside, 0.0, mask), jnp.where(inside, 0.0, image)


OPERATIONS: Mapping = {"colour": _colour, "translation": _translation, "cutout": _cutout}
