"""Ratings in a training: what is drawn, what the outer loss asks for, and whether it is worth it.

Three uses of the answers of `runs/ratings.py`, all off unless a file is named:

    sampler     synthetic pairs come from a pool, number j as often as its calibrated probability of being
                accepted says; a number that people rejected, never
    outer loss  beta (1 - R(image, mask)) joins the validation loss, so that the ratings reach theta through
                the same hypergradient (`genseg/reward.py`)
    near-real   pairs whose label somebody corrected are trained on as if they were labelled cases

How far to listen is decided by trials: whole trainings with and without the ratings, judged on validation
cases that are in neither the training nor the outer loss. If listening does not help there, beta is 0, and
nothing of the ratings is used.
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fewshotseg import errors, pictures
from fewshotseg.data import batches, image_files
from fewshotseg.genseg import pair_sources
from fewshotseg.genseg.reward import Reward
from fewshotseg.runs import ratings as store
from fewshotseg.training import fit_reward, pool_pairs

SAME = 0.05  # share of the pixels of both objects by which two masks of one pair may differ


class Ratings(NamedTuple):
    """The answers in a file, with the pairs they are about, at the size of the network.

    Attributes:
      path: of the file.
      digest: its SHA-256.
      rows: those that count, see `ratings.active`.
      images: uint8 `[N, *spatial, C]`, one per row.
      masks: uint8 `[N, *spatial]`.
      corrected: pairs with a corrected label: 'image' float32 in [-1, 1], 'mask' uint8, of which there may
        be none.
    """

    path: pathlib.Path
    digest: str
    rows: Sequence[Mapping[str, Any]]
    images: np.ndarray
    masks: np.ndarray
    corrected: Mapping[str, np.ndarray]


class Feedback(NamedTuple):
    """What one training makes of the ratings.

    Attributes:
      pool: that synthetic pairs are drawn from.
      reward: R; None while there are too few ratings.
      beta: weight of 1 - R in the outer loss; of 0, nothing of all this is used.
      corrected: see `Ratings`.
    """

    pool: batches.Pool
    reward: Reward | None
    beta: float
    corrected: Mapping[str, np.ndarray]


def load(
    path: pathlib.Path,
    size: Sequence[int],
    channels: int,
    real: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> Ratings:
    """Reads a file of ratings, and the pictures beside it.

    Args:
      path: of the file.
      size: of the network.
      channels: 1 or 3.
      real: image in [-1, 1] and mask of every training case by id: hidden real images are not copied, and
        answers about other cases, and about pairs made of others, are left out: those may be what this run
        validates or tests on.

    Raises:
      InputError: there is no file, no answer in it, or a picture is missing or of another size.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise errors.InputError(
            f"feedback.file is {str(path)!r}: there is no such file; --mode=review writes RUN/"
            f"{store.FOLDER}/{store.FILE}."
        )
    rows = [row for row in store.active(store.read(path)) if {*row["cases"]} <= real.keys()]
    if not rows:
        raise errors.InputError(
            f"feedback.file is {str(path)!r}: no answer in it is about training cases of this run or pairs "
            "made of them."
        )
    read = {}

    def pair(name):
        if name not in read:
            read[name] = read_pair(path.parent, name, size, channels)
        return read[name]

    def shown_in(row):
        if row["kind"] != "real":
            return pair(row["pair"])
        image, mask = real[row["cases"][0]]
        return np.asarray(pictures.to_uint8(image)[..., :channels]), np.asarray(mask, np.uint8)

    shown = [shown_in(row) for row in rows]

    def corrected_in(row):
        if row["kind"] != "real":
            return pair(row["label"])
        return shown_in(row)[0], read_mask(store.label_path(path, row["label"]), size)

    labels = {row["label"]: row for row in rows if row.get("label")}
    right = [corrected_in(row) for row in labels.values()]
    spatial = tuple(size)
    corrected = {
        "image": np.stack([image for image, _ in right]).astype(np.float32) / 127.5 - 1.0
        if right
        else np.zeros((0, *spatial, channels), np.float32),
        "mask": np.stack([m for _, m in right]) if right else np.zeros((0, *spatial), np.uint8),
    }
    images, masks = (np.stack(x) for x in zip(*shown, strict=True))
    return Ratings(path, store.digest(path), rows, images, masks, corrected)


