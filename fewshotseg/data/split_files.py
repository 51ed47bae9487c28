"""Lists of case ids in files: those a user gives, and the split that a run leaves."""

import collections
import dataclasses
import difflib
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

from fewshotseg import files
from fewshotseg.data.image_files import EXTENSIONS
from fewshotseg.errors import InputError

PARTS = ("train", "validation", "test")

Lists = str | os.PathLike[str] | Mapping[str, str | os.PathLike[str] | Iterable[str]]


@dataclasses.dataclass(frozen=True)
class Split:
    """Ids on each side, in the order they were drawn; `notes` tell what a user should know."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    notes: tuple[str, ...] = ()


def read_ids(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Ids from a text file, one a line; empty lines and lines that begin with # are skipped."""
    text = _read_text(path)
    lines = [line.strip() for line in text.splitlines()]
    ids = tuple(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if not ids:
        raise InputError(f"{path}: the list is empty: write one case id per line.")
    return ids


def resolve_ids(names: Iterable[str], known: Sequence[str], origin: str) -> tuple[str, ...]:
    """Checks ids against the known ones and drops repetitions.

    A file extension is forgiven, and so is a missing folder where only one id ends in that name.

    Raises:
      InputError: names the origin, the first unknown id and the closest known one.
    """
    lookup = {case_id: case_id for case_id in known}
    count = collections.Counter(case_id.rpartition("/")[2] for case_id in known)
    for case_id in known:
        if count[case_id.rpartition("/")[2]] == 1:
            lookup.setdefault(case_id.rpartition("/")[2], case_id)
    resolved, unknown = [], []
    for name in names:
        stem, extension = os.path.splitext(name)
        if name not in lookup and extension.lower() in EXTENSIONS:
            name = stem
        (resolved if name in lookup else unknown).append(lookup.get(name, name))
    if unknown:
        close = difflib.get_close_matches(unknown[0], known, n=1, cutoff=0.0)
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise InputError(
            f"{origin}: there is no case {unknown[0]!r}{more}; the closest is "
            f"{close[0] if close else 'none'!r}."
        )
    return tuple(dict.fromkeys(resolved))


def read_lists(lists: Lists, known: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Reads explicit lists: see `few_shot_split`.

    Raises:
      InputError: unreadable or unknown part, unknown id.
    """
    origin = "the lists"
    if isinstance(lists, str | os.PathLike):
        path = pathlib.Path(lists)
        origin = str(path)
        if path.is_dir():
            names = {"val": "validation"} | {part: part for part in PARTS}
            lists = {
                part: path / f"{name}.txt"
                for name, part in names.items()
                if (path / f"{name}.txt").is_file()
            }
            if "train" not in lists and "test" not in lists:
                raise InputError(f"{path}: neither train.txt nor test.txt is in this folder.")
        else:
            lists = _read_json(path)
    parts = {}
    for key, value in lists.items():
        part = {"val": "validation"}.get(key, key.partition("/")[0])
        if part not in PARTS:
            raise InputError(f"{origin}: part {key!r} is none of {', '.join(PARTS)}.")
        if part in parts:  # 'test/<name>' of further data sets, in a file of an earlier run
            continue
        from_file = isinstance(value, str | os.PathLike)
        ids = read_ids(value) if from_file else value
        parts[part] = resolve_ids(ids, known, str(value) if from_file else f"{origin} ({key})")
    return parts


def write_split(
    path: str | os.PathLike[str],
    split: Split,
    tests: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Writes a split as JSON; the file appears complete or not at all.

    Args:
      path: of the file.
      split: what to write, as 'train', 'validation' and 'test'.
      tests: test sets by name, written as 'test/<name>' in place of `split.test`.

    Raises:
      InputError: the file cannot be written.
    """
    content = {"train": split.train, "validation": split.validation}
    named = {"test": split.test} if tests is None else {f"test/{k}": v for k, v in tests.items()}
    files.write_json(path, content | named)


def read_split(path: str | os.PathLike[str]) -> Split:
    """Reads what `write_split` wrote; of several named test sets the first one.

    Raises:
      InputError: missing or damaged file.
    """
    content = _read_json(path)
    test = next((value for key, value in content.items() if key.split("/")[0] == "test"), [])
    missing = [part for part in ("train", "validation") if part not in content]
    if missing:
        raise InputError(f"{path}: {missing[0]!r} is missing: this is no split file.")
    return Split(tuple(content["train"]), tuple(content["validation"]), tuple(test))


def _read_text(path) -> str:
    try:
        return pathlib.Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise InputError(f"{path}: the list cannot be read ({reason}).") from error


def _read_json(path) -> dict[str, list[str]]:
    try:
        content = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not valid JSON ({error}).") from error
    if not isinstance(content, dict) or not all(
        isinstance(ids, list) and all(isinstance(i, str) for i in ids) for ids in content.values()
    ):
        raise InputError(f'{path}: expected JSON like {{"train": ["id", ...], "test": [...]}}.')
    return content
