"""What the synthetic pairs of the methods are like: a table, a plot, and a row per pair."""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from fewshotseg.data.look_alikes import DUPLICATE_CORRELATION
from fewshotseg.results.report import plots, words
from fewshotseg.results.report.run import Run
from fewshotseg.results.report.tables import Table
from fewshotseg.runs import remote

COLUMNS = (
    *("experiment", "data", "variant", "seed", "method", "source", "consistency"),
    *("nearest_correlation", "nearest_case", "cases", "foreground", "draw", "example", "workdir"),
)


def pair_table(runs: Sequence[Run]) -> Table:
    """A row for every run, method and source of pairs."""
    several = len(runs) > 1
    rows, judges = [], {}
    for run in runs:
        lead = (f"{run.experiment.title}, seed {run.seed}",) if several else ()
        for method, found in run.pairs.items():
            judges[found.get("judge")] = None
            for source, pairs in _by_source(found).items():
                rows.append((*lead, method, source.replace("_", " "), *_cells(pairs)))
    lead = ("run",) if several else ()
    header = ("method", "source", "pairs", "consistency", "below 0.5", "nearest", "near copies")
    judged = ", ".join(judge for judge in judges if judge)
    note = (
        f"Consistency: Dice of a pair's mask and the one that {judged} predicts for its image, median. "
        if judged
        else "Consistency: no method was trained on real images alone, nothing judges. "
    )
    note += (
        "Nearest: correlation with the training image that looks most alike, median; near copies: share "
        f"from {DUPLICATE_CORRELATION:g} on."
    )
    return Table("Synthetic pairs", (*lead, *header), tuple(rows), len(lead) + 2, note)


def _cells(pairs):
    consistency = _values(pairs, "consistency")
    nearest = _values(pairs, "nearest_correlation")
    known = consistency.size > 0
    return (
        str(len(pairs)),
        words.number(float(np.median(consistency))) if known else "?",
        _share(consistency < 0.5) if known else "?",
        words.number(float(np.median(nearest))) if nearest.size else "?",
        _share(nearest >= DUPLICATE_CORRELATION) if nearest.size else "?",
    )


def _share(which) -> str:
    return f"{100 * float(np.mean(which)):.0f} %"


def scatter(measured: Mapping[str, Mapping]) -> Figure | None:
    """Consistency of every pair against its nearest correlation, a colour per method; None without any."""
    points = {}
    for method, found in measured.items():
        pairs = [_pair(row) for row in _rows(found)]
        pairs = [pair for pair in pairs if all(map(math.isfinite, pair))]
        if pairs:
            points[method] = np.array(pairs)
    return plots.pair_scatter(points) if points else None


def pair_rows(runs: Sequence[Run]) -> list[dict]:
    """Unrounded: one row for every run, method and pair that was measured."""
    return [
        {
            "experiment": run.name,
            "data": run.data,
            "variant": run.variant,
            "seed": run.seed,
            "method": method,
            **{key: row.get(key) for key in COLUMNS[5:-1]},
            "workdir": remote.shown(run.workdir),
        }
        for run in runs
        for method, found in run.pairs.items()
        for row in _rows(found)
    ]


def _rows(found: Mapping) -> Iterator[Mapping]:
    """The pairs of a file that may be damaged."""
    rows = found.get("pairs")
    return (row for row in (rows if isinstance(rows, list) else ()) if isinstance(row, Mapping))


def _by_source(found: Mapping) -> dict[str, list[Mapping]]:
    sources: dict[str, list[Mapping]] = {}
    for row in _rows(found):
        sources.setdefault(str(row.get("source")), []).append(row)
    return sources


def _pair(row) -> tuple[float, float]:
    keys = "nearest_correlation", "consistency"
    return tuple(math.nan if row.get(key) is None else float(row[key]) for key in keys)


def _values(rows, key) -> np.ndarray:
    values = np.array([math.nan if row.get(key) is None else row[key] for row in rows], float)
    return values[np.isfinite(values)]
