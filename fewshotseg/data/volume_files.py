"""NIfTI files (with nibabel) and DICOM series (a folder each) to arrays in canonical order.

Values keep their stored type (with a scale in the header: float32) until `GreyValues` brings them to
the 0..255 that all images of this package have. A file's own axes, affine and header are kept beside
them, and what `label_files` writes for it has these.
"""

import contextlib
import dataclasses
import gzip
import pathlib
from typing import Any

import numpy as np

from fewshotseg import files
from fewshotseg.data import dicom_files, geometry
from fewshotseg.errors import InputError

EXTENSIONS = (".nii", ".nii.gz")
MAX_VOXELS = 10**9  # a header can claim any size


@dataclasses.dataclass(frozen=True)
class GreyValues:
    """From stored values to grey values.

    Attributes:
      window: the stored values that become black and white, such as (-160, 240) HU for soft tissue in
        CT; two equal numbers for `percentiles`.
      percentiles: of each volume's own values, in place of a window: robust against single bright
        voxels, and for modalities without a unit, such as MR.

    Raises:
      InputError: no two numbers in ascending order.
    """

    window: tuple[float, ...] = (0.0, 0.0)
    percentiles: tuple[float, ...] = (0.5, 99.5)

    def __post_init__(self):
        for field in ("window", "percentiles"):
            values = tuple(getattr(self, field))
            if len(values) != 2 or values[0] > values[1]:
                raise InputError(
                    f"data.volumes.{field} is {values!r}: give two numbers, the lower one first."
                )

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Numbers of any shape to float32 in [0, 255], not rounded; all 0 where all are the same."""
        values = np.asarray(values, np.float32)
        low, high = self.window
        if low == high:
            low, high = np.percentile(values, self.percentiles)
        if high <= low:  # nearly all voxels are the same: what remains are the few others
            low, high = values.min(), values.max()
        scale = 255.0 / max(float(high) - float(low), 1e-12)
        return np.clip((values - np.float32(low)) * np.float32(scale), 0.0, 255.0)


@dataclasses.dataclass(frozen=True)
class Volume:
    """A file's contents.

    Attributes:
      values: `[D, H, W]` in canonical order, in the stored type.
      affine: float64 `[4, 4]`, from the indices of `values` to mm.
      orientation: how `values` came from the stored array.
      file: the nibabel image, for its class, header and affine, or the `dicom_files.Series`; its data are
        not held.
    """

    values: np.ndarray
    affine: np.ndarray
    orientation: geometry.Orientation
    file: Any

    @property
    def spacing(self) -> tuple[float, ...]:
        """Of the voxels along D, H and W, in mm."""
        return geometry.spacing_of(self.affine)


def is_volume(path: str | pathlib.Path) -> bool:
    """Whether the name of a file is that of a NIfTI file that is not hidden."""
    name = pathlib.Path(path).name.lower()
    return name.endswith(EXTENSIONS) and not name.startswith(".")


def list_volumes(folder: pathlib.Path) -> list[pathlib.Path]:
    """NIfTI files of a folder, and its subfolders that hold a DICOM series, sorted."""
    return sorted(
        path for path in folder.iterdir() if is_volume(path) or dicom_files.is_series(path)
    )


def stem_of(path: str | pathlib.Path) -> str:
    """A file's name without `.nii` or `.nii.gz`; the whole name of a folder."""
    name = pathlib.Path(path).name
    name = name[:-3] if name.lower().endswith(".gz") else name
    return name[:-4] if name.lower().endswith(".nii") else name


