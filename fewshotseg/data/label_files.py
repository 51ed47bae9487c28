"""Label maps that belong to volumes, in and out: NIfTI, DICOM-SEG, or PNG slices beside a series."""

import gzip
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from fewshotseg import files
from fewshotseg.data import dicom_files, dicom_segmentations, geometry, mask_values, volume_files
from fewshotseg.data.volume_files import Volume
from fewshotseg.errors import InputError
from fewshotseg.labels import PLAIN, Labels

SHIFT = 0.1  # of a voxel: how far a corner of a label map may lie from that of its image


def list_labels(folder: pathlib.Path) -> list[pathlib.Path]:
    """NIfTI and DICOM-SEG files of a folder, and its subfolders of PNG slices, sorted."""
    return sorted(path for path in folder.iterdir() if _is_label(path))


def _is_label(path: pathlib.Path) -> bool:
    if path.is_dir():
        return bool(dicom_segmentations.slices_of(path))
    return volume_files.is_volume(path) or path.suffix.lower() == ".dcm" and path.name[0] != "."


def stem_of(path: pathlib.Path) -> str:
    """A label map's name without its extension."""
    return path.stem if path.suffix.lower() == ".dcm" else volume_files.stem_of(path)


def read_labels(
    path: pathlib.Path,
    image: Volume,
    class_names: Sequence[str],
    labels: Labels = PLAIN,
    data: bytes | None = None,
) -> np.ndarray:
    """uint8 `[D, H, W]` class ids in the canonical order of the image they belong to.

    Args:
      path: of a NIfTI or DICOM-SEG file, which may have other axes than the image, on the same grid; or
        the folder of PNG slices of a series.
      image: that it belongs to.
      class_names: the foreground classes.
      labels: which values of a NIfTI file, or of slices, mean what.
      data: what a NIfTI file holds, where that came another way; then `path` only names it in messages.

    Raises:
      InputError: unreadable, another grid, or values that are no class ids.
    """
    known, name = labels, _name_of(image.file)
    if data is None and path.is_dir():
        series = _series_of(image.file, path)
        ids = dicom_segmentations.read_slices(path, series, len(class_names), labels)
        return image.orientation.to_canonical(ids)
    if path.suffix.lower() == ".dcm":
        segments, affine = _with_empty_slices(
            image.file, *dicom_segmentations.read(path, class_names)
        )
        turn = _onto(image.file, segments.shape, affine, path, name)
        stored, known = turn.to_canonical(segments), PLAIN
    else:
        read = volume_files.read_volume(path, data)
        turn = _onto(image.file, read.file.shape[:3], read.file.affine, path, name)
        stored = turn.to_canonical(read.orientation.to_stored(read.values))
    return to_class_ids(image.orientation.to_canonical(stored), len(class_names), path, known)


def _series_of(image: Any, path: pathlib.Path) -> dicom_files.Series:
    if not isinstance(image, dicom_files.Series):
        raise InputError(
            f"{path}: label slices go with a DICOM series, and the image is a NIfTI file: save the labels "
            "as NIfTI too."
        )
    return image


def _name_of(image: Any) -> str:
    """Of the file of an image, or of the folder of a series; what came without a file has none."""
    path = image.folder if isinstance(image, dicom_files.Series) else image.get_filename()
    return pathlib.Path(path).name if path else "without a name"


