"""Ratings of pairs by people: a file of JSON lines that only grows.

A line is an event: an answer to a pair that was shown, or the undoing of an earlier answer. Nothing is ever
changed in the file, so that several pages, processes and a kill at any moment leave every whole line as it
was: a line is one write to the end of the file, under a lock where the file system has them. What counts
in the end (`active`) is a function of the lines in their order, and nothing else.
"""

import collections
import contextlib
import csv
import hashlib
import io
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fewshotseg import errors, files

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

FOLDER, FILE = "review", "ratings.jsonl"
ANSWERS: Mapping[str, float] = {"reject": 0.0, "unsure": 0.5, "accept": 1.0}
CORRECTED = "corrected"  # an answer, too: the image is kept, and this is its right label
TAGS = ("texture", "border", "anatomy", "artefact", "mask mismatch")
# Of one line. 'item' is one showing of a pair; 'pair' and 'mask' are hashes of what was shown.
COLUMNS = (
    "id", "time", "rater", "item", "kind", "pair", "mask", "source", "number", "seed", "cases", "method",
    "checkpoint", "theta", "answer", "tags", "label", "ms", "tab",
)  # fmt: skip
UNDO = "undo"  # the id of the line that it undoes


def append(path: pathlib.Path, row: Mapping[str, Any]) -> None:
    """Adds one event, whole or not at all as far as readers see; it is on the disk when this returns.

    Raises:
      InputError: the file cannot be written or the disk is full.
    """
    data = (files.as_json(row) + "\n").encode()
    path = pathlib.Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
        handle = os.open(path, flags, 0o644)
        try:
            with _locked(handle):
                if _is_cut(handle):  # by a kill or a full disk: what follows is a line of its own
                    data = b"\n" + data
                if os.write(handle, data) < len(data):
                    raise OSError(28, os.strerror(28))
                os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise errors.InputError(
            f"{path}: the answer could not be written ({error.strerror or error}): free some space, and "
            "answer again."
        ) from error


@contextlib.contextmanager
def _locked(handle) -> Iterator[None]:
    held = False
    if fcntl is not None:
        with contextlib.suppress(OSError):  # a file system without locks has O_APPEND alone
            fcntl.flock(handle, fcntl.LOCK_EX)
            held = True
    try:
        yield
    finally:
        if held:
            fcntl.flock(handle, fcntl.LOCK_UN)


def _is_cut(handle) -> bool:
    if not (size := os.fstat(handle).st_size):
        return False
    os.lseek(handle, size - 1, os.SEEK_SET)
    return os.read(handle, 1) != b"\n"


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """All events in order; a line that was cut short is skipped. No file has none.

    Raises:
      InputError: the file cannot be read.
    """
    try:
        data = pathlib.Path(path).read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise errors.InputError(f"{path}: cannot be read ({error.strerror}).") from error
    rows = []
    for line in data.split(b"\n"):
        with contextlib.suppress(ValueError):
            if isinstance(row := json.loads(line), dict):
                rows.append(row)
    return rows


def active(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The answers that count: not undone, and the last one of every rater to every showing."""
    undone = {row[UNDO] for row in rows if UNDO in row}
    last: dict[tuple, dict[str, Any]] = {}
    for row in rows:
        if "answer" in row and row["id"] not in undone:
            key = row["rater"], row["item"]
            last.pop(key, None)  # in the order of the answers that count
            last[key] = dict(row)
    return list(last.values())


def last_of(
    rows: Sequence[Mapping[str, Any]], rater: str, tab: str = ""
) -> Mapping[str, Any] | None:
    """The answer that an undo takes back: the newest one of a rater, in one tab if there is one."""
    undone = {row[UNDO] for row in rows if UNDO in row}
    mine = [
        row
        for row in rows
        if "answer" in row
        and row["id"] not in undone
        and row["rater"] == rater
        and tab in ("", row.get("tab"))
    ]
    return mine[-1] if mine else None


def verdict(row: Mapping[str, Any]) -> float:
    """Of an answer, from 0 (reject) to 1 (accept); a pair whose label had to be corrected is rejected."""
    return ANSWERS.get(row["answer"], 0.0)


def consistency(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """How far every rater agrees with themselves, and with reality.

    Args:
      rows: active answers.

    Returns:
      By rater: 'answers'; 'repeats', pairs that were shown once more, and 'same', how many of them got the
      same answer again; 'real', hidden real images, and 'real_accepted' (an unsure counts half);
      'synthetic' and 'synthetic_accepted', likewise; 'median_ms' of an answer.
    """
    by_rater = collections.defaultdict(list)
    for row in rows:
        by_rater[row["rater"]].append(row)
    found = {}
    for rater, mine in sorted(by_rater.items()):
        first: dict[str, float] = {}
        repeats = same = 0
        for row in mine:
            if row["pair"] in first:
                repeats += 1
                same += verdict(row) == first[row["pair"]]
            else:
                first[row["pair"]] = verdict(row)
        real = [verdict(row) for row in mine if row["kind"] == "real"]
        synthetic = [verdict(row) for row in mine if row["kind"] != "real"]
        found[rater] = {
            "answers": len(mine),
            "repeats": repeats,
            "same": same,
            "real": len(real),
            "real_accepted": sum(real),
            "synthetic": len(synthetic),
            "synthetic_accepted": sum(synthetic),
            "median_ms": float(np.median([row["ms"] for row in mine])),
        }
    return found


def write_csv(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """The active answers as a table, a row each.

    Raises:
      InputError: the file cannot be written.
    """
    files.write_text(path, csv_of(table(rows)))


def csv_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of `table` as CSV with a header."""
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The active answers, lists joined by ';', texts that a spreadsheet would compute made plain."""

    def cell(value):
        text = ";".join(map(str, value)) if isinstance(value, list | tuple) else value
        return f"'{text}" if isinstance(text, str) and text[:1] in ("=", "+", "-", "@") else text

    return [{column: cell(row.get(column, "")) for column in COLUMNS} for row in active(rows)]


def hash_arrays(*arrays: np.ndarray) -> str:
    """Of contents, shapes and types: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for array in arrays:
        array = np.ascontiguousarray(array)
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def label_path(path: pathlib.Path, name: str) -> pathlib.Path:
    """Of the corrected label of a hidden real image, whose image is not copied.

    Args:
      path: of the file of ratings.
      name: the answer's 'label'.
    """
    return pathlib.Path(path).parent / "masks" / f"label_{name}.png"


def digest(path: pathlib.Path) -> str:
    """SHA-256 of the file, '' where there is none."""
    path = pathlib.Path(path)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