def read_header(path: str | pathlib.Path, data: bytes | None = None) -> Any:
    """A file as a nibabel image of three axes whose values have not been read.

    Of the folder of a DICOM series, its `dicom_files.Series`, which has `shape` and `affine` too.

    Args:
      path: of the file or folder.
      data: what the file holds, where that came another way; then `path` only names it in messages.

    Raises:
      InputError: nibabel is not installed, the file is missing, empty or no NIfTI, has four axes, an affine
        that places it nowhere, or another unit than mm; or as for `dicom_files.read_header`.
    """
    path = pathlib.Path(path)
    if data is None and path.is_dir():
        return dicom_files.read_header(path)
    try:
        import nibabel
    except ImportError as error:
        raise InputError(
            f"{path}: volumes need nibabel: pip install 'fewshotseg[volumes]' (in a clone, "
            "'.[volumes]')."
        ) from error
    if data is None and not path.is_file():
        raise InputError(f"{path}: there is no such file.")
    try:
        image = nibabel.load(path) if data is None else _from_bytes(data)
        shape, affine = tuple(map(int, image.shape)), image.affine
    except PermissionError as error:
        raise InputError(f"{path}: no permission to read this file.") from error
    except Exception as error:  # readers raise almost anything on broken files
        raise InputError(
            f"{path}: not a readable NIfTI file: copy it again from its source."
        ) from error
    axes = len(shape)
    while axes > 3 and shape[axes - 1] == 1:
        axes -= 1
    if axes != 3 or not isinstance(image, nibabel.Nifti1Image):
        remedy = "save each time point or channel as a file of its own"
        if axes < 3:
            remedy = "give the whole volume, and labels of all its slices"
        raise InputError(
            f"{path}: the file has {axes} axes ({' x '.join(map(str, shape))}), but a volume has three: "
            f"{remedy}."
        )
    if not 0 < np.prod(shape, dtype=float) <= MAX_VOXELS:
        raise InputError(
            f"{path}: the header speaks of {' x '.join(map(str, shape))} voxels, but 1 to "
            f"{MAX_VOXELS} are read: crop the volume."
        )
    if fault := geometry.fault_of(affine):
        raise InputError(f"{path}: the affine in the header {fault}: export the volume again.")
    with contextlib.suppress(KeyError):  # a number that stands for no unit
        if (unit := image.header.get_xyzt_units()[0]) in ("micron", "meter"):
            raise InputError(f"{path}: the unit in the header is {unit}: save it in mm.")
    return image


def _from_bytes(data: bytes) -> Any:
    import nibabel

    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    return nibabel.Nifti1Image.from_bytes(data)


def read_volume(path: str | pathlib.Path, data: bytes | None = None) -> Volume:
    """Reads a volume; arguments as for `read_header`.

    Raises:
      InputError: as for `read_header`, or the file is truncated, holds no numbers, or NaN or infinity.
    """
    image = read_header(path, data)
    shape = tuple(image.shape[:3])
    try:
        if isinstance(image, dicom_files.Series):
            values = dicom_files.read_values(image)
        else:
            values = np.asanyarray(image.dataobj).reshape(shape)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{path}: truncated or damaged: copy the file again from its source."
        ) from error
    if values.dtype.kind not in "iuf":
        raise InputError(
            f"{path}: holds colours or complex numbers: save one grey value per voxel."
        )
    if values.dtype.kind == "f":
        values = values.astype(np.float32, copy=False)
        if not np.isfinite(values).all():
            raise InputError(
                f"{path}: holds NaN or infinite values: replace them and save it again."
            )
    orientation = geometry.closest_orientation(image.affine)
    return Volume(
        values=np.ascontiguousarray(orientation.to_canonical(values)),
        affine=orientation.canonical_affine(image.affine, shape),
        orientation=orientation,
        file=image,
    )


def write_volume(
    path: str | pathlib.Path, values: np.ndarray, affine: np.ndarray, comment: str = ""
) -> None:
    """Writes a volume that no file was read for, compressed.

    Args:
      path: ends with `.nii.gz`.
      values: uint8 `[D, H, W]`.
      affine: float64 `[4, 4]` from its indices to mm in the patient.
      comment: for the header, at most 79 letters.
    """
    import nibabel

    image = nibabel.Nifti1Image(np.ascontiguousarray(values), affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = comment.encode()[:79]
    files.write_bytes(path, gzip.compress(image.to_bytes(), mtime=0))
