"""The report's numbers as tables of text.

Two spreads are kept apart. The interval over test cases (bootstrap) says how far the score of one
trained model would move with other test images; the interval over seeds (Student's t) says how far
it moves when training is repeated. Only the second can support a claim about a method.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from fewshotseg.results import metrics, statistics
from fewshotseg.results.report import words
from fewshotseg.results.report.advice import labelled_images
from fewshotseg.results.report.run import Experiment
from fewshotseg.results.report.scores import (
    POOLED,
    Comparison,
    Score,
    distance_unit,
    grouped,
    with_nan,
)

SHOWN = ("hd95", "nsd", "sensitivity", "precision")  # beside Dice
ASKED_FOR = ("cldice",)  # likewise, where a run has measured it
THRESHOLD = "grey-value threshold"


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells are text; the first `text_columns` columns are set flush left.

    Columns in `bars` hold shares in [0, 1], drawn as a bar behind the number.
    """

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: int
    note: str = ""
    bars: tuple[int, ...] = ()


def score_table(scores: Sequence[Score]) -> Table:
    """Method x test set of every run, means over the same test cases."""
    several = len({score.run.workdir for score in scores}) > 1
    named = len({score.experiment for score in scores}) > 1
    rows, shown = [], _shown(scores)
    for _, here in itertools.groupby(scores, lambda s: (s.run.workdir, s.test_set)):
        here = list(here)
        first = here[0]
        lead = _lead(first.experiment) if named else ()
        lead = (*lead, first.run.seed) if several else lead
        if first.test_set in first.run.thresholds:
            rows.append((*lead, first.test_set, THRESHOLD, *_threshold_cells(here, shown)))
        rows += [(*lead, s.test_set, s.method, *_score_cells(s, shown)) for s in here]
    over = ", ".join(dict.fromkeys(f"{s.test_set}: {s.over}" for s in scores))
    lead = (*(("experiment", "labelled") if named else ()), *(("seed",) if several else ()))
    return Table(
        "Mean over test cases",
        (
            *(*lead, "test set", "method", "Dice [95 % CI over cases]"),
            *_headings(scores),
            *(metric.heading for metric in POOLED.values()),
            *("n (left out)", "empty: both / ref. / pred.", "seconds"),
        ),
        tuple(rows),
        len(lead) + 2,
        f"Means are over the same cases for all methods of a run; left out are cases without a Dice "
        f"under some method. The intervals are over test cases, not over seeds, by bootstrap over "
        f"{over}; of fewer than {statistics.MIN_UNITS} there is none. "
        f"NSD: surface Dice{_tolerance(scores)}. Pooled Dice and ECE (calibration error of the "
        "probabilities) add the pixels of all cases. Seconds include the generator's "
        "pre-training where a method draws.",
    )


def class_table(scores: Sequence[Score]) -> Table:
    """Every class on its own; empty if there is only one."""
    rows = []
    for score in scores:
        by_class: dict[str, list[Mapping]] = {}
        for case in score.run.evaluations[score.method, score.test_set]:
            by_class.setdefault(str(case.get("class", "")), []).append(with_nan(case))
        if len(by_class) < 2:
            continue
        for name, cases in by_class.items():
            units = [score.units[str(case["case"])] for case in cases]
            found = statistics.aggregate(cases, units)
            dice = f"{words.number(found['dice']['mean'])} {words.interval(found['dice']['ci95'])}"
            run = (*_lead(score.experiment), score.run.seed, score.test_set, score.method, name)
            hd95 = words.of_metric("hd95", found["hd95"]["mean"])
            rows.append((*run, dice, hd95, str(found["dice"]["n"])))
    header = ("experiment", "labelled", "seed", "test set", "method", "class")
    header = (*header, "Dice [95 % CI over cases]", f"HD95 ({distance_unit(scores)})", "n")
    return Table("Every class", header, tuple(rows), 6)


