"""Random augmentation on the device: pure functions of arrays and keys, one key per example.

Geometry (flip, scale, rotation, shear, translation, composed in random order into one affine map,
plus an optional elastic displacement) is applied to pairs of real image and mask, and to masks alone
for synthesis. Intensity (brightness, contrast, colour, gamma, blur, noise) is differentiable and is
applied to real and synthetic images alike. Two and three dimensions share every line.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from fewshotseg import labels
from fewshotseg.types import PRNGKey


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Strengths of the geometric augmentation; the values of GenSeg are the defaults.

    Attributes:
      flip: probability of a flip along each of the axes in `flip_axes`.
      flip_axes: spatial axes that may be flipped, counted from the last (-1: left-right).
      scale: factor per axis, uniform in [1 - scale, 1 + scale].
      translate: uniform in [-translate, translate], as a share of the size.
      rotate: degrees, uniform in [-rotate, rotate], in every plane.
      shear: degrees, likewise.
      elastic: largest displacement of a smooth random field, as a share of the size; 0 for none.
    """

    flip: float = 0.5
    flip_axes: tuple[int, ...] = (-1,)
    scale: float = 0.2
    translate: float = 0.1
    rotate: float = 15.0
    shear: float = 8.0
    elastic: float = 0.0


@dataclasses.dataclass(frozen=True)
class Intensity:
    """Strengths of the intensity augmentation, on images in [-1, 1].

    Attributes:
      brightness: added, uniform in +-brightness.
      contrast: factor about the image's mean, uniform in 1 +- contrast.
      colour: factor per channel, uniform in 1 +- colour.
      gamma: exponent is exp(uniform in +-gamma), on the image scaled to [0, 1].
      blur: largest share of a 3-pixel box blur mixed in.
      noise: largest standard deviation of Gaussian noise.
    """

    brightness: float = 0.2
    contrast: float = 0.2
    colour: float = 0.1
    gamma: float = 0.2
    blur: float = 0.3
    noise: float = 0.05


def random_affine(key: PRNGKey, sizes: tuple[int, ...], strength: Geometry) -> jax.Array:
    """Matrix `[rank + 1, rank + 1]` from output to input coordinates, of an image of `sizes` pixels.

    Homogeneous coordinates, the centre of the image at 0 and its edges at -1 and 1. Angles are those
    between pixels.
    """
    rank = len(sizes)
    k_scale, k_shift, k_rotate, k_shear, k_flip, k_order = jax.random.split(key, 6)
    eye = jnp.eye(rank + 1)
    diagonal = jnp.arange(rank)

    def uniform(key, shape, limit):
        return jax.random.uniform(key, shape, minval=-limit, maxval=limit)

    scale = eye.at[diagonal, diagonal].set(1.0 + uniform(k_scale, (rank,), strength.scale))
    shift = eye.at[:rank, rank].set(2.0 * uniform(k_shift, (rank,), strength.translate))
    planes = list(itertools.combinations(range(rank), 2))
    rotate, shear = eye, eye
    angles = jnp.deg2rad(uniform(k_rotate, (len(planes),), strength.rotate))
    slopes = jnp.tan(jnp.deg2rad(uniform(k_shear, (len(planes), 2), strength.shear)))
    for (i, j), angle, slope in zip(planes, angles, slopes, strict=True):
        c, s = jnp.cos(angle), jnp.sin(angle)
        turn = eye.at[i, i].set(c).at[j, j].set(c).at[i, j].set(-s).at[j, i].set(s)
        rotate = rotate @ turn
        shear = shear @ eye.at[i, j].set(slope[0]).at[j, i].set(slope[1])
    sides = jnp.array([*(max(n - 1, 1) / max(sizes[0] - 1, 1) for n in sizes), 1.0])
    rotate, shear = (turned * (sides / sides[:, None]) for turned in (rotate, shear))
    order = jax.random.permutation(k_order, 4)
    parts = jnp.stack([scale, shift, rotate, shear])[order]
    matrix = parts[0] @ parts[1] @ parts[2] @ parts[3]
    axes = jnp.array([rank + axis for axis in strength.flip_axes], int)
    flips = jax.random.bernoulli(k_flip, float(strength.flip), axes.shape)
    return matrix @ eye.at[axes, axes].set(jnp.where(flips, -1.0, 1.0))


def sampling_coordinates(key: PRNGKey, sizes: tuple[int, ...], strength: Geometry) -> jax.Array:
    """Where each output pixel is taken from: `[rank, *sizes]`, in pixels of the input."""
    rank = len(sizes)
    k_affine, k_elastic = jax.random.split(key)
    half = jnp.array([(n - 1) / 2.0 for n in sizes]).reshape(rank, *(1,) * rank)
    grid = jnp.stack(jnp.meshgrid(*(jnp.linspace(-1.0, 1.0, n) for n in sizes), indexing="ij"))
    matrix = random_affine(k_affine, sizes, strength)
    source = jnp.tensordot(matrix[:rank, :rank], grid, 1)
    source = source + matrix[:rank, rank].reshape(rank, *(1,) * rank)
    if strength.elastic > 0:
        coarse = jax.random.uniform(k_elastic, (rank, *(4,) * rank), minval=-2.0, maxval=2.0)
        source = source + strength.elastic * jax.image.resize(coarse, source.shape, "cubic")
    return (source + 1.0) * half


