"""Label maps on a DICOM series: written as DICOM-SEG with highdicom, read from that or from PNG slices.

A mask is given to highdicom frame by frame beside the slices it was drawn on, so each frame takes its
place and directions from the header of its slice, and no sign is computed anew.
"""

import importlib.metadata
import io
import itertools
import pathlib
import re
import warnings
from collections.abc import Sequence

import numpy as np

from fewshotseg import files
from fewshotseg.data import dicom_files, image_files, mask_values
from fewshotseg.errors import InputError
from fewshotseg.labels import PLAIN, Labels

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def write(
    path: str | pathlib.Path,
    mask: np.ndarray,
    series: dicom_files.Series,
    class_names: Sequence[str],
    source: str = "",
) -> None:
    """Writes class ids as a DICOM segmentation (binary, a segment per class, all frames).

    Study, patient and frame of reference are those of the series. The UIDs follow from the series and
    the mask: the same labels are the same object.

    Args:
      path: of the file.
      mask: uint8 of the series' shape: slices in its order, rows, columns.
      series: that the labels belong to.
      class_names: of the ids 1, 2, ...; they become the segments' labels.
      source: which model, for the description.

    Raises:
      InputError: highdicom is not installed, or the series lacks what a segmentation has to say.
    """
    highdicom = _import_highdicom(path)
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid

    about = highdicom.AlgorithmIdentificationSequence(
        name="fewshotseg",
        family=codes.cid7162.ArtificialIntelligence,
        version=_version(),
        source="fewshotseg",
    )
    segments = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name[:64],
            segmented_property_category=codes.SCT.Tissue,
            segmented_property_type=codes.SCT.Tissue,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=about,
        )
        for number, name in enumerate(class_names, start=1)
    ]
    first = series.slices[0]
    entropy = [str(first.SeriesInstanceUID), mask.tobytes().hex(), *class_names]
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # small faults of the source's headers
            highdicom.seg.Segmentation(
                source_images=list(series.slices),
                pixel_array=np.ascontiguousarray(mask, dtype=np.uint8),
                segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
                segment_descriptions=segments,
                series_instance_uid=generate_uid(entropy_srcs=["series", *entropy]),
                series_number=int(first.get("SeriesNumber") or 0) + 1000,
                sop_instance_uid=generate_uid(entropy_srcs=["instance", *entropy]),
                instance_number=1,
                manufacturer="fewshotseg",
                manufacturer_model_name="fewshotseg",
                software_versions=_version(),
                device_serial_number="0",
                content_description=source[:64] or None,
                series_description="fewshotseg: " + ", ".join(class_names)[:50],
                omit_empty_frames=False,
            ).save_as(buffer)
    except (AttributeError, ValueError, TypeError) as error:
        raise InputError(
            f"{series.folder}: its headers do not suffice for a DICOM segmentation ({error}): convert the "
            "series to NIfTI (dcm2niix) and predict that."
        ) from error
    files.write_bytes(path, buffer.getvalue())