def read_pair(
    folder: pathlib.Path, name: str, size: Sequence[int], channels: int
) -> tuple[np.ndarray, np.ndarray]:
    """The picture and the mask of a pair that was rated, by its hash: uint8 `[H, W, C]` and `[H, W]`.

    Raises:
      InputError: one of them is missing, damaged, or of another size or number of channels.
    """
    image_path, mask_path = (
        folder / part / f"synthetic_{name}.png" for part in ("images", "masks")
    )
    image, mask = _read(image_path, size), read_mask(mask_path, size)
    if image.shape[-1] != channels:
        image = np.repeat(image[..., :1], channels, -1) if channels == 3 else image[..., :1]
    return image, mask


def read_mask(path: pathlib.Path, size: Sequence[int]) -> np.ndarray:
    """A mask that belongs to ratings, uint8 `[H, W]`.

    Raises:
      InputError: it is missing, damaged, or of another size.
    """
    return _read(path, size)[..., 0]


def _read(path, size):
    if not path.is_file():
        raise errors.InputError(
            f"{path} is missing: the pictures belong to the file of ratings, copy the whole folder."
        )
    picture = image_files.read_image(path)[0]
    if picture.shape[:2] != tuple(size):
        raise errors.InputError(
            f"{path} has {picture.shape[1]} x {picture.shape[0]} pixels, but data.image_size is "
            f"{tuple(size)}: rate pairs of this size."
        )
    return picture


def targets_of(ratings: Ratings) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """What R is fitted to: images, masks, targets and hashes; a corrected label counts as accepted."""
    right = ratings.corrected
    images = ratings.images.astype(np.float32) / 127.5 - 1.0
    names = {row["label"]: None for row in ratings.rows if row.get("label")}
    return (
        np.concatenate([images, right["image"]]),
        np.concatenate([ratings.masks, right["mask"]]),
        np.concatenate([[store.verdict(row) for row in ratings.rows], np.ones(len(names))]),
        [*(row["pair"] for row in ratings.rows), *names],
    )


def fit(
    ratings: Ratings, train: Mapping[str, np.ndarray], min_ratings: int, seed: int
) -> fit_reward.Fitted | None:
    """R of the ratings, compared with real pairs; None while there are too few, or all are the same.

    Args:
      ratings: from `load`.
      train: arrays of the training cases: what is usual.
      min_ratings: least number of answers.
      seed: see `fit_reward.fit`.
    """
    images, masks, targets, groups = targets_of(ratings)
    if len(ratings.rows) < min_ratings or np.ptp(targets) == 0:
        return None
    pixels = fit_reward.fit_pixels(train["image"], train["mask"], seed)
    real = fit_reward.features_of(pixels, train["image"], train["mask"])
    rated = fit_reward.features_of(pixels, images, masks)
    return fit_reward.fit(rated, targets, groups, real, seed, pixels)


