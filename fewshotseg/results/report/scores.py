"""Scores of runs, and of methods against each other on the same cases."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fewshotseg.errors import InputError
from fewshotseg.methods import METHODS
from fewshotseg.results import metrics, statistics
from fewshotseg.results.report.run import Experiment, Run, Threshold

BASELINE = "real_only"
CO_TRAINING = "end2end"
LEARNED = ("mixture_learned", "mixture_searched")  # by the hypergradient
MEASURED = tuple(name for name in metrics.METRICS if name != "false_positive_area")
POOLED = {
    "pooled_dice": metrics.Metric(None, "pooled Dice"),
    "ece": metrics.Metric(None, "ECE", higher_is_better=False),
}


@dataclasses.dataclass(frozen=True)
class Score:
    """One method of one run on one test set.

    Attributes:
      rows: by case id the `MEASURED` metrics (of several classes the mean), NaN where undefined.
      units: by case id what the bootstrap draws; '' for the case alone.
      over: how many of what it draws have a Dice, such as '12 clusters'.
      summary: of `statistics.aggregate`, over the cases that all methods of this run have a number
        for, so that rows of one table are means over the same cases.
      pooled: `POOLED` metrics, over all cases.
    """

    run: Run
    method: str
    test_set: str
    rows: Mapping[str, Mapping]
    units: Mapping[str, str]
    over: str
    summary: Mapping
    pooled: Mapping[str, float]

    @property
    def experiment(self) -> Experiment:
        return self.run.experiment

    def by_case(self, metric: str = "dice") -> dict[str, float]:
        return {case: row.get(metric, math.nan) for case, row in self.rows.items()}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Method `a` minus method `b` in one experiment and on one test set.

    Attributes:
      cases: `statistics.paired_difference` of Dice over test cases, averaged over seeds.
      hd95: the same of HD95.
      seeds: `statistics.summarise_seeds` over the mean paired difference in Dice of every seed.
      seed_names: the seeds that have both methods.
      over: what the bootstrap over cases draws.
      p_holm: p value of the rank test, adjusted for all comparisons on this test set.
      unit: of HD95, see `distance_unit`.
    """

    experiment: Experiment
    test_set: str
    a: str
    b: str
    cases: Mapping
    hd95: Mapping
    seeds: Mapping
    seed_names: tuple[str, ...]
    over: str
    p_holm: float = math.nan
    unit: str = "px"


def score_runs(runs: Sequence[Run]) -> list[Score]:
    """All scores, in the order of the runs, the test sets and `METHODS`.

    Raises:
      InputError: two runs are the same seed and method of the same experiment.
    """
    scores, seen = [], {}
    for run in runs:
        for method, test_set in run.evaluations:
            identity = (run.experiment, run.seed, method, test_set)
            if identity in seen:
                raise InputError(
                    f"{seen[identity]} and {run.workdir} both hold {method} of {run.name!r} "
                    f"with seed {run.seed}: give only one of them, or train with another "
                    "config.name or config.seed."
                )
            seen[identity] = run.workdir
        for test_set, keys in grouped(run.evaluations, lambda key: key[1]):
            scores += _score(run, [method for method, _ in keys], test_set)
    return scores


def _score(run: Run, methods: Sequence[str], test_set: str) -> list[Score]:
    """Scores of the methods of one run on one test set, over the same cases."""
    tables, groups = {}, {}
    for method in methods:
        by_case = metrics.rows_by_case(map(with_nan, run.evaluations[method, test_set]))
        tables[method] = {i: metrics.mean_over_classes(rows) for i, rows in by_case.items()}
        groups |= {i: str(rows[0].get("group") or "") for i, rows in by_case.items()}
    common = {
        metric: set(
            statistics.common_cases(
                [{i: r.get(metric, math.nan) for i, r in t.items()} for t in tables.values()]
            )[0]
        )
        for metric in MEASURED
    }
    scores = []
    for method, table in tables.items():
        known = groups | dict(statistics.of_test_set(run.groups, test_set))
        clusters = statistics.of_test_set(run.clusters, test_set)
        units, _ = statistics.units_of(list(table), known, clusters)
        scored = [case for case in table if case in common["dice"]]
        over = statistics.units_of(scored, known, clusters)[1]
        kept = [
            {"status": row["status"]}
            | {m: row.get(m, math.nan) if case in common[m] else math.nan for m in MEASURED}
            for case, row in table.items()
        ]
        summary = statistics.aggregate(kept, units)
        mean = run.summaries[method, test_set].get("mean")
        mean = mean if isinstance(mean, Mapping) else {}
        pooled = {name: _number_or_nan(mean.get(name)) for name in POOLED}
        named = dict(zip(table, units, strict=True))
        scores.append(Score(run, method, test_set, table, named, over, summary, pooled))
    return scores


