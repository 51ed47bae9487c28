"""What a search for outer variables, and what the ratings of people decided, and on what evidence."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fewshotseg.results.report.run import Run
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


def feedback_table(runs: Sequence[Run]) -> Table:
    """A row for every training that was given ratings."""
    several = len(runs) > 1
    rows = []
    for run in runs:
        for method, record in run.feedback.items():
            lead = (f"{run.experiment.title}, seed {run.seed}",) if several else ()
            rows.append((*lead, method, *_ratings(record)))
    lead = ("run",) if several else ()
    header = ("method", "ratings", "raters", "same again", "real accepted", "AUC", "beta")
    return Table(
        "What the ratings did",
        (*lead, *header, "loss held out", "what that means"),
        tuple(rows),
        len(lead) + 1,
        "Same again: pairs shown twice that got the same answer. Real accepted: hidden real images. AUC: "
        "how well a model of the ratings tells accepted from rejected pairs that it has not seen. beta: "
        "weight of the ratings in the outer loss; at 0, none of them are used. Loss held out: with the "
        "ratings, less that without, on validation cases that the trials did not use, and its standard "
        "error.",
    )


def _ratings(record: Mapping[str, Any]) -> tuple[str, ...]:
    raters = record["raters"].values()
    repeats, same, real, accepted = (
        sum(rater[key] for rater in raters) for key in ("repeats", "same", "real", "real_accepted")
    )
    tried, beta = bool(record["losses"]), record["beta"]
    auc = record["reward"]["auc"] if record["reward"] else None
    if not record["reward"]:
        meaning = "no model of the ratings: too few, or all the same"
    elif not tried:
        meaning = "beta was given, nothing was tried"
    elif beta:
        meaning = "used: they help on cases held out"
    elif record["difference"] > 0:
        meaning = "not used: they hurt on cases held out"
    else:
        meaning = "not used: no evidence that they help"
    return (
        str(record["ratings"]),
        str(len(raters)),
        f"{same} of {repeats}" if repeats else "–",
        f"{accepted:g} of {real}" if real else "–",
        f"{auc:.2f}" if auc is not None else "–",
        f"{beta:g}",
        f"{record['difference']:+.3f} ± {record['error']:.3f}" if tried else "–",
        meaning,
    )


def _rows(record: Mapping[str, Any]):
    before, after = record.get("before") or {}, record.get("after") or {}
    rounds, level = record.get("rounds") or [{}], record.get("level", 0.0)
    for name, parts in before.items():
        t, p, mean = (_first(rounds, key, name) for key in ("t", "p", "mean"))
        for i, (part, start) in enumerate(parts.items()):
            end = after.get(name, {}).get(part, start)
            label = ": ".join(filter(None, (name, part))).replace("_", " ")
            cells = (_number(name, start), _number(name, end))
            if i < len(t):
                yield (
                    label,
                    *cells,
                    _t_value(t[i]),
                    f"{p[i]:.3f}",
                    _meaning(start, end, mean[i], p[i] <= level),
                )
            else:
                by = _BY.get(record.get("strategy"), "the search")
                yield label, *cells, "", "", f"set by {by}"


def _first(rounds, key, name) -> list[float | None]:
    """Of the first round: the evidence at the theta before."""
    found = rounds[0].get(key) or {}
    return np.ravel(found[name]).tolist() if name in found else []


def _t_value(t: float | None) -> str:
    return "∞" if t is None else f"{t:.1f}"  # all folds say the same, and JSON has no infinity


def _meaning(start: float, end: float, mean: float, significant: bool) -> str:
    if np.isclose(start, end, rtol=1e-3, atol=1e-3):
        return "no evidence either way: left as it was"
    if significant:
        better = "better" if mean < 0 else "worse"
        return f"images held out are predicted {better} with more of it"
    return "moved by what the others left"


def _number(name: str, value: float) -> str:
    return f"{100 * value:.0f} %" if name == "mixture" else f"{value:.3g}"
