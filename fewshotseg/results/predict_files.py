"""Image files to mask files, at the size of the images."""

import collections
import csv
import dataclasses
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fewshotseg import figures, files
from fewshotseg.data import image_files as transforms
from fewshotseg.data.sources import folder
from fewshotseg.errors import InputError

PredictProbabilities = Callable[[np.ndarray], np.ndarray]
_TABLE = "areas.csv"
_COLUMNS = (
    "file",
    "class",
    "area_pixels",
    "share_of_image",
    "height",
    "width",
    "seconds",
    "mask",
    "notes",
    "error",
)


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A trained segmenter and all that is needed to use it on new images.

    Attributes:
      predict_probabilities: float32 `[B, S, S, C]` in [-1, 1] to `[B, S, S, K]` in [0, 1]; K is 1
        (foreground) for one class, else number of classes + 1, background first.
      image_size: S, in pixels.
      channels: C, 1 or 3.
      class_names: the foreground classes, with ids 1, 2, ...
      threshold: probability from which a pixel is foreground; only for K = 1.
      source: where the weights came from, for people to read.
    """

    predict_probabilities: PredictProbabilities
    image_size: int
    channels: int
    class_names: tuple[str, ...]
    threshold: float
    source: str


def segment_images(
    predictor: Predictor, images: Sequence[np.ndarray], names: Sequence[str], batch_size: int
) -> list[np.ndarray]:
    """Predicts masks at the original size of each image.

    The network always sees `batch_size` images, so that it is compiled for one shape only; the
    last batch is filled up with copies whose results are dropped.

    Args:
      predictor: a trained model.
      images: uint8 `[H, W, C]`, C is 1 or 3, sizes may differ.
      names: of the images, for messages.
      batch_size: of the network.

    Returns:
      uint8 `[H, W]` class ids, one per image.

    Raises:
      InputError: a probability is not finite; the message names the image.
      ValueError: the network returned another shape than `Predictor` describes.
    """
    masks = []
    for start in range(0, len(images), batch_size):
        chunk = images[start : start + batch_size]
        batch = np.stack(
            [
                transforms.to_network_image(i, predictor.image_size, predictor.channels)
                for i in chunk
            ]
        )
        missing = batch_size - len(chunk)
        batch = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)])
        probabilities = np.asarray(predictor.predict_probabilities(batch), np.float32)
        _check_shape(probabilities.shape, batch.shape, len(predictor.class_names))
        for j, image in enumerate(chunk):
            if not np.isfinite(probabilities[j]).all():
                raise InputError(
                    f"{names[start + j]}: the model predicts NaN or infinite values for this image."
                    " Its training has probably diverged: train again with a lower learning rate."
                )
            restored = transforms.restore_probabilities(probabilities[j], *image.shape[:2])
            masks.append(transforms.probabilities_to_mask(restored, predictor.threshold))
    return masks


def predict_files(
    predictor: Predictor,
    input_path: str | pathlib.Path,
    output_dir: str | pathlib.Path,
    *,
    batch_size: int,
    log: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Segments an image file, or all image files in a folder and its subfolders.

    Writes, under `output_dir`:
      masks/NAME.png: at the input's size; 0 and 255 for one class, class ids for several. Where two
        inputs differ in their extension only, NAME keeps it: `a.jpg.png`, `a.tif.png`.
      overlays/NAME.png: the outlines on the image, for looking at; large images are shrunk.
      areas.csv: a row per file and class, with the area in pixels, the share of the image, and the
        seconds spent on the file (reading, its part of the network's time, writing).

    Predicting again into the same folder replaces the masks and rows of the same files and keeps
    the others. A file that cannot be read gets a row whose `error` says why, and the others are
    done all the same. Nothing is written into the input folder.

    Args:
      predictor: a trained model.
      input_path: a file or a folder.
      output_dir: made if missing.
      batch_size: most images for the network at a time.
      log: receives lines for people: what is left out, and images per second.

    Returns:
      This call's rows of areas.csv, as dicts.

    Raises:
      InputError: no input there, an output folder that is in the input folder or that holds masks
        from elsewhere, a full disk, or a prediction that is not finite.
    """
    paths, root = _list_files(pathlib.Path(input_path), log)
    output_dir = pathlib.Path(output_dir)
    earlier = _open_output(output_dir, root, is_folder=pathlib.Path(input_path).is_dir())
    batch_size = max(1, min(batch_size, len(paths)))
    network = _Timed(predictor.predict_probabilities)
    timed = dataclasses.replace(predictor, predict_probabilities=network)
    side = predictor.image_size
    network(np.zeros((batch_size, side, side, predictor.channels), np.float32))
    compile_seconds, network.seconds = network.seconds, 0.0
    started, rows = time.perf_counter(), []
    keys = [path.relative_to(root).as_posix() for path in paths]
    targets = _target_names(keys, earlier)
    again = len(set(keys) & {row["file"] for row in earlier})
    if again:
        log(f"{again} file(s) were predicted into {output_dir} before; their masks are replaced.")
    try:
        for start in range(0, len(paths), batch_size):
            part = slice(start, start + batch_size)
            rows += _predict_batch(timed, paths[part], keys[part], targets, output_dir, batch_size)
    finally:  # an interrupted run still accounts for the masks that it wrote
        new = {row["file"] for row in rows}
        files.write_rows(
            output_dir / _TABLE, [r for r in earlier if r["file"] not in new] + rows, _COLUMNS
        )
    done = len({row["file"] for row in rows if not row["error"]})
    total = max(time.perf_counter() - started, 1e-9)
    log(
        f"{done} of {len(paths)} images in {total:.2f} s: {done / total:.1f} images per second "
        f"with reading and writing, {done / max(network.seconds, 1e-9):.1f} in the network alone "
        f"(first call with compilation, {compile_seconds:.2f} s, not counted). "
        + ("Masks hold 0 and 255." if len(predictor.class_names) == 1 else "Masks hold class ids.")
    )
    return rows


