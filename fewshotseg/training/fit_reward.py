"""Fitting R (`genseg/reward.py`) to ratings, in float64 on the host: the same ratings, the same numbers."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from scipy import optimize, special, stats

from fewshotseg.genseg import reward as reward_lib
from fewshotseg.genseg.reward import Pixels, Reward
from fewshotseg.labels import is_foreground

PENALTIES = (
    0.3,
    1.0,
    3.0,
    10.0,
    30.0,
    100.0,
)  # on the squared weights; the best one is cross-fitted
NUM_FOLDS = 5
NUM_MEMBERS = 8
CHUNK = 32  # pairs at once
MOST_PIXELS = 12_000


class Fitted(NamedTuple):
    """A model of the ratings.

    Attributes:
      reward: its numbers.
      auc: area under the ROC curve of accepted against rejected pairs, each judged by a fit to the other
        folds; NaN where all are of one kind.
      penalty: that was chosen.
      log_loss: of the calibrated, cross-fitted probabilities, in nats; `log_loss_constant` that of always
        saying the share of accepted pairs.
      log_loss_constant: see there.
    """

    reward: Reward
    auc: float
    penalty: float
    log_loss: float
    log_loss_constant: float


@jax.jit
def _pixel_features(images, masks):
    del masks
    return reward_lib.pixel_features(images)


def fit_pixels(images: np.ndarray, masks: np.ndarray, seed: int) -> Pixels:
    """The regression that finds objects, from `MOST_PIXELS` of labelled images; see `Pixels`."""
    labels = is_foreground(masks).ravel().astype(np.float64)
    chosen = np.arange(labels.size)
    if labels.size > MOST_PIXELS:
        chosen = np.random.default_rng(seed).choice(labels.size, MOST_PIXELS, replace=False)
    of_image, found, size = np.sort(chosen), [], int(np.prod(masks.shape[1:]))
    for number in range(len(images)):
        inside = of_image[of_image // size == number] % size
        part = _pixel_features(images[number : number + 1], masks[number : number + 1])
        found.append(np.asarray(part, np.float64).reshape(size, -1)[inside])
    found, labels = np.concatenate(found), labels[of_image]
    center, scale = found.mean(0), np.maximum(found.std(0), 1e-3)
    weights = logistic((found - center) / scale, labels, 20.0)
    return Pixels(*(np.asarray(x, np.float32) for x in (center, scale, weights[:-1], weights[-1])))


@jax.jit
def _features(pixels, images, masks):
    return reward_lib.features(pixels, images, masks)


def features_of(pixels: Pixels, images: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """`reward.features` of N pairs, a few at a time: float64 `[N, F]`."""
    return in_chunks(lambda *pair: _features(pixels, *pair), images, masks)


def fit(
    rated: np.ndarray,
    targets: Sequence[float],
    groups: Sequence[str],
    real: np.ndarray,
    seed: int,
    pixels: Pixels,
) -> Fitted:
    """The model of N ratings.

    Args:
      rated: features `[N, F]`, see `features_of`.
      targets: 0 (rejected) to 1 (accepted).
      groups: hash of each pair: answers to one pair stay in one fold.
      real: features of real pairs `[R, F]`, which say what is usual.
      seed: of the folds and of the members.
      pixels: that the features were computed with.
    """
    center, spread = real.mean(0), real.std(0)
    scale = np.maximum(spread, 1e-2)
    described = np.asarray(_describe(rated, center, scale))
    targets = np.asarray(targets, np.float64)
    unique = sorted(set(groups))
    numbers = np.random.default_rng(seed)
    drawn = dict(zip(unique, numbers.permutation(len(unique)) % NUM_FOLDS, strict=True))
    folds = np.array([drawn[group] for group in groups])
    scores = {}
    for penalty in PENALTIES:
        logits = cross_fit(described, targets, folds, penalty)
        scores[penalty] = _log_loss(logits, targets), logits
    penalty = min(scores, key=lambda p: scores[p][0])
    logits = scores[penalty][1]
    slope, offset = calibrate(logits, targets)
    weights = logistic(described, targets, penalty)
    members = []
    for _ in range(NUM_MEMBERS):
        chosen = numbers.integers(0, len(targets), len(targets))
        members.append(logistic(described[chosen], targets[chosen], penalty))
    parts = center, scale, weights[:-1], weights[-1], slope, offset, np.stack(members)
    share = np.clip(targets.mean(), 1e-3, 1 - 1e-3)
    return Fitted(
        Reward(pixels, *(np.asarray(x, np.float32) for x in parts)),
        auc(logits, targets),
        penalty,
        _log_loss(slope * logits + offset, targets),
        _log_loss(np.full(len(targets), special.logit(share)), targets),
    )


def logistic(described: np.ndarray, targets: np.ndarray, penalty: float) -> np.ndarray:
    """Weights and, last, bias of the ridge logistic regression, by Newton's method; the bias is free."""
    x = np.concatenate([described, np.ones((len(described), 1))], 1)
    ridge = np.diag([*np.full(described.shape[1], penalty), 1e-3])
    weights = np.zeros(x.shape[1])

    def objective(w):
        return len(x) * _log_loss(x @ w, targets) + 0.5 * w @ ridge @ w

    for _ in range(50):
        p = special.expit(x @ weights)
        gradient = x.T @ (p - targets) + ridge @ weights
        step = np.linalg.solve((x.T * (p * (1 - p))) @ x + ridge, gradient)
        rate = 1.0
        while objective(weights - rate * step) > objective(weights) and rate > 1e-4:
            rate /= 2
        weights = weights - rate * step
        if np.abs(rate * step).max() < 1e-9:
            break
    return weights


