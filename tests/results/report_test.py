"""The report on run folders whose numbers are known by hand, on broken ones, and on real files."""

import base64
import csv
import html.parser
import io
import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fewshotseg.errors import InputError
from fewshotseg.methods import METHODS
from fewshotseg.results import choice, statistics
from fewshotseg.results.report import advice
from fewshotseg.results.report import inputs as report_inputs
from fewshotseg.results.report import page as report
from fewshotseg.results.report import plots as report_plots
from fewshotseg.results.report import scores as report_scores
from fewshotseg.results.report import tables as report_tables
from fewshotseg.runs import remote

COUNTS = ("reference_size", "prediction_size", "intersection")


def _row(case, dice, group="", status="ok", **more):
    row = {"case": case, "group": group, "class": "lesion", "class_id": 1, "status": status}
    row |= {"dice": dice, "jaccard": dice and dice / (2 - dice), "hd95": 2.0}
    row |= {"sensitivity": 0.5, "precision": 0.25, "false_positive_area": None}
    return {**row, **dict.fromkeys(COUNTS, 10), **more}


def _write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def _make_run(workdir, dice, seed=0, name="demo", test_set="phantom"):
    """A run folder; `dice` maps methods to the Dice of cases c00, c01, ..."""
    data = {"source": "phantom", "phantom": {"style": "dermoscopy"}, "image_size": 64}
    config = {"name": name, "seed": seed, "methods": list(dice), "data": data}
    _write(workdir / "config.json", config)
    _write(workdir / "environment.json", {"versions": {"jax": "0.0.1"}, "device": "4 x abacus"})
    splits = {"train": ["a", "b", "c"], "validation": ["d"], f"test/{test_set}": ["c00"]}
    _write(workdir / "splits.json", splits)
    for method, values in dice.items():
        records = [
            {
                "stage": "train",
                "step": s,
                "segmenter/real_loss": 1 / (s + 1),
                "validation/dice": 0.5,
            }
            for s in (0, 10, 20)
        ]
        _write(workdir / method / "log.jsonl", "\n".join(map(json.dumps, records)))
        rows = [v if isinstance(v, dict) else _row(f"c{i:02}", v) for i, v in enumerate(values)]
        folder = workdir / method / "evaluation" / test_set
        _write(folder / "cases.json", rows)
        _write(folder / "summary.json", {})
    return workdir


