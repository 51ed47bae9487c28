"""What the report says of a search, by hand."""

import json

from fewshotseg.results.report import decisions, inputs

_RECORD = {
    "strategy": "hypergradient",
    "before": {"mixture": {"augmented": 0.25, "copy_paste": 0.25, "cutmix": 0.25, "tint": 0.25}},
    "after": {"mixture": {"augmented": 0.62, "copy_paste": 0.02, "cutmix": 0.18, "tint": 0.18}},
    "rounds": [
        {
            "mean": {"mixture": [-0.3, 0.2, 0.1, -0.1]},
            "t": {"mixture": [-4.2, 3.6, 0.1, -0.4]},
            "p": {"mixture": [0.04, 0.05, 1.0, 1.0]},
        },
        {"t": {"mixture": [0.0, 0.0, 0.0, 0.0]}, "p": {"mixture": [1.0, 1.0, 1.0, 1.0]}},
    ],
    "level": 0.1,
    "trials": [],
}


def _run(tmp_path, record):
    folder = tmp_path / "mixture_searched"
    folder.mkdir(parents=True)
    (folder / "search.json").write_text(json.dumps(record))
    (folder / "log.jsonl").write_text("")
    (tmp_path / "config.json").write_text(json.dumps({"methods": ["mixture_searched"]}))
    return inputs.read_run(tmp_path)


def test_every_source_has_a_row_with_its_evidence_and_what_it_means(tmp_path):
    table = decisions.decision_table([_run(tmp_path, _RECORD)])
    assert [len(row) for row in table.rows] == [len(table.header)] * 4
    good, bad, rest, _ = (row[1:] for row in table.rows)
    assert good[:5] == ("mixture: augmented", "25 %", "62 %", "-4.2", "0.040")
    assert "better with more of it" in good[5]
    assert bad[:3] == ("mixture: copy paste", "25 %", "2 %") and "worse with more" in bad[5]
    assert "what the others left" in rest[5]


def test_folds_that_all_say_the_same_have_an_infinite_t(tmp_path):
    first = _RECORD["rounds"][0] | {"t": {"mixture": [None, 3.6, 0.1, -0.4]}}  # as JSON has it
    table = decisions.decision_table([_run(tmp_path, {**_RECORD, "rounds": [first]})])
    assert table.rows[0][4] == "∞" and "better with more of it" in table.rows[0][6]


def test_no_evidence_is_said(tmp_path):
    still = {**_RECORD, "after": _RECORD["before"]}
    table = decisions.decision_table([_run(tmp_path, still)])
    assert all("no evidence" in row[-1] for row in table.rows)


def test_other_strategies_have_no_t(tmp_path):
    chosen = {**_RECORD, "strategy": "choice", "rounds": [{"losses": [1.0]}]}
    table = decisions.decision_table([_run(tmp_path, chosen)])
    assert all(row[4:6] == ("", "") and "cross-validation" in row[6] for row in table.rows)


def test_seconds_include_the_search(tmp_path):
    timed = {**_RECORD, "trials": [{"seconds": 20.0}, {"seconds": 22.5}]}
    run = _run(tmp_path, timed)
    (tmp_path / "mixture_searched" / "log.jsonl").write_text('{"step": 9, "seconds": 7.0}\n')
    assert inputs.read_run(tmp_path).seconds("mixture_searched") == 49.5 and run.searches


def test_a_search_that_still_runs_is_left_out(tmp_path):
    running = {"trials": [{"loss": 1.0}]}
    assert not decisions.decision_table([_run(tmp_path, running)]).rows


_FEEDBACK = {
    "ratings": 80,
    "raters": {
        "ann": {"repeats": 6, "same": 5, "real": 4, "real_accepted": 3.5},
        "bob": {"repeats": 1, "same": 1, "real": 2, "real_accepted": 2.0},
    },
    "reward": {"auc": 0.914},
    "beta": 1.0,
    "losses": {"0": 0.9, "1": 0.8},
    "difference": -0.1,
    "error": 0.02,
}


def _feedback_rows(tmp_path, **changed):
    _run(tmp_path, _RECORD)
    content = json.dumps({**_FEEDBACK, **changed})
    (tmp_path / "mixture_searched" / "feedback.json").write_text(content)
    return decisions.feedback_table([inputs.read_run(tmp_path)]).rows


def test_what_ratings_did_is_said(tmp_path):
    (row,) = _feedback_rows(tmp_path / "a")
    assert row[1:] == (
        "80", "2", "6 of 7", "5.5 of 6", "0.91", "1", "-0.100 ± 0.020",
        "used: they help on cases held out",
    )  # fmt: skip
    (row,) = _feedback_rows(tmp_path / "b", beta=0.0, difference=0.05)
    assert row[6] == "0" and "they hurt" in row[-1]
    (row,) = _feedback_rows(tmp_path / "c", beta=0.0, difference=-0.01)
    assert "no evidence" in row[-1]
    (row,) = _feedback_rows(tmp_path / "d", losses={}, difference=None, error=None)
    assert row[7] == "–" and "nothing was tried" in row[-1]
    (row,) = _feedback_rows(tmp_path / "g", reward={"auc": None})  # nothing was rejected
    assert row[5] == "–" and "they help" in row[-1]
    (row,) = _feedback_rows(tmp_path / "e", reward=None)
    assert row[5] == "–" and "too few" in row[-1]
    assert not decisions.feedback_table([_run(tmp_path / "f", _RECORD)]).rows
