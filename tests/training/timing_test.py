"""Times of stages, with a clock that the stage itself moves."""

import pytest

from fewshotseg.training import timing
from fewshotseg.training.stages import Stage


def _stage(clock, num_steps=20):
    """Outer steps at multiples of 5 take 2 steps and 7 s, inner ones 1 s; compiling takes 30 s each."""
    compiled = set()

    def kind(step):
        return "outer step" if step % 5 == 0 else "inner step"

    def advance(state, step):
        assert state == "start"  # nothing is trained
        clock[0] += 0 if kind(step) in compiled else 30
        compiled.add(kind(step))
        clock[0] += 7 if step % 5 == 0 else 1
        return "moved", {}, 2 if step % 5 == 0 else 1

    return Stage("end2end", "train", num_steps, lambda players: "start", advance, kind)


def test_time_of_a_stage_by_hand():
    clock = [100.0]
    found = timing.measure(_stage(clock), None, lambda: clock[0])
    assert found == ("end2end", 20, 2 * 30 + 2 * (7 + 1), 4 * 7 + 4 * 3 * 1, True)


def test_a_last_outer_step_is_cut_short():
    clock = [0.0]
    assert timing.measure(_stage(clock, 6), None, lambda: clock[0]).stepping == 7 + 3 + 7


def test_time_of_a_search_by_hand():
    now = [0.0]

    def warm_up(differentiate):
        assert differentiate
        now[0] += 30.0 if now[0] == 0 else 2.0
        return 10

    found = timing.measure_search("search", warm_up, True, 500, clock=lambda: now[0])
    assert found == timing.Timing("search", 500, 30.0, 100.0)


def test_share_that_fits():
    timings = [timing.Timing("a", 10, 5.0, 60.0), timing.Timing("b", 10, 10.0, 40.0)]
    assert timing.fitting_share(timings, 80.0) == pytest.approx(0.5)
    assert timing.fitting_share(timings, 1000.0) == 1.0
    assert timing.fitting_share(timings, 20.0) == 0.0
    timings.append(timing.Timing("search", 10, 0.0, 30.0, shrinks=False))
    assert timing.fitting_share(timings, 110.0) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("seconds", "text"), [(12.4, "12 s"), (89.0, "89 s"), (700, "12 min"), (11100, "3 h 05 min")]
)
def test_durations(seconds, text):
    assert timing.duration(seconds) == text
    assert text in timing.describe([timing.Timing("joint", 7, 1.0, seconds)])