def read(path: str | pathlib.Path, class_names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Reads a DICOM segmentation: uint8 class ids, and the affine from their indices to mm in RAS+.

    Segments are known by their labels (upper and lower case, and blanks around them, are the same); where
    none of these is the name of a class, by their numbers.

    Raises:
      InputError: no segmentation, overlapping segments, frames that are no stack, unknown segments, or
        some whose labels are names of classes beside others.
    """
    highdicom = _import_highdicom(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = highdicom.seg.segread(path)
            volume = found.get_volume(combine_segments=True)
            described = {n: found.get_segment_description(n) for n in found.segment_numbers}
    except Exception as error:
        raise InputError(
            f"{path}: cannot be read as a DICOM segmentation of one volume "
            f"({str(error).splitlines()[0][:100]}): save the labels as one segmentation, or as NIfTI."
        ) from error
    names = {number: str(one.segment_label) for number, one in described.items()}
    known = {_folded(name): class_id for class_id, name in enumerate(class_names, start=1)}
    if len(known) < len(class_names):
        raise InputError(
            f"{path}: the classes {', '.join(class_names)} differ in upper and lower case or blanks alone: "
            "give them other names."
        )
    by_name = {n: known[_folded(name)] for n, name in names.items() if _folded(name) in known}
    ids = by_name or {n: n for n in names}
    if len(ids) < len(names) or max(ids.values(), default=0) > len(class_names):
        raise InputError(
            f"{path}: has the segments {', '.join(names.values())}, but the classes are "
            f"{', '.join(class_names)}: name the segments so."
        )
    table = np.zeros(max(ids, default=0) + 1, np.uint8)
    for number, class_id in ids.items():
        table[number] = class_id
    return table[volume.array], _LPS_TO_RAS @ volume.affine


def _folded(name: str) -> str:
    return name.strip().casefold()


def slices_of(folder: pathlib.Path) -> list[pathlib.Path]:
    """PNG files of a folder in the order of their names, in which 2 comes before 10."""
    paths = [p for p in folder.iterdir() if p.suffix.lower() == ".png" and p.name[0] != "."]
    return sorted(paths, key=lambda path: (_natural(path), path.name))


def _stem(path: pathlib.Path) -> str:
    """A name without its extension; what follows the last point of a UID is none."""
    return path.stem if path.suffix.lower() in (".png", ".dcm", ".ima") else path.name


def _natural(path: pathlib.Path) -> list[str | int]:
    """Texts and numbers of a name in turn, the first a text: any two such lists can be compared."""
    parts = re.split(r"(\d+)", _stem(path).casefold())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]


def _pair_slices(labels: Sequence[pathlib.Path], slices: Sequence[pathlib.Path]) -> list[int]:
    """Which slice each label belongs to, as many as there are: that of its name, else in order of names.

    Raises:
      InputError: names that have no order, such as '1' beside '01'.
    """
    by_stem = {_stem(path): index for index, path in enumerate(slices)}
    if by_stem.keys() == {_stem(path) for path in labels}:
        return [by_stem[_stem(path)] for path in labels]
    for paths in (labels, slices):
        in_order = sorted(paths, key=_natural)
        for a, b in itertools.pairwise(in_order):
            if _natural(a) == _natural(b):
                raise InputError(
                    f"{a}: nothing tells whether {a.name} or {b.name} comes first: call the label slices "
                    "as the DICOM files of the series."
                )
    places = sorted(range(len(slices)), key=lambda i: _natural(slices[i]))
    ranks = sorted(range(len(labels)), key=lambda i: _natural(labels[i]))
    return [place for _, place in sorted(zip(ranks, places, strict=True))]


def read_slices(
    folder: pathlib.Path,
    series: dicom_files.Series,
    num_foreground_classes: int,
    labels: Labels = PLAIN,
) -> np.ndarray:
    """Labels as pictures: uint8 class ids of the series' shape, read as masks of pictures are.

    Pictures belong to the DICOM files of the same names. Where the names are others, pictures in the
    order of their names belong to the DICOM files in the order of theirs, as in CHAOS; 2 comes before 10
    in both.

    Raises:
      InputError: as many pictures as slices are not there, one has another size, names without an order, or
        values that are no class ids.
    """
    paths = slices_of(folder)
    if len(paths) != len(series.paths):
        raise InputError(
            f"{folder}: has {len(paths)} label slices, but {series.folder} has {len(series.paths)} DICOM "
            "slices: give one picture per slice."
        )
    masks = []
    for path in paths:
        mask = image_files.read_mask([path])
        if mask.shape != series.shape[1:]:
            raise InputError(
                f"{path}: the label has {mask.shape[1]} x {mask.shape[0]} pixels, but the slices have "
                f"{series.shape[2]} x {series.shape[1]}: export the labels on the grid of the images."
            )
        masks.append(mask)
    ids = mask_values.mask_to_class_ids(np.stack(masks), num_foreground_classes, folder, labels)
    stacked = np.empty(series.shape, np.uint8)
    stacked[_pair_slices(paths, series.paths)] = ids
    return stacked


def _version() -> str:
    try:
        return importlib.metadata.version("fewshotseg")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _import_highdicom(path):
    try:
        import highdicom
    except ImportError as error:
        raise InputError(
            f"{path}: DICOM segmentations need highdicom: pip install 'fewshotseg[volumes]' (in a clone, "
            "'.[volumes]')."
        ) from error
    return highdicom
