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


def test_a_written_split_can_be_read_as_lists(tmp_path):
    path = tmp_path / "splits.json"
    split = split_files.Split(
        ("b", "a"),
        ("c",),
        ("ä/1", "d"),
        ("a note",),
        {"test": {"ä/1": 0, "d": 0}},
        {"train": {"b": "p"}},
    )
    split_files.write_split(path, split)
    lists = {"train": ("b", "a"), "validation": ("c",), "test": ("ä/1", "d")}
    assert split_files.read_lists(path, ("a", "b", "c", "d", "ä/1")) == lists
    assert [path.name for path in tmp_path.iterdir()] == ["splits.json"]
    split_files.write_split(path, split, {"busi": split.test, "other": ["x"]})
    content = json.loads(path.read_text())
    assert list(content) == [
        "train", "validation", "test/busi", "test/other", "notes", "clusters", "groups"
    ]  # fmt: skip
    assert content["notes"] == ["a note"] and content["groups"] == {"train": {"b": "p"}}
    assert content["clusters"] == {"test": {"ä/1": 0, "d": 0}}
    assert split_files.read_lists(path, ("a", "b", "c", "d", "ä/1")) == lists


def test_several_lists_make_up_a_role(tmp_path):
    (tmp_path / "train.txt").write_text("a\nb\n")
    (tmp_path / "extra.txt").write_text("# more\nb\nc.png\n")
    (tmp_path / "lists.json").write_text(
        '{"pool": ["train.txt", "d", "extra.txt"], "exclude": "val.txt", "test": ["e"]}'
    )
    (tmp_path / "val.txt").write_text("f\n")
    lists = split_files.read_lists(tmp_path / "lists.json", tuple("abcdef"))
    assert lists == {"pool": ("d", "a", "b", "c"), "exclude": ("f",), "test": ("e",)}
    with pytest.raises(InputError, match=r"extra\.txt: there is no case 'c\.png'|'c'"):
        split_files.read_lists(tmp_path / "lists.json", tuple("abdef"))


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path, split = tmp_path / "splits.json", split_files.Split(("a",), ("b",), ("c",))
    split_files.write_split(path, split)
    before = path.read_text()

    def full_disk(self, data):
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(files.epath.Path(tmp_path)), "write_bytes", full_disk)
    with pytest.raises(InputError, match="splits.json: cannot be written .No space"):
        split_files.write_split(path, split_files.Split(("z",), (), ()))
    assert path.read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["splits.json"]
