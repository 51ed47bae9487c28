"""Evidence of several hypergradients: by hand, and how often it errs."""

import numpy as np
import pytest
from scipy import stats

from fewshotseg.training import evidence


def _vectors(rows):
    return [{"x": np.array(row, np.float32)} for row in rows]


def test_by_hand():
    found = evidence.weigh(_vectors([[1.0, 0.0], [2.0, 1.0], [3.0, -1.0]]))
    np.testing.assert_allclose(found.mean["x"], [2.0, 0.0])
    np.testing.assert_allclose(found.error["x"], np.array([1.0, 1.0]) / np.sqrt(3.0))
    np.testing.assert_allclose(found.t["x"], [2 * np.sqrt(3.0), 0.0])
    # With 2 degrees of freedom P(|t| > x) = 1 - x / sqrt(2 + x^2); twice that, for there are two.
    np.testing.assert_allclose(found.p["x"], [2 * (1 - np.sqrt(12.0 / 14.0)), 1.0])


def test_keeps_the_structure_of_theta_and_adjusts_over_all_of_it():
    rng = np.random.default_rng(0)
    rows = [
        {"a": rng.normal(size=(2, 2)) + 1.0, "b": np.float32(rng.normal()), "c": rng.normal(size=3)}
        for _ in range(6)
    ]
    found = evidence.weigh(rows)
    assert {k: np.shape(v) for k, v in found.p.items()} == {"a": (2, 2), "b": (), "c": (3,)}
    raw = stats.ttest_1samp([row["b"] for row in rows], 0.0)
    np.testing.assert_allclose(found.t["b"], raw.statistic, rtol=1e-5)
    smallest = min(np.min(p) for p in found.p.values())
    each = [stats.ttest_1samp([r[k] for r in rows], 0.0).pvalue for k in "abc"]
    assert smallest == pytest.approx(8 * min(np.min(p) for p in each))


def test_always_the_same_number():
    found = evidence.weigh(_vectors([[0.0, 2.0], [0.0, 2.0]]))
    assert found.t["x"].tolist() == [0.0, np.inf] and found.p["x"].tolist() == [1.0, 0.0]


def test_step_is_against_the_mean_and_as_long_as_the_rate_where_there_is_evidence():
    theta = {"x": np.zeros(3, np.float32), "y": np.float32(1.0)}
    noise = np.array([-1.0, 1.0, -1.0, 1.0])
    rows = [{"x": np.array([4.0 + 0.1 * n, -2.0 - 0.1 * n, 5.0 * n]), "y": 3.0 * n} for n in noise]
    moved = evidence.step(theta, evidence.weigh(rows), rate=0.5, level=0.1)
    np.testing.assert_allclose(moved["x"], [-0.5, 0.25, 0.0], rtol=1e-6)
    assert moved["x"].dtype == np.float32 and moved["y"] == 1.0


@pytest.mark.parametrize("number", [5, 10])
def test_moves_as_rarely_as_it_says_where_there_is_nothing_to_learn(number):
    rng, level, tries = np.random.default_rng(1), 0.1, 400
    theta, moves = {"x": np.zeros(4)}, 0
    for _ in range(tries):
        found = evidence.weigh(_vectors(rng.normal(size=(number, 4))))
        moves += bool(evidence.step(theta, found, rate=1.0, level=level)["x"].any())
    assert moves / tries < level + 2 * np.sqrt(level * (1 - level) / tries)
