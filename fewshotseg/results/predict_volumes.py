"""NIfTI files and DICOM series to label maps that lie exactly on them."""

import collections
import io
import pathlib
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fewshotseg import figures, files
from fewshotseg.data import canvas, dicom_files, image_files, label_files, volume_files, walk
from fewshotseg.errors import InputError
from fewshotseg.results import surfaces
from fewshotseg.results.prediction_folder import manifest, open_output, remove, values_text
from fewshotseg.results.predictor import Predictor, probabilities_of

_TABLE, _MANIFEST = "volumes.csv", "manifest.json"
_CHANNEL, _MOST_CHANNELS = re.compile(r"(.+)_(\d{4})"), 10
_COLUMNS = (
    "file",
    "class",
    "voxels",
    "volume_ml",
    "surface_mm2",
    "share_of_image",
    "depth",
    "height",
    "width",
    "spacing_mm",
    "seconds",
    "mask",
    "error",
)


def predict_volumes(
    predictor: Predictor,
    input_path: str | pathlib.Path,
    output_dir: str | pathlib.Path,
    *,
    overlays: bool = True,
    probabilities: bool = False,
    log: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Segments a NIfTI file or a DICOM series, or all of them in a folder, one at a time.

    A folder that holds DICOM files itself is one series. Of CASE_0000, CASE_0001, ... beside each other the
    channel of the model is taken.

    Writes, under `output_dir`:
      masks/NAME: the values of the training's label maps, uint8 (uint16 if they need it), with the axes,
        affine and header of the input, called like it; of the series in the folder NAME, masks/NAME.dcm, a
        DICOM segmentation.
      overlays/NAME.png, if wanted: outlines on three planes, for looking at and not for measuring.
      probabilities/NAME.npy, if wanted: float32 `[X, Y, Z, K]` in the input's order of axes.
      volumes.csv: a row per file and class, with voxels, millilitres and the area of the surface; a
        file that cannot be read gets a row whose `error` says why.
      manifest.json: which model, which versions, how many files, and the seconds of every stage.

    Predicting again into the same folder replaces what belongs to the same files; one that cannot be read
    any more keeps nothing.

    Args:
      predictor: a model of volumes.
      input_path: a NIfTI file, a folder with a series, or a folder of both.
      output_dir: made if missing.
      overlays: whether to draw them.
      probabilities: whether to write them.
      log: receives lines for people.

    Returns:
      This call's rows of volumes.csv, as dicts.

    Raises:
      InputError: no volumes there, an output folder that is in the input folder or that holds masks
        from elsewhere, a full disk, or a prediction that is not finite.
    """
    input_path, output_dir = pathlib.Path(input_path), pathlib.Path(output_dir)
    paths = _list_files(input_path, predictor.channel, log)
    root = input_path if input_path.is_dir() else input_path.parent
    earlier = open_output(
        output_dir, root, is_folder=input_path.is_dir(), table_name=_TABLE, columns=_COLUMNS
    )
    rows: list[dict[str, Any]] = []
    spent = dict.fromkeys(("reading", "segmenting", "writing"), 0.0)
    started = time.perf_counter()
    try:
        for key, path in paths.items():
            try:
                rows += _predict_one(
                    predictor, path, key, output_dir, overlays, probabilities, spent
                )
            except _Unreadable as fault:
                rows.append({**dict.fromkeys(_COLUMNS, ""), "file": key, "error": str(fault)})
                before = {row["mask"] for row in earlier if row["file"] == key and row["mask"]}
                others = (f"overlays/{key}.png", f"probabilities/{key}.npy") if before else ()
                remove(output_dir, [*before, *others])
                log(str(fault))
    finally:  # an interrupted run still accounts for the masks that it wrote
        new = {row["file"] for row in rows}
        kept = [row for row in earlier if row["file"] not in new]
        files.write_rows(output_dir / _TABLE, kept + rows, _COLUMNS)
    done = len({row["file"] for row in rows if not row["error"]})
    total = time.perf_counter() - started
    about = manifest(predictor, done, len(paths) - done, total, spent)
    files.write_json(output_dir / _MANIFEST, about)
    log(
        f"{done} of {len(paths)} volumes in {total:.1f} s, with compilation. Masks hold "
        f"{values_text(predictor)}, and lie on their images."
    )
    return rows


class _Unreadable(InputError):
    """A file that gets a row with an error, in place of ending everything."""


def _list_files(input_path: pathlib.Path, channel: int, log) -> dict[str, pathlib.Path]:
    """Files and folders of series, by what they are called in the table."""
    if input_path.is_file():
        if dicom_files.is_dicom(input_path):
            raise InputError(
                f"{input_path}: is one slice of a DICOM series: give the folder of the series."
            )
        if image_files.extension_of(input_path) in image_files.EXTENSIONS:
            raise InputError(
                f"{input_path}: the model segments volumes, not pictures. Check --input."
            )
        return {walk.readable(input_path.name): input_path}
    if not input_path.is_dir():
        raise InputError(f"{input_path}: there is no such file or folder. Check --input.")
    if dicom_files.is_series(input_path):
        return {walk.readable(input_path.absolute().name): input_path}
    folders = list(walk.walk(input_path))
    every = [folder / name for folder, names in folders for name in names]
    found = [path for path in every if volume_files.is_volume(path)]
    found += [folder for folder, _ in folders if dicom_files.is_series(folder)]
    if not found:
        pictures = [p for p in every if p.suffix in image_files.EXTENSIONS]
        why = "; the model segments volumes, not pictures" if pictures else ""
        raise InputError(
            f"{input_path}: there are no .nii, .nii.gz or .dcm files in this folder{why}. Check --input."
        )
    found = _of_channel(sorted(found), channel, log)
    return {walk.readable(path.relative_to(input_path).as_posix()): path for path in found}


def _of_channel(paths: Sequence[pathlib.Path], channel: int, log) -> list[pathlib.Path]:
    """Without the other channels of the same cases, CASE_0000 and CASE_0001.

    Numbers are taken for channels where they run from 0000 without a gap, to 0009 at most, and the files
    lie on one grid: patient_0001 to patient_0050 are cases.
    """
    cases, others = collections.defaultdict(dict), []
    for path in paths:
        match = _CHANNEL.fullmatch(volume_files.stem_of(path))
        if match and not path.is_dir():
            cases[path.parent, match[1]][int(match[2])] = path
    for files_of_case in cases.values():
        run = set(files_of_case) == set(range(len(files_of_case)))
        if run and channel in files_of_case and 1 < len(files_of_case) <= _MOST_CHANNELS:
            if len({_grid(path) for path in files_of_case.values()}) == 1:
                others += [path for number, path in files_of_case.items() if number != channel]
    if others:
        log(
            f"{len(others)} file(s) are other channels of cases whose channel {channel:04d} is segmented, "
            f"and are left alone, e.g. {others[0].name}: one that is a case can be given as --input."
        )
    return [path for path in paths if path not in set(others)]


def _grid(path: pathlib.Path) -> object:
    """Where the voxels of a file lie; the path itself if nothing tells."""
    try:
        header = volume_files.read_header(path)
    except InputError:
        return path
    return tuple(header.shape), header.affine.round(3).tobytes()


def _predict_one(predictor, path, key, folder, overlays, wants_probabilities, spent):
    """Rows of one file."""
    started = time.perf_counter()
    try:
        if not walk.is_readable(path):
            raise InputError(f"{walk.readable(path)}: {walk.NOT_UTF8}.")
        volume = volume_files.read_volume(path)
    except InputError as error:
        raise _Unreadable(str(error)) from error
    image = predictor.grey_values(volume.values)[..., None]
    read = time.perf_counter()
    (found,) = probabilities_of(predictor, [image], [key], 1, [volume.spacing])
    mask = canvas.probabilities_to_mask(found, predictor.threshold)
    segmented = time.perf_counter()
    if path.is_dir():
        name, about = f"{key}.dcm", (predictor.class_names, predictor.source)
        label_files.write_segmentation(folder / "masks" / name, mask, volume, *about)
    else:
        name = key
        label_files.write_labels(folder / "masks" / name, predictor.written(mask), volume)
    if overlays:
        figures.save_overlay(
            image, mask, folder / "overlays" / f"{key}.png", spacing=volume.spacing
        )
    if wants_probabilities:
        buffer = io.BytesIO()
        np.save(buffer, volume.orientation.to_stored(found))
        files.write_bytes(folder / "probabilities" / f"{key}.npy", buffer.getvalue())
    ends = (started, read, segmented, time.perf_counter())
    for stage, a, b in zip(spent, ends[:-1], ends[1:], strict=True):
        spent[stage] += b - a
    return _rows(key, name, mask, volume, predictor.class_names, ends[-1] - ends[0])


def _rows(key, file, mask, volume, class_names: Sequence[str], seconds) -> list[dict[str, Any]]:
    millilitres = abs(np.linalg.det(volume.affine[:3, :3])) / 1000.0  # of a voxel
    spacing = " x ".join(f"{step:g}" for step in volume.spacing)
    rows = []
    for class_id, name in enumerate(class_names, start=1):
        of_class = mask == class_id
        voxels = int(np.count_nonzero(of_class))
        surface = surfaces.area(of_class, volume.spacing)
        values = (
            *(key, name, voxels, round(voxels * millilitres, 6), round(surface, 3)),
            *(round(voxels / mask.size, 6), *mask.shape, spacing, round(seconds, 4)),
            *(f"masks/{file}", ""),
        )
        rows.append(dict(zip(_COLUMNS, values, strict=True)))
    return rows
