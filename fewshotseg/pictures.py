"""Images and masks as RGB arrays to look at: colours, outlines, overlays.

`PALETTE` is that of Okabe and Ito ("Color universal design", 2008), which stays distinguishable with
the common forms of colour blindness; all pictures and plots take their colours from it. Outlines get
a dark rim so that they stand out on bright and dark images alike.
"""

from collections.abc import Sequence

import numpy as np

from fewshotseg import labels

PALETTE = {
    "orange": (230, 159, 0),
    "sky blue": (86, 180, 233),
    "green": (0, 158, 115),
    "yellow": (240, 228, 66),
    "purple": (204, 121, 167),
    "vermilion": (213, 94, 0),
    "blue": (0, 114, 178),
    "black": (0, 0, 0),
    "grey": (119, 119, 119),
}
PREDICTION_COLOUR = PALETTE["orange"]
REFERENCE_COLOUR = PALETTE["sky blue"]
CLASS_COLOURS = tuple(PALETTE.values())[:7]  # of class ids 1, 2, ...; repeats; ignored: grey


def hex_colour(name: str) -> str:
    """A colour of `PALETTE` as Matplotlib and HTML write it."""
    return "#{:02x}{:02x}{:02x}".format(*PALETTE[name])


def to_rgb(image: np.ndarray) -> np.ndarray:
    """uint8 `[H, W]`, `[H, W, 1]` or `[H, W, 3]` as a new uint8 `[H, W, 3]` array."""
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim not in (2, 3):
        raise ValueError(f"expected a uint8 image, got {image.dtype} of shape {image.shape}")
    if image.ndim == 2:
        image = image[..., None]
    if image.shape[-1] not in (1, 3):
        raise ValueError(f"expected 1 or 3 channels, got shape {image.shape}")
    return np.array(np.broadcast_to(image, image.shape[:2] + (3,)))


def to_uint8(image: np.ndarray) -> np.ndarray:
    """RGB uint8 `[H, W, 3]` of an image `[H, W, C]` in [-1, 1]."""
    pixels = np.round((np.clip(image, -1, 1) + 1) * 127.5).astype(np.uint8)
    return np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels


def colour_mask(mask: np.ndarray) -> np.ndarray:
    """Class ids `[H, W]` as a picture uint8 `[H, W, 3]`: white if binary, else a colour each."""
    mask = np.asarray(mask)
    if mask.max(initial=0) <= 1:
        return to_rgb((mask > 0).astype(np.uint8) * 255)
    return np.where(mask[..., None] > 0, _class_colours(mask), np.uint8(0))


def outline(mask: np.ndarray, width: int = 1) -> np.ndarray:
    """Boundary pixels of every region of class ids `[H, W]`, drawn inwards, as bool `[H, W]`.

    A region that reaches the edge of the picture is closed along the edge, and each of two
    touching classes has its own boundary.
    """
    mask = np.asarray(mask)
    inside = (mask > 0) & np.logical_and.reduce([n == mask for n in _neighbours(mask)])
    for _ in range(width - 1):
        inside &= np.logical_and.reduce(_neighbours(inside))
    return (mask > 0) & ~inside


def overlay(
    image: np.ndarray, prediction: np.ndarray, reference: np.ndarray | None = None
) -> np.ndarray:
    """Outlines of a prediction (orange) and of the reference (sky blue) on an image.

    Where the two outlines coincide, they are dashed in both colours. Without a reference, every
    class of the prediction has its own of `CLASS_COLOURS`, the first of them orange.

    Args:
      image: uint8 `[H, W]`, `[H, W, 1]` or `[H, W, 3]`.
      prediction: class ids `[H, W]`.
      reference: class ids `[H, W]`, or None if there is none.

    Returns:
      uint8 `[H, W, 3]`.
    """
    picture = to_rgb(image)
    width = _line_width(picture.shape)
    line, rim = _outline_and_rim(prediction, picture, width, "prediction")
    if reference is None:
        picture[rim] = picture[rim] * 0.4
        picture[line] = _class_colours(np.asarray(prediction)[line])
        return picture
    reference = np.where(labels.counts(reference), reference, 0)
    other, other_rim = _outline_and_rim(reference, picture, width, "reference")
    rim = rim | other_rim
    picture[rim] = picture[rim] * 0.4
    picture[other] = REFERENCE_COLOUR
    row, column = np.indices(line.shape)
    dash = (row + column) // (4 * width) % 2 == 0
    picture[line & (dash | ~other)] = PREDICTION_COLOUR
    return picture


