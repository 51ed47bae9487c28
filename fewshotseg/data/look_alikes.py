"""Which images are nearly the same, and which cases must therefore stay together."""

from collections.abc import Sequence

import numpy as np
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

THUMBNAIL_SIZE = 24
DUPLICATE_CORRELATION = 0.95


def thumbnail(image: np.ndarray) -> np.ndarray:
    """A small grey copy with mean 0 and length 1, so that a dot product is a correlation.

    Args:
      image: `[H, W, C]`, C is 1 or 3, from 0 to 255; of a volume `[D, H, W, C]`, its middle slice counts.

    Returns:
      float32 `[24 * 24]`; all zero if the image is flat.
    """
    image = image[len(image) // 2] if image.ndim == 4 else image
    image = image if image.dtype == np.uint8 else np.rint(image).astype(np.uint8)
    grey = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).convert("L")
    size = (THUMBNAIL_SIZE, THUMBNAIL_SIZE)
    small = np.asarray(grey.resize(size, Image.Resampling.BOX), np.float32).ravel()
    small = small - small.mean()
    length = np.linalg.norm(small)
    return small / length if length > 1e-3 else np.zeros_like(small)


def near_duplicates(
    thumbnails: np.ndarray, threshold: float = DUPLICATE_CORRELATION
) -> list[tuple[int, int, float]]:
    """Pairs of images that look the same, as they are or mirrored.

    Args:
      thumbnails: float32 `[N, 24 * 24]` from `thumbnail`.
      threshold: least correlation of such a pair; the best of four counts: one image as it is,
        mirrored left-right, mirrored up-down, and turned by half a turn, which is both.

    Returns:
      `(i, j, correlation)` with i < j, ascending.
    """
    mirrored = _mirrored(thumbnails)
    pairs = []
    for start in range(0, len(thumbnails), 1024):
        block = thumbnails[start : start + 1024]
        correlation = np.max([block @ other[start:].T for other in mirrored], axis=0)
        rows, columns = np.nonzero(np.triu(correlation >= threshold, k=1))
        pairs += [
            (start + int(i), start + int(j), float(correlation[i, j]))
            for i, j in zip(rows, columns, strict=True)
        ]
    return pairs


def nearest(one: np.ndarray, thumbnails: np.ndarray) -> tuple[int, float]:
    """The image that one looks most like, as it is or mirrored.

    Args:
      one: float32 `[24 * 24]` from `thumbnail`.
      thumbnails: `[N, 24 * 24]`.

    Returns:
      Its position, and the correlation, see `near_duplicates`.
    """
    correlation = np.max([other @ one for other in _mirrored(thumbnails)], axis=0)
    best = int(correlation.argmax())
    return best, float(correlation[best])


def _mirrored(thumbnails):
    """As they are, mirrored left-right, up-down, and both."""
    grid = thumbnails.reshape(-1, THUMBNAIL_SIZE, THUMBNAIL_SIZE)
    mirrored = [grid[:, ::down, ::across] for down in (1, -1) for across in (1, -1)]
    return [np.ascontiguousarray(m).reshape(thumbnails.shape) for m in mirrored]


def clusters(
    thumbnails: np.ndarray, groups: Sequence[str], threshold: float = DUPLICATE_CORRELATION
) -> np.ndarray:
    """Numbers the sets of cases that must stay together.

    Args:
      thumbnails: float32 `[N, 24 * 24]`.
      groups: N patients or series; '' belongs to no group.
      threshold: see `near_duplicates`.

    Returns:
      int `[N]`; equal numbers are linked by a common group or by near-duplicates.
    """
    links = [(i, j) for i, j, _ in near_duplicates(thumbnails, threshold)]
    first_of = {}
    for index, group in enumerate(groups):
        if group:
            links.append((first_of.setdefault(group, index), index))
    number = len(groups)
    rows, columns = np.array(links, int).reshape(-1, 2).T
    graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(number, number))
    return connected_components(graph, directed=False)[1]