def _sample(channel: jax.Array, coordinates: jax.Array) -> jax.Array:
    return map_coordinates(channel, list(coordinates), order=1, mode="nearest")


def warp_image(image: jax.Array, coordinates: jax.Array) -> jax.Array:
    """`image [*spatial, C]` sampled linearly at `coordinates [rank, *spatial]`; edges repeat."""
    return jax.vmap(_sample, in_axes=(-1, None), out_axes=-1)(image, coordinates)


def warp_mask(mask: jax.Array, coordinates: jax.Array, num_classes: int) -> jax.Array:
    """Class ids `[*spatial]` sampled per class, then thresholded again: smooth outlines, valid ids.

    What is to be ignored is, where the nearest pixel is.
    """
    ids = jnp.arange(1, num_classes, dtype=mask.dtype)
    shares = jax.vmap(lambda i: _sample((mask == i).astype(jnp.float32), coordinates))(ids)
    strongest = shares.argmax(0).astype(mask.dtype) + 1
    warped = jnp.where(shares.sum(0) > 0.5, strongest, 0).astype(mask.dtype)
    nearest = map_coordinates(mask, list(coordinates), order=0, mode="nearest")
    return jnp.where(nearest == labels.IGNORED, nearest, warped)


def augment_pair(
    image: jax.Array,
    mask: jax.Array,
    key: PRNGKey,
    *,
    strength: Geometry,
    num_classes: int,
    size: tuple[int, ...] | None = None,
    offset: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The same random geometry for one image `[*spatial, C]` and its mask `[*spatial]`.

    Args:
      image: to be warped.
      mask: likewise.
      key: of this pair.
      strength: of the geometry.
      num_classes: background included.
      size: of the result, if it is a tile of the image; the tile's middle is the centre of all.
      offset: int `[axes]`, where the tile begins.
    """
    coordinates = sampling_coordinates(key, size or mask.shape, strength)
    if offset is not None:
        coordinates = coordinates + offset.reshape(-1, *(1,) * mask.ndim)
    return warp_image(image, coordinates), warp_mask(mask, coordinates, num_classes)


def augment_mask(
    mask: jax.Array, key: PRNGKey, *, strength: Geometry, num_classes: int
) -> jax.Array:
    """A new mask `[*spatial]` for the generator to draw an image for."""
    return warp_mask(mask, sampling_coordinates(key, mask.shape, strength), num_classes)


def jitter(images: jax.Array, keys: jax.Array, *, strength: Intensity) -> jax.Array:
    """Intensity augmentation, differentiable in the images.

    Args:
      images: `[B, *spatial, C]` in [-1, 1].
      keys: `[B]`.
      strength: see `Intensity`.

    Returns:
      The same shape; values may leave [-1, 1] a little.
    """
    return jax.vmap(lambda image, key: _jitter_one(image, key, strength))(images, keys)


def _jitter_one(image, key, strength):
    k_bright, k_contrast, k_colour, k_gamma, k_blur, k_noise, k_sd = jax.random.split(key, 7)
    channels = image.shape[-1]

    def uniform(key, limit, shape=()):
        return jax.random.uniform(key, shape, minval=-limit, maxval=limit)

    mean = image.mean()
    image = mean + (1.0 + uniform(k_contrast, strength.contrast)) * (image - mean)
    if channels > 1:
        image = image * (1.0 + uniform(k_colour, strength.colour, (channels,)))
    image = image + uniform(k_bright, strength.brightness)
    # Away from 0, where the derivative of a power below 1 is infinite.
    unit = jnp.clip((image + 1.0) / 2.0, 1e-3, 1.5)
    image = 2.0 * unit ** jnp.exp(uniform(k_gamma, strength.gamma)) - 1.0
    share = jax.random.uniform(k_blur, maxval=strength.blur)
    image = (1.0 - share) * image + share * _box_blur(image)
    deviation = jax.random.uniform(k_sd, maxval=strength.noise)
    return image + deviation * jax.random.normal(k_noise, image.shape)


def _box_blur(image):
    for axis in range(image.ndim - 1):
        size = image.shape[axis]
        pads = [(1, 1) if i == axis else (0, 0) for i in range(image.ndim)]
        wide = jnp.pad(image, pads, mode="edge")
        image = sum(jax.lax.slice_in_dim(wide, i, i + size, 1, axis) for i in range(3)) / 3.0
    return image
