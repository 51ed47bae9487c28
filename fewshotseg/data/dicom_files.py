"""A DICOM series, a folder of single slices, to one array with its place in the patient; pydicom.

The slices are put in order by where they lie, not by their names or numbers. A stack that is no
grid is refused, in place of being bent into one: every slice has to lie within `TOLERANCE` of a voxel
of where evenly spaced, parallel slices would have it.
"""

import collections
import dataclasses
import pathlib
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from fewshotseg.data import geometry
from fewshotseg.errors import InputError

TOLERANCE = 0.1  # of a voxel, along each axis: how far a slice may lie from its place
_PARALLEL = 1e-3  # largest difference between the direction cosines of two slices
_LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])
_COMPRESSED = (
    "{0}: pydicom cannot decode these slices ({1}): pip install pylibjpeg 'pylibjpeg-libjpeg' "
    "'pylibjpeg-openjpeg', or save the series uncompressed."
)


@dataclasses.dataclass(frozen=True)
class Series:
    """The headers of a series, its slices in order along their normal.

    Attributes:
      folder: of the files.
      paths: of the slices.
      slices: their data sets, without pixels.
      shape: of the stored array: slices, rows, columns.
      affine: float64 `[4, 4]`, from its indices to mm in RAS+, as of a NIfTI file.
    """

    folder: pathlib.Path
    paths: tuple[pathlib.Path, ...]
    slices: tuple[Any, ...]
    shape: tuple[int, int, int]
    affine: np.ndarray


def is_dicom(path: str | pathlib.Path) -> bool:
    """Whether a file is named `.dcm` or, without an extension, begins as DICOM files do."""
    path = pathlib.Path(path)
    if path.name.startswith(".") or not path.is_file():
        return False
    if path.suffix.lower() == ".dcm":
        return True
    named = path.suffix.lower() in ("", ".ima") or path.suffix[1:].isdigit()
    if not named or path.name == "DICOMDIR":
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def is_series(folder: str | pathlib.Path) -> bool:
    """Whether files of a series lie in a folder itself, not in its subfolders."""
    folder = pathlib.Path(folder)
    return folder.is_dir() and any(map(is_dicom, folder.iterdir()))


def read_header(folder: str | pathlib.Path) -> Series:
    """Reads the headers of a series and puts its slices in order.

    Files without a slice (reports, contours, segmentations) are left alone.

    Raises:
      InputError: pydicom is not installed, a file cannot be read, there are several series, frames in
        one file, colours, slices of several sizes or directions, a tilted gantry, missing slices, slices
        in one place, or uneven distances.
    """
    folder = pathlib.Path(folder)
    pydicom = _import_pydicom(folder)
    found, other_frames = [], None
    for path in sorted(filter(is_dicom, folder.iterdir())):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # headers are full of small faults
                one = pydicom.dcmread(path, stop_before_pixels=True)
                flat = "ImagePositionPatient" in one and "Rows" in one
        except Exception as error:  # pydicom raises almost anything on broken files
            raise InputError(
                f"{path}: not a readable DICOM file: copy it again from its source."
            ) from error
        if flat:
            found.append((path, one))
        elif "NumberOfFrames" in one and one.get("Modality") != "SEG":
            other_frames = path
    if not found:
        if other_frames:
            raise InputError(
                f"{other_frames}: holds many frames in one file (enhanced DICOM): save it with one slice "
                "per file, or as NIfTI (dcm2niix)."
            )
        raise InputError(
            f"{folder}: none of the DICOM files in this folder is a slice of a volume."
        )
    _refuse_mixture(folder, found)
    return _in_order(folder, found)


def read_values(series: Series) -> np.ndarray:
    """Pixels of a series, with slope and intercept: int16 if nothing is lost, else float32, `series.shape`.

    Raises:
      InputError: a slice that is truncated or cannot be decoded.
    """
    pydicom = _import_pydicom(series.folder)
    planes = []
    for path in series.paths:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                one = pydicom.dcmread(path)
                pixels = one.pixel_array.astype(np.float64)
        except (RuntimeError, NotImplementedError, ImportError) as error:
            raise InputError(_COMPRESSED.format(path, str(error).splitlines()[0][:80])) from error
        except Exception as error:
            raise InputError(
                f"{path}: truncated or damaged: copy the file again from its source."
            ) from error
        slope, intercept = (float(one.get(f"Rescale{f}") or d) for f, d in _RESCALING)
        planes.append(pixels * slope + intercept)
    values = np.stack(planes)
    limits = np.iinfo(np.int16)
    if (
        limits.min <= values.min()
        and values.max() <= limits.max
        and (values == values.round()).all()
    ):
        return values.astype(np.int16)
    return values.astype(np.float32)


_RESCALING = (("Slope", 1.0), ("Intercept", 0.0))


def _import_pydicom(path):
    try:
        import pydicom
    except ImportError as error:
        raise InputError(
            f"{path}: DICOM needs pydicom: pip install 'fewshotseg[volumes]' (in a clone, "
            "'.[volumes]')."
        ) from error
    return pydicom


