"""Which files of a folder of volumes belong together, and what their labels mean.

Four layouts: that of the Medical Segmentation Decathlon (dataset.json lists the pairs, labels are
id -> name), that of nnU-Net v2 (`imagesTr/CASE_0000.nii.gz`, `labelsTr/CASE.nii.gz`, labels are
name -> id), two plain folders whose files have the same names, and that of CHAOS's CT (`CASE/DICOM_anon`
with a series, `CASE/Ground` with a PNG file for every slice). Instead of a NIfTI file, an image may be
a folder with a DICOM series, and its labels a DICOM segmentation (`CASE.dcm`) or a folder of PNG files.
"""

import dataclasses
import json
import pathlib
import unicodedata
from collections.abc import Mapping
from typing import Any

from fewshotseg.data import dicom_files, label_files, nnunet_folds, volume_files, walk
from fewshotseg.errors import InputError
from fewshotseg.labels import PLAIN, Labels

IMAGE_FOLDERS = ("imagesTr", "images")
LABEL_FOLDERS = ("labelsTr", "labels", "masks")
CHAOS_IMAGES, CHAOS_LABELS = "DICOM_anon", "Ground"


@dataclasses.dataclass
class Layout:
    """What was found.

    Attributes:
      images: path by id.
      labels: likewise; the same ids.
      class_names: the foreground classes, in the order of their values; () if nothing tells.
      faults: message by id, of files that make no case.
      values: those of the classes in the label maps.
    """

    images: dict[str, pathlib.Path]
    labels: dict[str, pathlib.Path]
    class_names: tuple[str, ...]
    faults: dict[str, str]
    values: Labels = PLAIN


def read_folder(folder: pathlib.Path, channel: int = 0) -> Layout:
    """The cases of a folder in one of the layouts.

    Args:
      folder: with dataset.json, or with images and labels in folders of the usual names.
      channel: which of CASE_0000, CASE_0001, ... to read, where there are several.

    Raises:
      InputError: no such folder, none of the layouts, or a dataset.json that cannot be understood.
    """
    require_folder(folder, "the volumes")
    path = folder / "dataset.json"
    about = _read_json(path) if path.is_file() else {}
    names, values = classes_of(about["labels"], path) if "labels" in about else ((), PLAIN)
    if "training" in about:
        images, maps, faults = _listed(about["training"], folder, path)
        return Layout(images, maps, names, faults, values)
    if chaos := _chaos(folder):
        return chaos
    places = []
    for kinds in (IMAGE_FOLDERS, LABEL_FOLDERS):
        there = [folder / kind for kind in kinds if (folder / kind).is_dir()]
        if not there:
            raise InputError(
                f"{folder}: has neither a dataset.json that lists cases nor a folder "
                f"{' or '.join(kinds)}: give data.volumes.images_dir and labels_dir."
            )
        places.append(there[0])
    return dataclasses.replace(pair_folders(*places, channel), class_names=names, values=values)


def pair_folders(images: pathlib.Path, labels: pathlib.Path, channel: int = 0) -> Layout:
    """Pairs `labels/CASE.nii.gz` with `images/CASE.nii.gz`, `images/CASE_0000.nii.gz` or `images/CASE/`.

    Args:
      images: folder.
      labels: folder.
      channel: the number in the name of the image, where it has one.

    Raises:
      InputError: no such folders, or no volumes in one of them.
    """
    by_stem, faults = [], {}
    kinds = (
        ("images", images, volume_files.list_volumes, volume_files.stem_of),
        ("labels", labels, label_files.list_labels, label_files.stem_of),
    )
    for kind, folder, listed, stem_of in kinds:
        require_folder(folder, kind)
        paths = listed(folder)
        if not paths:
            raise InputError(
                f"{folder}: there are no .nii or .nii.gz files in this folder, and no folders with "
                f"{'DICOM files' if kind == 'images' else 'PNG slices'}."
            )
        by_stem.append({})
        for path in paths:
            stem = unicodedata.normalize("NFC", stem_of(path))
            if not walk.is_readable(path):
                faults[walk.readable(stem)] = f"{walk.readable(path)}: {walk.NOT_UTF8}."
            elif stem in by_stem[-1]:
                faults[nnunet_folds.without_channel(stem)] = _twice(path, by_stem[-1][stem])
            else:
                by_stem[-1][stem] = path
    found, pairs = by_stem, {}
    for stem, path in found[1].items():
        names = [name for name in (stem, f"{stem}_{channel:04d}") if name in found[0]]
        if names:
            pairs[stem] = found[0][names[0]]
        elif stem not in faults:
            faults[stem] = f"{path}: there is no image {stem} or {stem}_{channel:04d} in {images}."
    for stem, path in found[0].items():
        if stem not in found[1] and nnunet_folds.without_channel(stem) not in found[1]:
            faults[stem] = f"{path}: this image has no labels in {labels}: label it or remove it."
    return Layout(pairs, {stem: found[1][stem] for stem in pairs}, (), faults)


