"""Does the hypergradient of a trained run point downhill, on validation images and on test images?

python benchmarks/downhill.py --run=RUN [--draws=10] [--distance=0.3]

RUN is the folder of a run with method end2end. It is taken up at the earliest checkpoint that is kept
(at the last step the learning rate is 0, and so is the hypergradient). For several draws of batches, the
outer variables are moved a distance against and along the hypergradient, the K inner steps are repeated
from the same state with the same batches and keys, and the outer losses are compared. Printed: how often
the loss is lower against the gradient, the ratio of the measured to the predicted difference (1 is right,
up to curvature and float32), and how often the loss on as many unseen test images is lower, too.
"""

import argparse
import functools
import pathlib
import statistics
import sys

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from fewshotseg import hypergradient
from fewshotseg.data import batches as input_pipeline
from fewshotseg.genseg import levels
from fewshotseg.runs import checkpoint
from fewshotseg.runs import folder as run_files
from fewshotseg.training import build, build_data, build_pairs, build_parts, devices, stages


def shift(theta, direction, amount):
    """`theta + amount * direction`."""
    return jax.tree.map(lambda a, d: a + amount * d, theta, direction)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=pathlib.Path, required=True)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--distance", type=float, default=0.3, help="norm of the move of theta")
    args = parser.parse_args()
    config = ConfigDict(run_files.read_config(args.run))
    data = build_data.create_data(config)
    spec = build_parts.create_spec(config, data.num_classes)
    method = build_pairs.resolve_method(config, "end2end")
    parts = build_parts.create_parts(config, spec, method, "train")
    moving = stages.moving_players(parts, method)
    inner_step = stages.create_inner_step(parts, moving, config.outer.through_generator_training)
    step = devices.compile_step(hypergradient.indexed(inner_step), batched_args=(2,))
    estimate = build_parts.create_estimate(config, parts, method, inner_step, step)
    draw, draw_outer = build_parts.create_draws(
        config, data.num_classes, method, config.train.batch_size
    )
    train, validation_arrays = (
        jax.tree.map(jnp.asarray, dict(arrays)) for arrays in (data.train, data.validation)
    )
    start = build.create_training(config, data, spec, "end2end").init(
        stages.init_family(parts, config.seed)
    )
    checkpoints = checkpoint.Checkpoints(args.run / "end2end" / "checkpoints")
    state, _, _ = checkpoints.restore(start, checkpoints.steps()[0])
    outer_loss = devices.compile_step(
        functools.partial(levels.outer_loss, terms=parts.terms), batched_args=(2,)
    )
    source, ids = data.test_sets["test"]
    size, channels = config.data.image_size, config.data.channels
    test = input_pipeline.load_arrays(source, ids, size, channels)
    test = jax.tree.map(jnp.asarray, test)

    def loss_at(theta, batches, keys, outer_batch):
        players = state.players
        for k in range(len(keys)):
            players, _ = step(players, theta, batches, keys, k)
        return float(outer_loss(players, theta, outer_batch)[0])

    ratios, downhill, downhill_test, norms = [], [], [], []
    for turn in range(args.draws):
        first = int(state.step) + turn * config.outer.num_inner_steps
        numbers = range(first, first + config.outer.num_inner_steps)
        keys = jnp.stack([stages.step_key(config.seed, "train", n) for n in numbers])
        batches = draw(train, keys)
        validation, unseen = draw_outer(validation_arrays, keys[0]), draw_outer(test, keys[0])
        grad = estimate(state.theta, state.players, batches, validation, keys).grad
        norm = float(optax.tree.norm(grad))
        ends = [shift(state.theta, grad, sign * args.distance / norm) for sign in (-1.0, 1.0)]
        low, high = (loss_at(end, batches, keys, validation) for end in ends)
        ratios.append((high - low) / (2 * args.distance * norm))
        downhill.append(low < high)
        low, high = (loss_at(end, batches, keys, unseen) for end in ends)
        downhill_test.append(low < high)
        norms.append(norm)
    print(
        f"{args.run}, step {int(state.step)}: downhill on validation {sum(downhill)} of {args.draws}, "
        f"measured / predicted {statistics.median(ratios):.2f} ({min(ratios):.2f} to "
        f"{max(ratios):.2f}), downhill on test images {sum(downhill_test)} of {args.draws}, "
        f"norm {statistics.median(norms):.1e}"
    )


if __name__ == "__main__":
    main()
