"""The search for outer variables before a training: cross-fitted over all labelled cases.

A trial is one whole training at some theta on all folds but one, judged by the loss of its model on the
fold held out. All strategies are made of trials, so that they can be compared at equal compute:

    hypergradient   the trial is differentiated with respect to theta; theta moves on evidence (`evidence`)
    choice          cross-validation: every source of pairs alone, and all of them in equal shares
    random          theta drawn at random
    population      random steps around the best theta so far

Every finished trial is on the disk; a search that was killed goes on with the next one, and ends with the
same theta, bit for bit.
"""

import dataclasses
import json
import math
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fewshotseg import errors, files
from fewshotseg.training import evidence
from fewshotseg.types import Theta

ALONE = 12.0  # a logit that leaves every other source next to nothing


class Trial(NamedTuple):
    """One training on all folds but one.

    Attributes:
      loss: of its model on the fold held out.
      gradient: its derivative with respect to theta; None if it was not asked for.
    """

    loss: float
    gradient: Theta | None


@dataclasses.dataclass(frozen=True)
class Problem:
    """What there is to search.

    Attributes:
      theta: where to begin, a dictionary of outer variables.
      num_folds: that the labelled cases are divided into.
      num_starts: trainings from different weights and batches for every fold.
      run: `(theta, fold, start, differentiate) -> Trial`.
      describe: theta -> outer variables in use, by name and component, for people.
      warm_up: `differentiate -> number of steps`, takes a few steps of a trial, to compile and time them.
      num_steps: of a trial, for the record.
      mixtures: names of the outer variables that are logits of shares, one of which can be all there is.
    """

    theta: Theta
    num_folds: int
    num_starts: int
    run: Callable[[Theta, int, int, bool], Trial]
    describe: Callable[[Theta], Mapping[str, Mapping[str, float]]] = lambda theta: {}
    warm_up: Callable[[bool], int] = lambda differentiate: 0
    num_steps: int = 0
    mixtures: tuple[str, ...] = ("mixture",)


class Journal:
    """The trials of a search, on the disk as soon as they are done.

    Args:
      path: of the JSON file.
    """

    def __init__(self, path: pathlib.Path):
        self._path = path
        record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"trials": []}
        self._done, self._finished = record["trials"], "theta" in record
        self._next = 0

    def trials(self, problem: Problem, theta: Theta, differentiate: bool = False) -> list[Trial]:
        """A trial per fold and start at one theta; those of an earlier process are not done again.

        Raises:
          InputError: the file has the trials of another search, or a trial is not finite.
        """
        pairs = [(i, j) for j in range(problem.num_starts) for i in range(problem.num_folds)]
        return [self._trial(problem, theta, *pair, differentiate) for pair in pairs]

    def finish(self, record: Mapping[str, Any]) -> None:
        """Writes what the search has found beside its trials."""
        self._write(record)

    def _trial(self, problem, theta, fold, start, differentiate):
        asked = {"theta": as_lists(theta), "fold": fold, "start": start}
        if not self._finished:  # what was found is kept where a training goes on for more steps
            asked["num_steps"] = problem.num_steps
        if self._next < len(self._done):
            row = self._done[self._next]
            if any(row.get(key) != value for key, value in asked.items()):
                raise errors.InputError(
                    f"{self._path} has the trials of another search: use another --workdir, or delete it."
                )
        else:
            began = time.perf_counter()
            found = problem.run(theta, fold, start, differentiate)
            _check_finite(found, fold, start)
            gradient = None if found.gradient is None else as_lists(found.gradient)
            row = {**asked, "loss": float(found.loss), "gradient": gradient}
            row["seconds"] = time.perf_counter() - began
            self._done.append(row)
            self._write({})
        self._next += 1
        gradient = None if row["gradient"] is None else like(theta, row["gradient"])
        return Trial(row["loss"], gradient)

    def _write(self, record):
        if jax.process_index() == 0:
            files.write_json(self._path, {**record, "trials": self._done})


def _check_finite(trial: Trial, fold: int, start: int) -> None:
    numbers = [trial.loss, *jax.tree.leaves(trial.gradient)]
    if not all(np.isfinite(x).all() for x in numbers):
        raise errors.InputError(
            f"the trial of fold {fold + 1}, start {start + 1} diverged: its loss or hypergradient is not "
            "finite. Lower optim.learning_rate or shorten cross_fit.num_steps, in another --workdir."
        )


def as_lists(theta: Theta) -> Any:
    """Arrays as nested lists, which JSON keeps bit for bit."""
    return jax.tree.map(lambda x: np.asarray(x).tolist(), theta)


def like(theta: Theta, lists: Any) -> Theta:
    """The inverse of `as_lists`, for arrays like those of `theta`."""
    leaves, structure = jax.tree.flatten(theta)
    found = structure.flatten_up_to(lists)
    arrays = [np.asarray(x, np.result_type(leaf)) for x, leaf in zip(found, leaves, strict=True)]
    return jax.tree.unflatten(structure, arrays)


def by_hypergradient(
    problem: Problem, journal: Journal, *, num_rounds: int, rate: float, level: float
) -> tuple[Theta, list]:
    """Steps against the mean hypergradient of the folds, each half as long as the one before.

    Args:
      problem: to be searched.
      journal: of its trials.
      num_rounds: largest number of steps; the first without evidence is the last.
      rate: length of the first, see `evidence.step`.
      level: p value below which a component moves, see `evidence`.

    Returns:
      Theta, and for every round its losses, evidence and theta.
    """
    theta, rounds = problem.theta, []
    for number in range(num_rounds):
        trials = journal.trials(problem, theta, differentiate=True)
        found = evidence.weigh(_by_fold(trials, problem.num_folds))
        after = evidence.step(theta, found, rate=rate / 2**number, level=level)
        row = {"theta": as_lists(theta), "losses": [trial.loss for trial in trials]}
        rounds.append(row | {name: as_lists(x) for name, x in found._asdict().items()})
        if not moved(theta, after):
            break
        theta = after
    return theta, rounds


