"""NIfTI files to arrays in canonical order, and label maps back into files, with nibabel.

Values keep their stored type (with a scale in the header: float32) until `GreyValues` brings them to
the 0..255 that all images of this package have. A file's own axes, affine and header are kept beside
them, and what is written for a file has these.
"""

import dataclasses
import gzip
import pathlib
from typing import Any

import numpy as np

from fewshotseg import files
from fewshotseg.data import geometry
from fewshotseg.errors import InputError
from fewshotseg.labels import PLAIN, Labels

EXTENSIONS = (".nii", ".nii.gz")
MAX_VOXELS = 10**9  # a header can claim any size
SHIFT = 0.1  # of a voxel: how far a corner of a label map may lie from that of its image


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
      file: the nibabel image, for its class, header and affine; its data are not held.
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


def stem_of(path: str | pathlib.Path) -> str:
    """A file's name without `.nii` or `.nii.gz`."""
    name = pathlib.Path(path).name
    name = name[:-3] if name.lower().endswith(".gz") else name
    return name[:-4] if name.lower().endswith(".nii") else name


def read_header(path: str | pathlib.Path) -> Any:
    """A file as a nibabel image of three axes whose values have not been read.

    Raises:
      InputError: nibabel is not installed, the file is missing, empty or no NIfTI, has four axes, or an
        affine that places it nowhere.
    """
    path = pathlib.Path(path)
    try:
        import nibabel
    except ImportError as error:
        raise InputError(
            f"{path}: volumes need nibabel: pip install 'fewshotseg[volumes]' (in a clone, "
            "'.[volumes]')."
        ) from error
    if not path.is_file():
        raise InputError(f"{path}: there is no such file.")
    try:
        image = nibabel.load(path)
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
        raise InputError(
            f"{path}: the file has {axes} axes ({' x '.join(map(str, shape))}), but a volume has three: "
            "save each time point or channel as a file of its own."
        )
    if not 0 < np.prod(shape, dtype=float) <= MAX_VOXELS:
        raise InputError(
            f"{path}: the header speaks of {' x '.join(map(str, shape))} voxels, but 1 to "
            f"{MAX_VOXELS} are read: crop the volume."
        )
    if fault := geometry.fault_of(affine):
        raise InputError(f"{path}: the affine in the header {fault}: export the volume again.")
    return image


def read_volume(path: str | pathlib.Path) -> Volume:
    """Reads a volume.

    Raises:
      InputError: as for `read_header`, or the file is truncated, holds no numbers, or NaN or infinity.
    """
    image = read_header(path)
    shape = tuple(image.shape[:3])
    try:
        values = np.asanyarray(image.dataobj).reshape(shape)
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


def to_class_ids(
    volume: Volume,
    num_foreground_classes: int,
    path: str | pathlib.Path,
    labels: Labels = PLAIN,
):
    """uint8 `[D, H, W]` class ids of a label map.

    Args:
      volume: of the label map.
      num_foreground_classes: n; ids are 0..n.
      path: to name in messages.
      labels: which values mean what.

    Raises:
      InputError: values that are no whole numbers, or of no class.
    """
    found = np.unique(volume.values)
    if np.any(found != np.floor(found)):
        raise InputError(
            f"{path}: the labels hold {_listing(found)}, which are no whole numbers: save class ids, and "
            "resample label maps with nearest neighbour."
        )
    try:
        return labels.from_file(volume.values, num_foreground_classes)
    except ValueError as error:
        known = f"0..{num_foreground_classes}" if not labels.ids else str(labels.ids)
        raise InputError(
            f"{path}: the labels hold {_listing(found)}, but the classes have the ids {known}: correct the "
            "labels, or name all classes (class_names, class_ids, ignore_id)."
        ) from error


def check_same_grid(image_path, label_path) -> None:
    """Looks at the headers of an image and its labels.

    Raises:
      InputError: as for `read_header`, or they differ in size, or by more than a tenth of a voxel
        (`SHIFT`) in where they lie in the patient.
    """
    image, label = read_header(image_path), read_header(label_path)
    shape, other = image.shape[:3], label.shape[:3]
    name = pathlib.Path(image_path).name
    if shape != other:
        raise InputError(
            f"{label_path}: the labels have {' x '.join(map(str, other))} voxels, but their image {name} "
            f"has {' x '.join(map(str, shape))}: export the labels on the grid of the image."
        )
    shift = geometry.largest_shift(image.affine, label.affine, shape)
    if shift > SHIFT:
        raise InputError(
            f"{label_path}: the affine of the labels is not that of their image {name}: corners are up to "
            f"{shift:.3g} voxels apart (at most {SHIFT:g} is accepted): export the labels on the grid "
            "of the image."
        )


def write_labels(path: str | pathlib.Path, mask: np.ndarray, like: Volume) -> None:
    """Writes class ids with the axes, affine and header of another file.

    Args:
      path: ends with `.nii` or `.nii.gz`.
      mask: uint8 or uint16 `[D, H, W]` in canonical order.
      like: the volume that the ids belong to.
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


def _listing(values: np.ndarray) -> str:
    shown = ", ".join(f"{value:g}" for value in values[:8])
    return f"the values {shown}" + ", ..." * (len(values) > 8)
