"""Fitting R: what ratings of known corruption, of nobody in particular, and of an enemy make of it."""

import jax
import numpy as np
import pytest
from scipy import optimize, special

from fewshotseg.data import batches
from fewshotseg.data.sources import phantom
from fewshotseg.genseg import reward
from fewshotseg.training import fit_reward


@pytest.fixture(scope="module")
def phantoms():
    """Features of 40 real pairs, of 120 others, and which of these were corrupted: 40 in three ways."""
    source = phantom.PhantomSource(num_cases=160, image_size=32)
    arrays = batches.load_arrays(source, source.ids, 32, 3)
    image, mask = arrays["image"].copy(), arrays["mask"].copy()
    for i in range(40, 80):
        if i % 3 == 0:
            mask[i] = np.roll(mask[i], (8, 7), (0, 1))
        elif i % 3 == 1:
            image[i] = image[i][..., ::-1] * 0.6 + 0.4
        else:  # the object twice
            there = np.roll(mask[i], (14, 14), (0, 1)) > 0
            image[i][there] = np.roll(image[i], (14, 14), (0, 1))[there]
            mask[i] = np.maximum(mask[i], there)
    pixels = fit_reward.fit_pixels(image[:40], mask[:40], 0)
    found = fit_reward.features_of(pixels, image, mask)
    return found[:40], found[40:], np.arange(120) < 40, pixels


def _fit(phantoms, targets, number=100):
    real, rated, _, pixels = phantoms
    chosen = np.random.default_rng(1).permutation(120)[:number]
    names = [f"pair{i}" for i in chosen]
    return fit_reward.fit(rated[chosen], targets[chosen], names, real, 0, pixels), chosen


def test_a_hundred_ratings_tell_corrupted_pairs_apart(phantoms):
    _, rated, corrupted, _ = phantoms
    fitted, chosen = _fit(phantoms, 1.0 - corrupted)
    assert fitted.auc >= 0.9 and fitted.log_loss < fitted.log_loss_constant - 0.1
    unseen = np.setdiff1d(np.arange(120), chosen)
    described = fit_reward._describe(rated[unseen], *map(np.asarray, fitted.reward[1:3]))
    logits = described @ fitted.reward.weights + fitted.reward.bias
    assert fit_reward.auc(logits, 1.0 - corrupted[unseen]) >= 0.9


def test_pixels_are_where_objects_are():
    """Fitted to forty phantoms, they find much of the objects of others."""
    source = phantom.PhantomSource(num_cases=80, image_size=32)
    arrays = batches.load_arrays(source, source.ids, 32, 3)
    pixels = fit_reward.fit_pixels(arrays["image"][:40], arrays["mask"][:40], 0)
    found = np.asarray(reward.find_objects(pixels, arrays["image"][40:]))
    scores = fit_reward.auc(found.ravel(), arrays["mask"][40:].ravel().astype(float))
    assert scores > 0.85


def test_ratings_at_random_say_nothing(phantoms):
    coins = np.random.default_rng(3).integers(0, 2, 120).astype(float)
    fitted, _ = _fit(phantoms, coins)
    assert 0.35 < fitted.auc < 0.65
    assert fitted.log_loss == pytest.approx(fitted.log_loss_constant, abs=0.02)
    logits = fitted.reward.slope * 3.0  # of a pair that the model is sure of
    assert abs(special.expit(logits) - 0.5) < 0.2


def test_the_same_ratings_give_the_same_numbers(phantoms):
    one, two = (_fit(phantoms, 1.0 - phantoms[2], 70)[0].reward for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_answers_to_one_pair_stay_in_one_fold():
    """Every pair is there twice, with features of its own: whoever had seen it would know its target."""
    numbers = np.random.default_rng(0)
    rated = np.repeat(numbers.normal(size=(60, 40)), 2, axis=0)
    targets = np.repeat(numbers.integers(0, 2, 60), 2).astype(float)
    real = numbers.normal(size=(50, 40))
    together = fit_reward.fit(rated, targets, np.repeat(np.arange(60), 2).astype(str), real, 0, ())
    apart = fit_reward.fit(rated, targets, np.arange(120).astype(str), real, 0, ())
    assert apart.auc > 0.8 > 0.65 > together.auc


def test_the_regression_is_the_minimum_of_its_objective():
    numbers = np.random.default_rng(0)
    x, targets = numbers.normal(size=(50, 4)), numbers.choice([0.0, 0.5, 1.0], 50)

    def objective(w):
        logits = x @ w[:4] + w[4]
        p = special.expit(logits)
        loss = -(targets * np.log(p) + (1 - targets) * np.log(1 - p)).sum()
        return loss + 0.5 * 2.0 * (w[:4] ** 2).sum() + 0.5 * 1e-3 * w[4] ** 2

    found = fit_reward.logistic(x, targets, 2.0)
    best = optimize.minimize(objective, np.zeros(5), method="BFGS", options={"gtol": 1e-8})
    np.testing.assert_allclose(found, best.x, atol=1e-5)


def test_calibration_knows_what_logits_are_worth():
    """Logits that are three times too sure get a third of their size; inverted ones get none."""
    numbers = np.random.default_rng(0)
    honest = numbers.normal(size=4000) * 2 - 0.5
    targets = (numbers.random(4000) < special.expit(honest)).astype(float)
    slope, offset = fit_reward.calibrate(3 * honest + 3, targets)
    assert slope == pytest.approx(1 / 3, abs=0.03) and offset == pytest.approx(-1, abs=0.1)
    slope, _ = fit_reward.calibrate(-honest, targets)
    assert slope == 0


def test_auc_by_hand():
    scores, targets = np.array([0.1, 0.4, 0.4, 0.8]), np.array([0.0, 1.0, 0.0, 1.0])
    assert fit_reward.auc(scores, targets) == pytest.approx((1 + 0.5 + 1 + 1) / 4)
    assert np.isnan(fit_reward.auc(scores, np.ones(4)))
