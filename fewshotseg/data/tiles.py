"""Cases in tiles at one scale, in place of squashed to the network's canvas; in 2-D and 3-D alike.

A case is brought to a common spacing, if one is named, and keeps its own size. The network sees tiles
of one size of it: in training around pixels of the classes as often as `foreground_share` says
(F. Isensee et al., "nnU-Net", Nature Methods 18, 2021), in prediction all of them, overlapping,
weighted by a Gaussian in their middle (`results/sliding.py`). A case that is smaller than a tile is
padded: black, background.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fewshotseg import labels
from fewshotseg.data import canvas
from fewshotseg.errors import InputError
from fewshotseg.types import Batch, PRNGKey

VOXELS = 4096  # pixels of the classes that are kept of every case, to draw tiles around
LARGEST_WEIGHT = 1e3  # of a tile's middle, in units of the smallest one: as MONAI has it


@dataclasses.dataclass(frozen=True)
class Tiles:
    """How networks see cases.

    Attributes:
      size: of a tile, one number per spatial axis, in pixels of the scaled case.
      spacing: of these pixels in mm, likewise; () leaves the pixels of every case as they are.
      overlap: share of a tile that its neighbour sees too, in prediction; at least so much.
      foreground_share: probability that a training tile is drawn around a pixel of a class.
    """

    size: tuple[int, ...]
    spacing: tuple[float, ...] = ()
    overlap: float = 0.5
    foreground_share: float = 0.5

    def scaled_shape(self, shape: Sequence[int], spacing: Sequence[float], name: str = ""):
        """Size of a case at the common spacing: corners stay, so pixels are as large up to rounding.

        Args:
          shape: `[*spatial]` of the case.
          spacing: of its pixels, in mm; () if unknown.
          name: of the case, for messages.

        Raises:
          InputError: a common spacing, but the case does not say its own.
        """
        if not self.spacing:
            return tuple(shape)
        if len(spacing) != len(shape):
            raise InputError(
                f"{name}: data.tiles.spacing is {self.spacing}, but this image does not say how large "
                "its pixels are: leave it at three zeros."
            )
        return tuple(
            max(1, round(n * old / new))
            for n, old, new in zip(shape, spacing, self.spacing, strict=True)
        )

    def padding(self, shape: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """What a scaled case of `shape` lacks to one tile, before and after every axis."""
        lacking = [max(0, tile - n) for tile, n in zip(self.size, shape, strict=True)]
        return tuple((n // 2, n - n // 2) for n in lacking)

    def to_network_image(self, image, spacing, channels: int, name: str = "") -> np.ndarray:
        """`[*spatial, C]` in [0, 255] to float32 `[*scaled, channels]` in [-1, 1], at least a tile."""
        shape = self.scaled_shape(image.shape[:-1], spacing, name)
        scaled = canvas.to_network_image(image, shape, channels)
        return np.pad(scaled, (*self.padding(shape), (0, 0)), constant_values=-1.0)

    def to_network_mask(self, mask, spacing, name: str = "") -> np.ndarray:
        """uint8 `[*spatial]` class ids to uint8 `[*scaled]`, at least a tile."""
        shape = self.scaled_shape(mask.shape, spacing, name)
        return np.pad(canvas.to_network_mask(mask, shape), self.padding(shape))

    def unpadded(self, scaled, shape: Sequence[int]) -> np.ndarray:
        """`[*padded, ...]` without the padding of a case of `shape`."""
        before = [pad for pad, _ in self.padding(shape)]
        return scaled[tuple(slice(b, b + n) for b, n in zip(before, shape, strict=True))]

    def starts(self, shape: Sequence[int]) -> list[tuple[int, ...]]:
        """First pixels of the tiles that cover a scaled case of `shape`: evenly spaced, ends included."""
        along = []
        for n, tile in zip(shape, self.size, strict=True):
            room = n - tile
            count = 1 + math.ceil(room / max(1.0, tile * (1.0 - self.overlap)))
            along.append(np.linspace(0, room, count).round().astype(int).tolist())
        return list(itertools.product(*along))

    def weights(self) -> np.ndarray:
        """Float32 `[*size]`: how much a tile is worth where it overlaps others.

        A Gaussian about the middle with a standard deviation of an eighth of the side, nowhere below
        a thousandth of its middle.
        """
        weight = np.ones(self.size)
        for axis, n in enumerate(self.size):
            distance = (np.arange(n) - (n - 1) / 2) / (n / 8)
            shape = [-1 if i == axis else 1 for i in range(len(self.size))]
            weight = weight * np.exp(-0.5 * distance**2).reshape(shape)
        return np.maximum(weight / weight.max(), 1.0 / LARGEST_WEIGHT).astype(np.float32)


def create(data: Mapping[str, Any]) -> Tiles | None:
    """As the block `data` of a configuration says; None where cases are squashed."""
    if data.get("fit", "squash") != "tiles":
        return None
    fields = data["tiles"]
    return Tiles(
        canvas.as_size(data["image_size"]),
        tuple(fields["spacing"]) if any(fields["spacing"]) else (),
        fields["overlap"],
        fields["foreground_share"],
    )


def stack(images: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Scaled cases of several sizes as arrays of one: what training draws tiles from.

    Args:
      images: float32 `[*scaled, C]` in [-1, 1].
      masks: uint8 `[*scaled]`.

    Returns:
      'image' `[N, *largest, C]` and 'mask' `[N, *largest]`, padded behind every case; 'extent'
      int32 `[N, axes]`, its own size; 'voxels' int32 `[N, VOXELS, axes]`, places of the classes, as
      many of each that it shows; 'has_voxels' bool `[N]`.
    """
    largest = np.max([mask.shape for mask in masks], axis=0)
    pads = [[(0, most - n) for most, n in zip(largest, m.shape, strict=True)] for m in masks]
    voxels = [_voxels(mask) for mask in masks]
    return {
        "image": np.stack(
            [
                np.pad(i, (*pad, (0, 0)), constant_values=-1.0)
                for i, pad in zip(images, pads, strict=True)
            ]
        ),
        "mask": np.stack([np.pad(mask, pad) for mask, pad in zip(masks, pads, strict=True)]),
        "extent": np.array([mask.shape for mask in masks], np.int32),
        "voxels": np.stack(voxels),
        "has_voxels": np.array([bool(labels.is_foreground(mask).any()) for mask in masks]),
    }


