"""From a configuration to what ratings do to a training; see `feedback`."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from fewshotseg import errors
from fewshotseg.data import batches, canvas, cases, folds, tiles
from fewshotseg.genseg import levels, losses, reward
from fewshotseg.methods import Method
from fewshotseg.models import factory
from fewshotseg.runs import ratings as store
from fewshotseg.training import build_pairs, build_parts, feedback, fit_reward, pool_pairs, stages
from fewshotseg.training.feedback import Feedback

SEED = 0  # of the pool: another number for other masks-and-keys of the same run


class Listening(NamedTuple):
    """A training that listens, or does not: its parts, the options of its draws, its arrays."""

    parts: stages.Parts
    options: dict[str, Any]
    arrays: tuple[Mapping[str, Any], Mapping[str, Any]]


class Trials(NamedTuple):
    """The trainings that choose how far a method listens.

    Attributes:
      number: of them, at most; 0 where there is no choice.
      num_steps: of one; 0: as many as the training has.
    """

    number: int
    num_steps: int


class Choice(NamedTuple):
    """What a method makes of the ratings, and what is said about it.

    Attributes:
      feedback: None where nothing of them is used.
      record: of feedback.json, JSON values.
    """

    feedback: Feedback | None
    record: dict[str, Any]


def rating_trials(config) -> Trials:
    """Those of one method."""
    fields = config.feedback
    number = len(fields.betas) * fields.num_starts if len(fields.betas) > 1 else 0
    return Trials(number, fields.num_steps)


def create_pool(config, number_of_cases: int, num_sources: int) -> batches.Pool:
    """The masks-and-keys of a run, each as often as any other."""
    key = stages.step_key(config.seed, "feedback", SEED)
    size = config.feedback.pool_size
    return batches.Pool(key, np.zeros((num_sources, size), np.float32), number_of_cases)


def create_maker(config, data: cases.Data, parts: stages.Parts, method: Method):
    """Makes the pairs of the pool of a run, see `pool_pairs.PoolMaker`."""
    fields = build_parts.pool_fields(config, data.num_classes, method)
    fields.pop("synthetic_images")
    pool = create_pool(config, len(data.split.train), len(method.sources))
    return pool_pairs.PoolMaker(parts.sources, parts.use, pool, arrays=data.train, **fields)


def listen(
    config, data: cases.Data, parts: stages.Parts, method: Method, found: Feedback | None
) -> Listening:
    """What changes in a training where ratings count; nothing if `found` is None or has beta 0."""
    if found is None or not found.beta:
        return Listening(parts, {}, (data.train, data.validation))
    arrays = {k: np.concatenate([data.train[k], found.corrected[k]]) for k in ("image", "mask")}
    pool = {"pool": build_parts.pooled(found.pool)}
    rated = found.reward is not None and _moves(parts, method)
    validation = data.validation
    if rated:
        term = reward.term(parts.sources, parts.use, data.num_classes)
        parts = parts._replace(terms=(*parts.terms, (1.0, term)))
        numbers = {"reward": found.reward, "beta": np.float32(found.beta)}
        train = {k: data.train[k] for k in ("image", "mask")}
        validation = {**validation, **pool, **numbers, "train": train}
    options = {"num_pooled": found.pool.num_cases, "rated": rated}
    return Listening(parts, options, ({**arrays, **pool}, validation))


def create_feedback(
    config, data: cases.Data, spec: factory.Spec, create_training: Callable
) -> Callable[..., Choice] | None:
    """See `build.Experiment`; the file is read now, all else when it is called.

    Args:
      config: the configuration.
      data: the cases.
      spec: of the networks.
      create_training: see `build.create_training`.

    Raises:
      InputError: the file, or a picture beside it, is missing or of another size; or there are too few
        validation cases to choose by.
    """
    if not config.feedback.file:
        return None
    if tiles.create(config.data):
        raise errors.InputError(
            "feedback.file is given, and data.fit is 'tiles': ratings are of whole pictures, leave one out."
        )
    train = zip(data.train["image"], data.train["mask"], strict=True)
    ratings = feedback.load(
        pathlib.Path(config.feedback.file),
        canvas.as_size(config.data.image_size),
        config.data.channels,
        dict(zip(data.split.train, train, strict=True)),
    )
    betas = tuple(float(beta) for beta in config.feedback.betas)
    further = _further_fold(config, data) if len(betas) > 1 else None

    def choose(name: str, players, theta=None, known: Mapping[str, Any] | None = None) -> Choice:
        if known and known["sha256"] != ratings.digest:
            raise errors.InputError(
                f"{ratings.path} has changed since this training began: train in another --workdir, or "
                "put the file back as it was."
            )
        method = build_pairs.resolve_method(config, name)
        parts = build_parts.create_parts(config, spec, method, "train")
        theta = parts.theta if theta is None else theta
        maker = create_maker(config, data, parts, method)
        fitted = feedback.fit(ratings, data.train, config.feedback.min_ratings, config.seed)
        if known:
            weights = np.array([known["weights"][source] for source in method.sources])
        else:
            weights, counts = feedback.weigh_pool(
                maker,
                players or {},
                theta,
                ratings,
                fitted,
                data.split.train,
                config.feedback.pool_size,
                SEED,
            )

        def listening(beta):
            return Feedback(
                maker.pool._replace(logits=batches.logits_of(weights)),
                fitted.reward if fitted else None,
                beta,
                ratings.corrected,
            )

        def run(beta):
            return _trial(config, data, spec, name, players, theta, further, create_training)(
                listening(beta) if beta else None
            )

        if known:
            return Choice(listening(known["beta"]) if known["beta"] else None, dict(known))
        tried = betas
        if len(betas) > 1 and not (fitted and _moves(parts, method)):  # others would be the same
            tried = 0.0, max(betas)
        decision = feedback.choose_beta(tried, run)
        record = {
            "file": str(ratings.path),
            "sha256": ratings.digest,
            "ratings": len(ratings.rows),
            "min_ratings": config.feedback.min_ratings,
            "raters": store.consistency(ratings.rows),
            "corrected": len(ratings.corrected["mask"]),
            "pool": counts,
            "reward": fitted and _describe(fitted),
            "beta": decision.beta,
            "losses": {f"{beta:g}": loss for beta, loss in decision.losses.items()},
            "difference": decision.difference,
            "error": decision.error,
            "weights": dict(zip(method.sources, weights.tolist(), strict=True)),
        }
        return Choice(listening(decision.beta) if decision.beta else None, record)

    return choose


def _moves(parts, method):
    """Whether there is a hypergradient for the ratings to be a part of."""
    return method.moves_theta and bool(parts.theta)


def _describe(fitted: fit_reward.Fitted) -> dict[str, Any]:
    parts = fitted.reward._asdict()
    return {
        "auc": fitted.auc,
        "penalty": fitted.penalty,
        "log_loss": fitted.log_loss,
        "log_loss_constant": fitted.log_loss_constant,
        **{name: np.asarray(parts[name]).tolist() for name in ("slope", "offset")},
    }


def _further_fold(config, data):
    """Positions of the validation cases for the outer loss of a trial, and of those that judge it."""
    try:
        return folds.divide(
            data.survey, data.split.validation, 2, config.seed, config.data.look_alike
        )
    except errors.InputError as error:
        raise errors.InputError(
            f"feedback.betas is {tuple(config.feedback.betas)}: to choose among them takes two independent "
            "validation cases: give one of them, or label more."
        ) from error


def _trial(config, data, spec, name, players, theta, further, create_training):
    """`feedback or None -> losses per case of the further fold`, mean over starts."""
    outer, judged = (np.array(fold) for fold in further)
    held_out = {k: v[judged] for k, v in data.validation.items()}
    data = dataclasses.replace(data, validation={k: v[outer] for k, v in data.validation.items()})
    config = config.copy_and_resolve_references()
    with config.unlocked():
        build_parts.set_num_steps(config, config.feedback.num_steps or config.train.num_steps)

    def run(found):
        of_starts = []
        for start in range(config.feedback.num_starts):
            other = config.copy_and_resolve_references()
            other.seed = config.seed + 1 + start  # not that of the training itself
            stage = create_training(other, data, spec, name, theta or None, found)
            state, step = stage.init(players), 0
            while step < stage.num_steps:
                state, _, taken = stage.advance(state, step)
                step += taken
            weights = levels.average_of(state.players["segmenter"])
            probabilities = stage.segment(weights, held_out["image"])
            of_starts.append(_losses(probabilities, held_out["mask"], config.loss.overlap))
        return np.mean(of_starts, 0)

    return run


def _losses(probabilities, masks, overlap):
    """The validation loss per case, from probabilities `[N, *spatial, K]`."""
    p = jnp.clip(jnp.asarray(probabilities), 1e-7, 1 - 1e-7)
    logits = jnp.log(p) - jnp.log1p(-p) if p.shape[-1] == 1 else jnp.log(p)
    return np.asarray(losses.segmentation_loss(logits, jnp.asarray(masks), overlap), np.float64)
