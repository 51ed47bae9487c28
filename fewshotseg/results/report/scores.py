"""Scores of runs, and of methods against each other on the same cases."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from fewshotseg.errors import InputError
from fewshotseg.results import metrics, statistics
from fewshotseg.results.report.inputs import METHODS, Run

BASELINE, CO_TRAINING = "real_only", "end2end"
_COMPARISONS = (
    (CO_TRAINING, BASELINE),
    ("separate", BASELINE),
    ("joint", BASELINE),
    (CO_TRAINING, "separate"),
    (CO_TRAINING, "joint"),
)


@dataclasses.dataclass(frozen=True)
class Score:
    """One method of one run on one test set.

    Attributes:
      summary: of `statistics.aggregate` over the cases (several classes: over their mean per case).
      by_case: Dice by case id; NaN where it is undefined.
      groups: patient by case id, '' if unknown.
    """

    run: Run
    method: str
    test_set: str
    summary: Mapping
    by_case: Mapping[str, float]
    groups: Mapping[str, str]

    @property
    def experiment(self) -> tuple[str, str, str]:
        return self.run.experiment, self.run.data, self.run.labelled


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Dice of method `a` minus Dice of method `b` in one experiment and on one test set.

    Attributes:
      cases: `statistics.paired_difference` over test cases, of values averaged over seeds.
      seeds: `statistics.summarise_seeds` over the mean paired difference of every seed.
      seed_names: the seeds that have both methods.
    """

    experiment: tuple[str, str, str]
    test_set: str
    a: str
    b: str
    cases: Mapping
    seeds: Mapping
    seed_names: tuple[str, ...]


def score_runs(runs: Sequence[Run]) -> list[Score]:
    """All scores, in the order of the runs, the test sets and `METHODS`.

    Raises:
      InputError: two runs are the same seed and method of the same experiment.
    """
    scores, seen = [], {}
    for run in runs:
        keys = sorted(run.evaluations, key=lambda key: (_rank(run, key[1]), METHODS.index(key[0])))
        for method, test_set in keys:
            identity = (run.experiment, run.data, run.labelled, run.seed, method, test_set)
            if identity in seen:
                raise InputError(
                    f"{seen[identity]} and {run.workdir} both hold {method} of {run.experiment!r} "
                    f"with seed {run.seed}: give only one of them, or train with another "
                    "config.name or config.seed."
                )
            seen[identity] = run.workdir
            rows = _one_row_per_case(run.evaluations[method, test_set])
            groups = {row["id"]: str(row.get("group") or "") for row in rows}
            scores.append(
                Score(
                    run,
                    method,
                    test_set,
                    statistics.aggregate(rows, list(groups.values())),
                    {row["id"]: row["dice"] for row in rows},
                    groups,
                )
            )
    return scores


def compare(scores: Sequence[Score]) -> list[Comparison]:
    """Every pair of methods that some seed of an experiment has on the same test set."""
    found = []
    for experiment, test_set in dict.fromkeys((s.experiment, s.test_set) for s in scores):
        here = [s for s in scores if (s.experiment, s.test_set) == (experiment, test_set)]
        for a, b in _COMPARISONS:
            sides = [{s.run.seed: s for s in here if s.method == m} for m in (a, b)]
            seeds = tuple(seed for seed in sides[0] if seed in sides[1])
            if not seeds:
                continue
            groups = {k: v for seed in seeds for k, v in sides[0][seed].groups.items()}
            averaged = [_mean_by_case([side[s].by_case for s in seeds]) for side in sides]
            per_seed = [
                statistics.paired_difference(sides[0][s].by_case, sides[1][s].by_case)["mean"]
                for s in seeds
            ]
            found.append(
                Comparison(
                    experiment,
                    test_set,
                    a,
                    b,
                    statistics.paired_difference(*averaged, groups),
                    statistics.summarise_seeds(per_seed),
                    seeds,
                )
            )
    return found


def _one_row_per_case(cases: Sequence[Mapping]) -> list[dict]:
    """Mean over the classes of a case; null becomes NaN again."""
    by_id: dict[str, list[dict]] = {}
    for case in cases:
        by_id.setdefault(str(case["case"]), []).append(with_nan(case))
    return [
        {"id": case_id, "group": rows[0].get("group", ""), **metrics.mean_over_classes(rows)}
        for case_id, rows in by_id.items()
    ]


def with_nan(case: Mapping) -> dict:
    """A row of cases.json, with NaN where the file says null."""
    return {
        **case,
        **{m: math.nan for m in metrics.METRICS if m in case and case[m] is None},
    }


def _mean_by_case(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean over seeds of every case that all of them have."""
    shared = [i for i in values[0] if all(i in other for other in values)]
    return {i: sum(v[i] for v in values) / len(values) for i in shared}


def _rank(run: Run, test_set: str) -> tuple[int, str]:
    order = [key.removeprefix("test/") for key in run.splits]
    return (order.index(test_set) if test_set in order else len(order), test_set)