def compare(scores: Sequence[Score]) -> list[Comparison]:
    """Every method against the baseline, and what moves theta against its like that does not."""
    pairs = [(m, BASELINE) for m in METHODS if m != BASELINE]
    pairs += [(CO_TRAINING, m) for m in METHODS if METHODS[m].draws and m != CO_TRAINING]
    unlearned = [m for m in METHODS if METHODS[m].sources != () and not METHODS[m].draws]
    pairs += [(a, b) for a in LEARNED for b in unlearned if b not in LEARNED]
    found = []
    for experiment, test_set in dict.fromkeys((s.experiment, s.test_set) for s in scores):
        here = [s for s in scores if (s.experiment, s.test_set) == (experiment, test_set)]
        compared = [c for c in (_compare(here, a, b) for a, b in pairs) if c]
        adjusted = statistics.holm([c.cases["p_wilcoxon"] for c in compared])
        found += [dataclasses.replace(c, p_holm=p) for c, p in zip(compared, adjusted, strict=True)]
    return found


def _compare(scores: Sequence[Score], a: str, b: str) -> Comparison | None:
    sides = [{s.run.seed: s for s in scores if s.method == m} for m in (a, b)]
    seeds = tuple(seed for seed in sides[0] if seed in sides[1])
    if not seeds:
        return None
    first = sides[0][seeds[0]]
    units = {k: v for seed in seeds for k, v in sides[0][seed].units.items()}
    paired = {
        metric: statistics.paired_difference(
            *(mean_by_case([side[s].by_case(metric) for s in seeds]) for side in sides), units
        )
        for metric in ("dice", "hd95")
    }
    per_seed = [
        statistics.paired_difference(sides[0][s].by_case(), sides[1][s].by_case())["mean"]
        for s in seeds
    ]
    return Comparison(
        first.experiment,
        first.test_set,
        a,
        b,
        paired["dice"],
        paired["hd95"],
        statistics.summarise_seeds(per_seed),
        seeds,
        first.over,
        unit=distance_unit([s for side in sides for s in side.values()]),
    )


def distance_unit(scores: Iterable[Score]) -> str:
    """Of HD95: 'px', 'mm' where the spacing of all cases is known, or 'px or mm'."""
    summaries = [s.run.summaries[s.method, s.test_set] for s in scores]
    found = {"mm" if s.get("unit_of_hd95") == "mm" else "px" for s in summaries}
    return " or ".join(sorted(found, reverse=True)) or "px"


def against_threshold(score: Score) -> Mapping | None:
    """`paired_difference` in Dice of a score and the grey-value threshold; None without one.

    Runs of the first version kept the threshold's mean only: then the interval is that of the
    score's own mean.
    """
    threshold: Threshold | None = score.run.thresholds.get(score.test_set)
    if threshold is None:
        return None
    by_case = threshold.by_case or dict.fromkeys(score.rows, threshold.dice)
    return statistics.paired_difference(score.by_case(), by_case, score.units)


def with_nan(case: Mapping) -> dict:
    """A row of cases.json, with NaN where the file says null."""
    return {
        **case,
        **{m: math.nan for m in metrics.METRICS if m in case and case[m] is None},
    }


def mean_by_case(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean over seeds of every case that all of them have."""
    shared = [i for i in values[0] if all(i in other for other in values)]
    return {i: sum(v[i] for v in values) / len(values) for i in shared}


def grouped(items: Iterable, key: Callable) -> list[tuple[Any, list]]:
    """Groups in the order in which their first members come, members in their order."""
    groups: dict = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.items())


def _number_or_nan(value) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