def _voxels(mask: np.ndarray) -> np.ndarray:
    """int32 `[VOXELS, axes]`: places of the classes, in turns, each class evenly over its own."""
    shown = np.unique(mask[labels.is_foreground(mask)])
    classes = [np.argwhere(mask == k) for k in shown]
    if not classes:
        return np.zeros((VOXELS, mask.ndim), np.int32)
    turns = -(-VOXELS // len(classes))
    spread = [places[np.arange(turns) * len(places) // turns] for places in classes]
    return np.stack(spread, axis=1).reshape(-1, mask.ndim)[:VOXELS].astype(np.int32)


def draw_start(data: Batch, case: jax.Array, key: PRNGKey, tiles: Tiles) -> jax.Array:
    """Where a tile of a case begins: int32 `[axes]`, around a pixel of a class or anywhere.

    Args:
      data: of `stack`.
      case: int32, which one.
      key: of this tile.
      tiles: size and `foreground_share`.
    """
    k_kind, k_voxel, k_place = jax.random.split(key, 3)
    size = jnp.array(tiles.size, jnp.int32)
    room = data["extent"][case] - size
    voxel = data["voxels"][case, jax.random.randint(k_voxel, (), 0, VOXELS)]
    around = jnp.clip(voxel - size // 2, 0, room)
    anywhere = jax.random.randint(k_place, size.shape, 0, room + 1)
    wanted = jax.random.bernoulli(k_kind, float(tiles.foreground_share))
    return jnp.where(wanted & data["has_voxels"][case], around, anywhere)


def cut(array: jax.Array, case: jax.Array, start: jax.Array, size: Sequence[int]) -> jax.Array:
    """`[*size]` (and channels) of one case of `[N, *spatial]` (and channels); no copy of the case."""
    more = array.shape[1 + len(size) :]
    begin = (case, *start, *(0,) * len(more))
    return jax.lax.dynamic_slice(array, begin, (1, *size, *more))[0]


def window(shape: Sequence[int], start: jax.Array, tiles: Tiles, margin: float):
    """A tile with what lies around it: first pixel, size, and where the tile begins in it.

    Args:
      shape: `[*spatial]` of the arrays.
      start: of the tile.
      tiles: its size.
      margin: share of the tile, on each side, as far as the arrays go.
    """
    size = tuple(
        min(n, tile + 2 * math.ceil(margin * tile))
        for n, tile in zip(shape, tiles.size, strict=True)
    )
    most = jnp.array([n - s for n, s in zip(shape, size, strict=True)], jnp.int32)
    before = jnp.array([math.ceil(margin * tile) for tile in tiles.size], jnp.int32)
    first = jnp.clip(start - before, 0, most)
    return first, size, start - first


def typical(data: Mapping[str, np.ndarray], tiles: Tiles, number: int) -> dict[str, np.ndarray]:
    """One tile of each of the first cases, around a pixel of a class: for pictures, on the host.

    Args:
      data: of `stack`.
      tiles: their size.
      number: of cases, at most.

    Returns:
      'image' `[n, *size, C]` and 'mask' `[n, *size]`.
    """
    found = {"image": [], "mask": []}
    for i in range(min(number, len(data["mask"]))):
        middle = data["voxels"][i, 0] if data["has_voxels"][i] else data["extent"][i] // 2
        first = np.clip(middle - np.array(tiles.size) // 2, 0, data["extent"][i] - tiles.size)
        place = tuple(slice(f, f + n) for f, n in zip(first, tiles.size, strict=True))
        for name, cut_out in found.items():
            cut_out.append(data[name][i][place])
    return {name: np.stack(cut_out) for name, cut_out in found.items()}