class _Timed:
    """A network that knows how long it has worked."""

    def __init__(self, function: PredictProbabilities):
        self.function, self.seconds = function, 0.0

    def __call__(self, images: np.ndarray) -> np.ndarray:
        started = time.perf_counter()
        probabilities = np.asarray(self.function(images))
        self.seconds += time.perf_counter() - started
        return probabilities


def _check_shape(found, wanted, num_foreground: int) -> None:
    allowed = (1, 2) if num_foreground == 1 else (num_foreground + 1,)
    if found[:-1] != wanted[:-1] or found[-1] not in allowed:
        raise ValueError(f"network returned {found} for {wanted} and {num_foreground} class(es)")


def _list_files(input_path: pathlib.Path, log) -> tuple[list[pathlib.Path], pathlib.Path]:
    """Files to segment, and the folder that their names are relative to."""
    if input_path.is_file():
        return [input_path], input_path.parent
    if not input_path.is_dir():
        raise InputError(f"{input_path}: there is no such file or folder. Check --input.")
    files, others = [], []
    for path in sorted(input_path.rglob("*")):
        if not path.is_file():
            continue
        hidden = any(part.startswith(".") for part in path.relative_to(input_path).parts)
        known = transforms.extension_of(path) in transforms.EXTENSIONS
        # A format that we do not read gets an error row: it is an image that would be missed.
        wanted = not hidden and (known or transforms.unsupported_hint(path))
        (files if wanted else others).append(path)
    stems = {path.with_suffix("") for path in files}
    masks = [path for path in files if folder.is_mask_of(path, stems)]
    files = [path for path in files if path not in set(masks)]
    if masks:
        log(f"{len(masks)} masks lie beside their images and are left alone, e.g. {masks[0].name}")
    if not files:
        raise InputError(
            f"{input_path}: there are no images in this folder "
            f"({', '.join(transforms.EXTENSIONS)}). Check --input."
        )
    if others:
        names = ", ".join(path.name for path in others[:5]) + (", ..." if len(others) > 5 else "")
        log(f"{len(others)} file(s) that are no images are left alone: {names}")
    return files, input_path