def in_planes(array: np.ndarray, mask: np.ndarray, spacing: Sequence[float] = ()) -> np.ndarray:
    """Three planes of a volume side by side, cut where most of a mask is; a picture as it is.

    From left to right: axial (front on top, the patient's right on the left), coronal and sagittal
    (head on top), each pixel as large in mm as any other.

    Args:
      array: `[H, W, ...]`, or `[D, H, W, ...]` in the order of `data/geometry.py`.
      mask: class ids `[H, W]` or `[D, H, W]`; an empty one is cut in the middle.
      spacing: of the voxels along D, H and W; () if they are cubes.

    Returns:
      `array`, or its planes, `[H', W', ...]`, with zeros between them.
    """
    if mask.ndim == 2:
        return array
    sides = [np.asarray(mask > 0).sum(axis=others) for others in ((1, 2), (0, 2), (0, 1))]
    d, h, w = (int(s.argmax()) if s.any() else len(s) // 2 for s in sides)
    steps = np.array(spacing or (1.0, 1.0, 1.0)) / min(spacing or (1.0,))
    tiles = [
        _stretch(array[d], steps[1], steps[2]),
        _stretch(array[::-1, h], steps[0], steps[2]),
        _stretch(array[::-1, :, w], steps[0], steps[1]),
    ]
    gap = max(1, max(tile.shape[1] for tile in tiles) // 32)
    height, width = max(len(t) for t in tiles), sum(t.shape[1] for t in tiles) + 2 * gap
    page, left = np.zeros((height, width, *array.shape[3:]), array.dtype), 0
    for tile in tiles:
        top = (height - len(tile)) // 2
        page[top : top + len(tile), left : left + tile.shape[1]] = tile
        left += tile.shape[1] + gap
    return page


def _stretch(plane: np.ndarray, *steps: float) -> np.ndarray:
    """Repeats rows and columns so that a pixel is a square."""
    for axis, step in enumerate(steps):
        length = plane.shape[axis]
        new = max(1, round(length * step))
        plane = np.take(plane, ((np.arange(new) + 0.5) * length / new).astype(int), axis=axis)
    return plane


def _outline_and_rim(mask, picture, width, name) -> tuple[np.ndarray, np.ndarray]:
    """Where the line goes, and the pixels just outside the regions, which are to be darkened."""
    mask = np.asarray(mask)
    if mask.shape != picture.shape[:2]:
        raise ValueError(f"{name} has shape {mask.shape}, the image {picture.shape[:2]}")
    line = outline(mask, width)
    return line, np.logical_or.reduce(_neighbours(line)) & (mask == 0)


def _class_colours(ids: np.ndarray) -> np.ndarray:
    palette = np.array(CLASS_COLOURS, np.uint8)
    colours = palette[(ids.astype(np.int64) - 1) % len(palette)]
    return np.where((ids == labels.IGNORED)[..., None], np.uint8(PALETTE["grey"]), colours)


def _neighbours(array: np.ndarray) -> list[np.ndarray]:
    """The array moved by one pixel up, down, left and right; 0 comes in at the edge."""
    padded = np.pad(array, 1)
    return [padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]]


def _line_width(shape) -> int:
    return max(1, round(max(shape[:2]) / 240))