def seed_table(scores: Sequence[Score]) -> Table:
    """Mean, sd and t interval over seeds; only what has two seeds or more."""
    named = len({score.experiment for score in scores}) > 1
    rows, left_out, shown = [], 0, _shown(scores)
    for _, here in grouped(scores, lambda s: (s.experiment, s.test_set)):
        common = {
            m: statistics.common_cases([s.by_case(m) for s in here])[0] for m in ("dice", *shown)
        }
        left_out += len({i for s in here for i in s.rows}) - len(common["dice"])
        for method, of_method in grouped(here, lambda s: s.method):
            if len(of_method) < 2:
                continue
            over = {}
            for m, ids in common.items():
                means = [np.mean([s.rows[i][m] for i in ids] or [math.nan]) for s in of_method]
                over[m] = statistics.summarise_seeds(means)
            first, dice = of_method[0], over["dice"]
            pooled = [np.mean([s.pooled[name] for s in of_method]) for name in POOLED]
            seconds = np.mean([s.run.seconds(method) for s in of_method])
            rows.append(
                (
                    *(_lead(first.experiment) if named else ()),
                    *(first.test_set, method, str(len(of_method))),
                    f"{words.number(dice['mean'])} \u00b1 {words.number(dice['sd'])}",
                    words.interval(dice["ci95"]),
                    *(words.of_metric(m, over[m]["mean"]) for m in shown),
                    *map(words.number, pooled),
                    words.number(seconds, 0),
                )
            )
    lead = ("experiment", "labelled") if named else ()
    return Table(
        "Over seeds",
        (
            *(*lead, "test set", "method", "seeds", "Dice mean \u00b1 sd", "95 % CI over seeds"),
            *_headings(scores),
            *(metric.heading for metric in POOLED.values()),
            "seconds",
        ),
        tuple(rows),
        len(lead) + 2,
        f"{labelled_images([s.run for s in scores])} Student's t interval of the mean over "
        "seeds. Means are over the same test cases for all methods and seeds"
        + (f" ({left_out} left out)." if left_out else "."),
    )


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """Paired differences in Dice and HD95."""
    several = len({c.experiment for c in comparisons}) > 1
    rows = [
        (
            *(_lead(c.experiment) if several else ()),
            c.test_set,
            f"{c.a} \u2212 {c.b}",
            f"{words.signed(c.cases['mean'])} {words.interval(c.cases['ci95'], sign=True)}",
            words.p_value(c.p_holm),
            f"{words.signed(c.hd95['mean'], 1)} {words.interval(c.hd95['ci95'], 1, sign=True)}",
            f"{c.cases['n']} ({c.cases['n_left_out']})",
            str(c.seeds["n"]),
            words.interval(c.seeds["ci95"], sign=True) if c.seeds["n"] > 1 else "needs 2 seeds",
        )
        for c in comparisons
    ]
    over = ", ".join(dict.fromkeys(f"{c.test_set}: {c.over}" for c in comparisons))
    units = " or ".join(sorted({c.unit for c in comparisons}, reverse=True)) or "px"
    return Table(
        "Paired differences",
        (
            *(("experiment", "labelled") if several else ()),
            *("test set", "methods", "Dice [95 % CI over cases]", "p (Wilcoxon, Holm)"),
            *(f"HD95, {units} [95 % CI over cases]", "n (left out)", "seeds"),
            "Dice, 95 % CI over seeds",
        ),
        tuple(rows),
        4 if several else 2,
        "The same test cases under both methods, averaged over seeds first; higher Dice and lower "
        f"HD95 are better. Bootstrap and rank test over {over}; of fewer than "
        f"{statistics.MIN_UNITS} there is no interval. p is adjusted by Holm's method for "
        "all comparisons on the same test set. Left out are cases where a method has no Dice.",
    )