def _open_output(output_dir: pathlib.Path, root: pathlib.Path, *, is_folder: bool) -> list[dict]:
    """Makes the output folder; returns the rows of earlier runs into it."""
    inside = output_dir.resolve() == root.resolve()
    if inside or (is_folder and root.resolve() in output_dir.resolve().parents):
        raise InputError(
            f"{output_dir}: the output folder is in the input folder. Choose another --output, so "
            "that originals and predictions stay apart."
        )
    table = output_dir / _TABLE
    earlier: list[dict] = []
    if table.is_file():
        with open(table, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            earlier = list(reader)
        if tuple(reader.fieldnames or ()) != _COLUMNS:
            raise InputError(f"{table}: is no table of predictions. Choose another --output.")
    elif any((output_dir / name).exists() for name in ("masks", "overlays")):
        raise InputError(
            f"{output_dir}: has masks or overlays that were not written by a prediction (there is "
            f"no {_TABLE} beside them). Choose another --output, so that nothing is overwritten."
        )
    files.write_rows(output_dir / _TABLE, earlier, _COLUMNS)
    return earlier


def _target_names(keys: Sequence[str], earlier: Sequence[dict]) -> dict[str, str]:
    """PNG name by file; files that differ in their extension only keep it in the name."""
    stems = [_stem(key).casefold() for key in keys]
    counts = collections.Counter(stems)
    owners = {row["mask"].removeprefix("masks/"): row["file"] for row in earlier if row["mask"]}
    names = {file: name for name, file in owners.items() if file in set(keys)}
    for key, stem in zip(keys, stems, strict=True):
        candidates = [] if counts[stem] > 1 else [f"{_stem(key)}.png"]
        candidates += [f"{key}.png", *(f"{key}.{n}.png" for n in range(2, len(keys) + 3))]
        if key not in names:
            names[key] = next(name for name in candidates if owners.get(name, key) == key)
        owners[names[key]] = key
    return names


def _stem(key: str) -> str:
    return key[: len(key) - len(pathlib.PurePosixPath(key).suffix)]


def _predict_batch(predictor, files, keys, targets, output_dir, batch_size) -> list[dict[str, Any]]:
    """Reads, segments and writes at most one batch."""
    images, notes, seconds, errors = {}, {}, {}, {}
    for path, key in zip(files, keys, strict=True):
        started = time.perf_counter()
        try:
            images[key], notes[key] = transforms.read_image(path)
        except InputError as error:
            errors[key] = str(error)
        seconds[key] = time.perf_counter() - started
    started = time.perf_counter()
    masks = segment_images(predictor, list(images.values()), list(images), batch_size)
    share = (time.perf_counter() - started) / max(1, len(images))
    by_key = dict(zip(images, masks, strict=True))
    rows = []
    for key in keys:
        if key in errors:
            rows.append({**dict.fromkeys(_COLUMNS, ""), "file": key, "error": errors[key]})
            continue
        started, mask = time.perf_counter(), by_key[key]
        scale = 255 if len(predictor.class_names) == 1 else 1
        figures.save_image(mask * np.uint8(scale), output_dir / "masks" / targets[key])
        figures.save_overlay(images[key], mask, output_dir / "overlays" / targets[key])
        spent = seconds[key] + share + time.perf_counter() - started
        rows += _area_rows(key, mask, predictor.class_names, spent, targets[key], notes[key])
    return rows


def _area_rows(key, mask, class_names, seconds, target, notes) -> list[dict[str, Any]]:
    rows = []
    for class_id, name in enumerate(class_names, start=1):
        area = int(np.count_nonzero(mask == class_id))
        values = (
            key,
            name,
            area,
            round(area / mask.size, 6),
            *mask.shape,
            round(seconds, 4),
            f"masks/{target}",
            "; ".join(notes),
            "",
        )
        rows.append(dict(zip(_COLUMNS, values, strict=True)))
    return rows
