"""The report's numbers and the words for them: tables, paired comparisons, the verdict.

Two spreads are kept apart. The interval over test cases (bootstrap) says how far the score of one
trained model would move with other test images; the interval over seeds (Student's t) says how far
it moves with another draw of the labelled images and another initialisation. Only the second can
support a claim about a method.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from fewshotseg.results import statistics
from fewshotseg.results.report.inputs import METRICS, Run
from fewshotseg.results.report.scores import BASELINE, CO_TRAINING, Comparison, Score, with_nan

_EMPTY = ("both_empty", "reference_empty", "prediction_empty")
CSV_COLUMNS = (
    *("experiment", "data", "labelled", "seed", "method", "test_set", "metric"),
    *("mean", "ci95_low", "ci95_high", "sd_over_cases", "n", *_EMPTY, "workdir"),
)


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells are text; the first `text_columns` columns are set flush left."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: int
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """tone is 'helped', 'none', 'hurt', or 'open' if it is too early for any of them."""

    subject: str
    tone: str
    headline: str
    text: str


def verdicts(runs: Sequence[Run], comparisons: Sequence[Comparison]) -> list[Verdict]:
    """Did co-training help? One answer for each experiment and test set, never more than the data
    bear: a claim about the method needs several seeds and an interval without 0 over seeds AND over
    test cases."""
    answers = []
    for experiment in dict.fromkeys((run.experiment, run.data, run.labelled) for run in runs):
        here = [
            c
            for c in comparisons
            if c.experiment == experiment and (c.a, c.b) == (CO_TRAINING, BASELINE)
        ]
        answers += [_verdict(c) for c in here]
        if not here:
            answers.append(
                Verdict(
                    _name(experiment),
                    "open",
                    "No verdict yet.",
                    f"It takes test scores of both {CO_TRAINING} and {BASELINE} from the same run.",
                )
            )
    return answers


def _verdict(comparison: Comparison) -> Verdict:
    cases, seeds = comparison.cases, comparison.seeds
    subject = f"{_name(comparison.experiment)}, test set {comparison.test_set}"
    if not cases["n"]:
        text = "There is no test case on which both methods have a Dice."
        return Verdict(subject, "open", "No verdict yet.", text)
    side = _side(cases["ci95"])
    facts = (
        f"Dice of {CO_TRAINING} minus {BASELINE}: {_signed(cases['mean'])}, 95 % CI over test "
        f"cases {_interval(cases['ci95'], signed=True)} (paired, n = {cases['n']})."
    )
    if cases["n"] < 20:
        facts += " So few test cases can hardly tell methods apart."
    if seeds["n"] < 2:
        headline = {
            1: f"One seed: {CO_TRAINING} scored higher than {BASELINE} on these test cases.",
            0: f"One seed, no measurable difference: hand over {BASELINE}.",
            -1: f"One seed: {CO_TRAINING} scored lower. Hand over {BASELINE}.",
        }[side]
        advice = " Another draw of the labelled images may turn this round: train at least two "
        advice += "more seeds before you conclude anything about the method."
        return Verdict(subject, {1: "open", 0: "none", -1: "hurt"}[side], headline, facts + advice)
    facts += (
        f" Over {seeds['n']} seeds ({', '.join(comparison.seed_names)}): mean "
        f"{_signed(seeds['mean'])}, sd {_number(seeds['sd'])}, 95 % CI "
        f"{_interval(seeds['ci95'], signed=True)}."
    )
    side = side if side == _side(seeds["ci95"]) else 0
    headline = {
        1: "Co-training helped.",
        0: f"Co-training made no measurable difference: hand over {BASELINE}.",
        -1: f"Co-training hurt: hand over {BASELINE}.",
    }[side]
    if side == 0:
        facts += " At least one of the two intervals contains 0."
    return Verdict(subject, {1: "helped", 0: "none", -1: "hurt"}[side], headline, facts)


def score_table(scores: Sequence[Score]) -> Table:
    """Method x test set of every run, means over cases."""
    several = len({score.run.workdir for score in scores}) > 1
    named = len({score.experiment for score in scores}) > 1
    lead = (*(("experiment", "labelled") if named else ()), *(("seed",) if several else ()))
    rows = []
    for score in scores:
        summary = score.summary
        name = _short_name(score.experiment) if named else ()
        name = (*name, score.run.seed) if several else name
        cells = [_number(summary[m]["mean"], 1 if m == "hd95" else 3) for m in METRICS[1:]]
        dice = f"{_number(summary['dice']['mean'])} {_interval(summary['dice']['ci95'])}"
        empty = " / ".join(str(summary[key]) for key in _EMPTY)
        count = (str(summary["dice"]["n"]), empty)
        rows.append((*name, score.test_set, score.method, dice, *cells, *count))
    header = (*lead, "test set", "method", "Dice [95 % CI over cases]", "Jaccard", "HD95 (px)")
    note = "n counts the cases that have a Dice. The intervals are over test cases, not over seeds."
    naive = [
        f"{name} {dice:.3f}" + (f" (seed {run.seed})" if several else "")
        for run in {score.run.workdir: score.run for score in scores}.values()
        for name, dice in run.thresholds.items()
    ]
    if naive:
        note += " Dice of the best single grey-value threshold, for comparison: "
        note += ", ".join(naive) + "."
    return Table(
        "Mean over test cases",
        (*header, "sensitivity", "precision", "n", "empty: both / ref. / pred."),
        tuple(rows),
        len(lead) + 2,
        note,
    )


def class_table(scores: Sequence[Score]) -> Table:
    """Dice of every class; empty if there is only one."""
    rows = []
    for score in scores:
        by_class: dict[str, list[Mapping]] = {}
        for case in score.run.evaluations[score.method, score.test_set]:
            by_class.setdefault(str(case.get("class", "")), []).append(with_nan(case))
        if len(by_class) < 2:
            continue
        for name, cases in by_class.items():
            dice = statistics.aggregate(cases, [str(c.get("group") or "") for c in cases])["dice"]
            cells = (f"{_number(dice['mean'])} {_interval(dice['ci95'])}", str(dice["n"]))
            run = (*_short_name(score.experiment), score.run.seed)
            rows.append((*run, score.test_set, score.method, name, *cells))
    header = ("experiment", "labelled", "seed", "test set", "method", "class")
    header = (*header, "Dice [95 % CI over cases]", "n")
    return Table("Dice of every class", header, tuple(rows), 6)


def seed_table(scores: Sequence[Score]) -> Table:
    """Mean, sd and t interval over seeds; only what has two seeds or more."""
    named = len({score.experiment for score in scores}) > 1
    rows = []
    for key in dict.fromkeys((s.experiment, s.test_set, s.method) for s in scores):
        by_seed = {
            s.run.seed: s.summary for s in scores if (s.experiment, s.test_set, s.method) == key
        }
        if len(by_seed) < 2:
            continue
        over = {
            metric: statistics.summarise_seeds([s[metric]["mean"] for s in by_seed.values()])
            for metric in METRICS
        }
        dice = over["dice"]
        rows.append(
            (
                *(_short_name(key[0]) if named else ()),
                key[1],
                key[2],
                str(len(by_seed)),
                f"{_number(dice['mean'])} \u00b1 {_number(dice['sd'])}",
                _interval(dice["ci95"]),
                *(_number(over[m]["mean"], 1 if m == "hd95" else 3) for m in METRICS[1:]),
            )
        )
    return Table(
        "Over seeds",
        (
            *(("experiment", "labelled") if named else ()),
            *("test set", "method", "seeds", "Dice mean \u00b1 sd"),
            *("95 % CI over seeds", "Jaccard", "HD95 (px)", "sensitivity", "precision"),
        ),
        tuple(rows),
        4 if named else 2,
        "Every seed draws other labelled images. Student's t interval of the mean over seeds.",
    )


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """Paired differences in Dice."""
    several = len({c.experiment for c in comparisons}) > 1
    rows = [
        (
            *(_short_name(c.experiment) if several else ()),
            c.test_set,
            f"{c.a} \u2212 {c.b}",
            f"{_signed(c.cases['mean'])} {_interval(c.cases['ci95'], signed=True)}",
            f"{c.cases['n']} ({c.cases['n_left_out']})",
            "< 0.001" if c.cases["p_wilcoxon"] < 0.001 else _number(c.cases["p_wilcoxon"]),
            str(c.seeds["n"]),
            _interval(c.seeds["ci95"], signed=True) if c.seeds["n"] > 1 else "needs 2 seeds",
        )
        for c in comparisons
    ]
    return Table(
        "Paired differences in Dice",
        (
            *(("experiment", "labelled") if several else ()),
            *("test set", "methods", "difference [95 % CI over cases]", "n (left out)"),
            *("p (Wilcoxon)", "seeds", "95 % CI over seeds"),
        ),
        tuple(rows),
        4 if several else 2,
        "The same test cases under both methods, averaged over seeds first. Left out are cases "
        "where a method has no Dice because both masks are empty. p is not corrected for the "
        "number of rows.",
    )


def csv_rows(scores: Sequence[Score]) -> list[dict]:
    """Unrounded: one row for every run, method, test set and metric."""
    return [
        {
            "experiment": score.run.experiment,
            "data": score.run.data,
            "labelled": score.run.labelled,
            "seed": score.run.seed,
            "method": score.method,
            "test_set": score.test_set,
            "metric": metric,
            "mean": score.summary[metric]["mean"],
            "ci95_low": score.summary[metric]["ci95"][0],
            "ci95_high": score.summary[metric]["ci95"][1],
            "sd_over_cases": score.summary[metric]["sd"],
            "n": score.summary[metric]["n"],
            **{key: score.summary[key] for key in _EMPTY},
            "workdir": str(score.run.workdir),
        }
        for score in scores
        for metric in METRICS
    ]


def _name(experiment) -> str:
    name, labelled = _short_name(experiment)
    return f"{name}, {labelled} labelled images"


def _short_name(experiment) -> tuple[str, str]:
    name, data, labelled = experiment
    return (f"{name} ({data})" if data and data not in name else name), labelled.split(" ")[0]


def _side(interval) -> int:
    """1 above zero, -1 below, 0 if the interval holds zero or is undefined."""
    low, high = interval
    return int(low > 0) - int(high < 0)


def _number(value: float, digits: int = 3) -> str:
    return "\u2013" if math.isnan(value) else f"{value:.{digits}f}"


def _signed(value: float) -> str:
    return "\u2013" if math.isnan(value) else f"{value:+.3f}"


def _interval(pair, signed: bool = False) -> str:
    text = _signed if signed else _number
    return "" if math.isnan(pair[0]) else f"[{text(pair[0])}, {text(pair[1])}]"
