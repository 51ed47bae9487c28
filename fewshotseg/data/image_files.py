"""Image and mask files to arrays, with Pillow.

A fault in a file raises `InputError`; a harmless conversion (16 bits to 8, alpha dropped) is returned
as a note, so that a user can be told of it.
"""

import io
import pathlib
import threading
import warnings
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

from fewshotseg.errors import InputError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif")
FORMATS = ("PNG", "JPEG", "MPO", "TIFF", "BMP", "GIF")  # as Pillow calls them
_VOLUME = "medical volumes are not read as pictures: export the slices as PNG"
_OTHER_FORMATS = {
    **dict.fromkeys(
        (".nii", ".nii.gz"), f"NIfTI: {_VOLUME}, or use --config=configs/volumes.py (docs/data.md)"
    ),
    **dict.fromkeys((".mha", ".mhd", ".nrrd"), _VOLUME),
    **dict.fromkeys(
        (".dcm", ".dicom"), f"DICOM: {_VOLUME}, or use --config=configs/volumes.py (docs/data.md)"
    ),
    **dict.fromkeys((".heic", ".heif"), "HEIC photos are not read here: convert them to JPEG"),
    ".webp": "WebP files are not read here: convert them to PNG",
    ".svs": "whole-slide files are not read here: export regions as PNG",
}
_DEEP = "16 bits per colour channel reduced to 8"
_ORIENTATION = 0x0112  # EXIF tag; 2 to 8 mean mirrored or turned; damaged files have texts there
_QUARTER_TURNS = (5, 6, 7, 8)
# Larger images are refused before they are decoded: a few lines of a file can claim any size.
MAX_MEGAPIXELS = 80
_FILTERS = threading.Lock()  # of warnings: they belong to the process, not to a thread
MAX_SIDE = 32_768  # pixels
_NEARLY_BLACK = 64  # of 255: 12 and 14 bits in a file of 16 stay below when the upper 8 are taken
SMEAR = 32  # how far compression may push a binary value away from 0 or 255 in flat regions


def extension_of(path: str | pathlib.Path) -> str:
    """Lower-case extension with its dot; '.nii.gz' counts as one."""
    name = pathlib.Path(path).name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else pathlib.PurePath(name).suffix


def unsupported_hint(path: str | pathlib.Path) -> str:
    """Why files with this extension are not read and what to do; '' if nothing is known of it."""
    return _OTHER_FORMATS.get(extension_of(path), "")


def read_size(path: str | pathlib.Path) -> tuple[int, int]:
    """`(height, width)` after EXIF rotation, from a file's header alone.

    Raises:
      InputError: the file is missing, empty or no image.
    """
    with _open(path) as image:
        height, width = image.height, image.width
        # Pillow swaps a TIFF's size by itself, and would decode a PNG to look for late EXIF data.
        has_exif = image.format != "TIFF" and "exif" in image.info
        turned = has_exif and image.getexif().get(_ORIENTATION, 1) in _QUARTER_TURNS
    return (width, height) if turned else (height, width)


