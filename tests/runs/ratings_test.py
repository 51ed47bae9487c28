"""The file of ratings: several writers, kills, undo, repeats, and the table."""

import csv
import multiprocessing
import threading

import numpy as np
import pytest

from fewshotseg import errors
from fewshotseg.runs import ratings


def row(i, answer="accept", item=None, rater="ann", **more):
    return {
        "id": f"id{i}", "rater": rater, "item": item or f"item{i}", "kind": "synthetic",
        "pair": f"pair{i}", "answer": answer, "tags": [], "ms": 1000, "tab": "t", **more,
    }  # fmt: skip


def _write(path, writer, number):
    for i in range(number):
        ratings.append(path, {"writer": writer, "i": i, "text": "x" * (200 + 37 * writer)})


def test_processes_and_threads_that_write_at_once_leave_whole_lines(tmp_path):
    path = tmp_path / "review" / "ratings.jsonl"
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_write, args=(path, i, 40)) for i in range(2)]
    threads = [threading.Thread(target=_write, args=(path, i, 40)) for i in range(2, 5)]
    for worker in [*processes, *threads]:
        worker.start()
    for worker in [*processes, *threads]:
        worker.join()
    rows = ratings.read(path)
    assert len(rows) == len(path.read_bytes().splitlines()) == 200
    for writer in range(5):  # nothing lost, and in the order of each writer
        assert [r["i"] for r in rows if r["writer"] == writer] == list(range(40))


def test_where_a_file_system_has_no_locks_lines_still_go_to_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(ratings, "fcntl", None)
    path = tmp_path / "ratings.jsonl"
    threads = [threading.Thread(target=_write, args=(path, i, 100)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ratings.read(path)) == 800


def test_a_line_cut_by_a_kill_takes_no_other_with_it(tmp_path):
    path = tmp_path / "ratings.jsonl"
    ratings.append(path, row(1))
    with path.open("ab") as file:
        file.write(b'{"id": "id2", "rat')
    ratings.append(path, row(3))
    assert [r["id"] for r in ratings.read(path)] == ["id1", "id3"]
    assert ratings.read(tmp_path / "none") == []


def test_the_last_answer_that_was_not_undone_counts():
    rows = [row(1, "reject", "a"), row(2, "accept", "b"), row(3, "accept", "a")]
    assert [(r["item"], r["answer"]) for r in ratings.active(rows)] == [
        ("b", "accept"),
        ("a", "accept"),
    ]
    assert ratings.last_of(rows, "ann")["id"] == "id3"
    rows.append({"undo": "id3"})  # the answer before it counts again
    assert {r["item"]: r["answer"] for r in ratings.active(rows)} == {"a": "reject", "b": "accept"}
    assert ratings.last_of(rows, "ann")["id"] == "id2"
    assert ratings.last_of(rows, "ann", "another tab") is None
    assert ratings.last_of(rows, "bob") is None
    rows.append(row(4, "reject", "b", rater="bob"))  # two raters, two answers
    assert len(ratings.active(rows)) == 3


def test_consistency_by_hand():
    rows = [
        row(1, "accept"), row(2, "reject"), row(3, "unsure", kind="real"), row(4, kind="real"),
        row(5, "accept", pair="pair1", ms=3000), row(6, "accept", pair="pair2", ms=2000),
        row(7, "corrected", rater="bob"),
    ]  # fmt: skip
    found = ratings.consistency(rows)
    assert found["ann"] == {
        "answers": 6, "repeats": 2, "same": 1, "real": 2, "real_accepted": 1.5, "synthetic": 4,
        "synthetic_accepted": 3.0, "median_ms": 1000.0,
    }  # fmt: skip
    assert found["bob"]["synthetic_accepted"] == 0 and list(found) == ["ann", "bob"]


def test_the_table_has_what_counts_and_computes_nothing(tmp_path):
    rows = [
        row(1, tags=["border", "texture"], cases=["c1", "c2"], number=7),
        row(2, rater="=cmd()"),
        {"undo": "id1"},
        row(3, "reject", tags=["anatomy", "texture"]),
    ]
    ratings.write_csv(tmp_path / "ratings.csv", rows)
    with (tmp_path / "ratings.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [r["id"] for r in read] == ["id2", "id3"] and read[1]["tags"] == "anatomy;texture"
    assert read[0]["rater"] == "'=cmd()" and tuple(read[0]) == ratings.COLUMNS


def test_hashes_tell_contents_shapes_and_types_apart():
    a = np.arange(6, dtype=np.uint8)
    same = ratings.hash_arrays(a.copy()), ratings.hash_arrays(a)
    other = [a.reshape(2, 3), a.astype(np.int8), a[::-1]]
    assert same[0] == same[1] and len({same[0], *map(ratings.hash_arrays, other)}) == 4


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.InputError, match="the answer could not be written"):
        ratings.append(tmp_path / "file" / "ratings.jsonl", row(1))
