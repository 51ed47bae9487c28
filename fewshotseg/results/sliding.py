"""A network that sees tiles, on a whole case: overlapping tiles, blended; see `data/tiles.py`."""

from collections.abc import Callable, Sequence

import numpy as np

from fewshotseg.data import canvas
from fewshotseg.data.tiles import Tiles


def segment_scaled(
    predict: Callable[[np.ndarray], np.ndarray], scaled: np.ndarray, tiles: Tiles, batch_size: int
) -> np.ndarray:
    """Probabilities of a case that is scaled already.

    Args:
      predict: `[B, *size, C]` to `[B, *size, K]` in [0, 1].
      scaled: float32 `[*scaled, C]` in [-1, 1], no smaller than a tile.
      tiles: their size and overlap.
      batch_size: tiles at once, at most. The last ones are filled up with copies whose results are dropped;
        of a case of fewer tiles, to the next power of 2: few shapes to compile.

    Returns:
      float32 `[*scaled, K]`: the mean over the tiles that see a pixel, weighted by `Tiles.weights`.
    """
    shape, starts, weights = scaled.shape[:-1], tiles.starts(scaled.shape[:-1]), tiles.weights()
    places = [
        tuple(slice(s, s + n) for s, n in zip(start, tiles.size, strict=True)) for start in starts
    ]
    if len(places) == 1:
        return np.asarray(predict(scaled[places[0]][None])[0], np.float32)
    batch_size = min(batch_size, 1 << (len(places) - 1).bit_length())
    total, weight = None, np.zeros(shape, np.float32)
    for begin in range(0, len(places), batch_size):
        part = places[begin : begin + batch_size]
        batch = np.stack([scaled[place] for place in part])
        batch = np.concatenate([batch, np.repeat(batch[-1:], batch_size - len(part), axis=0)])
        found = np.asarray(predict(batch), np.float32)
        if total is None:
            total = np.zeros((*shape, found.shape[-1]), np.float32)
        for place, one in zip(part, found, strict=False):
            total[place] += weights[..., None] * one
            weight[place] += weights
    total /= weight[..., None]
    return total


def probabilities_in_tiles(
    predict: Callable[[np.ndarray], np.ndarray],
    image: np.ndarray,
    spacing: Sequence[float],
    tiles: Tiles,
    channels: int,
    batch_size: int,
    name: str = "",
) -> np.ndarray:
    """Probabilities of an image at its original size.

    Args:
      predict: as above.
      image: `[*spatial, C]` from 0 to 255.
      spacing: of its pixels in mm; () if unknown.
      tiles: how the network sees cases.
      channels: of the network.
      batch_size: tiles at once.
      name: of the image, for messages.

    Returns:
      float32 `[*spatial, K]` in [0, 1]: NaN where the network's were.

    Raises:
      InputError: a common spacing, but the image does not say its own.
    """
    size = image.shape[:-1]
    shape = tiles.scaled_shape(size, spacing, name)
    scaled = tiles.to_network_image(image, spacing, channels, name)
    found = tiles.unpadded(segment_scaled(predict, scaled, tiles, batch_size), shape)
    if shape == size:
        return np.clip(found, 0.0, 1.0)
    return canvas.restore_probabilities(found, size)