def case_table(scores: Sequence[Score], first: str) -> Table:
    """Every case of one run and test set, the worst of method `first` on top."""
    by_method = {score.method: score for score in scores}
    lead = by_method.get(first) or scores[0]
    methods = [lead.method, *(m for m in by_method if m != lead.method)]
    dice = {m: by_method[m].by_case() for m in methods}
    order = sorted(lead.rows, key=lambda i: (_last(dice[lead.method][i]), i))
    grouped = any(lead.units.values())
    rows = [
        (
            case,
            *((lead.units[case] or "\u2013",) if grouped else ()),
            *(words.number(dice[m].get(case, math.nan)) for m in methods),
            words.of_metric("hd95", lead.rows[case]["hd95"]),
            words.of_metric("nsd", lead.rows[case].get("nsd", math.nan)),
            _STATUS_WORDS.get(lead.rows[case]["status"], ""),
        )
        for case in order
    ]
    text_columns = 2 if grouped else 1
    header = (
        *("case", *(("group",) if grouped else ())),
        *(f"Dice, {m}" for m in methods),
        *(
            f"HD95 ({distance_unit([lead])}), {lead.method}",
            f"NSD, {lead.method}",
            f"empty, {lead.method}",
        ),
    )
    bars = tuple(range(text_columns, text_columns + len(methods)))
    caption = f"Every test case of {lead.test_set}, the worst of {lead.method} first"
    return Table(caption, header, tuple(rows), text_columns, bars=bars)


_STATUS_WORDS = {
    "both_empty": "both: no score",
    "reference_empty": "reference: false alarm",
    "prediction_empty": "prediction: miss",
}


def _score_cells(score: Score, shown: Sequence[str]) -> tuple[str, ...]:
    summary, dice = score.summary, score.summary["dice"]
    return (
        f"{words.number(dice['mean'])} {words.interval(dice['ci95'])}",
        *(words.of_metric(m, summary[m]["mean"]) for m in shown),
        *map(words.number, score.pooled.values()),
        f"{dice['n']} ({dice['n_nan']})",
        " / ".join(str(summary[key]) for key in statistics.STATUSES),
        words.number(score.run.seconds(score.method), 0),
    )


def _threshold_cells(scores: Sequence[Score], shown: Sequence[str]) -> tuple[str, ...]:
    """Dice of the threshold, over the same cases where they are known."""
    threshold = scores[0].run.thresholds[scores[0].test_set]
    ids, left_out = statistics.common_cases(
        [*(s.by_case() for s in scores), threshold.by_case or scores[0].by_case()]
    )
    blank = ("",) * (len(shown) + len(POOLED))
    if not threshold.by_case:
        return (words.number(threshold.dice), *blank, "", "", "")
    values = [threshold.by_case[i] for i in ids]
    units = [scores[0].units[i] for i in ids]
    mean = float(np.mean(values)) if values else math.nan
    ends = words.interval(statistics.bootstrap_interval(values, units))
    return (f"{words.number(mean)} {ends}", *blank, f"{len(ids)} ({left_out})", "", "")


def _shown(scores: Sequence[Score]) -> tuple[str, ...]:
    asked = [m for m in ASKED_FOR if any(not math.isnan(s.summary[m]["mean"]) for s in scores)]
    return (*SHOWN, *asked)


def _headings(scores: Sequence[Score]) -> tuple[str, ...]:
    """Of what is shown, with the unit that these scores have."""
    found = {m: metrics.METRICS[m] for m in _shown(scores)}
    found["hd95"] = dataclasses.replace(found["hd95"], unit=distance_unit(scores))
    return tuple(metric.heading for metric in found.values())


def _tolerance(scores: Sequence[Score]) -> str:
    found = {s.run.summaries[s.method, s.test_set].get("nsd_tolerance") for s in scores} - {None}
    return f" at a tolerance of {' or '.join(sorted(found))}" if found else ""


def _lead(experiment: Experiment) -> tuple[str, str]:
    return experiment.title, experiment.labelled.split(" ")[0]


def _last(value: float) -> float:
    return math.inf if math.isnan(value) else value