def _with_empty_slices(
    image: Any, segments: np.ndarray, affine: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Segments on the whole grid of their image, if they lie on a part of it; else as they are.

    Most programs leave out the slices of a DICOM segmentation that show nothing.
    """
    turn = geometry.orientation_between(image.affine, affine)
    turned_affine = turn.canonical_affine(affine, segments.shape)
    turned, whole = turn.to_canonical(segments), np.zeros(image.shape[:3], segments.dtype)
    single = [axis for axis, number in enumerate(turned.shape) if number == 1]
    turned_affine[:, single] = image.affine[:, single]  # one slice has no distance to the next
    offset = np.linalg.solve(image.affine, turned_affine[:, 3])[:3]
    first = np.rint(offset).astype(int)
    end = first + turned.shape
    if np.abs(offset - first).max() > SHIFT or first.min() < 0 or np.any(end > whole.shape):
        return segments, affine
    whole[tuple(slice(a, b) for a, b in zip(first, end, strict=True))] = turned
    turned_affine[:3, 3] -= turned_affine[:3, :3] @ first
    return whole, turned_affine


def _onto(image: Any, shape, affine, path, name: str) -> geometry.Orientation:
    """How labels are turned onto the stored array of their image, whose header is given.

    Raises:
      InputError: they lie elsewhere.
    """
    turn = geometry.orientation_between(image.affine, affine)
    wanted, turned = tuple(image.shape[:3]), tuple(shape[axis] for axis in turn.axes)
    if turned != wanted:
        raise InputError(
            f"{path}: the labels have {_by(turned)} voxels, but their image {name} has {_by(wanted)}: "
            "export the labels on the grid of the image."
        )
    turned_affine = turn.canonical_affine(affine, shape)
    steps, other = (geometry.spacing_of(a) for a in (image.affine, turned_affine))
    if np.abs(np.subtract(steps, other) * wanted).max() > SHIFT * min(steps):
        raise InputError(
            f"{path}: the voxels of the labels are {_by(other)} mm, but those of their image {name} are "
            f"{_by(steps)} mm: export the labels on the grid of the image."
        )
    shift = geometry.largest_shift(image.affine, turned_affine, wanted)
    if shift > SHIFT:
        raise InputError(
            f"{path}: the affine of the labels is not that of their image {name}: corners are up to "
            f"{shift:.3g} voxels apart (at most {SHIFT:g} is accepted): export the labels on the grid "
            "of the image."
        )
    return turn


def _by(numbers) -> str:
    return " x ".join(f"{number:g}" for number in numbers)


def check_same_grid(image_path: pathlib.Path, label_path: pathlib.Path) -> None:
    """Looks at the headers of an image and its labels; DICOM-SEG is looked at when it is read.

    Raises:
      InputError: as for `volume_files.read_header`, or they differ in size, in spacing, or by more than a
        tenth of a voxel (`SHIFT`) in where they lie in the patient.
    """
    image_path, label_path = pathlib.Path(image_path), pathlib.Path(label_path)
    image = volume_files.read_header(image_path)
    if label_path.is_dir():
        _series_of(image, label_path)
    elif label_path.suffix.lower() != ".dcm":
        label = volume_files.read_header(label_path)
        _onto(image, label.shape[:3], label.affine, label_path, image_path.name)


def to_class_ids(
    values: np.ndarray,
    num_foreground_classes: int,
    path: str | pathlib.Path,
    labels: Labels = PLAIN,
) -> np.ndarray:
    """uint8 `[D, H, W]` class ids of a label map.

    Args:
      values: of the label map.
      num_foreground_classes: n; ids are 0..n.
      path: to name in messages.
      labels: which values mean what.

    Raises:
      InputError: values that are no whole numbers, or of no class.
    """
    found = np.unique(values)
    if np.any(found != np.floor(found)):
        raise InputError(
            f"{path}: the labels hold {_listing(found)}, which are no whole numbers: save class ids, and "
            "resample label maps with nearest neighbour."
        )
    try:
        return labels.from_file(values, num_foreground_classes)
    except ValueError as error:
        known = f"0..{num_foreground_classes}" if not labels.ids else str(labels.ids)
        raise InputError(
            f"{path}: the labels hold {_listing(found)}, but the classes have the ids {known}: correct the "
            "labels, or name all classes (class_names, class_ids, ignore_id)."
        ) from error


def write_labels(path: str | pathlib.Path, mask: np.ndarray, like: Volume) -> None:
    """Writes labels with the axes, affine and header of another NIfTI file.

    Args:
      path: ends with `.nii` or `.nii.gz`.
      mask: uint8 or uint16 `[D, H, W]` in canonical order.
      like: the volume that the labels belong to.
    """
    header = like.file.header.copy()
    header.set_data_dtype(mask.dtype)
    header["cal_min"], header["cal_max"] = 0, 0  # a CT's display window would show labels black
    stored = np.ascontiguousarray(like.orientation.to_stored(mask))
    image = like.file.__class__(stored, like.file.affine, header)
    image.header.set_slope_inter(1, 0)
    content = image.to_bytes()
    if str(path).lower().endswith(".gz"):
        content = gzip.compress(content, mtime=0)  # the same labels are the same bytes
    files.write_bytes(path, content)


def write_segmentation(
    path: str | pathlib.Path,
    mask: np.ndarray,
    like: Volume,
    class_names: Sequence[str],
    source: str = "",
) -> None:
    """Writes labels of a DICOM series as a DICOM segmentation.

    Args:
      path: ends with `.dcm`.
      mask: uint8 `[D, H, W]` class ids in canonical order.
      like: the series that they belong to.
      class_names: the foreground classes.
      source: which model drew them.
    """
    stored = like.orientation.to_stored(mask)
    dicom_segmentations.write(path, stored, like.file, class_names, source)


def _listing(values: np.ndarray) -> str:
    shown = ", ".join(map(mask_values.number_text, values[:8]))
    return f"the values {shown}" + ", ..." * (len(values) > 8)
