"""What ratings do to a training, with raters whose answers are known: before any person is asked.

python benchmarks/feedback.py [--seeds=5] [--share=0.4] [--ratings=100] [--no_training] [--output=FILE]

Phantoms at 32 pixels; pairs of `augmented` and `colour_transfer`, of which a share is corrupted on purpose,
by the key of each: the mask is shifted, the colours are wrong, or the object is there twice. Four raters
answer the same questions: one who sees every corruption, one who errs in a tenth of all answers, one who
throws a coin, and one who says the opposite of the truth. Each file of ratings then goes the way of any
other: R is fitted, the pool weighed, beta chosen by trials, the segmenter trained, with a hypergradient
that moves the mixture, the weight of synthetic pairs and their colours. Dice on 100 test phantoms, against
the same training without ratings and the same steps: with what the trials chose ('dice'), and with beta = 1
whatever they say ('dice_heard').
"""

import argparse
import csv
import pathlib
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from configs import demo
from fewshotseg import figures, pictures
from fewshotseg.data import batches
from fewshotseg.genseg import pair_sources
from fewshotseg.results import metrics
from fewshotseg.runs import ratings as store
from fewshotseg.training import (
    build,
    build_feedback,
    build_pairs,
    build_parts,
    feedback,
    fit_reward,
)

SIZE, METHOD = 32, "mixture_learned"
KINDS = ("mask shifted", "colours wrong", "object twice")
RATERS = ("knows", "errs", "coin", "enemy")


def is_corrupted(keys, share):
    """Of pairs, by their keys: 0 for those that are as they should be, else 1 + the kind."""
    corruption = jax.vmap(lambda key: jax.random.fold_in(key, 77))(keys)
    draws = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(corruption)
    kind = 1 + jnp.floor(draws[:, 1] * len(KINDS)).astype(int)
    return jnp.where(draws[:, 0] < share, kind, 0)


