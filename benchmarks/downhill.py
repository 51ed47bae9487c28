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

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from fewshotseg.data import batches as input_pipeline
from fewshotseg.genseg import levels as genseg
from fewshotseg.runs import checkpoint
from fewshotseg.runs import folder as run_files
from fewshotseg.training import build as experiment
from fewshotseg.training import build_data, train
from fewshotseg.training import devices as parallel


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
    networks = experiment.create_networks(config, data.num_classes)
    method, _ = experiment.create_method(config, networks, data.num_classes, "end2end", "train")
    gan = experiment.init_gan(config, networks, method)
    training = train.Training(config, data, args.run / "end2end", "end2end", gan)
    checkpoints = checkpoint.Checkpoints(args.run / "end2end" / "checkpoints")
    state, _, _ = checkpoints.restore(training.initial_state(), checkpoints.steps()[0])
    outer_loss = parallel.compile_step(
        functools.partial(genseg.outer_loss, method=training.method), batched_args=(2,)
    )
    source, ids = data.test_sets["test"]
    size, channels = config.data.image_size, config.data.channels
    test = input_pipeline.load_arrays(source, ids, size, channels)
    test = jax.tree.map(jnp.asarray, test)

    def loss_at(theta, batches, keys, outer_batch):
        inner = state.inner
        for k in range(len(keys)):
            inner, _ = training.step(inner, theta, batches, keys, k)
        return float(outer_loss(inner, theta, outer_batch)[0])

    ratios, downhill, downhill_test, norms = [], [], [], []
    for draw in range(args.draws):
        step = int(state.step) + draw * config.outer.num_inner_steps
        keys = jnp.stack(
            [
                experiment.step_key(config, "train", step + k)
                for k in range(config.outer.num_inner_steps)
            ]
        )
        batches = training.draw(training.arrays, keys)
        validation = training.draw_outer(training.validation_arrays, keys[0])
        unseen = training.draw_outer(test, keys[0])
        grad = training.estimate(state.theta, state.inner, batches, validation, keys).grad
        norm = float(optax.global_norm(grad))
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
