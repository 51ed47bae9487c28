"""Image files to mask files, at the size of the images."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import io
import pathlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fewshotseg import figures, files
from fewshotseg.data import canvas, image_files, walk
from fewshotseg.data.sources import pairing
from fewshotseg.errors import InputError
from fewshotseg.results.prediction_folder import manifest, open_output, remove, values_text
from fewshotseg.results.predictor import Predictor, PredictProbabilities, probabilities_of

_TABLE, _MANIFEST = "areas.csv", "manifest.json"
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


def predict_files(
    predictor: Predictor,
    input_path: str | pathlib.Path,
    output_dir: str | pathlib.Path,
    *,
    batch_size: int,
    overlays: bool = True,
    probabilities: bool = False,
    workers: int = 2,
    log: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Segments an image file, or all image files in a folder and its subfolders.

    Writes, under `output_dir`:
      masks/NAME.png: at the input's size; the values that the training masks have for the classes (0 and
        255 for one class, else 0, 1, 2, ..., unless the configuration says otherwise). Where two
        inputs differ in their extension only, NAME keeps it: `a.jpg.png`, `a.tif.png`.
      overlays/NAME.png, if wanted: the outlines on the image, for looking at and not for measuring;
        large images are shrunk.
      probabilities/NAME.npy, if wanted: float32 `[H, W, K]`, see `Predictor`, for NumPy.
      areas.csv: a row per file and class, with the area in pixels, the share of the image, and the
        seconds spent on the file (reading, its part of the network's time, writing).
      manifest.json: which model, which versions, how many files, and the seconds of every stage, those of
        all workers added.

    Predicting again into the same folder replaces the masks and rows of the same files and keeps
    the others. A file that cannot be read gets a row whose `error` says why (and keeps no mask of an
    earlier call), and the others are done all the same; what the header of a file tells is said before the
    network is compiled. Nothing is written into the input folder.

    Args:
      predictor: a trained model.
      input_path: a file or a folder.
      output_dir: made if missing.
      batch_size: most images for the network at a time.
      overlays: whether to draw them; most of the time of a small image is spent on that.
      probabilities: whether to write them.
      workers: batches at a time: one is read or written while another is with the network. On CPUs several
        may be with the network, too; accelerators get one after the other.
      log: receives lines for people: what is left out, and images per second.

    Returns:
      This call's rows of areas.csv, as dicts.

    Raises:
      InputError: no input there, an output folder that is in the input folder or that holds masks
        from elsewhere, a full disk, or a prediction that is not finite.
    """
    paths, root = _list_files(pathlib.Path(input_path), log)
    output_dir = pathlib.Path(output_dir)
    is_folder = pathlib.Path(input_path).is_dir()
    earlier = open_output(
        output_dir, root, is_folder=is_folder, table_name=_TABLE, columns=_COLUMNS
    )
    keys = [walk.readable(path.relative_to(root).as_posix()) for path in paths]
    rows = _unreadable(paths, keys, log)
    broken = {row["file"] for row in rows}
    good = [(p, k) for p, k in zip(paths, keys, strict=True) if k not in broken]
    batch_size = max(1, min(batch_size, len(good)))
    network = _Timed(predictor.predict_probabilities)
    timed = dataclasses.replace(predictor, predict_probabilities=network)
    if good:
        size = canvas.as_size(predictor.image_size)
        network(np.zeros((batch_size, *size, predictor.channels), np.float32))
    compile_seconds = network.take_seconds()
    started = time.perf_counter()
    writer = _Writer(timed, output_dir, _target_names(keys, earlier), overlays, probabilities)
    before = {row["file"]: row["mask"] for row in earlier if row["mask"]}
    again = sum(key in before for _, key in good)
    if again:
        log(f"{again} file(s) were predicted into {output_dir} before; their masks are replaced.")
    finished: dict[int, list] = {}

    def predict(start):
        finished[start] = writer.predict(good[start : start + batch_size], batch_size)

    pool = concurrent.futures.ThreadPoolExecutor(workers)
    try:
        list(pool.map(predict, range(0, len(good), batch_size)))  # raises what one of them raised
    finally:  # an interrupted run still accounts for the masks that it wrote
        pool.shutdown(cancel_futures=True)
        rows += [row for start in sorted(finished) for row in finished[start]]
        gone = [row["file"] for row in rows if row["error"] and row["file"] in before]
        _remove(output_dir, gone, before, log)
        new = {row["file"] for row in rows}
        kept = [row for row in earlier if row["file"] not in new]
        files.write_rows(output_dir / _TABLE, kept + rows, _COLUMNS)
    done = len({row["file"] for row in rows if not row["error"]})
    total = max(time.perf_counter() - started, 1e-9)
    with_network = network.take_seconds()
    spent = {"compilation": compile_seconds, **writer.spent(), "network": with_network}
    spent["resizing"] = max(0.0, spent.pop("segmenting") - with_network)
    files.write_json(
        output_dir / _MANIFEST, manifest(predictor, done, len(paths) - done, total, spent)
    )
    log(
        f"{done} of {len(paths)} images in {total:.2f} s: {done / total:.1f} images per second "
        f"with reading and writing, {1e3 * with_network / max(done, 1):.1f} ms of the network for each "
        f"(first call with compilation, {compile_seconds:.2f} s, not counted). "
        f"Masks hold {values_text(predictor)}."
    )
    return rows