def corrupt(source, share):
    """The source with a share of its pairs spoilt."""

    def create(tools, **fields):
        make = source.create(tools, **fields)

        def corrupted(state, theta, batch, keys):
            pairs = make(state, theta, batch, keys)
            kind = is_corrupted(keys, share)
            images, masks = pairs.images, pairs.masks
            away = (SIZE // 4, SIZE // 4 + 1)
            moved = jnp.roll(masks, away, (1, 2))
            wrong = images[..., ::-1] * 0.6 + 0.3
            there = moved[..., None] > 0
            twice = jnp.where(there, jnp.roll(images, away, (1, 2)), images)
            is_kind = [(kind == i)[:, None, None] for i in (1, 2, 3)]
            images = jnp.where(is_kind[1][..., None], wrong, images)
            images = jnp.where(is_kind[2][..., None], twice, images)
            masks = jnp.where(is_kind[0], moved, masks)
            masks = jnp.where(is_kind[2], jnp.maximum(masks, moved), masks)
            return pairs._replace(images=images, masks=masks)

        return corrupted

    return pair_sources.PairSource(create, source.images, source.donors, source.variables)


def make_config(seed, path="", **fields):
    config = demo.get_config(f"seed={seed}")
    config.methods = (METHOD,)
    config.data.image_size, config.data.phantom.image_size = SIZE, SIZE
    config.segmenter.unet.num_levels, config.segmenter.unet.width = 3, 8
    config.pairs.sources = ("augmented", "colour_transfer")
    config.outer.variables = ("mixture", "synthetic_weight", "colour_gain", "colour_shift")
    config.data.num_train, config.data.num_validation = 28, 12
    config.train.num_steps, config.outer.every = 160, 8
    config.feedback.pool_size, config.feedback.file = 256, str(path)
    config.feedback.update(fields)
    return config


def rate(config, experiment, folder, rater, number, share, seed):
    """Writes a file of ratings, as `--mode=review` does; what the corruption of each pair was."""
    method = build_pairs.resolve_method(config, METHOD)
    parts = build_parts.create_parts(config, experiment.spec, method, "train")
    maker = build_feedback.create_maker(config, experiment.data, parts, method)
    numbers, kinds = np.random.default_rng(seed), pool_kinds(config, maker.pool, share)
    each = -(-number // len(maker.sources))
    made = {s: maker.pairs(s, {}, parts.theta, np.arange(each)) for s in maker.sources}
    for i in range(number):
        place, which = divmod(i, len(maker.sources))
        source = maker.sources[which]
        image = np.ascontiguousarray(pictures.to_uint8(made[source].images[place]))
        mask = np.ascontiguousarray(made[source].masks[place], np.uint8)
        good = kinds[place] == 0
        says = {
            "knows": good,
            "errs": good != (numbers.random() < 0.1),
            "coin": numbers.random() < 0.5,
            "enemy": not good,
        }[rater]
        name = store.hash_arrays(image, mask)
        figures.save_image(image, folder / "images" / f"synthetic_{name}.png")
        figures.save_image(mask, folder / "masks" / f"synthetic_{name}.png")
        answer = "accept" if says else "reject"
        row = {"id": str(i), "rater": rater, "item": str(i), "kind": "synthetic", "pair": name}
        row |= {"source": source, "number": place, "seed": build_feedback.SEED, "answer": answer}
        store.append(folder / store.FILE, {**row, "cases": [], "tags": [], "ms": 1000})
    return folder / store.FILE


def pool_kinds(config, pool, share):
    """The corruption of every number of the pool."""

    def key(number):
        k_noise = jax.random.split(jax.random.fold_in(pool.key, number), 5)[4]
        return jax.random.fold_in(k_noise, 1)

    keys = jax.vmap(key)(jnp.arange(config.feedback.pool_size))
    return np.asarray(is_corrupted(keys, share))


def train(experiment, found):
    """Mean test Dice of a training, and the outer variables at its end."""
    stage = experiment.training(METHOD, None, found)
    state, step = stage.init(None), 0
    while step < stage.num_steps:
        state, _, taken = stage.advance(state, step)
        step += taken
    source, ids = experiment.data.test_sets["test"]
    test = batches.load_arrays(source, ids, SIZE, 3)
    probabilities = stage.segment(state.players["segmenter"].average, test["image"])
    rows = [
        metrics.case_metrics((p[..., 0] > 0.5).astype(np.uint8), m, 2)
        for p, m in zip(probabilities, test["mask"], strict=True)
    ]
    used = {k: np.asarray(v).tolist() for k, v in stage.use(state.theta).items()}
    return metrics.mean_dice(rows), used


def auc_by_kind(config, experiment, path, kinds, rated):
    """AUC of R on pairs of the pool that nobody rated, of all and of every kind; its mean values."""
    data, fields = experiment.data, config.feedback
    ratings = feedback.load(path, (SIZE, SIZE), 3, {})
    fitted = feedback.fit(ratings, data.train, fields.min_ratings, config.seed)
    method = build_pairs.resolve_method(config, METHOD)
    parts = build_parts.create_parts(config, experiment.spec, method, "train")
    maker = build_feedback.create_maker(config, experiment.data, parts, method)
    unseen = np.arange(rated, config.feedback.pool_size)
    made = maker.pairs(maker.sources[0], {}, parts.theta, unseen)
    scores = fit_reward.accepted(fitted.reward, made.images, made.masks)
    of = {"all": fit_reward.auc(scores, (kinds[unseen] == 0).astype(float))}
    for i, name in enumerate(KINDS, 1):
        some = np.isin(kinds[unseen], (0, i))
        of[name] = fit_reward.auc(scores[some], (kinds[unseen][some] == 0).astype(float))
    good, bad = (scores[(kinds[unseen] == 0) == right].mean() for right in (True, False))
    return of, good, bad


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--share", type=float, default=0.4, help="of pairs that are corrupted")
    parser.add_argument("--ratings", type=int, default=100)
    parser.add_argument("--raters", default=",".join(RATERS))
    parser.add_argument("--no_training", action="store_true", help="R and the pool alone")
    parser.add_argument("--output", type=pathlib.Path)
    args = parser.parse_args()
    plain = dict(pair_sources.PAIR_SOURCES)
    for name in ("augmented", "colour_transfer"):
        pair_sources.PAIR_SOURCES[name] = corrupt(plain[name], args.share)
    rows = []

    def note(**row):
        rows.append(row)
        print(
            ", ".join(
                f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()
            )
        )
        if args.output:
            with args.output.open("w", newline="") as file:
                columns = dict.fromkeys(key for row in rows for key in row)
                writer = csv.DictWriter(file, list(columns), lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)

    trial, without = build_feedback._trial, {}

    def shared_trial(config, *rest):
        """The trial without ratings is the same for all raters of a seed."""
        run = trial(config, *rest)

        def once(found):
            if found is not None:
                return run(found)
            if config.seed not in without:
                without[config.seed] = run(None)
            return without[config.seed]

        return once

    build_feedback._trial = shared_trial
    for seed in range(args.seeds):
        config = make_config(seed)
        experiment = build.build(config)
        trained = {}
        if not args.no_training:
            alone, used = train(experiment, None)
            note(seed=seed, rater="none", dice=alone, gamma=used["synthetic_weight"])
        for rater in args.raters.split(","):
            jax.clear_caches()
            with tempfile.TemporaryDirectory() as folder:
                folder = pathlib.Path(folder)
                path = rate(config, experiment, folder, rater, args.ratings, args.share, seed)
                listening = make_config(
                    seed, path, betas=(1.0,) if args.no_training else (0.0, 1.0)
                )
                heard = build.build(listening)
                record = heard.feedback(METHOD, None).record
                chosen = heard.feedback(METHOD, None, None, {**record, "beta": 1.0}).feedback
                kinds = pool_kinds(listening, choose_pool(listening, heard), args.share)
                of, good, bad = auc_by_kind(listening, heard, path, kinds, args.ratings // 2)
                if not args.no_training:
                    dice, used = train(heard, chosen)
                    trained = {
                        "dice": dice if record["beta"] else alone,
                        "gamma": used["synthetic_weight"],
                        "beta": record["beta"],
                        "dice_heard": dice,
                        "change_held_out": record["difference"],
                        "error": record["error"],
                    }
            weights = np.array([record["weights"][s] for s in listening.pairs.sources])
            share = weights / weights.sum(1, keepdims=True)
            note(
                seed=seed,
                rater=rater,
                **trained,
                corrupted=float((kinds > 0).mean()),
                drawn_corrupted=float(share[:, kinds > 0].sum(1).mean()),
                auc_cross_fitted=record["reward"]["auc"],
                **{f"auc {name}": value for name, value in of.items()},
                R_good=float(good),
                R_corrupted=float(bad),
            )


def choose_pool(config, experiment):
    return build_feedback.create_pool(config, len(experiment.data.split.train), 2)


if __name__ == "__main__":
    main()
