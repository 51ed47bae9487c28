"""From the values of a mask file to class ids, and what was assumed on the way."""

import pathlib
from collections.abc import Iterable

import numpy as np

from fewshotseg.data.image_files import SMEAR, extension_of
from fewshotseg.errors import InputError
from fewshotseg.labels import IGNORED, PLAIN, Labels

# So many pixels may lie between the two values of a mask: a share of those that are not 0, or of all.
# One official mask of FUSeg has 84 pixels of 32 beside 285 of 255, in 512 x 512.
_STRAYS, _STRAYS_OF_ALL = 0.05, 0.0005


def mask_to_class_ids(
    raw: np.ndarray,
    num_foreground_classes: int,
    path: str | pathlib.Path,
    labels: Labels = PLAIN,
) -> np.ndarray:
    """Turns the values of a mask file into class ids.

    One foreground class: 0 and one other value; or 0 and 255 with grey values between them, which
    are cut above 127: those of JPEG compression or smooth resizing (many values), or stray ones (a
    few values in at most 5 % of the pixels that are not 0, or 0.05 % of all). Several: the values
    are the class ids 0..n.

    Args:
      raw: `[H, W]` of numbers, as `read_mask` returns it, or a stack of such.
      num_foreground_classes: n, at least 1.
      path: the file to name in messages.
      labels: which values mean what, where somebody has said so; then there may be no others.

    Returns:
      uint8 of the same shape, 0 is background, `labels.IGNORED` counts nowhere.

    Raises:
      InputError: values that fit neither reading; the message lists them and the likely cause.
    """
    if labels.ids:
        try:
            return labels.from_file(raw, num_foreground_classes)
        except ValueError as error:
            raise InputError(_unlisted_message(error.args[0], labels, path)) from error
    if labels.ignored >= 0:
        ignored = raw == labels.ignored
        found = mask_to_class_ids(np.where(ignored, 0, raw), num_foreground_classes, path)
        return np.where(ignored, np.uint8(IGNORED), found)
    values, counts = _count_values(raw)
    foreground = values[values != 0]
    if values[0] < 0 or np.any(values != np.floor(values)):
        raise InputError(
            f"{path}: the mask holds {_listing(values)}, which are no class ids: save whole "
            "numbers, 0 for background (threshold probabilities first)."
        )
    if num_foreground_classes > 1:
        if foreground.size and foreground[-1] > num_foreground_classes:
            raise InputError(_multiclass_message(values, num_foreground_classes, path))
        return raw.astype(np.uint8)
    if foreground.size <= 1 and (values[0] == 0 or values[0] in (1, 255)):
        return (raw != 0).astype(np.uint8)
    middle = (values >= SMEAR) & (values <= 255 - SMEAR)
    # A few separate values are a legend (0/128/255, or 0/1 with 255 for "ignore") and not smear,
    # unless next to no pixel has them.
    second = values[:-1].max(initial=0)
    lonely_top = second < 255 - SMEAR and extension_of(path) not in (".jpg", ".jpeg")
    between = (values > 0) & (values < values[-1])
    bound = max(_STRAYS * counts[values > 0].sum(), _STRAYS_OF_ALL * raw.size)
    strays = values[between].min(initial=255) > 1 and counts[between].sum() <= bound
    legend = values.size <= 5 and (middle.any() or lonely_top) and not strays
    if legend or not 127 < values[-1] <= 255 or counts[middle].sum() > 0.25 * raw.size:
        raise InputError(
            f"{path}: expected a mask of one class (0 and one other value), but it holds "
            f"{_listing(values)}: this looks like class ids or a grey legend of several classes "
            "(then name all classes), an ignore label, or a photograph: save it as 0 and 255."
        )
    return (raw > 127).astype(np.uint8)


def mask_notes(
    raw: np.ndarray, num_foreground_classes: int, labels: Labels = PLAIN
) -> tuple[str, ...]:
    """What `mask_to_class_ids` assumed about a mask it accepts; empty for 0/1, 0/255 or ids."""
    if labels.ids:
        return ()
    if labels.ignored >= 0:
        raw = np.where(raw == labels.ignored, 0, raw)
    values, _ = _count_values(raw)
    if num_foreground_classes > 1 or values[-1] <= 1:
        return ()
    if values.size > 2:
        return ("grey values in the mask (JPEG, smooth resize, stray pixels), cut above 127",)
    return () if values[-1] == 255 else (f"mask value {values[-1]:g} read as foreground",)


def _count_values(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`np.unique` with counts, without sorting millions of bytes."""
    if raw.dtype != np.uint8:
        return np.unique(raw, return_counts=True)
    counts = np.bincount(raw.ravel())
    values = np.flatnonzero(counts)
    return values, counts[values]


def _multiclass_message(values: np.ndarray, classes: int, path: str | pathlib.Path) -> str:
    start = f"{path}: expected the class ids 0..{classes}, but the mask holds {_listing(values)}: "
    if values[-1] == 255 and np.all(values[:-1] <= classes):
        return start + (
            "255 (a black and white mask, or an ignore label) is not accepted with several "
            "classes: give those pixels a class id, or set ignore_id=255 if they are to count nowhere."
        )
    if values.size > classes + 8:
        return start + (
            "so many values come from JPEG compression or from resizing with interpolation: save "
            "PNG and resize with nearest neighbour."
        )
    return start + (
        "of a grey legend, say which value is which class with data.folder.class_ids (the background's "
        "first); else name all classes."
    )


def _unlisted_message(unlisted: list, labels: Labels, path: str | pathlib.Path) -> str:
    known = ", ".join(map(str, labels.ids))
    return (
        f"{path}: the mask holds {_listing(unlisted)}, which class_ids ({known}) does not list: correct "
        "the mask, or list them; pixels that are to count nowhere have ignore_id."
    )


def number_text(value: float) -> str:
    """A number as it is read, rounded only if it is whole: 0.9999999 is not 1."""
    return f"{value:g}" if value % 1 == 0 else str(value)


def _listing(values: Iterable) -> str:
    values = [number_text(value) for value in values]
    if len(values) <= 8:
        return "the values " + ", ".join(values)
    return f"{len(values)} values ({', '.join(values[:5])}, ..., {values[-1]})"
