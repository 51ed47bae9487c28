"""Lists and splits in files."""

import json

import pytest

from fewshotseg import files
from fewshotseg.data import split_files
from fewshotseg.errors import InputError


def test_ids_may_come_with_extension_or_without_folder():
    known = ("benign/b (1)", "benign/b (2)", "train/1", "validation/1")
    assert split_files.resolve_ids(["b (2)", "benign/b (1).png"], known, "x") == (
        known[1],
        known[0],
    )
    with pytest.raises(InputError, match="there is no case '1'"):
        split_files.resolve_ids(["1"], known, "x")


def test_split_files_round_trip(tmp_path):
    split = split_files.Split(("b", "a"), ("c",), ("ä/1", "d"))
    split_files.write_split(tmp_path / "splits.json", split)
    assert split_files.read_split(tmp_path / "splits.json") == split
    assert [path.name for path in tmp_path.iterdir()] == ["splits.json"]
    split_files.write_split(tmp_path / "splits.json", split, {"busi": split.test, "other": ["x"]})
    content = json.loads((tmp_path / "splits.json").read_text())
    assert list(content) == ["train", "validation", "test/busi", "test/other"]
    assert split_files.read_split(tmp_path / "splits.json") == split


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    split = split_files.Split(("a",), ("b",), ("c",))
    split_files.write_split(tmp_path / "splits.json", split)

    def full_disk(self, data):
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(files.epath.Path(tmp_path)), "write_bytes", full_disk)
    with pytest.raises(InputError, match="splits.json: cannot be written .No space"):
        split_files.write_split(tmp_path / "splits.json", split_files.Split(("z",), (), ()))
    assert split_files.read_split(tmp_path / "splits.json") == split
    assert [path.name for path in tmp_path.iterdir()] == ["splits.json"]
    with pytest.raises(InputError, match="'train' is missing"):
        (tmp_path / "other.json").open("w").write("{}")
        split_files.read_split(tmp_path / "other.json")
