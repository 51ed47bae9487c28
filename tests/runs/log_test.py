"""The log: complete lines, and none twice after a resume."""

import json

import numpy as np

from fewshotseg.runs import log as summaries


def test_values_become_json(tmp_path):
    log = summaries.Log(tmp_path / "log.jsonl", "train")
    log.write(5, {"loss": np.float32(0.5), "weights": np.float32([[1, 0], [0.25, 0.75]])})
    log.close()
    line = json.loads((tmp_path / "log.jsonl").read_text())
    assert line == {"stage": "train", "step": 5, "loss": 0.5, "weights": [[1, 0], [0.25, 0.75]]}


def test_resume_drops_what_will_be_repeated(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps({"step": s, "loss": s}) + "\n" for s in (10, 20, 30)))
    log = summaries.Log(path, "train", step=20)
    log.write(30, {"loss": 3.5})
    log.close()
    assert [line["step"] for line in summaries.read_log(path)] == [10, 20, 30]
    assert summaries.read_log(path)[-1]["loss"] == 3.5


def test_a_line_cut_short_is_left_out(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 10}\n{"step": 20, "lo')
    assert summaries.read_log(path) == [{"step": 10}]


def test_a_new_run_starts_a_new_log(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 10}\n')
    summaries.Log(path, "train").close()
    assert summaries.read_log(path) == []
