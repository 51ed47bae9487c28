"""The folder of a run elsewhere, such as 'gs://bucket/run': a copy here, which is copied back as it grows.

Pictures, checkpoints and logs are written by libraries that know local files best, and an object store
cannot rename: so a run is made in a local copy, and every minute what has changed there is copied back.
What counts as being there is what the file `CONTENTS` lists, which is written last: whoever is killed in
between leaves the checkpoints that it listed before, and another machine goes on from these. Files that
keep their names, such as logs and tables, are replaced before it, and may be newer than the checkpoints.
Others may add to the list meanwhile (a report of a run that trains): what they listed stays. Paths are
etils.epath's.
"""

import contextlib
import json
import os
import pathlib
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence

from etils import epath

from fewshotseg import errors

SCHEMES = ("gs", "s3", "az")
CONTENTS = "contents.json"  # there, never here
ADDRESS = ".address"  # here, never there: of what this is a copy
EVERY = 60.0  # seconds between copies
# What another process or a kill may leave behind: files half written, and the lock.
_PASSING = re.compile(
    r"(^|/)(\.lock|\.address|\.writable|\.partial-[^/]*|[^/]*orbax-checkpoint-tmp[^/]*)(/|$)"
)


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path has a scheme, as 'gs://bucket/run' has."""
    return "://" in os.fspath(path)


def shown(workdir: pathlib.Path, *parts: str) -> str:
    """A path in the folder of a run as its user knows it: in the bucket that the folder is a copy of."""
    note = pathlib.Path(workdir, ADDRESS)
    if not note.is_file():
        return str(pathlib.Path(workdir, *parts))
    return "/".join((note.read_text(encoding="utf-8"), *parts))


class Mirror:
    """A local folder and its counterpart elsewhere.

    Args:
      there: the address.
      here: a local folder, created if it is missing.

    Raises:
      InputError: the address has an unknown scheme, or the package that reads it is missing.
    """

    def __init__(self, there: str, here: pathlib.Path):
        scheme = there.partition("://")[0]
        if scheme not in SCHEMES:
            known = ", ".join(f"{name}://" for name in SCHEMES)
            raise errors.InputError(f"{there}: give a local folder, or one of {known}.")
        self.address, self.here = there.rstrip("/"), pathlib.Path(here)
        self._there = epath.Path(self.address)
        self._known: dict[str, tuple[int, int]] = {}  # path -> size and time here of what is there
        self._own: set[str] = set()  # paths of what was copied from here
        self.here.mkdir(parents=True, exist_ok=True)

    def pull(self) -> int:
        """Copies everything from there to here; how many files that were.

        Raises:
          InputError: that did not work, or `CONTENTS` names a file outside of the folder.
        """
        with _explained(self.address, "read"):
            names = self._listed()
            names = list(_walk(self._there)) if names is None else names  # by other means
            for name in names:
                path = self._inside(name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes((self._there / name).read_bytes())
                self._known[name] = _state(path)
        return len(self._known)

    def push(self) -> bool:
        """Copies what has changed here to there; whether all that is here is there now.

        It is not if files come and go all the while: then what there counts is as it was.

        Raises:
          InputError: that did not work.
        """
        with _explained(self.address, "written"):
            for _ in range(3):
                before = self._files()
                sent = [self._send(name, state) for name, state in before.items()]
                if self._files().keys() == before.keys() and all(sent):
                    break
            else:
                return False
            self._own &= before.keys()
            gone = self._known.keys() - before.keys()
            listed = self._listed()
            names = (before.keys() if listed is None else listed - gone) | self._own
            if names != listed and (self._own or gone):
                (self._there / CONTENTS).write_text(json.dumps(sorted(names), indent=0))
            for name in gone:
                (self._there / name).unlink(missing_ok=True)
                del self._known[name]
        return True

    def _send(self, name, state):
        """Copies a file if it has changed; whether it is still here."""
        if self._known.get(name) == state:
            return True
        try:
            data = (self.here / name).read_bytes()
        except FileNotFoundError:
            return False
        (self._there / name).write_bytes(data)
        self._known[name] = state
        self._own.add(name)
        return True

    def _files(self):
        """Path -> size and time of every file here that is to be kept."""
        found = {}
        for path in self.here.rglob("*"):
            name = path.relative_to(self.here).as_posix()
            with contextlib.suppress(FileNotFoundError):
                if not _PASSING.search(name) and path.is_file():
                    found[name] = _state(path)
        return found

    def _listed(self):
        """What `CONTENTS` lists; None where there is none."""
        contents = self._there / CONTENTS
        return set(json.loads(contents.read_text(encoding="utf-8"))) if contents.exists() else None

    def _inside(self, name):
        here, path = self.here.resolve(), (self.here / name).resolve()
        if here not in path.parents:
            raise errors.InputError(
                f"{self.address}: {CONTENTS} names {name!r}, which is outside of the run: take that "
                "line out of it."
            )
        return path


@contextlib.contextmanager
def copies(
    folders: Sequence[str], every: float = EVERY, log: Callable[[str], None] = print
) -> Iterator[list[str]]:
    """Local folders for those that lie elsewhere, copied back until the end of the block and at its end.

    Args:
      folders: of runs; local ones stay as they are.
      every: seconds between copies.
      log: is told what is copied.

    Raises:
      InputError: an address cannot be read, or in the end not be written; the local copy is then kept.
    """
    if not any(map(is_remote, folders)):
        yield list(folders)
        return
    root = pathlib.Path(tempfile.mkdtemp(prefix="fewshotseg_"))
    mirrors, here = [], []
    try:
        for number, folder in enumerate(folders):
            if not is_remote(folder):
                here.append(folder)
                continue
            name = folder.rstrip("/").rpartition("/")[2]
            mirrors.append(Mirror(folder, root / str(number) / name))
            found = mirrors[-1].pull()
            (mirrors[-1].here / ADDRESS).write_text(mirrors[-1].address, encoding="utf-8")
            here.append(str(mirrors[-1].here))
            log(f"{folder}: {found} files copied to {here[-1]}, and back every {every:g} seconds")
    except errors.InputError:
        shutil.rmtree(root)
        raise
    stop = threading.Event()
    thread = threading.Thread(target=_push_regularly, args=(mirrors, stop, every, log), daemon=True)
    thread.start()
    try:
        yield here
    except errors.InputError as error:  # the user knows the address, and the copy goes
        text = str(error)
        for mirror in mirrors:
            text = text.replace(str(mirror.here), mirror.address)
        raise errors.InputError(text) from error
    finally:
        stop.set()
        thread.join()
        if faults := [text for text in map(_push_at_last, mirrors) if text]:
            raise errors.InputError(" ".join(faults))
        shutil.rmtree(root)


def _push_regularly(mirrors, stop, every, log):
    while not stop.wait(every):
        for mirror in mirrors:
            try:
                mirror.push()
            except errors.InputError as error:  # perhaps the network is away for a moment
                log(f"{error} Trying again.")


def _push_at_last(mirror):
    """What went wrong, '' if nothing did."""
    kept = f"The copy in {mirror.here} is kept."
    try:
        whole = mirror.push()
    except errors.InputError as error:
        return f"{error} {kept}"
    if whole:
        return ""
    return f"{mirror.address}: files change here all the while: end what writes them. {kept}"


def _state(path):
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _walk(folder, prefix=""):
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir():
            yield from _walk(path, f"{prefix}{path.name}/")
        else:
            yield f"{prefix}{path.name}"


@contextlib.contextmanager
def _explained(address, done):
    try:
        yield
    except errors.InputError:
        raise
    except ImportError as error:
        scheme = address.partition("://")[0]
        package = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs"}[scheme]
        raise errors.InputError(
            f"{address} needs a package: pip install {package} ({str(error).splitlines()[0]})."
        ) from error
    except Exception as error:  # every kind of store has its own
        reason = (str(error).splitlines() or [""])[0][:200]
        raise errors.InputError(
            f"{address} cannot be {done} ({type(error).__name__}: {reason}): look at the address, the "
            "network and the permissions."
        ) from error
