"""Files are whole, readable by others, and say what is wrong."""

import csv
import json
import math
import os
import stat
import subprocess
import sys

import pytest

from fewshotseg import files
from fewshotseg.errors import InputError


def _full(*_):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("step", ["write_bytes", "replace"])
def test_failed_writes_keep_the_old_file(tmp_path, monkeypatch, step):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    monkeypatch.setattr(type(files.epath.Path(path)), step, _full)
    with pytest.raises(InputError, match="a.txt: cannot be written .No space left"):
        files.write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_an_interrupt_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(files.epath.Path(path)), "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        files.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_kill_between_write_and_rename_keeps_the_old_file(tmp_path):
    """A process that dies before the rename leaves the old file; the next write replaces it."""
    path = tmp_path / "a.json"
    files.write_json(path, {"n": 1})
    program = (
        "import os, sys; from fewshotseg import files\n"
        "path = files.epath.Path(sys.argv[1])\n"
        "type(path).replace = lambda *_: os._exit(9)\n"
        "files.write_json(path, {'n': 2})"
    )
    assert subprocess.run([sys.executable, "-c", program, str(path)]).returncode == 9
    assert json.loads(path.read_text()) == {"n": 1}
    files.write_json(path, {"n": 3})
    assert json.loads(path.read_text()) == {"n": 3}


def test_folders_are_made_and_the_umask_is_respected(tmp_path):
    path = tmp_path / "new" / "deep" / ("n" * 250)  # the partial name must not grow too long
    before = os.umask(0o027)
    try:
        files.write_bytes(path, b"\0\1")
    finally:
        os.umask(before)
    assert path.read_bytes() == b"\0\1"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_file_in_place_of_the_folder_is_an_input_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        files.write_bytes(tmp_path / "file" / "a.png", b"")


def test_json_and_csv_without_nan(tmp_path):
    row = {"a": math.nan, "b": [1.5, math.inf], "c": "größe"}
    files.write_json(tmp_path / "a.json", {"rows": (row,)})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"rows": [{"a": None, "b": [1.5, None], "c": "größe"}]}
    assert "größe" in text
    files.write_rows(tmp_path / "a.csv", [{"x": 1, "y": math.nan}, {"y": 'a "b",\nc'}])
    with open(tmp_path / "a.csv", newline="") as file:
        assert list(csv.DictReader(file)) == [{"x": "1", "y": ""}, {"x": "", "y": 'a "b",\nc'}]
    files.write_rows(tmp_path / "a.csv", [], columns=("x", "y"))
    assert (tmp_path / "a.csv").read_text() == "x,y\n"
    with pytest.raises(ValueError, match="z"):
        files.write_rows(tmp_path / "a.csv", [{"z": 1}], columns=("x", "y"))


def test_lines_are_appended(tmp_path, monkeypatch):
    files.append_line(tmp_path / "log.jsonl", {"step": 1, "loss": math.nan})
    files.append_line(tmp_path / "log.jsonl", {"step": 2})
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 1, "loss": null}\n{"step": 2}\n'
    with pytest.raises(InputError, match="log.jsonl: cannot be written"):
        files.append_line(tmp_path / "missing" / "log.jsonl", {})


def test_remote_paths_are_left_to_etils():
    assert files.epath.Path("gs://bucket/run/a.json").parent.as_uri() == "gs://bucket/run"
