"""Whole files or none: a reader sees the old content or the new one, never half of it.

Paths may be local or, where etils knows the scheme, remote ('gs://bucket/run'). Undefined numbers
(NaN, infinity) become null in JSON and empty cells in CSV.
"""

import csv
import io
import json
import math
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from fewshotseg.errors import InputError

PathLike = str | os.PathLike[str]


def write_bytes(path: PathLike, data: bytes) -> None:
    """Writes `data` under another name and renames it; makes the folder if it is missing.

    Raises:
      InputError: the folder cannot be written or the disk is full; the old file is still there.
    """
    path = epath.Path(path)
    partial = path.parent / f".partial-{uuid.uuid4().hex[:8]}-{path.name[-80:]}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(data)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror or error}). "
            "Choose another output folder or free some space."
        ) from error


def write_text(path: PathLike, text: str) -> None:
    """`write_bytes` of a text in UTF-8, line ends as they are."""
    write_bytes(path, text.encode())


def write_json(path: PathLike, value: Any) -> None:
    """`write_text` of nested mappings, sequences, texts and numbers as JSON."""
    write_text(path, as_json(value, indent=1) + "\n")


def write_rows(
    path: PathLike, rows: Iterable[Mapping[str, Any]], columns: Sequence[str] | None = None
) -> None:
    """Writes a CSV table with a header.

    Args:
      path: of the file.
      rows: a mapping from column to value each; a missing value is an empty cell.
      columns: in this order; None for those of the first row.

    Raises:
      InputError: as `write_bytes`.
      ValueError: a row has a column that is not among `columns`.
    """
    rows = list(rows)
    columns = list(rows[0] if columns is None else columns)
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, columns)
    writer.writeheader()
    writer.writerows({k: "" if is_undefined(v) else v for k, v in row.items()} for row in rows)
    write_text(path, buffer.getvalue())


def append_line(path: PathLike, value: Any) -> None:
    """Adds one line of JSON to a file; a kill can cut the last line short, which readers skip.

    Raises:
      InputError: the file cannot be written or the disk is full.
    """
    try:
        with epath.Path(path).open("a", encoding="utf-8") as file:
            file.write(as_json(value) + "\n")
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror or error}). "
            "Free some space and run the same command again."
        ) from error


def at_home(paths: str) -> str:
    """Paths with commas between them, '~' made the user's folder: shells leave that in `--workdir=~/a`."""
    return ",".join(map(os.path.expanduser, paths.split(",")))


def as_json(value: Any, indent: int | None = None) -> str:
    """JSON as every reader takes it: JSON knows no NaN, so undefined numbers become null."""
    return json.dumps(_defined(value), indent=indent, ensure_ascii=False, allow_nan=False)


def is_undefined(value: Any) -> bool:
    """Whether a value is a NaN or infinite float."""
    return isinstance(value, float) and not math.isfinite(value)


def _defined(value):
    if isinstance(value, Mapping):
        return {key: _defined(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_defined(item) for item in value]
    return None if is_undefined(value) else value