def cross_fit(described, targets, folds, penalty) -> np.ndarray:
    """The logit of every pair by a fit to the other folds."""
    logits = np.zeros(len(targets))
    for fold in np.unique(folds):
        out = folds == fold
        if out.all():
            continue
        weights = logistic(described[~out], targets[~out], penalty)
        logits[out] = described[out] @ weights[:-1] + weights[-1]
    return logits


def calibrate(logits: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """Slope, at least 0, and offset of the probabilities that cross-fitted logits deserve.

    Targets are drawn a little towards 1/2, as Platt does it, so that a perfect separation stays finite.
    """
    positive, number = targets.sum(), len(targets)
    high, low = (positive + 1) / (positive + 2), 1 / (number - positive + 2)
    smooth = low + (high - low) * targets

    def loss(x):
        return _log_loss(x[0] * logits + x[1], smooth) + 1e-6 * (x[0] ** 2 + x[1] ** 2)

    found = optimize.minimize(loss, [1.0, 0.0], bounds=[(0.0, 3.0), (-6.0, 6.0)], method="L-BFGS-B")
    return float(found.x[0]), float(found.x[1])


def auc(scores: np.ndarray, targets: np.ndarray) -> float:
    """Share of pairs of an accepted and a rejected one in which the accepted one has the higher score."""
    accepted, rejected = targets > 0.5, targets < 0.5
    n, m = accepted.sum(), rejected.sum()
    if not n or not m:
        return float("nan")
    ranks = stats.rankdata(np.concatenate([scores[accepted], scores[rejected]]))
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def _describe(found, center, scale):
    """`reward.describe` in float64."""
    z = (found - center) / scale
    z = z / np.sqrt(1.0 + (z / reward_lib.LARGEST) ** 2)
    return np.concatenate([z, np.sqrt(1.0 + z**2) - 1.0], -1)


def _log_loss(logits, targets):
    return float((np.logaddexp(0, logits) - targets * logits).mean())


@jax.jit
def _accepted(reward, images, masks):
    return reward_lib.accept_probability(reward, images, masks)


def accepted(reward: Reward, images: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """R of N pairs, a few at a time: float64 `[N]`."""
    return in_chunks(lambda *pair: _accepted(reward, *pair), images, masks)


def member_spread(reward: Reward, found: np.ndarray) -> np.ndarray:
    """`reward.disagreement` of pairs whose features `[N, F]` are known: float64 `[N]`."""
    described = _describe(found, np.asarray(reward.center), np.asarray(reward.scale))
    members = np.asarray(reward.members, np.float64)
    return special.expit(described @ members[:, :-1].T + members[:, -1]).std(-1)


def in_chunks(function: Callable, images: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """`function(images, masks)` of N pairs, `CHUNK` at a time, float64 `[N, ...]`."""
    found = []
    for start in range(0, len(images), CHUNK):
        part = slice(start, start + CHUNK)
        missing = CHUNK - len(images[part])  # one program for all
        pad = [
            np.concatenate([x[part], np.repeat(x[part][-1:], missing, 0)]) for x in (images, masks)
        ]
        found.append(np.asarray(function(*pad), np.float64)[: CHUNK - missing])
    return np.concatenate(found)