def _twice(path: pathlib.Path, first: pathlib.Path) -> str:
    return (
        f"{path}: has the same name as {first}, but for the folder or extension: keep one of them, or "
        "rename one, and its labels."
    )


def _chaos(folder: pathlib.Path) -> Layout | None:
    """Cases `CASE/DICOM_anon` and `CASE/Ground`, below a folder or in it; None if there are none."""
    places = [folder, *(p for p in sorted(folder.rglob(CHAOS_IMAGES)) if p.is_dir())]
    places = [p if p == folder else p.parent for p in places]
    cases = [p for p in dict.fromkeys(places) if dicom_files.is_series(p / CHAOS_IMAGES)]
    if not cases:
        return None
    images, maps, faults = {}, {}, {}
    for place in cases:
        inside = place.relative_to(folder).as_posix()
        case_id = folder.absolute().name if place == folder else inside
        if (place / CHAOS_LABELS).is_dir():
            images[case_id], maps[case_id] = place / CHAOS_IMAGES, place / CHAOS_LABELS
        else:
            why = f"this series has no labels ({CHAOS_LABELS}): label or remove it"
            faults[case_id] = f"{place}: {why}."
    return Layout(images, maps, ("liver",), faults)


def classes_of(labels: Mapping[str, Any], path: pathlib.Path) -> tuple[tuple[str, ...], Labels]:
    """The foreground classes of the `labels` of a dataset.json, either way round, and their values.

    0 is the background. What is called 'ignore', as in nnU-Net, is no class.

    Raises:
      InputError: regions of several ids, a number twice, no background, or no class.
    """
    try:
        if all(str(key).isdigit() for key in labels):
            by_id = {int(key): str(name) for key, name in labels.items()}
        else:
            by_id = {int(number): str(name) for name, number in labels.items()}
        ignored = next((i for i, name in by_id.items() if name == "ignore"), -1)
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: the labels are {labels!r}: give one number for every class; regions of several "
            "numbers are not read."
        ) from error
    ids = tuple(sorted(by_id.keys() - {ignored}))
    if len(by_id) < len(labels) or len(ids) < 2 or ids[0] != 0:
        raise InputError(
            f"{path}: the labels are {labels!r}: give the background 0, and every class another number."
        )
    gaps = ids != tuple(range(len(ids)))
    return tuple(by_id[number] for number in ids[1:]), Labels(ids if gaps else (), ignored)


def require_folder(folder: pathlib.Path, holds: str) -> None:
    """Raises an `InputError` where there is no such folder."""
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.is_file() else "there is no such folder"
        raise InputError(f"{folder}: {what}: give the folder that holds {holds}.")


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}): mend it.") from error
    if not isinstance(about, dict):
        raise InputError(f"{path}: holds no JSON object: mend it, or remove it.")
    return about


def _listed(training, folder, path):
    images, labels, faults = {}, {}, {}
    try:
        pairs = [(folder / pair["image"], folder / pair["label"]) for pair in training]
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{path}: 'training' is no list of {{'image': FILE, 'label': FILE}}: mend it."
        ) from error
    for image, label in pairs:
        case_id = volume_files.stem_of(image)
        missing = [file for file in (image, label) if not file.is_file()]
        if missing:
            faults[case_id] = f"{missing[0]}: is listed in {path.name}, but there is no such file."
        elif case_id in images:
            faults[case_id] = _twice(image, images[case_id])
        else:
            images[case_id], labels[case_id] = image, label
    return images, labels, faults
