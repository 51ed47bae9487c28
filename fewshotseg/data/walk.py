"""Folders of users: their subfolders, links among them, and names that cannot be written."""

import os
import pathlib
from collections.abc import Iterable, Iterator

from fewshotseg.errors import InputError

_ARCHIVE = "__MACOSX"  # what macOS adds to the archives that it makes
NOT_UTF8 = "the name is not UTF-8: rename it"


def walk(
    folder: pathlib.Path, excluded: Iterable[pathlib.Path] = ()
) -> Iterator[tuple[pathlib.Path, list[str]]]:
    """A folder and all folders below it, each with the names of its files, in order.

    Links to folders are followed, but for those that lead back to a folder they lie in.

    Args:
      folder: where to begin.
      excluded: folders that are left out, as hidden ones are.

    Raises:
      InputError: a folder that may not be read.
    """
    excluded = {other.resolve() for other in excluded}

    def refuse(error: OSError):
        raise InputError(
            f"{readable(error.filename)}: no permission to read this folder."
        ) from error

    def wanted(path: pathlib.Path) -> bool:
        if path.name.startswith(".") or path.name == _ARCHIVE or path.resolve() in excluded:
            return False
        back = path.is_symlink() and path.resolve() in {p.resolve() for p in path.parents}
        return not back

    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        parent = pathlib.Path(parent)
        folders[:] = sorted(name for name in folders if wanted(parent / name))
        yield parent, sorted(names)


def is_readable(path: str | os.PathLike[str]) -> bool:
    """Whether a name can be printed and written into tables: Linux takes any bytes for one."""
    return readable(path) == os.fspath(path)


def readable(path: str | os.PathLike[str]) -> str:
    """A name in which bytes that are not UTF-8 are written as `\\xfc`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
