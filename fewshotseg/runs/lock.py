"""One process at a time writes into a run's folder."""

import contextlib
import json
import os
import pathlib
import socket
import time
from collections.abc import Iterator

from fewshotseg import errors

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

NAME = ".lock"


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    """Holds the lock of `workdir`, an existing folder, until the end of the block.

    The operating system holds it for the process, so it ends with the process, however that ends: a
    file left by a run that was killed locks nothing. It names the process for people to read. Where
    the file system has no locks, nothing is locked.

    Raises:
      InputError: another process holds it.
    """
    if fcntl is None:
        yield
        return
    with (pathlib.Path(workdir) / NAME).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise errors.InputError(
                f"{workdir} is in use by {_holder(file)}: wait until it has ended, or use another "
                "--workdir."
            ) from error
        except OSError:  # no locks there, as on some network file systems
            yield
            return
        file.truncate(0)
        json.dump({"process": os.getpid(), "host": socket.gethostname(), "since": _now()}, file)
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _now():
    return time.strftime("%Y-%m-%d %H:%M:%S")


def _holder(file):
    file.seek(0)
    try:
        return "process {process} on {host} since {since}".format(**json.load(file))
    except (ValueError, KeyError, TypeError):
        return "another process"