def weigh_pool(
    maker: pool_pairs.PoolMaker,
    players,
    theta,
    ratings: Ratings,
    fitted: fit_reward.Fitted | None,
    ids: Sequence[str],
    size: int,
    seed: int,
) -> tuple[np.ndarray, dict[str, int]]:
    """The weight of every number of a pool for every source.

    It is R of the pair that the source makes of it now, or 1 where there is no R; and 0 of a number that
    people rejected, if it is made of the same cases now and has the mask that they saw: their mean answer
    is below a half. Other ratings count in R alone.

    Args:
      maker: of the pairs.
      players: of the generator, as the training begins.
      theta: likewise.
      ratings: from `load`.
      fitted: from `fit`.
      ids: of the training cases, in the order of the maker's arrays.
      size: numbers in the pool, M.
      seed: of the pool.

    Returns:
      Weights `[S, M]`, and counts: 'rejected' and 'accepted' numbers of the pool, and 'elsewhere', answers
      about synthetic pairs that are not in it.

    Raises:
      InputError: everything of a source was rejected.
    """
    answers: dict[tuple[str, int], list[float]] = {}
    counts = {"rejected": 0, "accepted": 0, "elsewhere": 0}
    places: dict[tuple[str, int], int] = {}
    for place, row in enumerate(ratings.rows):
        if row["kind"] not in ("synthetic", "repeat"):
            continue
        where = row["source"], row["number"]
        if row["seed"] != seed or row["source"] not in maker.sources or row["number"] >= size:
            counts["elsewhere"] += 1
            continue
        answers.setdefault(where, []).append(store.verdict(row))
        places[where] = place
    weights = np.ones((len(maker.sources), size))
    for s, source in enumerate(maker.sources):
        rated = sorted(number for name, number in answers if name == source)
        numbers = np.arange(size) if fitted else np.array(rated, int)
        if not len(numbers):
            continue
        pairs = maker.pairs(source, players, theta, numbers)
        if fitted:
            weights[s] = fit_reward.accepted(fitted.reward, pairs.images, pairs.masks)
        made = dict(
            zip(numbers.tolist(), zip(pairs.masks, pairs.provenance, strict=True), strict=True)
        )
        for number in rated:
            place, (mask, went_in) = places[source, number], made[number]
            cases = {ids[i] for i in went_in if i != pair_sources.NO_CASE}
            if cases != {*ratings.rows[place]["cases"]} or not _same(ratings.masks[place], mask):
                counts["elsewhere"] += len(answers[source, number])
                continue
            rejected = np.mean(answers[source, number]) < 0.5
            counts["rejected" if rejected else "accepted"] += 1
            if rejected:
                weights[s, number] = 0.0
        if not weights[s].any():
            raise errors.InputError(
                f"{ratings.path}: every pair of {source} in the pool was rejected: raise "
                "feedback.pool_size, or leave this source out of pairs.sources."
            )
    return weights, counts


def _same(mask, other):
    """Whether two masks show the same objects, but for the rounding of another machine."""
    return (mask != other).sum() <= SAME * ((mask > 0) | (other > 0)).sum()


class Decision(NamedTuple):
    """How far a training listens.

    Attributes:
      beta: chosen.
      losses: beta -> mean loss on the cases held out; {} if nothing was tried.
      difference: of the best beta above 0 from 0, and its standard error over cases; NaN if not tried.
      error: see there.
    """

    beta: float
    losses: Mapping[float, float]
    difference: float
    error: float


def choose_beta(betas: Sequence[float], run: Callable[[float], np.ndarray]) -> Decision:
    """The beta with the least loss on cases held out; 0 unless it is better by more than a standard error.

    Args:
      betas: a single one is taken as it is; of several, one is 0.
      run: beta -> losses per case `[N]` of a training that listens so far, mean over starts.

    Raises:
      InputError: a training diverged.
    """
    if len(betas) == 1:
        return Decision(float(betas[0]), {}, float("nan"), float("nan"))
    found = {float(beta): np.asarray(run(beta), np.float64) for beta in sorted(betas)}
    losses = {beta: float(values.mean()) for beta, values in found.items()}
    if diverged := [beta for beta, loss in losses.items() if not np.isfinite(loss)]:
        raise errors.InputError(
            f"the trial of feedback.betas={diverged[0]:g} diverged: lower optim.learning_rate, or give one "
            "beta, which is not tried."
        )
    best = min((beta for beta in losses if beta), key=losses.get)
    change = found[best] - found[0.0]
    difference, error = float(change.mean()), float(change.std(ddof=1) / len(change) ** 0.5)
    return Decision(best if difference < -error else 0.0, losses, difference, error)
