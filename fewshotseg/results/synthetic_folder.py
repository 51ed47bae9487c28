"""A folder of synthetic pairs for others to train on: its layouts, its table, and what is said about it."""

import contextlib
import dataclasses
import pathlib
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fewshotseg import figures, files
from fewshotseg import labels as label_lib
from fewshotseg.data import volume_files
from fewshotseg.errors import InputError
from fewshotseg.types import Case

SHOWN = 64  # on the contact sheet
CHANNEL_NAMES = {1: ("grey",), 3: ("R", "G", "B")}  # nnU-Net: one file holds the three of RGB


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where pairs lie: paths without the ending of the file, `{}` being the name of a pair.

    Attributes:
      own_values: whether masks have the values of the training masks; else 0, 1, 2, ..., n, and n + 1 for
        what is to be ignored.
    """

    image: str
    mask: str
    own_values: bool = True


LAYOUTS: Mapping[str, Layout] = {
    "folder": Layout("images/{}", "masks/{}"),
    # documentation/dataset_format.md of nnU-Net v2: CASE_XXXX in imagesTr, CASE in labelsTr.
    "nnunet": Layout("imagesTr/{}_0000", "labelsTr/{}", own_values=False),
}


def name_of(number: int) -> str:
    """Of a pair, the first being 1."""
    return f"synthetic_{number:06d}"


def check_empty(output: pathlib.Path) -> None:
    """Raises `InputError` if there are files in the folder: pairs of two calls are never mixed."""
    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file: give --output=FOLDER.")
    if output.is_dir() and any(output.iterdir()):
        raise InputError(f"{output} holds files already: choose a new or an empty --output.")


@contextlib.contextmanager
def whole_folder(output: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder beside `output` that takes its name when the block ends well, and goes when it does not.

    Raises:
      InputError: `output` holds files, or cannot be written.
    """
    check_empty(output)
    partial = output.absolute().parent / f".partial-{uuid.uuid4().hex[:8]}-{output.name}"
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise InputError(
            f"{output}: cannot be made ({error.strerror}): choose another --output."
        ) from error
    try:
        yield partial
        check_empty(output)
        if output.is_dir():
            output.rmdir()
        partial.rename(output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_pair(
    folder: pathlib.Path,
    layout: str,
    name: str,
    image: np.ndarray,
    mask: np.ndarray,
    comment: str,
    affine: np.ndarray | None,
    labels: label_lib.Labels,
    num_foreground_classes: int,
) -> str:
    """Writes one pair.

    Args:
      folder: of all pairs.
      layout: a row of `LAYOUTS`.
      name: of the pair, see `name_of`.
      image: uint8 `[H, W, C]` as PNG, or `[D, H, W, 1]` as NIfTI.
      mask: uint8 class ids of the same size.
      comment: goes into the image's file, at most 79 letters.
      affine: of a volume, see `types.Case`; None of a picture.
      labels: of the training masks.
      num_foreground_classes: likewise.

    Returns:
      The path of the image below `folder`.
    """
    where = LAYOUTS[layout]
    if not where.own_values:
        labels = _consecutive(labels, num_foreground_classes)
    mask = labels.to_file(mask, num_foreground_classes)
    ending = ending_of(mask.ndim)
    paths = [folder / (part.format(name) + ending) for part in (where.image, where.mask)]
    if mask.ndim == 3:
        for path, values in zip(paths, (image[..., 0], mask), strict=True):
            volume_files.write_volume(path, values, affine, comment)
    else:
        figures.save_image(image, paths[0], comment=comment)
        figures.save_image(mask, paths[1])
    return paths[0].relative_to(folder).as_posix()


def _consecutive(labels, num_foreground_classes):
    ignored = num_foreground_classes + 1 if labels.ignored >= 0 else -1
    return label_lib.Labels(ignored=ignored)


def ending_of(num_axes: int) -> str:
    """Of the files of pictures and of volumes."""
    return ".nii.gz" if num_axes == 3 else ".png"


def names_of_labels(about: Mapping[str, Any]) -> list[str]:
    """The classes 1, 2, ... as nnU-Net knows them: what is to be ignored is the last, by that name."""
    return [*about["classes"], *["ignore"] * about["has_ignored"]]


def write_about(
    folder: pathlib.Path,
    layout: str,
    rows: Sequence[Mapping[str, Any]],
    shown: Sequence[Case],
    about: Mapping[str, Any],
) -> None:
    """Writes manifest.csv, contact_sheet.png, synthetic.json, and what the layout wants beside the pairs.

    Args:
      folder: of the pairs.
      layout: a row of `LAYOUTS`.
      rows: of manifest.csv, one per pair.
      shown: pairs for the contact sheet, the first `SHOWN` of them are drawn.
      about: of synthetic.json, with `classes`, `has_ignored`, `channels` and `num_axes`.
    """
    if layout == "nnunet":
        names = CHANNEL_NAMES[about["channels"]]
        content = {
            "channel_names": {str(i): name for i, name in enumerate(names)},
            "labels": {
                "background": 0,
                **{name: i for i, name in enumerate(names_of_labels(about), start=1)},
            },
            "numTraining": len(rows),
            "file_ending": ending_of(about["num_axes"]),
            "description": "Synthetic pairs, see synthetic.json.",
        }
        files.write_json(folder / "dataset.json", content)
    files.write_rows(folder / "manifest.csv", rows)
    figures.contact_sheet(list(shown)[:SHOWN], folder / "contact_sheet.png")
    files.write_json(folder / "synthetic.json", about)
