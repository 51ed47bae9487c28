"""What outer variables do to synthetic pairs of any source, so that they come to look like others' images.

Colours change images alone. The size changes image and mask together, and the hypergradient follows both:
a mask that is zoomed is soft, a share of every class in every pixel, for class ids have no derivative.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from fewshotseg import labels
from fewshotseg.genseg.pair_sources import Pairs


def adapt(pairs: Pairs, used: Mapping[str, jax.Array], num_classes: int) -> Pairs:
    """Pairs recoloured and zoomed, as far as these outer variables are in use.

    Args:
      pairs: with masks of class ids.
      used: outer variables in use: 'colour_gain', 'colour_shift', 'object_scale'.
      num_classes: background included.

    Returns:
      Pairs. With 'object_scale', their masks are soft, see `soft_masks`, and differentiable as images are.
    """
    pairs = pairs._replace(images=recolour(pairs.images, used))
    if "object_scale" not in used:
        return pairs
    scale = used["object_scale"]
    soft = soft_masks(pairs.masks, num_classes, pairs.images.dtype)
    return pairs._replace(images=zoom(pairs.images, scale), masks=zoom(soft, scale))


def recolour(images: jax.Array, used: Mapping[str, jax.Array]) -> jax.Array:
    """Images `[B, *spatial, C]` times 'colour_gain', plus 'colour_shift', as far as they are in use."""
    images = images * used["colour_gain"] if "colour_gain" in used else images
    return images + used["colour_shift"] if "colour_shift" in used else images


def zoom(x: jax.Array, scale: jax.Array | float) -> jax.Array:
    """Arrays `[B, *spatial, C]` enlarged `scale` times about their centre, sampled linearly; edges repeat.

    Exactly what comes in at 1. Smaller than 1, pixels are skipped, not averaged.
    """
    for axis in range(1, x.ndim - 1):
        weights = zoom_weights(x.shape[axis], scale, x.dtype)
        moved = jnp.tensordot(x, weights, axes=(axis, 1), precision="highest")
        x = jnp.moveaxis(moved, -1, axis)
    return x


def zoom_weights(size: int, scale: jax.Array | float, dtype) -> jax.Array:
    """The matrix `[size, size]` of `zoom` along one axis, in rows that sum to 1.

    Where a pixel is taken from right on another, as all are at scale 1, linear interpolation has a kink.
    The derivative there is the mean of those on both sides, the limit of central differences: of a minimum
    and of a maximum JAX takes half of each side where they are equal. An index rounded down has one side.
    """
    middle = (size - 1) / 2
    taken_from = middle + (jnp.arange(size, dtype=dtype) - middle) / scale
    ramps = taken_from[:, None] - jnp.arange(size - 1, dtype=dtype)
    ramps = jnp.minimum(jnp.maximum(ramps, 0.0), 1.0)  # pixels beyond i, of which one is shared
    ends = jnp.ones((size, 1), dtype), jnp.zeros((size, 1), dtype)
    return jnp.concatenate([ends[0], ramps], 1) - jnp.concatenate([ramps, ends[1]], 1)


def soft_masks(masks: jax.Array, num_classes: int, dtype=jnp.float32) -> jax.Array:
    """Class ids `[B, *spatial]` to shares `[B, *spatial, num_classes]`, background first.

    What is to be ignored has a share in none: the sum over classes says how far a pixel counts.
    """
    return (masks[..., None] == jnp.arange(num_classes, dtype=masks.dtype)).astype(dtype)


def as_ids(masks: jax.Array) -> jax.Array:
    """The inverse of `soft_masks`, the class of the largest share; class ids stay what they are."""
    if not jnp.issubdtype(masks.dtype, jnp.floating):
        return masks
    ids = masks.argmax(-1).astype(jnp.uint8)
    return jnp.where(masks.sum(-1) < 0.5, jnp.uint8(labels.IGNORED), ids)
