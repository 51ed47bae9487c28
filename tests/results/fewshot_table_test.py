"""The table of benchmarks/fewshot_table.py on rows that are known by hand."""

import json
import math

import fewshot_table as table
import numpy as np
import pytest


def _rows(method, dice, steps=400, draw=0, segmenter="unet", dataset="busi"):
    setting = dict(dataset=dataset, segmenter=segmenter, size=96, steps=steps, labels=40)
    return [
        setting | dict(method=method, draw=draw, case=f"c{i}", unit="", dice=d, hd95=100 - 100 * d)
        for i, d in enumerate(dice)
    ]


def _cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_differences_are_paired_by_case_and_settings_are_not_mixed():
    rows = _rows("real_only", [0.5, 0.6, 0.7] * 2) + _rows("mixture", [0.6, 0.8, 0.7] * 2)
    rows += _rows("real_only", [0.1] * 6, steps=800)
    lines = table.table(rows, "real_only").splitlines()[2:]
    first, second, longer = map(_cells, lines)
    assert first[:7] == ["busi", "96", "400", "40", "unet: real_only", "1", "0.600"]
    assert second[6] == "0.700" and second[7].startswith("+10.0 (")
    assert second[10] == "30.0" and second[11].startswith("-10.0 (")
    assert longer[2] == "800" and longer[7] == ""
    few = [row for row in rows if row["case"] < "c3"]
    assert (
        _cells(table.table(few, "real_only").splitlines()[3])[7] == "+10.0"
    )  # no interval of three


def test_a_method_is_compared_with_itself_at_another_number_of_steps():
    rows = _rows("real_only", [0.5, 0.6] * 3) + _rows("real_only", [0.6, 0.8] * 3, steps=1200)
    lines = table.table(table.across(rows, "steps"), "real_only at 400 steps").splitlines()[2:]
    short, long = map(_cells, lines)
    assert short[4] == "unet: real_only at 400 steps" and short[7] == ""
    assert (long[2], long[4]) == ("any", "unet: real_only at 1200 steps")
    assert long[7].startswith("+15.0 (")


def test_peers_are_compared_with_the_method_of_one_segmenter():
    """Whatever the steps; if trainings of it differ in them alone, only with the one of its own steps."""
    rows = _rows("mixture", [0.6, 0.8] * 3) + _rows(
        "smp", [0.5, 0.6] * 3, steps="10 CPU-min", segmenter="smp"
    )
    rows += _rows("mixture", [0] * 6, dataset="fuseg")
    ours, peer, other = map(_cells, table.table(rows, "unet: mixture").splitlines()[2:])
    assert ours[7] == other[7] == "" and peer[7].startswith("-15.0 (")
    rows += _rows("mixture", [0.6, 0.9] * 3, steps=800)
    rows += _rows("real_only", [0.5, 0.9] * 3, steps=800)
    lines = map(_cells, table.table(rows, "unet: mixture").splitlines()[2:])
    found = {(line[0], line[2], line[4]): line[7].partition(" ")[0] for line in lines}
    assert found["busi", "10 CPU-min", "smp: smp"] == ""
    assert found["busi", "800", "unet: real_only"] == "-5.0"


def test_over_draws_the_spread_is_that_of_the_mean_differences():
    ours = _rows("a", [0.6, 0.7]) + _rows("a", [0.8, 0.9], draw=1) + _rows("a", [1, 1], draw=7)
    theirs = _rows("b", [0.5, 0.6]) + _rows("b", [0.5, 0.6], draw=1)
    a = next(iter(table.by_method(ours).values()))["unet: a"]
    b = next(iter(table.by_method(theirs).values()))["unet: b"]
    found = table.compare(a, b, "dice")
    assert found["mean"] == pytest.approx(
        0.2
    )  # (0.1 + 0.3) / 2 in both cases, draw 7 has no partner
    half = 12.706 * math.sqrt(2) * 0.1 / math.sqrt(2)
    np.testing.assert_allclose(found["draws"]["ci95"], (0.2 - half, 0.2 + half), rtol=1e-4)


def test_a_case_without_a_score_is_left_out_for_both():
    rows = _rows("real_only", [0.5, math.nan, 0.7]) + _rows("mixture", [0.6, 0.9, 0.8])
    methods = next(iter(table.by_method(rows).values()))
    found = table.compare(methods["unet: mixture"], methods["unet: real_only"], "dice")
    assert found["n"] == 2 and found["mean"] == pytest.approx(0.1)


