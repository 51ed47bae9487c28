"""The way between the geometry of a file and that of a network, and back.

A network sees every case on a canvas of one size, here by squashing: each axis is resized on its
own, so nothing is cropped and nothing padded. Sizes are tuples with one number per spatial axis,
`(H, W)` or `(D, H, W)`. Everything here runs on the host with Pillow and NumPy, once per case.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

Size = int | Sequence[int]  # an int stands for a square

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # of RGB, ITU-R BT.601


def as_size(size: Size, rank: int | None = None) -> tuple[int, ...]:
    """`size` as a tuple of `rank` numbers; without `rank`, of two, or as many as it has.

    Raises:
      ValueError: a tuple of another length.
    """
    if isinstance(size, int | np.integer):
        return (int(size),) * (rank or 2)
    size = tuple(map(int, size))
    if rank is not None and len(size) != rank:
        raise ValueError(f"{size} is no size for {rank} spatial axes")
    return size


def to_network_image(image: np.ndarray, size: Size, channels: int) -> np.ndarray:
    """Squashes an image to the size of the network and scales it to [-1, 1].

    Triangle filter with half-pixel centres: bilinear where an axis grows, widened against aliasing
    where it shrinks. RGB becomes grey by luma, grey becomes RGB by repetition.

    Args:
      image: `[*spatial, C]` in [0, 255], uint8 or float32, C is 1 or 3.
      size: of the result, in pixels.
      channels: 1 or 3.

    Returns:
      float32 `[*size, channels]` in [-1, 1].
    """
    pixels = image.astype(np.float32)
    if channels == 1 and pixels.shape[-1] == 3:
        pixels = (pixels @ LUMA)[..., None]
    pixels = np.clip(_resize(pixels, as_size(size, image.ndim - 1)) / 127.5 - 1.0, -1.0, 1.0)
    return np.repeat(pixels, channels, axis=-1) if pixels.shape[-1] < channels else pixels


def to_network_mask(mask: np.ndarray, size: Size) -> np.ndarray:
    """uint8 `[*spatial]` class ids to uint8 `[*size]`: the pixel under each new pixel's centre."""
    size = as_size(size, mask.ndim)
    under = (
        ((np.arange(new) + 0.5) * old / new).astype(int)
        for new, old in zip(size, mask.shape, strict=True)
    )
    return np.ascontiguousarray(mask[np.ix_(*under)])


def to_network_affine(affine: np.ndarray, shape: Sequence[int], size: Size) -> np.ndarray:
    """The affine `[4, 4]` of a volume of `shape`, for its copy on a canvas of `size`: corners stay."""
    factors = np.array(shape, float) / as_size(size, 3)
    squash = np.eye(4)
    squash[:3, :3] = np.diag(factors)
    squash[:3, 3] = 0.5 * factors - 0.5  # half-pixel centres
    return affine @ squash


def restore_probabilities(probabilities: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Float32 `[*network size, K]` in [0, 1] back to `[*size, K]`: the squash undone, linear."""
    resized = _resize(np.asarray(probabilities, np.float32), tuple(size))
    return np.clip(resized, 0.0, 1.0)


def probabilities_to_mask(probabilities: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """Class ids from probabilities.

    Args:
      probabilities: float `[*spatial, K]`. K = 1: of the foreground; else of every class,
        background first.
      threshold: K = 1 only: foreground where the probability is at least this.

    Returns:
      uint8 `[*spatial]`: 0/1 for K = 1, else the most probable class.
    """
    if probabilities.shape[-1] == 1:
        return (probabilities[..., 0] >= threshold).astype(np.uint8)
    return probabilities.argmax(axis=-1).astype(np.uint8)


def _resize(pixels: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Float32 `[*spatial, C]` to `[*size, C]`."""
    channels = [_resize_plane(pixels[..., channel], size) for channel in range(pixels.shape[-1])]
    return np.stack(channels, axis=-1)


def _resize_plane(pixels: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    if pixels.ndim == 2:
        height, width = size
        image = Image.fromarray(np.ascontiguousarray(pixels))
        return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), np.float32)
    slices = np.stack([_resize_plane(plane, size[1:]) for plane in pixels])
    flat = _resize_plane(slices.reshape(len(slices), -1), (size[0], slices[0].size))
    return flat.reshape(size)
