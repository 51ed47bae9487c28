"""The folder that predictions are written into: its table of earlier ones, its manifest."""

import csv
import datetime
import pathlib
from collections.abc import Sequence
from typing import Any

from fewshotseg import files
from fewshotseg.data import canvas
from fewshotseg.errors import InputError
from fewshotseg.results.predictor import Predictor
from fewshotseg.runs import folder as run_folder


def open_output(
    output_dir: pathlib.Path,
    root: pathlib.Path,
    *,
    is_folder: bool,
    table_name: str,
    columns: Sequence[str],
) -> list[dict]:
    """Makes the output folder; returns the rows of earlier runs into it."""
    inside = output_dir.resolve() == root.resolve()
    if inside or (is_folder and root.resolve() in output_dir.resolve().parents):
        raise InputError(
            f"{output_dir}: the output folder is in the input folder. Choose another --output, so "
            "that originals and predictions stay apart."
        )
    table = output_dir / table_name
    earlier: list[dict] = []
    if table.is_file():
        try:  # a table that was saved with another program since may be none any more
            with open(table, newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file)
                earlier = list(reader)
            ours = tuple(reader.fieldnames or ()) == tuple(columns)
        except (UnicodeDecodeError, csv.Error):
            ours = False
        if not ours:
            raise InputError(f"{table}: is no table of predictions. Choose another --output.")
    elif any((output_dir / name).exists() for name in ("masks", "overlays")):
        raise InputError(
            f"{output_dir}: has masks or overlays that were not written by a prediction (there is "
            f"no {table_name} beside them). Choose another --output, so that nothing is overwritten."
        )
    files.write_rows(table, earlier, columns)
    return earlier


def remove(output_dir: pathlib.Path, names: Sequence[str]) -> None:
    """Deletes what an earlier call wrote for a file that cannot be read any more.

    Args:
      output_dir: of the predictions.
      names: of files in it; what lies elsewhere stays.
    """
    for name in names:
        path = output_dir / name
        if path.resolve().is_relative_to(output_dir.resolve()):
            path.unlink(missing_ok=True)


def values_text(predictor: Predictor) -> str:
    """What the masks of a model hold, in words."""
    background, *classes = predictor.mask_values
    pairs = zip(classes, predictor.class_names, strict=True)
    return f"{background} and " + ", ".join(f"{value} ({name})" for value, name in pairs)


def manifest(predictor, done, failed, total, spent) -> dict[str, Any]:
    environment = run_folder.environment()
    return {
        "model": predictor.source,
        "class_names": list(predictor.class_names),
        "mask_values": list(predictor.mask_values),
        "threshold": predictor.threshold,
        "temperature": predictor.temperature,
        "network_size": list(canvas.as_size(predictor.image_size)),
        "files": done,
        "failed": failed,
        "seconds": {"total": round(total, 4), **{k: round(v, 4) for k, v in spent.items()}},
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **{key: environment[key] for key in ("versions", "python", "platform", "device")},
    }
