"""How long a run will take, measured before it starts; and how many steps fit into a budget."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from fewshotseg.training.stages import Stage


class Timing(NamedTuple):
    """What a stage costs.

    Attributes:
      name: of the stage.
      num_steps: its length.
      compiling: seconds until every kind of step has run once.
      stepping: seconds of all its steps.
      shrinks: whether its steps are fewer where those of the training are.
    """

    name: str
    num_steps: int
    compiling: float
    stepping: float
    shrinks: bool = True


def measure(stage: Stage, players, clock: Callable[[], float] = time.perf_counter) -> Timing:
    """Runs every kind of step twice on a throw-away state; the first compiles.

    Args:
      stage: to be timed.
      players: those of the generator, trained or not; None where nothing is drawn.
      clock: seconds.
    """
    started = clock()
    state, cost, compiling, stepping, step = stage.init(players), {}, 0.0, 0.0, 0
    while step < stage.num_steps:
        kind = stage.kind(step)
        if kind not in cost:
            jax.block_until_ready(stage.advance(state, step))
            again = clock()
            taken = jax.block_until_ready(stage.advance(state, step))[2]
            cost[kind] = clock() - again, taken
            compiling = clock() - started
        seconds, taken = cost[kind]
        stepping, step = stepping + seconds, step + min(taken, stage.num_steps - step)
    return Timing(stage.name, stage.num_steps, compiling, stepping)


def measure_search(
    name: str,
    warm_up: Callable[[bool], int],
    differentiate: bool,
    num_steps: int,
    shrinks: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Takes a few steps of a search twice; the first time compiles.

    Args:
      name: of the search.
      warm_up: of `search.Problem`.
      differentiate: whether its trials are differentiated.
      num_steps: of all trials together.
      shrinks: see `Timing`.
      clock: seconds.
    """
    started = clock()
    warm_up(differentiate)
    again = clock()
    taken = warm_up(differentiate)
    stepping = (clock() - again) / taken * num_steps
    return Timing(name, num_steps, again - started, stepping, shrinks)


def describe(timings: Sequence[Timing]) -> str:
    """One line per stage and the sum, for people."""
    lines = [f"  {t.name:<14} {t.num_steps:>6} steps  {duration(t.stepping):>8}" for t in timings]
    total = sum(t.stepping for t in timings)
    return "\n".join(
        ["Training will take about", *lines, f"  {'together':<27} {duration(total):>8}"]
    )


def duration(seconds: float) -> str:
    """'40 s', '12 min' or '3 h 05 min'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def fitting_share(timings: Sequence[Timing], budget: float) -> float:
    """The share of the steps, at most 1, that fits into `budget` seconds; of those that do not shrink, all.

    Compiling counts once more: programs of fewer steps have other schedules inside.
    """
    left = budget - 2 * sum(t.compiling for t in timings)
    left -= sum(t.stepping for t in timings if not t.shrinks)
    return max(0.0, min(1.0, left / sum(t.stepping for t in timings if t.shrinks)))