def test_p_values_are_adjusted_over_data_sets():
    rng = np.random.default_rng(0)
    rows = []
    for dataset in ("busi", "kvasir_seg"):
        base = rng.uniform(0.3, 0.6, 12)
        rows += _rows("real_only", base, dataset=dataset)
        rows += _rows("mixture", base + np.linspace(0.01, 0.2, 12), dataset=dataset)
    lines = [_cells(line) for line in table.table(rows, "real_only").splitlines()[2:]]
    # All 12 differences positive: p = 2 / 2^12, doubled for two data sets.
    assert [line[9] for line in lines if "mixture" in line[4]] == [f"{4 / 2**12:.2g}"] * 2


def test_rows_come_back_and_the_file_is_always_the_same(tmp_path):
    rows = _rows("real_only", [0.5, 0.25])
    for name in ("a.csv.gz", "b.csv.gz"):
        table.write_rows(rows, table.COLUMNS, tmp_path / name)
    assert (tmp_path / "a.csv.gz").read_bytes() == (tmp_path / "b.csv.gz").read_bytes()
    back = table.read_rows(tmp_path / "a.csv.gz")
    assert [row["dice"] for row in back] == [0.5, 0.25] and back[1]["case"] == "c1"


def test_classes_have_tables_of_their_own_and_all_that_was_measured(tmp_path):
    rows = []
    for name, shift in (("", 0.0), ("vessel", 0.1), ("nerve", -0.1)):
        for method, dice in (("real_plain", [0.5, 0.6]), ("real_only", [0.6, 0.8])):
            found = _rows(method, [d + shift for d in dice * 3])
            rows += [row | {"class": name, "nsd": row["dice"] / 2} for row in found]
    table.write_rows(rows, table.COLUMNS, tmp_path / "rows.csv")
    rows = table.read_rows(tmp_path / "rows.csv")
    for name, level in (("", "0.700"), ("vessel", "0.800"), ("nerve", "0.600")):
        header, _, plain, only = map(_cells, table.table(rows, "real_plain", name).splitlines())
        assert header[10:] == ["HD95", "minus", "NSD", "minus"]
        assert only[6] == level and only[7].startswith("+15.0 (")
        assert only[12] == f"{float(level) / 2:.3f}" and only[13].startswith("+0.075 (")


def test_rows_of_a_run_are_those_of_its_evaluation(tmp_path):
    """Of every class and of their mean, where one of them is undefined."""
    config = {"name": "x", "seed": 3, "methods": ["real_only"], "data": {"image_size": [8, 9, 7]}}
    config |= {"segmenter": {"name": "unet"}, "train": {"num_steps": 5}}
    folder = tmp_path / "real_only" / "evaluation" / "test"
    folder.mkdir(parents=True)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "splits.json").write_text(json.dumps({"train": ["a"], "validation": ["b"]}))
    line = {"stage": "train", "step": 5, "seconds": 1.0}
    (tmp_path / "real_only" / "log.jsonl").write_text(json.dumps(line))
    known = dict.fromkeys(("jaccard", "sensitivity", "precision"), 0.5) | {"status": "ok"}
    cases = [
        {"case": case, "class": name, "dice": dice, "hd95": 2.0, "nsd": 0.25, **known}
        for case, name, dice in (
            *(("c", "head", 0.4), ("c", "tail", 0.6)),
            *(("d", "head", None), ("d", "tail", 0.8)),
        )
    ]
    (folder / "cases.json").write_text(json.dumps(cases))
    (folder / "summary.json").write_text("{}")
    rows, _ = table.read_runs([tmp_path])
    found = {(row["case"], row["class"]): row["dice"] for row in rows}
    assert math.isnan(found.pop(("d", "head")))
    assert found == {
        ("c", ""): 0.5, ("c", "head"): 0.4, ("c", "tail"): 0.6, ("d", ""): 0.8, ("d", "tail"): 0.8,
    }  # fmt: skip
    assert rows[0]["size"] == "8 x 9 x 7" and rows[0]["nsd"] == 0.25 and rows[0]["cldice"] == ""
