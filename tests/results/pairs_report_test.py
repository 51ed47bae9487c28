"""What the report says of synthetic pairs, by hand."""

import csv
import json

import numpy as np

from fewshotseg.results.report import inputs, page, synthetic


def _pair(source, consistency, nearest):
    return {
        "source": source,
        "consistency": consistency,
        "nearest_correlation": nearest,
        "nearest_case": "a",
        "cases": "a;b",
        "foreground": 0.25,
        "draw": 0,
        "example": 1,
    }


PAIRS = [
    _pair("generator", 0.9, 0.5),
    _pair("generator", 0.4, 0.97),
    _pair("generator", None, 0.6),  # both masks empty
    _pair("copy_paste", 0.8, 0.2),
]


def _run(root, pairs, judge="real_only of this run"):
    folder = root / "joint"
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text("")
    (folder / "synthetic_pairs.json").write_text(json.dumps({"judge": judge, "pairs": pairs}))
    (root / "config.json").write_text(json.dumps({"methods": ["joint"], "name": "toy"}))
    return root


def test_every_source_has_a_row_of_medians_and_shares(tmp_path):
    table = synthetic.pair_table([inputs.read_run(_run(tmp_path, PAIRS))])
    assert table.header[:3] == ("method", "source", "pairs") and table.text_columns == 2
    assert table.rows == (
        ("joint", "generator", "3", "0.650", "50 %", "0.600", "33 %"),
        ("joint", "copy paste", "1", "0.800", "0 %", "0.200", "0 %"),
    )
    assert "real_only of this run predicts" in table.note


def test_without_a_judge_nothing_is_said_of_masks(tmp_path):
    pairs = [_pair("generator", None, 0.5)] * 2
    run = inputs.read_run(_run(tmp_path, pairs, judge=None))
    table = synthetic.pair_table([run])
    assert table.rows == (("joint", "generator", "2", "?", "?", "0.500", "0 %"),)
    assert "nothing judges" in table.note
    assert synthetic.scatter(run.pairs) is None


def test_a_damaged_file_is_left_out(tmp_path):
    root = _run(tmp_path, [])
    for text in ("[1]", "{", '{"pairs": 3}'):
        (root / "joint" / "synthetic_pairs.json").write_text(text)
        assert synthetic.pair_table([inputs.read_run(root)]).rows == ()


def test_a_point_and_a_line_of_the_table_per_pair(tmp_path):
    root = _run(tmp_path / "run", PAIRS)
    (axis,) = synthetic.scatter(inputs.read_run(root).pairs).axes
    (line,) = axis.lines
    np.testing.assert_allclose(line.get_xydata(), [[0.5, 0.9], [0.97, 0.4], [0.2, 0.8]])
    assert line.get_label() == "joint"
    page.build_report([root], tmp_path / "run" / "report.html")
    with (root / "pairs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["consistency"] for row in rows] == ["0.9", "0.4", "", "0.8"]
    assert rows[0]["cases"] == "a;b" and rows[0]["method"] == "joint"
    text = (root / "report.html").read_text()
    assert "Synthetic pairs, one by one" in text and "near copies" in text