def _refuse_mixture(folder: pathlib.Path, found: Sequence[tuple[pathlib.Path, Any]]) -> None:
    """What cannot be one volume, from the headers of its slices."""
    series = collections.Counter(str(one.get("SeriesInstanceUID", "")) for _, one in found)
    if len(series) > 1:
        names = {str(one.get("SeriesInstanceUID", "")): _described(one) for _, one in found}
        listed = ", ".join(f"{names[uid]} with {n} slices" for uid, n in series.most_common(3))
        raise InputError(
            f"{folder}: holds {len(series)} series ({listed}): give every series a folder of its own."
        )
    path, first = found[0]
    if int(first.get("SamplesPerPixel", 1)) != 1:
        raise InputError(f"{path}: holds colours: save one grey value per voxel.")
    if (
        len(first.get("PixelSpacing") or ()) != 2
        or len(first.get("ImageOrientationPatient") or ()) != 6
    ):
        raise InputError(
            f"{path}: does not say how large its pixels are and how they lie in the patient "
            "(PixelSpacing, ImageOrientationPatient): export the series again."
        )
    for other_path, other in found[1:]:
        if (other.Rows, other.Columns) != (first.Rows, first.Columns):
            raise InputError(
                f"{other_path}: has {other.Rows} x {other.Columns} pixels, but {path.name} has "
                f"{first.Rows} x {first.Columns}: give every series a folder of its own."
            )
        apart = _numbers(other, "ImageOrientationPatient", 6) - _numbers(
            first, "ImageOrientationPatient", 6
        )
        sizes = _numbers(other, "PixelSpacing", 2) - _numbers(first, "PixelSpacing", 2)
        if not (np.abs(apart) <= _PARALLEL).all() or not (np.abs(sizes) <= _PARALLEL).all():
            raise InputError(
                f"{other_path}: lies in another direction, or has pixels of another size, than "
                f"{path.name}: leave out localizers, and give every series a folder of its own."
            )


def _numbers(one, name: str, count: int) -> np.ndarray:
    values = one.get(name) or ()
    return np.array([float(v) for v in values] if len(values) == count else [np.nan] * count)


def _described(one) -> str:
    name = str(one.get("SeriesDescription") or "").strip() or "without a description"
    return f"number {one.get('SeriesNumber', '?')} ({name})"


def _in_order(folder: pathlib.Path, found: Sequence[tuple[pathlib.Path, Any]]) -> Series:
    first = found[0][1]
    cosines = _numbers(first, "ImageOrientationPatient", 6)
    along_columns, along_rows = cosines[3:], cosines[:3]  # where the row, the column index grows
    normal = np.cross(along_rows, along_columns)
    places = np.stack([_numbers(one, "ImagePositionPatient", 3) for _, one in found])
    if len(found) < 2 or not np.isfinite(places).all() or not np.linalg.norm(normal) > 0.9:
        raise InputError(
            f"{folder}: {len(found)} slice(s) that say where they lie make no volume: give a folder with "
            "a whole series."
        )
    order = np.argsort(places @ normal, kind="stable")
    places, found = places[order], [found[i] for i in order]
    pixels = _numbers(first, "PixelSpacing", 2)  # between rows, between columns
    _refuse_uneven(folder, places, normal, np.stack([along_columns, along_rows]), pixels)
    step = (places[-1] - places[0]) / (len(places) - 1)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([step, along_columns * pixels[0], along_rows * pixels[1]], axis=1)
    affine[:3, 3] = places[0]
    affine[:3] *= _LPS_TO_RAS[:, None]
    if fault := geometry.fault_of(affine):
        raise InputError(f"{folder}: the place of the slices {fault}: export the series again.")
    return Series(
        folder=folder,
        paths=tuple(path for path, _ in found),
        slices=tuple(one for _, one in found),
        shape=(len(found), int(first.Rows), int(first.Columns)),
        affine=affine,
    )


def _refuse_uneven(folder, places, normal, in_plane, pixels) -> None:
    """Slices that are no stack: in one place, missing, sheared by a tilted gantry, or uneven."""
    heights = (places - places[0]) @ normal
    gaps = np.diff(heights)
    usual = float(np.median(gaps))
    stated = f"(at most {TOLERANCE:g} of a voxel is accepted)"
    if gaps.min() <= TOLERANCE * usual or usual <= 0:
        twice = 1 + int(gaps.argmin())
        raise InputError(
            f"{folder}: slices {twice} and {twice + 1} from one end lie in the same place: give every time "
            "point, echo or reconstruction a folder of its own."
        )
    sideways = np.abs((places[-1] - places[0]) @ in_plane.T) / pixels
    if sideways.max() > TOLERANCE:
        slope = np.linalg.norm((places[-1] - places[0]) @ in_plane.T) / heights[-1]
        raise InputError(
            f"{folder}: the slices shift sideways by {np.degrees(np.arctan(slope)):.3g} degrees, "
            f"{sideways.max():.3g} pixels over the stack {stated}, as with a tilted gantry: resample the "
            "series to a straight grid (dcm2niix does) and give that file."
        )
    wide = int(gaps.argmax())
    missing = round(gaps[wide] / usual) - 1
    if missing and abs(gaps[wide] / usual - missing - 1) <= TOLERANCE:
        raise InputError(
            f"{folder}: {missing} slice(s) are missing between {wide + 1} and {wide + 2} from one end, a "
            f"gap of {gaps[wide]:.4g} mm where {usual:.4g} mm is usual {stated}: copy the whole series."
        )
    even = np.linspace(0.0, 1.0, len(places))[:, None] * (places[-1] - places[0])
    off = places - places[0] - even
    worst = max(np.abs(off @ normal).max() / usual, (np.abs(off @ in_plane.T) / pixels).max())
    if worst > TOLERANCE:
        raise InputError(
            f"{folder}: the slices lie unevenly, {gaps.min():.4g} to {gaps.max():.4g} mm apart, up to "
            f"{worst:.3g} of a voxel from an even stack {stated}: resample the series to even distances."
        )
