"""Files with pictures of images and masks: contact sheets, overlays, grids.

Everything is drawn on arrays (`pictures`) and written by Matplotlib's Agg canvas or Pillow, so no
display, no global figure state and no accelerator is involved. Files appear complete or not at all.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, PngImagePlugin

from fewshotseg import files, fonts
from fewshotseg.errors import InputError
from fewshotseg.labels import is_foreground
from fewshotseg.pictures import PREDICTION_COLOUR, REFERENCE_COLOUR, in_planes, overlay, to_rgb

if TYPE_CHECKING:  # types.py imports JAX, which drawing does not need
    from fewshotseg.types import Case

_DPI = 100
_GAP = 8  # pixels between tiles
_LINE = 16  # pixels of height of a line of text


def save_image(
    image: np.ndarray,
    path: str | os.PathLike[str],
    *,
    compress_level: int = 6,
    comment: str = "",
) -> None:
    """Writes uint8 `[H, W]`, `[H, W, 1]` or `[H, W, 3]`, or uint16 `[H, W]`, as PNG, whatever the suffix.

    `compress_level` is zlib's: 1 takes a fifth of the time of 6 for an eighth more bytes. `comment` goes
    into the file, as the text 'Comment'.
    """
    image = image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image
    buffer, texts = io.BytesIO(), PngImagePlugin.PngInfo()
    if comment:
        texts.add_text("Comment", comment)
    options = {"compress_level": compress_level, "pnginfo": texts}
    Image.fromarray(image).save(buffer, format="PNG", **options)
    files.write_bytes(path, buffer.getvalue())


def save_overlay(
    image: np.ndarray,
    prediction: np.ndarray,
    path: str | os.PathLike[str],
    reference: np.ndarray | None = None,
    *,
    title: str = "",
    spacing: Sequence[float] = (),
    smallest: int = 448,
    largest: int = 1280,
) -> None:
    """Writes `pictures.overlay` as PNG, for looking at and not for measuring.

    Of a volume, three planes through what is outlined (`pictures.in_planes`); `spacing` is that of its
    voxels.

    The longer side is brought between `smallest` and `largest` pixels before outlines are drawn, so
    that they are thin lines on small and on large images. With a title, a strip above the picture
    shows it, and a strip below says which colour is which.
    """
    if prediction.ndim == 3:
        smallest = largest  # three planes share the longer side
        cut = prediction if reference is None or not np.any(reference) else reference
        image, prediction = _planes(image, cut, spacing), in_planes(prediction, cut, spacing)
        reference = None if reference is None else in_planes(reference, cut, spacing)
    rgb = to_rgb(image)
    side = max(rgb.shape[:2])
    target = min(max(side, smallest), largest)
    if target != side:
        shape = tuple(max(1, round(n * target / side)) for n in rgb.shape[:2])
        rgb = _resize(rgb, shape, smooth=True)
        prediction = _resize(np.asarray(prediction), shape, smooth=False)
        if reference is not None:
            reference = _resize(np.asarray(reference), shape, smooth=False)
    picture = overlay(rgb, prediction, reference)
    if not title:
        save_image(picture, path, compress_level=1)
        return
    height, width = picture.shape[:2]
    texts = [(4, _LINE * 0.8, _shorten(title, width), "black")]
    legend = [(4, "prediction", PREDICTION_COLOUR)]
    if reference is not None:
        legend.append((94, "reference", REFERENCE_COLOUR))
    canvas = np.full((height + 2 * _LINE + 8, width, 3), 255, np.uint8)
    canvas[_LINE + 4 : _LINE + 4 + height] = picture
    base = height + 2 * _LINE
    for x, name, colour in legend:
        canvas[base - 4 : base, x : x + 12] = colour
        texts.append((x + 16, base + 2, name, "black"))
    _write_canvas(canvas, texts, path)


def contact_sheet(
    cases: Sequence[Case],
    path: str | os.PathLike[str],
    columns: int = 8,
    *,
    tile: int = 160,
    most: int = 400,
) -> None:
    """Writes a PNG page of images with their mask outlines and ids, a colour per class.

    Args:
      cases: images `[H, W, C]` with masks `[H, W]` of class ids, or volumes, of which three planes are
        drawn; sizes may differ.
      path: of the PNG.
      columns: tiles in a row.
      tile: pixels of the longer side of a tile; proportions are kept.
      most: only so many cases are drawn; the page then says how many are left out.

    Raises:
      InputError: there are no cases, or the file cannot be written.
    """
    if not cases:
        raise InputError(f"{path}: there are no images to show on a contact sheet.")
    shown = cases[:most]
    tiles, labels = [], []
    for case in shown:
        image = to_rgb(_planes(case.image, case.mask, case.spacing))
        mask, shape = in_planes(case.mask, case.mask, case.spacing), _fit(image.shape, tile)
        image = _resize(image, shape, smooth=True)
        tiles.append(overlay(image, _resize(mask, shape, smooth=False)))
        empty = "" if is_foreground(case.mask).any() else "  [empty]"
        labels.append(_shorten(case.id, tile - 5 * len(empty)) + empty)
    columns = max(1, min(columns, len(tiles)))
    rows = [tiles[i : i + columns] for i in range(0, len(tiles), columns)]
    label_rows = [labels[i : i + columns] for i in range(0, len(labels), columns)]
    footer = "" if len(shown) == len(cases) else f"first {len(shown)} of {len(cases)} cases"
    _write_grid(rows, path, tile, captions=label_rows, footer=footer)


def image_grid(
    rows: Sequence[Sequence[np.ndarray]],
    path: str | os.PathLike[str],
    titles: Sequence[str] = (),
    *,
    tile: int = 192,
) -> None:
    """Writes rows of images as a PNG, for example mask | synthetic image | real image.

    Args:
      rows: uint8 images `[H, W]`, `[H, W, 1]` or `[H, W, 3]`; `pictures.colour_mask` makes one of a mask.
      path: of the PNG.
      titles: one per column, or none.
      tile: pixels of the longer side of a tile; proportions are kept.

    Raises:
      InputError: there are no images, or the file cannot be written.
    """
    if not rows or not any(len(row) for row in rows):
        raise InputError(f"{path}: there are no images to show in a grid.")
    tiles = [[_resize_image(image, tile) for image in row] for row in rows]
    _write_grid(tiles, path, tile, titles=titles)


def _write_grid(rows, path, tile, *, titles=(), captions=(), footer="") -> None:
    """Lays out RGB tiles of at most `tile` pixels a side, left to right and top to bottom."""
    columns = max(max(len(row) for row in rows), len(titles))
    width = columns * (tile + _GAP) + _GAP
    y = _GAP + (_LINE if titles else 0)
    heights = [max((image.shape[0] for image in row), default=1) for row in rows]
    caption_height = _LINE if captions else 0
    total = y + sum(height + caption_height + _GAP for height in heights)
    canvas = np.full((total + (_LINE if footer else 0), width, 3), 255, np.uint8)
    left = [_GAP + i * (tile + _GAP) for i in range(columns)]
    texts = [
        (x, y - 5, _shorten(title, tile), "black") for x, title in zip(left, titles, strict=False)
    ]
    for i, (row, height) in enumerate(zip(rows, heights, strict=True)):
        for x, image in zip(left, row, strict=False):
            inset = x + (tile - image.shape[1]) // 2
            canvas[y : y + image.shape[0], inset : inset + image.shape[1]] = image
        y += height
        if captions:
            base = y + _LINE - 4
            texts += [(x, base, t, "black") for x, t in zip(left, captions[i], strict=False)]
        y += caption_height + _GAP
    if footer:
        texts.append((_GAP, y + _LINE - 6, footer, "black"))
    _write_canvas(canvas, texts, path)


def _write_canvas(canvas: np.ndarray, texts, path) -> None:
    """Writes RGB pixels as they are, with texts (x, y of the base line, text, colour) on them."""
    height, width = canvas.shape[:2]
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    agg = FigureCanvasAgg(figure)
    figure.figimage(canvas, origin="upper")
    for x, y, text, colour in texts:
        # Ids are the users' file names: a `$` in them is no formula.
        style = dict(fontsize=8, color=colour, parse_math=False, family=fonts.names())
        figure.text(x / width, 1 - y / height, fonts.drawable(text), **style)
    buffer = io.BytesIO()
    agg.print_png(buffer)
    files.write_bytes(path, buffer.getvalue())


def _planes(image: np.ndarray, mask: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """A picture as it is; of a volume in [0, 255], `pictures.in_planes` as uint8."""
    planes = in_planes(image, mask, spacing)
    return planes if planes.dtype == np.uint8 else np.rint(planes).astype(np.uint8)


def _fit(shape, tile: int) -> tuple[int, int]:
    scale = tile / max(shape[:2])
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def _resize_image(image: np.ndarray, tile: int) -> np.ndarray:
    rgb = to_rgb(image)
    # Enlarged pixels stay square, so that a blurred synthetic image is the generator's doing.
    return _resize(rgb, _fit(rgb.shape, tile), smooth=max(rgb.shape) > tile)


def _resize(array: np.ndarray, shape: tuple[int, int], *, smooth: bool) -> np.ndarray:
    filtering = Image.Resampling.BOX if smooth else Image.Resampling.NEAREST
    if smooth and shape[0] > array.shape[0]:
        filtering = Image.Resampling.BICUBIC
    picture = Image.fromarray(np.ascontiguousarray(array, np.uint8))
    return np.asarray(picture.resize((shape[1], shape[0]), filtering))


def _shorten(text: str, pixels: int) -> str:
    """Cuts the middle out of a text that is too wide: file names differ at their ends."""
    most = max(8, int(pixels / 7.2))
    text = " ".join(str(text).split())
    if len(text) <= most:
        return text
    head = (most - 1) // 2
    return text[:head] + "\u2026" + text[len(text) - (most - 1 - head) :]
