"""Lists of case ids in files: those a user gives, and the split that a run leaves."""

import collections
import dataclasses
import difflib
import json
import os
import pathlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from fewshotseg import files
from fewshotseg.data.image_files import EXTENSIONS
from fewshotseg.errors import InputError

PARTS = ("train", "validation", "test")
ROLES = (*PARTS, "pool", "exclude")  # what a list of ids can say of them
_WRITTEN = ("notes", "clusters", "groups")  # in the file of a run beside the lists

Path = str | os.PathLike[str]
Lists = Path | Mapping[str, Path | Iterable[Path]]


@dataclasses.dataclass(frozen=True)
class Split:
    """Which cases train, validate and test.

    Attributes:
      train: ids, in the order they were drawn.
      validation: likewise.
      test: likewise.
      notes: what a user should know, a sentence each.
      clusters: name of a test set -> id -> number. Cases with one number are of one patient, of one
        series, or look alike, and are not independent of each other. The own test set is 'test'.
      groups: part ('train', 'validation') or name of a test set -> id -> patient or series, of
        those cases where it is known.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    notes: tuple[str, ...] = ()
    clusters: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    groups: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)


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

    A file extension is forgiven, and so is a missing folder where only one id ends in that name, and an
    accent that is a character of its own, as in the names of files on macOS.

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
        name = name if name in lookup else unicodedata.normalize("NFC", name)
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

    Args:
      lists: role -> ids, or a JSON file of that, or a folder with a text file per role. An entry
        that ends with '.txt' is a text file of ids, in a JSON file relative to its folder.
      known: all ids.

    Returns:
      Role -> ids; the roles are those of `ROLES`.

    Raises:
      InputError: unreadable list, unknown role, unknown id.
    """
    origin, folder = "the lists", pathlib.Path()
    if isinstance(lists, str | os.PathLike):
        path = pathlib.Path(lists)
        origin = str(path)
        if path.is_dir():
            names = {"val": "validation"} | {role: role for role in ROLES}
            lists = {
                role: path / f"{name}.txt"
                for name, role in names.items()
                if (path / f"{name}.txt").is_file()
            }
            if not {"train", "pool", "test"} & lists.keys():
                raise InputError(f"{path}: neither train.txt nor test.txt is in this folder.")
        else:
            lists, folder = _read_json(path), path.parent
    parts = {}
    for key, value in lists.items():
        role = {"val": "validation"}.get(key, key.partition("/")[0])
        if role in _WRITTEN:
            continue
        if role not in ROLES:
            raise InputError(f"{origin}: part {key!r} is none of {', '.join(ROLES)}.")
        if role in parts:  # 'test/<name>' of further data sets, in a file of an earlier run
            continue
        entries = [value] if isinstance(value, str | os.PathLike) else list(value)
        files = [isinstance(e, os.PathLike) or e.endswith(".txt") for e in entries]
        names = [e for e, is_file in zip(entries, files, strict=True) if not is_file]
        ids = list(resolve_ids(names, known, f"{origin} ({key})"))
        for path in (folder / e for e, is_file in zip(entries, files, strict=True) if is_file):
            ids += resolve_ids(read_ids(path), known, str(path))
        parts[role] = tuple(dict.fromkeys(ids))
    return parts


def write_split(
    path: str | os.PathLike[str],
    split: Split,
    tests: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Writes a split as JSON; the file appears complete or not at all.

    Args:
      path: of the file.
      split: what to write, as 'train', 'validation', 'test', 'notes', 'clusters' and 'groups'.
      tests: test sets by name, written as 'test/<name>' in place of `split.test`.

    Raises:
      InputError: the file cannot be written.
    """
    content = {"train": split.train, "validation": split.validation}
    named = {"test": split.test} if tests is None else {f"test/{k}": v for k, v in tests.items()}
    content = {k: list(v) for k, v in (content | named | {"notes": split.notes}).items()}
    content |= {"clusters": split.clusters, "groups": split.groups}
    files.write_json(path, content)


def _read_text(path) -> str:
    try:
        return pathlib.Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise InputError(f"{path}: the list cannot be read ({reason}).") from error


def _read_json(path) -> dict[str, str | list[str]]:
    try:
        content = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not valid JSON ({error}).") from error
    if not isinstance(content, dict) or not all(
        isinstance(ids, str) or (isinstance(ids, list) and all(isinstance(i, str) for i in ids))
        for role, ids in content.items()
        if role not in _WRITTEN
    ):
        raise InputError(f'{path}: expected JSON like {{"train": ["id", ...], "test": [...]}}.')
    return content
