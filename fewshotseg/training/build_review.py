"""From a run to the pairs that its page of `--mode=review` shows; see `review`."""

import functools
import pathlib

import jax
import numpy as np

from fewshotseg import errors, pictures
from fewshotseg.data import canvas
from fewshotseg.genseg import levels, pair_sources
from fewshotseg.results import trained_models
from fewshotseg.runs import checkpoint
from fewshotseg.runs import ratings as store
from fewshotseg.training import (
    build_data,
    build_feedback,
    build_pairs,
    build_parts,
    config_check,
    fit_reward,
    pool_pairs,
    review,
    review_choice,
    synthesize,
)


def create_session(config, workdir: pathlib.Path) -> review.Session:
    """The pairs of a trained run, ready to be rated.

    Args:
      config: of the run; `config.predict.method` may name a method, else its last one with synthetic
        pairs counts.
      workdir: of the run.

    Raises:
      InputError: a run of volumes or without images held out, no trained method with synthetic pairs, or
        other training cases.
    """
    if len(canvas.as_size(config.data.image_size)) == 3:
        raise errors.InputError("review shows pictures, and this is a run of volumes.")
    config_check.require_held_out(config, "review")
    name = synthesize.choose_method(config, trained_models.trained_methods(workdir))
    data = build_data.create_data(config)
    synthesize.check_split(workdir, data)
    method = build_pairs.resolve_method(config, name)
    spec = build_parts.create_spec(config, data.num_classes)
    parts = build_parts.create_parts(config, spec, method, "train", axis_name=None)
    model, _ = checkpoint.load_model(workdir / name / "checkpoints")
    players = {
        player: levels.PlayerState(weights, (), None, np.int32(0))
        for player, weights in model["players"].items()
    }
    maker = build_feedback.create_maker(config, data, parts, method)
    pixels = fit_reward.fit_pixels(data.train["image"], data.train["mask"], config.seed)
    real_features = fit_reward.features_of(pixels, data.train["image"], data.train["mask"])
    center, scale = real_features.mean(0), np.maximum(real_features.std(0), 1e-2)
    weights, ids = model["players"]["segmenter"], data.split.train
    influence = functools.partial(
        review_choice.influence,
        parts.networks["segmenter"].apply,
        weights,
        validation=data.validation,
        overlap=config.loss.overlap,
    )

    def as_pairs(images, masks, kind, source, numbers, cases):
        described = (fit_reward.features_of(pixels, images, masks) - center) / scale
        moved = influence(pairs=(images, masks))
        return [
            review_choice.Pair(
                np.ascontiguousarray(pictures.to_uint8(image)[..., : images.shape[-1]]),
                np.ascontiguousarray(mask, np.uint8),
                kind,
                source,
                int(number),
                tuple(ids[i] for i in went_in if i != pair_sources.NO_CASE),
                float(change),
                row,
            )
            for image, mask, number, went_in, change, row in zip(
                images, masks, numbers, cases, moved, described, strict=True
            )
        ]

    numbers = np.arange(min(config.review.num_pairs, config.feedback.pool_size))
    shown = []
    for source in maker.sources:
        made = maker.pairs(source, players, model["theta"], numbers)
        shown += as_pairs(made.images, made.masks, "synthetic", source, numbers, made.provenance)
    places = np.arange(len(ids))
    real = as_pairs(
        data.train["image"], data.train["mask"], "real", "", [-1] * len(ids), places[:, None]
    )

    def redraw(pair, mask):
        if pair.source not in pool_pairs.DRAWN:
            raise errors.InputError(
                f"{pair.source} makes its image of real ones: only a generator draws one for any mask."
            )
        made = maker.pairs(pair.source, players, model["theta"], [pair.number], mask[None])
        args = made.images, made.masks, "redraw", pair.source, [pair.number], made.provenance
        return as_pairs(*args)[0]

    by_name = {pair.name: pair for pair in (*shown, *real)}

    def fit(rows):
        known = [row for row in rows if row["pair"] in by_name]
        targets = np.array([store.verdict(row) for row in known])
        if not known or np.ptp(targets) == 0:
            return None
        described = np.stack([by_name[row["pair"]].described for row in known])
        rated = described * scale + center
        names = [row["pair"] for row in known]
        return fit_reward.fit(rated, targets, names, real_features, config.seed, pixels).reward

    def disagree(reward, pairs):
        found = np.stack([pair.described for pair in pairs]) * scale + center
        return fit_reward.member_spread(reward, found)

    about = {
        "seed": build_feedback.SEED,
        "method": name,
        "checkpoint": store.hash_arrays(*map(np.asarray, jax.tree.leaves(model["players"]))),
        "theta": store.hash_arrays(*map(np.asarray, jax.tree.leaves(model["theta"]))),
    }
    return review.Session(
        pathlib.Path(workdir) / store.FOLDER,
        _unique(shown),
        _unique(real),
        data.source.class_names,
        about,
        redraw=redraw if set(maker.sources) & set(pool_pairs.DRAWN) else None,
        fit=fit,
        disagree=disagree,
        num_shown=config.review.num_shown,
        real_share=config.review.real_share,
        repeat_share=config.review.repeat_share,
        diversity=config.review.diversity,
        seed=config.review.seed,
    )


def _unique(pairs: list[review_choice.Pair]) -> list[review_choice.Pair]:
    """Each content once."""
    return list({pair.name: pair for pair in pairs}.values())