def _remove(output_dir: pathlib.Path, keys: Sequence[str], masks: Mapping[str, str], log) -> None:
    """What an earlier call wrote for files that cannot be read any more."""
    for key in keys:
        name = masks[key].removeprefix("masks/")
        others = (f"overlays/{name}", f"probabilities/{name.removesuffix('.png')}.npy")
        remove(output_dir, [masks[key], *others])
    if keys:
        log(
            f"{len(keys)} file(s) that were predicted into {output_dir} before cannot be read any more; "
            f"their masks are removed: {', '.join(keys[:5])}" + ", ..." * (len(keys) > 5)
        )


class _Timed:
    """A network that knows how long it has worked, in all threads together."""

    def __init__(self, function: PredictProbabilities):
        self.function, self._seconds = function, []
        alone = jax.default_backend() != "cpu"  # whose memory one batch may fill
        self._turn = threading.Lock() if alone else contextlib.nullcontext()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        with self._turn:
            started = time.perf_counter()
            probabilities = np.asarray(self.function(images))
            self._seconds.append(time.perf_counter() - started)
        return probabilities

    def take_seconds(self) -> float:
        """Since it was asked last."""
        spent, self._seconds = sum(self._seconds), []
        return spent


def _list_files(input_path: pathlib.Path, log) -> tuple[list[pathlib.Path], pathlib.Path]:
    """Files to segment, and the folder that their names are relative to."""
    if input_path.is_file():
        return [input_path], input_path.parent
    if not input_path.is_dir():
        raise InputError(f"{input_path}: there is no such file or folder. Check --input.")
    files, others = [], []
    for path in sorted(folder / name for folder, names in walk.walk(input_path) for name in names):
        known = image_files.extension_of(path) in image_files.EXTENSIONS
        # A format that we do not read gets an error row: it is an image that would be missed.
        wanted = path.name[0] != "." and (known or image_files.unsupported_hint(path))
        (files if wanted else others).append(path)
    stems = {path.with_suffix("") for path in files}
    masks = [path for path in files if pairing.is_mask_of(path, stems)]
    files = [path for path in files if path not in set(masks)]
    if masks:
        log(f"{len(masks)} masks lie beside their images and are left alone, e.g. {masks[0].name}")
    if not files:
        raise InputError(
            f"{input_path}: there are no images in this folder "
            f"({', '.join(image_files.EXTENSIONS)}). Check --input."
        )
    if others:
        names = ", ".join(walk.readable(path.name) for path in others[:5])
        names += ", ..." * (len(others) > 5)
        log(f"{len(others)} file(s) that are no images are left alone: {names}")
    return files, input_path


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


def _unreadable(paths, keys, log) -> list[dict[str, Any]]:
    """Rows of the files whose header already says that they cannot be read."""
    rows = []
    for path, key in zip(paths, keys, strict=True):
        try:
            if not walk.is_readable(path):
                raise InputError(f"{walk.readable(path)}: {walk.NOT_UTF8}.")
            image_files.read_size(path)
        except InputError as error:
            rows.append(_error_row(key, error))
    if rows:
        names = ", ".join(row["file"] for row in rows[:5]) + (", ..." if len(rows) > 5 else "")
        log(f"{len(rows)} of {len(keys)} files cannot be read: {names}. {rows[0]['error']}")
    return rows


def _error_row(key: str, error: InputError) -> dict[str, Any]:
    return {**dict.fromkeys(_COLUMNS, ""), "file": key, "error": str(error)}


class _Writer:
    """Reads, segments and writes batches, and knows how long each has taken in all."""

    def __init__(self, predictor, output_dir, targets, overlays, probabilities):
        self._predictor, self._folder, self._targets = predictor, output_dir, targets
        self._overlays, self._probabilities = overlays, probabilities
        self._seconds = {"reading": [], "segmenting": [], "writing": []}

    def spent(self) -> dict[str, float]:
        """Seconds by stage."""
        return {stage: sum(seconds) for stage, seconds in self._seconds.items()}

    def predict(self, part, batch_size) -> list[dict[str, Any]]:
        """At most one batch of (path, key); returns rows of the table."""
        images, notes, seconds, errors = {}, {}, {}, {}
        for path, key in part:
            started = time.perf_counter()
            try:
                images[key], notes[key] = image_files.read_image(path)
            except InputError as error:
                errors[key] = error
            seconds[key] = time.perf_counter() - started
        self._seconds["reading"].append(sum(seconds.values()))
        started = time.perf_counter()
        found = probabilities_of(self._predictor, list(images.values()), list(images), batch_size)
        by_key = dict(zip(images, found, strict=True))
        segmenting = time.perf_counter() - started
        self._seconds["segmenting"].append(segmenting)
        rows = []
        for _, key in part:
            if key in errors:
                rows.append(_error_row(key, errors[key]))
                continue
            started = time.perf_counter()
            mask = self._write(key, images[key], by_key[key])
            writing = time.perf_counter() - started
            self._seconds["writing"].append(writing)
            spent = seconds[key] + segmenting / len(images) + writing
            names, target = self._predictor.class_names, self._targets[key]
            rows += _area_rows(key, mask, names, spent, target, notes[key])
        return rows

    def _write(self, key, image, probabilities) -> np.ndarray:
        """The mask, which is written beside what else is wanted."""
        predictor, target = self._predictor, self._targets[key]
        mask = canvas.probabilities_to_mask(probabilities, predictor.threshold)
        figures.save_image(predictor.written(mask), self._folder / "masks" / target)
        if self._overlays:
            figures.save_overlay(image, mask, self._folder / "overlays" / target)
        if self._probabilities:
            buffer = io.BytesIO()
            np.save(buffer, probabilities)
            name = target.removesuffix(".png") + ".npy"
            files.write_bytes(self._folder / "probabilities" / name, buffer.getvalue())
        return mask


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