def read_image(
    path: str | pathlib.Path, data: bytes | None = None, max_megapixels: float = MAX_MEGAPIXELS
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Reads a PNG, JPEG, TIFF, BMP or GIF file.

    EXIF rotation is applied, alpha dropped. Grey images of more than 8 bits whose values do not fit
    into 0..255 are stretched linearly from their own minimum and maximum to 0..255. A colour file
    with three equal channels keeps them.

    Args:
      path: of the file.
      data: what it holds, where that came another way; then `path` only names it in messages, and
        no other format than those of `EXTENSIONS` is tried.
      max_megapixels: larger images are refused before they are decoded.

    Returns:
      uint8 `[H, W, C]`, C is 1 or 3, and notes on what was converted.

    Raises:
      InputError: missing, empty, truncated, no image, several frames, NaN among its values, or 16 bits per
        colour channel of which the upper 8 show next to nothing.
    """
    image, notes = _load(path, data, max_megapixels)
    mode = image.mode
    if _DEEP in notes and np.asarray(image.convert("RGB")).max() < _NEARLY_BLACK:
        raise InputError(
            f"{path}: has 16 bits per channel, of which the upper 8 are read, and these are nearly black: "
            "stretch it and save it as 8-bit, or save it as 16-bit grey."
        )
    if mode in ("LA", "RGBA") or (mode == "P" and "transparency" in image.info):
        notes.append("alpha channel dropped")
    if mode == "P":
        pixels = _shown_palette(image)
    elif mode in ("1", "L", "LA"):
        pixels = np.asarray(image.convert("L"))
    elif mode == "F" or mode.startswith("I"):
        pixels, note = _to_uint8(np.asarray(image), path)
        notes.append(note)
    else:
        if mode not in ("RGB", "RGBA"):
            notes.append(f"converted from {mode} to RGB")
        pixels = np.asarray(image.convert("RGB"))
    return np.ascontiguousarray(pixels.reshape(*pixels.shape[:2], -1)), tuple(notes)


def read_mask(
    paths: str | pathlib.Path | Sequence[str | pathlib.Path], num_foreground_classes: int = 1
) -> np.ndarray:
    """Reads one mask from one file, or from several that are joined by their maximum.

    Three (nearly) equal channels become one, alpha is dropped, a palette that begins with black is read as
    the indices into it and a black and white one as 0 and 255. Values are otherwise untouched: see
    `mask_values.mask_to_class_ids`. Among several files, 0/1 counts as 0/255 where another one has 255.

    Args:
      paths: one file, or all files of one case.
      num_foreground_classes: with several, files of one case may not look like one file per class.

    Returns:
      `[H, W]` in the file's own number type, 1-bit files as uint8 0/1.

    Raises:
      InputError: unreadable file, colour legend, mask drawn in the alpha channel, NaN, 16 bits per colour
        channel, files of one case that differ in size, or several that all hold the same single value.
    """
    paths = [paths] if isinstance(paths, str | pathlib.Path) else list(paths)
    masks = [_read_one_mask(path) for path in paths]
    joined = masks[0]
    top = max(mask.max() for mask in masks)
    for path, mask in zip(paths[1:], masks[1:], strict=True):
        if mask.shape != joined.shape:
            raise InputError(
                f"{path}: this mask is {_size(mask)} pixels, but {paths[0]} of the same image is "
                f"{_size(joined)}: save both at the size of the image."
            )
    if len(masks) > 1 and num_foreground_classes > 1:
        _refuse_file_per_class(paths, masks)
    if len(masks) > 1 and top == 255:
        masks = [mask * np.uint8(255) if mask.max() == 1 else mask for mask in masks]
    for index, mask in enumerate(masks):
        joined = mask if index == 0 else np.maximum(joined, mask)
    return joined


def _refuse_file_per_class(paths, masks) -> None:
    found = [np.unique(mask[mask != 0]) for mask in masks]
    found = [values.tolist() for values in found if values.size]
    if len(found) > 1 and len(found[0]) == 1 and all(values == found[0] for values in found):
        raise InputError(
            f"{paths[0]}: this mask and {len(found) - 1} more of the same image hold the same value "
            f"{found[0][0]:g}, as one file per class does: save one mask with the class ids 0, 1, 2, ... "
            "for each image."
        )


def _open(
    path: str | pathlib.Path,
    in_memory: bool = False,
    data: bytes | None = None,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> Image.Image:
    path = pathlib.Path(path)
    formats = None if data is None else FORMATS
    try:
        if data is None and not path.is_file():
            raise InputError(f"{path}: there is no such file.")
        if (path.stat().st_size if data is None else len(data)) == 0:
            raise InputError(f"{path}: the file is empty (0 bytes): copy it again from its source.")
        with _FILTERS, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # we are stricter
            if in_memory:
                data = path.read_bytes() if data is None else data
            image = Image.open(io.BytesIO(data) if in_memory else path, formats=formats)
    except InputError:
        raise
    except PermissionError as error:
        raise InputError(f"{path}: no permission to read this file.") from error
    except Image.DecompressionBombError as error:
        raise _too_large(
            path, f"more than {2 * Image.MAX_IMAGE_PIXELS / 1e6:.0f} megapixels"
        ) from error
    except Exception as error:  # Pillow's readers raise almost anything on broken files
        hint = unsupported_hint(path) or "save it again as PNG, or copy it again from its source"
        raise InputError(f"{path}: not a readable image: {hint}.") from error
    megapixels = image.width * image.height / 1e6
    if megapixels > max_megapixels or max(image.size) > MAX_SIDE:
        image.close()
        raise _too_large(path, f"{image.width} x {image.height} pixels", max_megapixels)
    return image


def _too_large(path, size: str, max_megapixels: float = MAX_MEGAPIXELS) -> InputError:
    return InputError(
        f"{path}: the image has {size}, but at most {max_megapixels:g} megapixels and {MAX_SIDE} "
        "pixels along a side are read: shrink or crop it."
    )


def _load(
    path: str | pathlib.Path, data: bytes | None = None, max_megapixels: float = MAX_MEGAPIXELS
) -> tuple[Image.Image, list[str]]:
    """The decoded, upright image and the notes so far."""
    notes = []
    # From memory: Pillow maps a turned, uncompressed TIFF file in the wrong shape.
    with _open(path, True, data, max_megapixels) as image:
        try:
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format != "MPO":
                raise InputError(
                    f"{path}: holds {frames} frames or pages, but one image per file is expected: "
                    "save each frame as a file of its own."
                )
            deep = any(";16" in str(tile.args) for tile in image.tile)
            if deep and image.mode in ("RGB", "RGBA", "LA", "CMYK"):
                notes.append(_DEEP)
            orientation = image.getexif().get(
                _ORIENTATION, 1
            )  # loading a TIFF turns it and forgets
            image.load()
            upright = ImageOps.exif_transpose(image)
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"{path}: truncated or damaged ({error}): copy the file again from its source."
            ) from error
    if orientation in range(2, 9):
        notes.append("EXIF rotation applied")
    return upright, notes


def _shown_palette(image: Image.Image) -> np.ndarray:
    colours = np.asarray(image.convert("RGB"))
    is_grey = (colours == colours[..., :1]).all()
    return colours[..., 0] if is_grey else colours


def _to_uint8(pixels: np.ndarray, path: str | pathlib.Path) -> tuple[np.ndarray, str]:
    if not np.isfinite(pixels).all():
        raise InputError(f"{path}: holds NaN or infinite values: replace them and save it again.")
    low, high = float(pixels.min()), float(pixels.max())
    kind = "floating-point" if pixels.dtype.kind == "f" else f"{8 * pixels.dtype.itemsize}-bit"
    whole = pixels.dtype.kind != "f" or (pixels == np.floor(pixels)).all()
    if low >= 0 and 1 < high <= 255 and whole:
        return pixels.astype(np.uint8), f"{kind} file with 8-bit values"
    scaled = (pixels.astype(np.float64) - low) * (255.0 / max(high - low, 1e-12))
    return np.rint(scaled).astype(np.uint8), f"{kind} values scaled to 8 bit"


def _read_one_mask(path: str | pathlib.Path) -> np.ndarray:
    image, notes = _load(path)
    if _DEEP in notes:
        raise InputError(
            f"{path}: the mask has 16 bits per channel: save as 8-bit or as 16-bit grey."
        )
    if image.mode == "P":
        return _palette_mask(image, path)
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        image = image.convert("RGB")
    values = np.asarray(image)
    if values.dtype == bool:
        return values.astype(np.uint8)
    if not np.isfinite(values).all():
        raise InputError(f"{path}: the mask holds NaN or infinite values: save class ids.")
    if values.ndim == 2:
        return values
    number = 1 if image.mode == "LA" else 3
    colours, alpha = values[..., :number], values[..., number:]
    if alpha.size and np.ptp(alpha) > 0 and np.ptp(colours) == 0:
        raise InputError(
            f"{path}: this mask is drawn in the alpha channel alone: save it as a grey image."
        )
    spread = int(np.ptp(colours, axis=-1).max())
    # Compression makes grey channels differ a little; among small class ids it would be a legend.
    if spread > (SMEAR if colours.max() > 127 else 0):
        raise InputError(
            f"{path}: this mask is coloured (a colour legend, or a photo?): save the class ids "
            "0, 1, 2, ... in one grey channel."
        )
    return np.ascontiguousarray(colours[..., number // 2])


def _palette_mask(image: Image.Image, path: str | pathlib.Path) -> np.ndarray:
    """0 and 255, or the indices into the palette where these can be class ids.

    The whole palette decides, and not the colours that one file uses: all of a data set are read alike.
    But black that is not at 0 is the background of a picture, whatever other colours there are.
    """
    indices, palette = np.asarray(image), np.zeros((256, 3), np.uint8)
    entries = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    palette[: len(entries)] = entries
    used = palette[np.unique(indices)]
    is_grey = (entries == entries[:, :1]).all()
    black_elsewhere = (palette[np.unique(indices[indices > 0])] == 0).all(axis=-1).any()
    if np.isin(used, (0, 255)).all() and (used == used[:, :1]).all():
        if is_grey or black_elsewhere:
            return palette[indices][..., 0]
    is_dark = used.max(axis=-1) < SMEAR
    if is_dark.any() and palette[0].max() >= SMEAR:
        raise InputError(
            f"{path}: this mask is coloured and black is not the first colour of its palette (reduced from "
            "a colour legend, or a photo?): save the class ids 0, 1, 2, ... in one grey channel."
        )
    return indices


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]} x {array.shape[0]}"