def _by_fold(trials, num_folds):
    """Hypergradients of the folds: starts of one share the cases held out, and are one witness."""
    of_fold = [[trial.gradient for trial in trials[i::num_folds]] for i in range(num_folds)]
    return [jax.tree.map(lambda *g: np.mean(g, 0, np.float64), *found) for found in of_fold]


def by_choice(problem: Problem, journal: Journal) -> tuple[Theta, list]:
    """The best of: theta as it is, and every component of every mixture alone (a source of pairs).

    Returns:
      The theta with the least mean loss, and for every candidate its losses.
    """
    return _best(problem, journal, [problem.theta, *_alone(problem.theta, problem.mixtures)])


def by_random_search(
    problem: Problem, journal: Journal, *, num_candidates: int, spread: float, seed: int
) -> tuple[Theta, list]:
    """The best of theta as it is and of random ones, normal around it.

    Args:
      problem: to be searched.
      journal: of its trials.
      num_candidates: all in all.
      spread: standard deviation of the free variables.
      seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    drawn = [_perturbed(problem.theta, rng, spread) for _ in range(num_candidates - 1)]
    return _best(problem, journal, [problem.theta, *drawn])


def by_population(
    problem: Problem, journal: Journal, *, num_candidates: int, spread: float, seed: int
) -> tuple[Theta, list]:
    """Pairs of random steps, one after the other, around the best theta so far; see `by_random_search`.

    Half of the budget is spent in a second generation, whose steps are half as long.
    """
    rng = np.random.default_rng(seed)
    first = max(2, math.ceil(num_candidates / 2))
    candidates = [problem.theta] + [
        _perturbed(problem.theta, rng, spread) for _ in range(first - 1)
    ]
    theta, rows = _best(problem, journal, candidates)
    more = [_perturbed(theta, rng, spread / 2) for _ in range(num_candidates - first)]
    if not more:
        return theta, rows
    _, new = _best(problem, journal, more)
    rows = rows + new
    best = min(rows, key=lambda row: np.mean(row["losses"]))
    return like(problem.theta, best["theta"]), rows


# Name -> `(problem, journal, fields, seed) -> (theta, rows)`.
STRATEGIES: Mapping[str, Callable] = {
    "hypergradient": lambda problem, journal, fields, seed: by_hypergradient(
        problem, journal, **{k: fields[k] for k in ("num_rounds", "rate", "level")}
    ),
    "choice": lambda problem, journal, fields, seed: by_choice(problem, journal),
    "random": lambda problem, journal, fields, seed: by_random_search(
        problem, journal, **{k: fields[k] for k in ("num_candidates", "spread")}, seed=seed
    ),
    "population": lambda problem, journal, fields, seed: by_population(
        problem, journal, **{k: fields[k] for k in ("num_candidates", "spread")}, seed=seed
    ),
}


def run(
    strategy: str, problem: Problem, fields: Mapping[str, Any], path: pathlib.Path, seed: int
) -> Theta:
    """Searches, or takes up a search where it was.

    Args:
      strategy: a name in `STRATEGIES`.
      problem: to be searched.
      fields: of the strategies.
      path: of the JSON file with the trials and what was found.
      seed: of the strategies that draw.

    Returns:
      The theta to train with.
    """
    journal = Journal(path)
    theta, rows = STRATEGIES[strategy](problem, journal, fields, seed)
    journal.finish(
        {
            "strategy": strategy,
            "start": as_lists(problem.theta),
            "theta": as_lists(theta),
            "before": problem.describe(problem.theta),
            "after": problem.describe(theta),
            "rounds": rows,
            "level": fields["level"],
        }
    )
    return theta


def most_trials(strategy: str, fields: Mapping[str, Any]) -> int:
    """How many trials a search takes at most.

    Args:
      strategy: a name in `STRATEGIES`.
      fields: of the configuration's block, with 'num_components' of the mixture.
    """
    points = {
        "hypergradient": fields["num_rounds"],
        "choice": fields["num_components"] + 1,
    }.get(strategy, fields["num_candidates"])
    return points * fields["num_folds"] * fields["num_starts"]


def num_done(path: pathlib.Path) -> int:
    """How many trials of a search are on the disk."""
    return len(json.loads(path.read_text(encoding="utf-8"))["trials"]) if path.exists() else 0


def moved(before: Theta, after: Theta) -> bool:
    """Whether any component differs."""
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    return any(not np.array_equal(x, y) for x, y in pairs)


def _best(problem, journal, candidates: Sequence[Theta]):
    rows = []
    for theta in candidates:
        losses = [trial.loss for trial in journal.trials(problem, theta)]
        rows.append({"theta": as_lists(theta), "losses": losses})
    best = min(range(len(rows)), key=lambda i: np.mean(rows[i]["losses"]))
    return candidates[best], rows


def _alone(theta: Theta, mixtures: Sequence[str]) -> list[Theta]:
    found = []
    for name in (name for name in mixtures if name in theta):
        value = theta[name]
        for i in range(np.size(value)):
            logits = np.full(np.shape(value), -ALONE, np.result_type(value))
            logits[i] = ALONE
            found.append({**theta, name: logits})
    return found


def _perturbed(theta: Theta, rng: np.random.Generator, spread: float) -> Theta:
    return jax.tree.map(
        lambda x: (x + spread * rng.standard_normal(np.shape(x))).astype(np.result_type(x)), theta
    )
