"""The report's numbers for machines, unrounded."""

import math
from collections.abc import Sequence

from fewshotseg.results import statistics
from fewshotseg.results.report.scores import MEASURED, Score
from fewshotseg.runs import remote

COLUMNS = (
    *("experiment", "data", "variant", "labelled", "seed", "method", "test_set", "metric"),
    *("mean", "ci95_low", "ci95_high", "sd_over_cases", "n", *statistics.STATUSES),
    *("bootstrap_over", "steps", "seconds_with_pretraining", "workdir"),
)
CASE_COLUMNS = (
    *("experiment", "data", "variant", "labelled", "seed", "method", "test_set", "workdir"),
    *("case", "unit", "status", *MEASURED),
)


def summary_rows(scores: Sequence[Score]) -> list[dict]:
    """Unrounded: one row for every run, method, test set and metric."""
    rows = []
    for score in scores:
        known = _identity(score) | {key: score.summary[key] for key in statistics.STATUSES}
        known |= {"bootstrap_over": score.over, "steps": score.run.steps(score.method)}
        known |= {"seconds_with_pretraining": score.run.seconds(score.method)}
        for metric in MEASURED:
            found = score.summary[metric]
            low, high = found["ci95"]
            spread = {"ci95_low": low, "ci95_high": high, "sd_over_cases": found["sd"]}
            rows.append(
                {**known, "metric": metric, "mean": found["mean"], **spread, "n": found["n"]}
            )
        for metric, value in score.pooled.items():
            rows.append({**known, "metric": metric, "mean": value, "n": len(score.rows)})
    return rows


def case_rows(scores: Sequence[Score]) -> list[dict]:
    """Unrounded: one row for every run, method, test set and case."""
    return [
        {
            **_identity(score),
            "case": case,
            "unit": score.units[case],
            "status": row["status"],
            **{metric: row.get(metric, math.nan) for metric in MEASURED},
        }
        for score in scores
        for case, row in score.rows.items()
    ]


def _identity(score: Score) -> dict[str, str]:
    return {
        "experiment": score.run.name,
        "data": score.run.data,
        "variant": score.run.variant,
        "labelled": score.run.labelled,
        "seed": score.run.seed,
        "method": score.method,
        "test_set": score.test_set,
        "workdir": remote.shown(score.run.workdir),
    }