def _png(path, size=(20, 10), colour=(200, 30, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


class _Links(html.parser.HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.sources, self.tags, self.open_tags = [], set(), []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.sources += [value for key, value in attrs if key in ("src", "href")]
        if tag not in ("img", "meta", "br", "link"):
            self.open_tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open_tags.pop() == tag


def _page(workdirs, tmp_path):
    path = report.build_report(workdirs, tmp_path / "page" / "report.html")
    text = path.read_text()
    assert not _Links(text).open_tags
    return re.sub(r"data:image[^\"]*", "", text)


def _spread(mean, count=30):
    return [mean + 0.1 * math.sin(i) for i in range(count)]


def _headlines(workdirs):
    runs = report_inputs.read_runs(workdirs)
    scores = report_scores.score_runs(runs)
    verdicts = advice.verdicts(runs, scores, report_scores.compare(scores))
    return [(v.tone, v.headline, v.text) for v in verdicts]


def _handover(workdir):
    scores = report_scores.score_runs(report_inputs.read_runs([workdir]))
    (found,) = advice.handovers(scores)
    return found


def _cells(table, **wanted):
    """The rows of a table as dicts by heading, those with these cells."""
    rows = [dict(zip(table.header, row, strict=True)) for row in table.rows]
    return [row for row in rows if wanted.items() <= row.items()]


def test_numbers_are_those_of_the_cases(tmp_path):
    run = _make_run(tmp_path / "run", {"real_only": [0.5, 0.7] * 3, "end2end": [0.6, 1.0] * 3})
    text = report.results_table([run])
    page = _page([run], tmp_path)
    for content in (text, page):
        assert "0.600 [" in content and "0.800 [" in content
        assert "+0.200 [" in content
    with open(tmp_path / "page" / "report_results.csv", newline="") as file:
        rows = {(r["method"], r["metric"]): r for r in csv.DictReader(file)}
    assert float(rows["end2end", "dice"]["mean"]) == pytest.approx(0.8)
    jaccard = (0.5 / 1.5 + 0.7 / 1.3) / 2
    assert float(rows["real_only", "jaccard"]["mean"]) == pytest.approx(jaccard, abs=1e-12)
    assert rows["real_only", "dice"]["n"] == "6" and rows["real_only", "dice"]["seed"] == "0"


def test_empty_cases_are_counted_and_left_out(tmp_path):
    empty = {**_row("c01", None, status="both_empty"), "hd95": None}
    missed = _row("c02", 0.0, status="prediction_empty")
    run = _make_run(tmp_path / "run", {"real_only": [0.9, empty, missed]})
    (score,) = report_scores.score_runs([report_inputs.read_run(run)])
    assert score.summary["dice"]["mean"] == pytest.approx(0.45)
    row = report_tables.score_table([score]).rows[0]
    assert row[-3:-1] == ("2 (1)", "1 / 0 / 1")


def test_several_classes_are_averaged_per_case(tmp_path):
    rows = [_row("x", 0.2), {**_row("x", 0.6), "class": "other", "class_id": 2}]
    rows += [_row("y", 1.0), {**_row("y", None), "class": "other", "class_id": 2}]
    run = report_inputs.read_run(_make_run(tmp_path / "run", {"real_only": rows}))
    (score,) = report_scores.score_runs([run])
    assert score.by_case() == pytest.approx({"x": 0.4, "y": 1.0})
    cells = [
        (row[5], row[6].split()[0], row[-1]) for row in report_tables.class_table([score]).rows
    ]
    assert cells == [("lesion", "0.600", "2"), ("other", "0.600", "1")]


def test_seeds_get_a_t_interval(tmp_path):
    runs = [
        _make_run(tmp_path / f"run{s}", {"real_only": [m, m]}, seed=s)
        for s, m in enumerate((0.5, 0.6, 0.7))
    ]
    (row,) = report_tables.seed_table(
        report_scores.score_runs([report_inputs.read_run(r) for r in runs])
    ).rows
    half = 4.302652729911275 * 0.1 / math.sqrt(3)  # t with 2 degrees of freedom
    assert row[2:5] == ("3", "0.600 \u00b1 0.100", f"[{0.6 - half:.3f}, {0.6 + half:.3f}]")


def test_the_same_seed_twice_is_refused(tmp_path):
    a, b = (_make_run(tmp_path / name, {"real_only": [0.5, 0.6]}) for name in "ab")
    with pytest.raises(InputError, match="both hold real_only of 'demo' with seed 0"):
        report.results_table([a, b])
    assert report.results_table([a, a]) == report.results_table([a])


def test_methods_of_one_seed_may_lie_in_several_folders(tmp_path):
    a = _make_run(tmp_path / "a", {"real_only": [0.5, 0.7] * 3})
    b = _make_run(tmp_path / "b", {"end2end": [0.6, 1.0] * 3})
    assert "+0.200 [" in report.results_table([a, b])


def test_runs_of_other_data_or_name_are_no_seeds_of_each_other(tmp_path):
    a = _make_run(tmp_path / "a", {"real_only": [0.5, 0.6]}, seed=0, name="one")
    b = _make_run(tmp_path / "b", {"real_only": [0.5, 0.6]}, seed=1, name="two")
    scores = report_scores.score_runs([report_inputs.read_run(r) for r in (a, b)])
    assert not report_tables.seed_table(scores).rows
    assert "one and two" in _page([a, b], tmp_path)


@pytest.mark.parametrize(
    "gain,tone,words",
    [
        (0.05, "open", "One seed: end2end"),
        (0.0, "none", "no measurable difference"),
        (-0.05, "hurt", ""),
    ],
)
def test_one_seed_never_says_that_the_method_helped(tmp_path, gain, tone, words):
    base = _spread(0.7)
    other = [x + gain + 0.03 * math.cos(5 * i) for i, x in enumerate(base)]
    run = _make_run(tmp_path / "run", {"real_only": base, "end2end": other})
    ((found, headline, text),) = _headlines([run])
    assert found == tone and words in headline
    assert "helped" not in headline and "hand over" not in headline  # the box says that
    assert "two more seeds" in text


@pytest.mark.parametrize(
    "gains,tone,words",
    [
        ((0.05, 0.06, 0.055), "helped", "Co-training helped."),
        ((0.10, 0.00, 0.05), "none", "no measurable difference."),
        ((-0.05, -0.06, -0.055), "hurt", "Co-training hurt."),
    ],
)
def test_several_seeds_decide(tmp_path, gains, tone, words):
    base = _spread(0.7)
    runs = []
    for seed, gain in enumerate(gains):
        other = [x + gain + 0.02 * math.cos(5 * i) for i, x in enumerate(base)]
        dice = {"real_only": base, "end2end": other}
        runs.append(_make_run(tmp_path / f"run{seed}", dice, seed=seed))
    ((found, headline, text),) = _headlines(runs)
    assert (found, words in headline) == (tone, True)
    assert f"mean {np.mean(gains):+.3f}" in text


def test_steady_seeds_on_few_scattered_cases_are_no_proof(tmp_path):
    """Every seed gains the same, but on one case out of three only."""
    dice = {"real_only": [0.5] * 6, "end2end": [0.8, 0.5, 0.49] * 2}
    runs = [_make_run(tmp_path / f"run{s}", dice, seed=s) for s in range(3)]
    ((tone, _, text),) = _headlines(runs)
    assert tone == "none" and "So few test cases" in text


def test_verdict_needs_both_methods(tmp_path):
    run = _make_run(tmp_path / "run", {"end2end": _spread(0.5)})
    ((tone, headline, _),) = _headlines([run])
    assert (tone, headline) == ("open", "No verdict yet.")


def test_no_verdict_where_nobody_asked_for_one(tmp_path):
    run = _make_run(tmp_path / "run", {"real_only": _spread(0.5)})
    assert not _headlines([run])
    assert "Did co-training help?" not in _page([run], tmp_path)


def test_page_is_self_contained(tmp_path):
    run = _make_run(tmp_path / "run", {"real_only": _spread(0.5), "end2end": _spread(0.6)})
    _png(run / "contact_sheet.png", (2000, 40))
    _png(run / "end2end" / "samples" / "step_000100.png", colour=(0, 255, 0))
    _png(run / "end2end" / "samples" / "step_001000.png", colour=(0, 0, 255))
    _png(run / "end2end" / "evaluation" / "phantom" / "examples" / "worst_1_c00.png")
    text = report.build_report([run], run / "report.html").read_text()
    links = _Links(text)
    assert links.sources and all(s.startswith("data:image/") for s in links.sources)
    assert not links.tags & {"script", "link", "iframe"}
    assert "http" not in re.sub(r"data:image[^\"]*", "", text)
    images = [
        Image.open(io.BytesIO(base64.b64decode(s.split(",")[1]))).convert("RGB")
        for s in links.sources
    ]
    assert max(image.width for image in images) == 1600  # the contact sheet was shrunk
    blue = [i for i in images if i.size == (20, 10) and i.getpixel((5, 5))[2] > 240]
    assert len(blue) == 1  # the latest sample, by number and not by name
    assert not any(i.size == (20, 10) and i.getpixel((5, 5))[1] > 240 for i in images)
    assert {p.name for p in (run / "report").glob("*.png")} >= {
        "curve_validation_dice.png",
        "curve_segmenter_loss.png",
        "cases_end2end_phantom.png",
    }
    assert "worst 1" in text and "4 x abacus" in text and "jax 0.0.1" in text
    assert "4 (3 training + 1 validation)" in text


def test_a_page_beside_other_files_leaves_them_alone(tmp_path):
    run = _make_run(tmp_path / "run", {"real_only": _spread(0.5)})
    before = {name: f"of the user: {name}" for name in ("results.csv", "cases.csv", "pairs.csv")}
    for name, text in before.items():
        (tmp_path / name).write_text(text)
    page = report.build_report([run], tmp_path / "mine.html").read_text()
    assert {name: (tmp_path / name).read_text() for name in before} == before
    assert "mine_results.csv and mine_cases.csv" in page and not (tmp_path / "report").exists()
    report.build_report([run], run / "report.html")
    assert (run / "results.csv").read_bytes() == (tmp_path / "mine_results.csv").read_bytes()


def test_names_are_escaped(tmp_path):
    run = _make_run(tmp_path / "run", {"real_only": [0.5, 0.6]}, name="<script>alert(1)</script>")
    assert "<script>" not in _page([run], tmp_path)


def test_run_that_has_just_started(tmp_path):
    _write(tmp_path / "run" / "config.json", {"name": "x", "methods": ["real_only", "end2end"]})
    page = _page([tmp_path / "run"], tmp_path)
    assert "real_only: has not been started" in page
    assert "No run has been evaluated yet" in page
    assert "splits.json: is not there" in page
    assert "No run has been evaluated yet" in report.results_table([tmp_path / "run"])


def test_killed_run(tmp_path):
    run = _make_run(tmp_path / "run", {"real_only": [0.5, 0.6], "end2end": [0.5, 0.6]})
    with open(run / "end2end" / "log.jsonl", "a") as file:
        file.write('\n{"stage": "train", "step": 30, "segmen')
    (run / "end2end" / "evaluation" / "phantom" / "summary.json").unlink()
    _write(run / "end2end" / "samples" / "step_000010.png", "half a picture")
    _write(run / "environment.json", '{"device": "4')
    page = _page([run], tmp_path)
    assert "this evaluation did not end" in page
    assert "environment.json: is not there or damaged" in page
    assert "No verdict yet" in page


def test_damaged_cases_are_named(tmp_path):
    run = _make_run(tmp_path / "run", {"real_only": [0.5, 0.6]})
    _write(run / "real_only" / "evaluation" / "phantom" / "cases.json", [{"case": "a"}])
    assert "is damaged; run --mode=evaluate again" in _page([run], tmp_path)


@pytest.mark.parametrize("content", [None, "", "{", "[]"])
def test_folder_that_is_no_run(tmp_path, content):
    (tmp_path / "run").mkdir()
    if content is not None:
        _write(tmp_path / "run" / "config.json", content)
    with pytest.raises(InputError, match="config.json"):
        report.results_table([tmp_path / "run"])
    with pytest.raises(InputError, match="no such folder"):
        report.results_table([tmp_path / "nowhere"])
    with pytest.raises(InputError, match="at least one run"):
        report.results_table([])


def test_threshold_baseline_is_shown(tmp_path):
    run = _make_run(tmp_path / "run", {"real_only": [0.5, 0.6]})
    _write(run / "threshold.json", {"phantom": 0.4567})
    scores = report_scores.score_runs(report_inputs.read_runs([run]))
    (row,) = _cells(report_tables.score_table(scores), method="grey-value threshold")
    assert row["Dice [95 % CI over cases]"] == "0.457"


def test_log_of_a_resumed_run_counts_every_step_once(tmp_path):
    lines = [
        {"stage": "train", "step": 10, "a": 1.0},
        {"stage": "train", "step": 20, "a": 2.0, "b": 9.0},
        {"stage": "train", "step": 20, "a": 3.0},
        {"stage": "train", "step": 15, "a": float("nan")},
        {"no": "step"},
    ]
    _write(tmp_path / "log.jsonl", "\n".join(map(json.dumps, lines)) + "\nnot json")
    log = report_inputs.read_log(tmp_path / "log.jsonl")
    assert [record["step"] for record in log] == [10, 15, 20]
    steps, values = report_plots.series(log, "a")
    assert steps.tolist() == [10, 20] and values.tolist() == [1.0, 3.0]
    assert report_plots.series(log, "b")[1].tolist() == [9.0]


def test_architecture_plot_tells_the_largest_change():
    start, end = [[0.3, 0.3, 0.4], [0.2, 0.2, 0.6]], [[0.3, 0.3, 0.4], [0.1, 0.2, 0.7]]
    log = [{"step": 0, "architecture/decoder": start}, {"step": 9, "architecture/decoder": end}]
    figure, change = report_plots.architecture(log)
    assert change == pytest.approx(0.1)
    assert Image.open(io.BytesIO(report_plots.png(figure))).width > 200
    assert report_plots.architecture([{"step": 0}]) is None


def test_report_says_when_the_architecture_did_not_move(tmp_path):
    run = _make_run(tmp_path / "run", {"end2end": [0.5, 0.6]})
    weights = [[1 / 3, 1 / 3, 1 / 3]]
    records = [{"stage": "train", "step": s, "architecture/encoder": weights} for s in (0, 50)]
    _write(run / "end2end" / "log.jsonl", "\n".join(map(json.dumps, records)))
    assert "the architecture has not moved" in _page([run], tmp_path)


def test_reads_what_evaluation_writes(tmp_path):
    from fewshotseg.data.sources.phantom import PhantomSource
    from fewshotseg.results.evaluate import evaluate
    from fewshotseg.results.predictor import Predictor

    source = PhantomSource(num_cases=12, image_size=32)
    run = _make_run(tmp_path / "run", {"real_only": []})
    folder = run / "real_only" / "evaluation" / "phantom"

    def predict(images):
        return (images.mean(axis=-1, keepdims=True) < 0).astype(np.float32)

    model = Predictor(predict, 32, 3, ("lesion",), 0.5, "test")
    summary = evaluate(model, source, source.ids, folder, cldice=True)
    fitted = {"temperature": 1.31, "ece_before": 0.0512, "ece_after": None}
    _write(run / "real_only" / "calibration.json", fitted)
    (score,) = report_scores.score_runs([report_inputs.read_run(run)])
    for metric in report_scores.MEASURED:
        for key in ("mean", "n", "ci95"):
            expected = summary["mean"][metric][key]
            assert score.summary[metric][key] == pytest.approx(expected, nan_ok=True)
    for name in ("pooled_dice", "ece"):
        assert score.pooled[name] == pytest.approx(summary["mean"][name])
    page = _page([run], tmp_path)
    assert ">clDice<" in page
    other = _make_run(tmp_path / "other", {"real_only": [0.5, 0.7]})
    assert ">clDice<" not in _page([other], tmp_path / "second")
    assert "worst 1" in page and "tolerance of 0.01 of the image" in page
    assert list((tmp_path / "page" / "report_report").glob("reliability_*.png"))
    assert "real_only 1.310 (expected calibration error there 0.051, now \u2013)" in page


def test_needs_no_accelerator_library():
    program = "import sys, fewshotseg.results.report.page; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_the_drawn_loss_on_real_images_is_that(tmp_path):
    """The full line is `segmenter/real_loss`, not the sum with the synthetic one."""
    log = [
        {"step": s, "segmenter/loss": 3.0, "segmenter/real_loss": 2.0 - s / 100,
         "segmenter/synthetic_loss": 1.0 + s / 100}
        for s in (0, 10, 20)
    ]  # fmt: skip
    drawn = report_plots.learning_curves({"separate": log})["segmenter_loss"]
    real, synthetic = drawn.axes[0].lines
    assert (real.get_linestyle(), synthetic.get_linestyle()) == ("-", "--")
    assert real.get_ydata().tolist() == [2.0, 1.9, 1.8]
    assert synthetic.get_ydata().tolist() == [1.0, 1.1, 1.2]
    assert real.get_xdata().tolist() == [0, 10, 20] and real.get_label() == "separate"
    assert "real (full), synthetic (dashed)" in drawn.axes[0].get_title()


def test_every_curve_is_what_its_title_says():
    log = [{"step": s, **{k: i + s for i, k in enumerate(_LOGGED)}} for s in (1, 2, 3)]
    drawn = report_plots.learning_curves({"end2end": log})
    assert set(drawn) == {name for name, _, _ in report_plots.PANELS}
    for name, _, keys in report_plots.PANELS:
        lines = drawn[name].axes[0].lines
        expected = [[_LOGGED.index(key) + s for s in (1, 2, 3)] for key in keys]
        assert [line.get_ydata().tolist() for line in lines] == expected, name


_LOGGED = (
    "validation/dice", "segmenter/real_loss", "segmenter/synthetic_loss", "outer/loss",
    "generator/loss", "discriminator/loss", "generator/l1",
)  # fmt: skip


def test_reliability_is_drawn_bin_by_bin():
    curve = {"pixels": [3, 0, 5], "probability": [0.1, None, 0.8], "frequency": [0.2, None, 0.5]}
    figure = report_plots.reliability({"real_only": curve}, "lesion on \u75c5")
    diagonal, line = figure.axes[0].lines
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata()) == [0, 1]
    assert line.get_xdata().tolist() == [0.1, 0.8] and line.get_ydata().tolist() == [0.2, 0.5]
    assert report_plots.reliability({}, "nothing") is None


def test_methods_have_colours_of_their_own():
    colours = [report_plots.colour(method) for method in (*METHODS, "generator")]
    assert len(set(colours)) == len(colours)


def test_notes_of_the_split_are_on_top(tmp_path):
    run = _make_run(tmp_path / "run", {"real_only": [0.5, 0.6]})
    splits = json.loads((run / "splits.json").read_text())
    note = "3 patients are on two sides of the listed split"
    _write(run / "splits.json", {**splits, "notes": [note]})
    page = _page([run], tmp_path)
    assert page.index(note) < page.index("Which model to use")
    assert report.results_table([run]).startswith(f"NOTE, run: {note}")


def _set_splits(run, train, validation, **more):
    _write(run / "splits.json", {"train": train, "validation": validation, **more})


@pytest.mark.parametrize(
    "splits,words",
    [
        ([("ab", "c"), ("ab", "c")], "All seeds have the same 3 labelled images, divided alike"),
        ([("ab", "c"), ("bc", "a")], "the same 3 labelled images, divided differently"),
        (
            [("ab", "c"), ("ax", "y")],
            "are draws of the labelled images; two of them share 1.0 of 3",
        ),
        ([("", ""), ("", "")], "is not known"),
    ],
)
def test_seeds_are_described_after_a_look_at_the_splits(tmp_path, splits, words):
    runs = []
    for seed, (train, validation) in enumerate(splits):
        dice = {"real_only": _spread(0.5), "end2end": _spread(0.6)}
        runs.append(_make_run(tmp_path / f"run{seed}", dice, seed=seed))
        _set_splits(runs[-1], list(train), list(validation))
    scores = report_scores.score_runs(report_inputs.read_runs(runs))
    assert words in report_tables.seed_table(scores).note
    ((_, _, text),) = _headlines(runs)
    assert words in text
    draws = "draws of the labelled images" in words
    assert ("draws of the labelled images" in report.results_table(runs)) == draws


def test_a_model_below_the_threshold_is_not_handed_over(tmp_path):
    dice = {"real_only": _spread(0.5), "end2end": _spread(0.6)}
    run = _make_run(tmp_path / "run", dice)
    assert _handover(run).method == "end2end"
    by_case = {f"c{i:02}": 0.7 for i in range(30)}
    threshold = {"dice": 0.7, "threshold": 9, "polarity": "dark", "by_case": by_case}
    _write(run / "threshold.json", {"phantom": threshold})
    found = _handover(run)
    assert found.method is None and found.command == "" and found.tone == "hurt"
    assert "Use none of these models" in found.headline
    assert "worse than one grey-value threshold" in " ".join(found.sentences)
    ((_, headline, _),) = _headlines([run])
    assert "Neither is better than one grey-value threshold: hand over neither" in headline
    assert "--mode=predict" not in _page([run], tmp_path)
    # Only the baseline is below.
    threshold["by_case"] = dict.fromkeys(by_case, 0.55)
    _write(run / "threshold.json", {"phantom": threshold})
    ((_, headline, _),) = _headlines([run])
    assert "real_only is no better than one grey-value threshold" in headline
    assert _handover(run).method == "end2end"


def test_threshold_is_compared_over_the_same_cases(tmp_path):
    """The threshold has no Dice on c01: the model's 0.0 there does not count."""
    run = _make_run(tmp_path / "run", {"real_only": [0.8, 0.0, 0.6]})
    by_case = {"c00": 0.5, "c01": None, "c02": 0.5}
    _write(run / "threshold.json", {"phantom": {"dice": 0.5, "by_case": by_case}})
    scores = report_scores.score_runs(report_inputs.read_runs([run]))
    difference = report_scores.against_threshold(scores[0])
    assert difference["mean"] == pytest.approx(0.2) and difference["n"] == 2
    (row,) = _cells(report_tables.score_table(scores), method="grey-value threshold")
    assert row["n (left out)"] == "2 (1)"


def test_report_and_prediction_name_the_same_method(tmp_path):
    dice = {method: _spread(0.5) for method in ("real_only", "separate", "end2end")}
    run = _make_run(tmp_path / "run", dice)
    config = json.loads((run / "config.json").read_text())
    for named in ("", "real_only", "separate"):
        _write(run / "config.json", {**config, "predict": {"method": named}})
        found = _handover(run)
        assert found.method == choice.predicting_method(named, list(dice), list(dice))[0]
        assert f"--config.predict.method={found.method}" in found.command
        assert "no measurable difference" in " ".join(found.sentences)


def test_test_images_may_object_to_the_method_that_predicts(tmp_path):
    base = _spread(0.7)
    worse = [x - 0.05 + 0.02 * math.cos(5 * i) for i, x in enumerate(base)]
    run = _make_run(tmp_path / "run", {"real_only": base, "end2end": worse})
    found = _handover(run)
    assert found.headline.startswith("Use real_only, not end2end: Dice 0.7")
    assert "Prediction takes end2end" in found.sentences[0]
    assert "--config.predict.method=real_only" in found.command
    page = _page([run], tmp_path)
    assert page.index("Which model to use") < page.index("Did co-training help?")
    assert found.command in page


def test_too_few_cases_say_that_they_are(tmp_path):
    dice = {"real_only": [0.5, 0.6, 0.7, 0.6, None], "end2end": [0.6, 0.7, 0.8, 0.7, 0.9]}
    run = _make_run(tmp_path / "run", dice)
    by_case = {f"c{i:02}": 0.1 for i in range(5)}
    _write(run / "threshold.json", {"phantom": {"dice": 0.1, "by_case": by_case}})
    found = _handover(run)
    assert found.headline == "Use end2end: Dice 0.700 on test set phantom." and found.tone == "open"
    said = " ".join(found.sentences)
    assert "Dice 0.700 over 4 cases, too few for an interval" in said
    assert "minus one grey-value threshold +0.640, of too few cases to tell" in said
    assert "too few cases to tell it from real_only" in said and "no measurable" not in said
    ((tone, headline, text),) = _headlines([run])
    assert (tone, headline) == ("open", "One seed, and too few test cases for a verdict.")
    assert "+0.100 (paired, n = 4), of 4 cases: too few for an interval." in text
    more = [run, _make_run(tmp_path / "more", dice, seed=1)]
    ((tone, headline, text),) = _headlines(more)
    assert (tone, headline) == ("open", "Too few test cases for a verdict.")
    assert "nan" not in report.results_table(more).lower()


def test_a_threshold_that_has_no_dice_objects_to_nothing(tmp_path):
    run = _make_run(tmp_path / "run", {"real_only": _spread(0.5)})
    by_case = {f"c{i:02}": None for i in range(30)}
    _write(run / "threshold.json", {"phantom": {"dice": 0.1, "by_case": by_case}})
    found = _handover(run)
    assert found.method == "real_only" and found.headline.startswith("Use real_only")
    assert "no case has a Dice to compare with a grey-value threshold" in found.sentences[1]


def test_of_many_methods_one_must_be_better_for_sure_to_be_named_instead(tmp_path, monkeypatch):
    base = _spread(0.7)
    worse = [x - 0.05 + 0.02 * math.cos(5 * i) for i, x in enumerate(base)]
    run = _make_run(tmp_path / "run", {"real_only": base, "end2end": worse})
    monkeypatch.setattr(advice.statistics, "holm", lambda p: [0.06] * len(p))
    found = _handover(run)
    assert found.method == "end2end"
    assert "no measurable difference in Dice to real_only" in " ".join(found.sentences)


def test_a_copy_of_a_run_in_a_bucket_is_named_by_its_address(tmp_path):
    run = _make_run(tmp_path / "run", {"real_only": _spread(0.5)})
    assert f"--workdir={run} " in _handover(run).command
    spaced = _make_run(tmp_path / "my run", {"real_only": _spread(0.5)})
    assert f"--workdir='{spaced}' " in _handover(spaced).command
    _write(run / remote.ADDRESS, "gs://bucket/runs/a")
    assert "--workdir=gs://bucket/runs/a " in _handover(run).command
    assert str(run) not in _page([run], tmp_path)
    assert str(run) not in (tmp_path / "page" / "report_cases.csv").read_text()


def test_hd95_is_in_every_table(tmp_path):
    rows = [_row("x", 0.2), {**_row("x", 0.6), "class": "other", "class_id": 2}]
    dice = {"real_only": rows, "end2end": rows}
    runs = [_make_run(tmp_path / f"run{s}", dice, seed=s) for s in range(2)]
    scores = report_scores.score_runs(report_inputs.read_runs(runs))
    tables = [
        report_tables.score_table(scores),
        report_tables.seed_table(scores),
        report_tables.class_table(scores),
        report_tables.comparison_table(report_scores.compare(scores)),
        report_tables.case_table(scores[:2], "end2end"),
    ]
    for table in tables:
        assert table.rows and any("HD95" in heading for heading in table.header), table.caption


def test_hd95_that_gets_worse_is_said_beside_dice(tmp_path):
    base = _spread(0.7)
    other = [
        {**_row(f"c{i:02}", x + 0.05), "hd95": 3.0 + 0.1 * (i % 3)} for i, x in enumerate(base)
    ]
    run = _make_run(tmp_path / "run", {"real_only": base, "end2end": other})
    ((_, _, text),) = _headlines([run])
    assert "HD95: +1.1 px" in text and "worse" in text
    scores = report_scores.score_runs(report_inputs.read_runs([run]))
    row = report_tables.comparison_table(report_scores.compare(scores)).rows[0]
    assert row[4].startswith("+1.1 [")


def test_seconds_include_pretraining_where_a_method_draws(tmp_path):
    run = _make_run(tmp_path / "run", {"real_only": [0.5, 0.6], "separate": [0.5, 0.6]})
    _write(run / "generator" / "log.jsonl", json.dumps({"step": 9, "seconds": 100.0}))
    for method in ("real_only", "separate"):
        _write(run / method / "log.jsonl", json.dumps({"step": 20, "seconds": 30.0}))
    scores = report_scores.score_runs(report_inputs.read_runs([run]))
    seconds = {row[1]: row[-1] for row in report_tables.score_table(scores).rows}
    assert seconds == {"real_only": "30", "separate": "130"}


def test_runs_of_other_settings_are_no_seeds_of_each_other(tmp_path):
    runs = [_make_run(tmp_path / f"run{s}", {"real_only": [0.5, 0.6]}, seed=s) for s in range(3)]
    for run, steps in zip(runs, (400, 400, 3200), strict=True):
        config = json.loads((run / "config.json").read_text())
        # What may differ: where files are and how often is logged.
        free = {"log_every": steps, "review": {"num_shown": steps}}
        free["evaluate"] = {"num_pairs": steps, "threshold": 0.5}
        config["data"]["split_file"] = str(run)
        _write(run / "config.json", {**config, **free, "train": {"num_steps": steps}})
    scores = report_scores.score_runs(report_inputs.read_runs(runs))
    (row,) = report_tables.seed_table(scores).rows
    assert row[0] == "demo (phantom dermoscopy), train.num_steps 400" and row[4] == "2"
    assert "train.num_steps 3200" in report.results_table(runs)
    config = json.loads((runs[0] / "config.json").read_text())
    _write(runs[0] / "config.json", {**config, "evaluate": {"threshold": 0.4}})
    assert "evaluate.threshold 0.4" in report.results_table(runs)
    _write(runs[0] / "config.json", config)
    # A run of an earlier version lacks the field.
    config = json.loads((runs[0] / "config.json").read_text())
    del config["train"]
    _write(runs[0] / "config.json", config)
    assert "train.num_steps unknown" in report.results_table(runs)
    # The same seed at other steps is welcome; it was refused as a double.
    config = json.loads((runs[2] / "config.json").read_text())
    _write(runs[2] / "config.json", {**config, "seed": 0})
    assert "train.num_steps 3200" in report.results_table(runs)


def test_means_of_methods_are_over_the_same_cases(tmp_path):
    """real_only rightly finds nothing on c02 (no Dice), end2end raises a false alarm there (0)."""
    empty = {**_row("c02", None, status="both_empty"), "hd95": None}
    alarm = _row("c02", 0.0, status="reference_empty")
    run = _make_run(
        tmp_path / "run", {"real_only": [0.4, 0.6, empty], "end2end": [0.5, 0.9, alarm]}
    )
    scores = report_scores.score_runs(report_inputs.read_runs([run]))
    table = report_tables.score_table(scores)
    found = {row[1]: (row[2].split()[0], row[-3], row[-2]) for row in table.rows}
    assert found["real_only"] == ("0.500", "2 (1)", "1 / 0 / 0")
    assert found["end2end"] == ("0.700", "2 (1)", "0 / 1 / 0")
    (difference,) = report_scores.compare(scores)
    assert difference.cases["mean"] == pytest.approx(0.7 - 0.5)
    assert difference.cases["n_left_out"] == 1


def test_clusters_of_the_split_are_drawn_whole(tmp_path):
    dice = {"real_only": _spread(0.5), "end2end": _spread(0.6)}
    run = _make_run(tmp_path / "run", dice)
    clusters = {f"c{i:02}": i // 5 for i in range(30)}
    _set_splits(run, ["a"], ["b"], clusters=clusters)
    scores = report_scores.score_runs(report_inputs.read_runs([run]))
    values = [scores[0].rows[f"c{i:02}"]["dice"] for i in range(30)]
    expected = statistics.bootstrap_interval(values, [f"cluster {i // 5}" for i in range(30)])
    assert scores[0].summary["dice"]["ci95"] == expected
    text = report.results_table([run])
    assert "bootstrap over 6 clusters" in text and "So few test cases" in text
    # The same by test set, as runs write it; those of another set say nothing.
    _set_splits(run, ["a"], ["b"], clusters={"phantom": clusters, "other": {"c00": 9}})
    assert report.results_table([run]) == text
    _set_splits(run, ["a"], ["b"], clusters={"other": clusters})
    assert "bootstrap over 30 cases" in report.results_table([run])
    _set_splits(run, ["a"], ["b"], groups={"phantom": {c: f"p{n}" for c, n in clusters.items()}})
    assert "bootstrap over 6 groups" in report.results_table([run])


def test_p_values_are_adjusted_for_the_comparisons_of_a_test_set(tmp_path):
    base = _spread(0.5, 40)
    dice = {
        m: [x + g + 0.05 * math.cos(5 * i + k) for i, x in enumerate(base)]
        for k, (m, g) in enumerate([("separate", 0.02), ("joint", 0.0), ("end2end", 0.03)])
    }
    run = _make_run(tmp_path / "run", {"real_only": base, **dice})
    found = report_scores.compare(report_scores.score_runs(report_inputs.read_runs([run])))
    assert [c.p_holm for c in found] == statistics.holm([c.cases["p_wilcoxon"] for c in found])
    assert any(c.p_holm > c.cases["p_wilcoxon"] for c in found)


def test_every_case_is_listed_worst_first(tmp_path):
    empty = {**_row("c02", None, status="both_empty"), "hd95": None}
    run = _make_run(
        tmp_path / "run", {"real_only": [0.9, 0.1, 0.4, 0.8], "end2end": [0.6, 0.7, empty, 0.2]}
    )
    scores = report_scores.score_runs(report_inputs.read_runs([run]))
    table = report_tables.case_table(scores, "end2end")
    assert [row[:3] for row in table.rows] == [
        ("c03", "0.200", "0.800"),
        ("c00", "0.600", "0.900"),
        ("c01", "0.700", "0.100"),
        ("c02", "\u2013", "0.400"),
    ]
    assert table.header[1:3] == ("Dice, end2end", "Dice, real_only")
    assert table.rows[-1][-1] == "both: no score"
    page = _page([run], tmp_path)
    assert "--share: 20%" in page and page.count("Every test case of phantom") == 1
    with open(tmp_path / "page" / "report_cases.csv", newline="") as file:
        rows = {(r["method"], r["case"]): r for r in csv.DictReader(file)}
    assert len(rows) == 8 and float(rows["end2end", "c03"]["dice"]) == 0.2
    assert rows["end2end", "c02"]["dice"] == ""


def test_frozen_samples_are_shown_once(tmp_path):
    dice = {"real_only": [0.5], "separate": [0.5], "end2end": [0.5]}
    run = _make_run(tmp_path / "run", dice)
    for stage in ("generator", "separate", "end2end"):
        _png(run / stage / "samples" / "step_000100.png")
    page = _page([run], tmp_path)
    assert "pre-trained, step 100" in page and "end2end, step 100" in page
    assert "separate, step 100" not in page
    assert "separate: the pre-trained one, frozen" in page


def test_only_what_is_shown_is_explained(tmp_path):
    page = _page([_make_run(tmp_path / "run", {"real_only": [0.5, 0.6]})], tmp_path)
    assert 'alt=""' not in page
    for word in ("false_positive_area", "Jaccard", "n_nan", "sd is over cases"):
        assert word not in page
    for heading in ("pooled dice", "ece", "nsd", "hd95"):
        assert page.lower().count(heading) >= 2, heading  # as a column and in its explanation
