"""One process at a time in a run's folder: judged from a second process, and by killing one."""

import os
import signal
import subprocess
import sys

import pytest

from fewshotseg.errors import InputError
from fewshotseg.runs import lock

HOLD = """
import pathlib, sys
from fewshotseg.runs import lock
with lock.locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of tmp_path."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    ) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_second_process_is_told_which_one_is_first(holder, tmp_path):
    with pytest.raises(InputError, match=f"in use by process {holder.pid} on .* since 2"):
        with lock.locked(tmp_path):
            pytest.fail("two at once")


def test_a_killed_process_locks_nothing(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert str(holder.pid) in (tmp_path / lock.NAME).read_text()  # what it wrote is still there
    with lock.locked(tmp_path):
        assert str(os.getpid()) in (tmp_path / lock.NAME).read_text()


def test_the_lock_ends_with_the_block(tmp_path):
    for _ in range(2):
        with lock.locked(tmp_path):
            with pytest.raises(InputError, match=f"process {os.getpid()}"), lock.locked(tmp_path):
                pytest.fail("two at once")


def test_a_damaged_file_names_nobody(holder, tmp_path):
    (tmp_path / lock.NAME).write_text("{")
    with pytest.raises(InputError, match="in use by another process"), lock.locked(tmp_path):
        pytest.fail("two at once")


def test_where_there_are_no_locks_one_goes_on(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError("Function not implemented")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with lock.locked(tmp_path):
        pass
    monkeypatch.setattr(lock, "fcntl", None)
    with lock.locked(tmp_path):
        pass
