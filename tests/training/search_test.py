"""The strategies of the search on problems whose answer is known, and their journal."""

import dataclasses
import json

import numpy as np
import pytest

from fewshotseg import errors
from fewshotseg.training import search

FIELDS = {"num_rounds": 3, "rate": 1.0, "level": 0.1, "num_candidates": 9, "spread": 1.0}


class _Quadratic:
    """Folds that agree on where the minimum is, but for some noise."""

    def __init__(self, target, noise=0.05, fails_at=None):
        self.target, self.noise, self.calls = np.asarray(target), noise, 0
        self.fails_at = fails_at
        theta = {"mixture": np.zeros(len(target), np.float32)}
        self.problem = search.Problem(theta, 5, 1, self.run)

    def run(self, theta, fold, start, differentiate):
        if self.calls == self.fails_at:
            raise KeyboardInterrupt
        self.calls += 1
        rng = np.random.default_rng([fold, start])
        d = theta["mixture"] - self.target - self.noise * rng.normal(size=len(self.target))
        return search.Trial(float(d @ d), {"mixture": 2 * d} if differentiate else None)


@pytest.mark.parametrize("strategy", search.STRATEGIES)
def test_every_strategy_improves_and_records_what_it_did(strategy, tmp_path):
    quadratic = _Quadratic([1.0, -1.0, 0.5])
    theta = search.run(strategy, quadratic.problem, FIELDS, tmp_path / "search.json", seed=0)
    record = json.loads((tmp_path / "search.json").read_text())
    assert record["strategy"] == strategy
    assert record["theta"]["mixture"] == theta["mixture"].tolist()
    assert len(record["trials"]) == quadratic.calls
    if strategy == "choice":  # of the start and three corners, the start is the nearest
        np.testing.assert_array_equal(theta["mixture"], 0.0)
        assert len(record["rounds"]) == 4
        return
    start = np.sum(quadratic.target**2)
    assert np.sum((theta["mixture"] - quadratic.target) ** 2) < 0.7 * start


def test_hypergradient_stops_without_evidence(tmp_path):
    quadratic = _Quadratic([0.0, 0.0, 0.0], noise=1.0)
    theta = search.run("hypergradient", quadratic.problem, FIELDS, tmp_path / "a.json", seed=0)
    np.testing.assert_array_equal(theta["mixture"], 0.0)
    assert quadratic.calls == 5  # one round


def test_choice_takes_the_source_that_is_best_alone(tmp_path):
    quadratic = _Quadratic([-9.0, 9.0, -9.0])
    theta = search.run("choice", quadratic.problem, FIELDS, tmp_path / "a.json", seed=0)
    assert theta["mixture"].argmax() == 1


def test_choice_leaves_variables_that_are_no_mixture(tmp_path):
    """A colour of three channels is not one of three sources."""
    theta = {"colour_shift": np.full(3, 0.5, np.float32), "mixture": np.zeros(2, np.float32)}
    tried = []

    def run(theta, fold, start, differentiate):
        tried.append(theta)
        return search.Trial(0.0, None)

    search.run("choice", search.Problem(theta, 1, 1, run), FIELDS, tmp_path / "a.json", seed=0)
    assert len(tried) == 3  # as it is, and either source alone
    assert all((x["colour_shift"] == 0.5).all() for x in tried)


@pytest.mark.parametrize("strategy", search.STRATEGIES)
def test_interrupted_search_ends_the_same_and_repeats_no_trial(strategy, tmp_path):
    whole = _Quadratic([1.0, -1.0, 0.5])
    expected = search.run(strategy, whole.problem, FIELDS, tmp_path / "a.json", seed=3)
    broken = _Quadratic([1.0, -1.0, 0.5], fails_at=7)
    with pytest.raises(KeyboardInterrupt):
        search.run(strategy, broken.problem, FIELDS, tmp_path / "b.json", seed=3)
    rest = _Quadratic([1.0, -1.0, 0.5])
    theta = search.run(strategy, rest.problem, FIELDS, tmp_path / "b.json", seed=3)
    assert rest.calls == whole.calls - 7
    np.testing.assert_array_equal(theta["mixture"], expected["mixture"])
    assert theta["mixture"].dtype == expected["mixture"].dtype


def test_a_trial_that_diverges_is_no_evidence(tmp_path):
    path = tmp_path / "search.json"

    def run(theta, fold, start, differentiate):
        loss = float("nan") if fold == 1 and not differentiate else 1.0
        return search.Trial(loss, {"mixture": np.array([0.0, np.inf if fold == 2 else 1.0])})

    problem = search.Problem({"mixture": np.zeros(2, np.float32)}, 5, 1, run)
    for strategy, done, fold in (("hypergradient", 2, 3), ("choice", 1, 2)):
        path.unlink(missing_ok=True)
        with pytest.raises(errors.InputError, match=f"fold {fold}, start 1 diverged"):
            search.run(strategy, problem, FIELDS, path, seed=0)
        assert search.num_done(path) == done


def test_starts_of_one_fold_are_one_witness(tmp_path):
    """Nothing to learn, folds that differ more than their starts: it moves as rarely as with one start."""
    tries, moves = 200, 0
    for number in range(tries):

        def run(theta, fold, start, differentiate, number=number):
            of_fold = np.random.default_rng([number, fold]).normal(size=4)
            of_start = 0.3 * np.random.default_rng([number, fold, start]).normal(size=4)
            return search.Trial(0.0, {"mixture": of_fold + of_start})

        problem = search.Problem({"mixture": np.zeros(4, np.float32)}, 5, 4, run)
        path = tmp_path / f"{number}.json"
        found = search.run("hypergradient", problem, FIELDS | {"num_rounds": 1}, path, seed=0)
        moves += bool(found["mixture"].any())
    assert moves / tries < 0.1 + 2 * np.sqrt(0.1 * 0.9 / tries)


def test_trials_of_another_length_are_refused_until_the_search_is_done(tmp_path):
    path = tmp_path / "search.json"
    fields = FIELDS | {"num_rounds": 1}

    def problem(num_steps, fails_at=None):
        quadratic = _Quadratic([1.0, 0.0], fails_at=fails_at)
        return dataclasses.replace(quadratic.problem, num_steps=num_steps)

    with pytest.raises(KeyboardInterrupt):
        search.run("hypergradient", problem(10, fails_at=2), fields, path, seed=0)
    with pytest.raises(errors.InputError, match="another search"):
        search.run("hypergradient", problem(20), fields, path, seed=0)
    found = search.run("hypergradient", problem(10), fields, path, seed=0)
    again = search.run("hypergradient", problem(20, fails_at=0), fields, path, seed=0)
    np.testing.assert_array_equal(found["mixture"], again["mixture"])


def test_trials_of_another_search_are_refused(tmp_path):
    path = tmp_path / "search.json"
    search.run("random", _Quadratic([1.0, 0.0]).problem, FIELDS, path, seed=0)
    with pytest.raises(errors.InputError, match="another search"):
        search.run("random", _Quadratic([1.0, 0.0]).problem, FIELDS, path, seed=1)
