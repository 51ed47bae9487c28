"""The benchmark of few labels: what it lists to draw from, to test on and to keep apart."""

import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
LISTS = """
import pathlib, sys
import fewshot
fewshot.FLAGS(["fewshot.py", *sys.argv[2:]])
fewshot.write_lists("busi", pathlib.Path(sys.argv[1]))
"""


def _lists(data_dir, folder, test_lists):
    paths = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
    arguments = [str(folder), f"--data_dir={data_dir}", f"--test_lists={test_lists}"]
    done = subprocess.run(
        [sys.executable, "-c", LISTS, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "lists.json").read_text())


def test_which_images_can_be_drawn_does_not_depend_on_what_is_tested(tmp_path):
    ids = {"train": "ab", "val": "cd", "test": "ef", "curve": "gbe"}
    (tmp_path / "splits" / "busi").mkdir(parents=True)
    for name, letters in ids.items():
        (tmp_path / "splits" / "busi" / f"{name}.txt").write_text("\n".join(letters))
    chosen = _lists(tmp_path, tmp_path / "1", "val")
    assert chosen == {"pool": list("abg"), "test": list("cd"), "exclude": list("ef")}
    both = _lists(tmp_path, tmp_path / "2", "val,test")
    assert both == {"pool": list("abg"), "test": list("cdef"), "exclude": []}
