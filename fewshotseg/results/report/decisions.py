"""What a search for outer variables decided, and on what evidence, in words."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fewshotseg.results.report.inputs import Run
from fewshotseg.results.report.tables import Table

_BY = {
    "hypergradient": "the hypergradient",
    "choice": "cross-validation of every source alone",
    "random": "random search",
    "population": "random steps",
}


def decision_table(runs: Sequence[Run]) -> Table:
    """A row for every outer variable that a search of these runs could move."""
    several = len(runs) > 1
    rows = []
    for run in runs:
        for method, record in run.searches.items():
            lead = (f"{run.experiment.title}, seed {run.seed}",) if several else ()
            rows += [(*lead, method, *row) for row in _rows(record)]
    lead = ("run",) if several else ()
    header = ("method", "outer variable", "before", "after", "t", "p", "what that means")
    return Table(
        "What the search decided",
        (*lead, *header),
        tuple(rows),
        len(lead) + 2,
        "Every labelled image was held out once. t: mean over the folds of the change of the loss on "
        "the images held out when the outer variable grows, over its standard error: below 0, more of "
        "it predicts unseen images better. p is adjusted for the number of outer variables. Shares are "
        "the weights of the sources of synthetic pairs.",
    )


def _rows(record: Mapping[str, Any]):
    before, after = record.get("before") or {}, record.get("after") or {}
    rounds, level = record.get("rounds") or [{}], record.get("level", 0.0)
    for name, parts in before.items():
        t, p = (_first(rounds, key, name) for key in ("t", "p"))
        for i, (part, start) in enumerate(parts.items()):
            end = after.get(name, {}).get(part, start)
            label = f"{name.replace('_', ' ')}: {part.replace('_', ' ')}" if part else name
            cells = (_number(name, start), _number(name, end))
            if i < len(t):
                yield (
                    label,
                    *cells,
                    f"{t[i]:.1f}",
                    f"{p[i]:.3f}",
                    _meaning(start, end, t[i], p[i] <= level),
                )
            else:
                by = _BY.get(record.get("strategy"), "the search")
                yield label, *cells, "", "", f"set by {by}"


def _first(rounds, key, name) -> list[float]:
    """Of the first round: the evidence at the theta before."""
    found = rounds[0].get(key) or {}
    return np.ravel(found[name]).tolist() if name in found else []


def _meaning(start: float, end: float, t: float, significant: bool) -> str:
    if np.isclose(start, end, rtol=1e-3, atol=1e-3):
        return "no evidence either way: left as it was"
    if significant:
        better = "better" if t < 0 else "worse"
        return f"images held out are predicted {better} with more of it"
    return "moved by what the others left"


def _number(name: str, value: float) -> str:
    return f"{100 * value:.0f} %" if name == "mixture" else f"{value:.3g}"
