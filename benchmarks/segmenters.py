"""CPU time of one training step of every segmenter at its own widths, and of a step that is differentiated.

python benchmarks/segmenters.py --size=96 --batch=2

On one core: the gradient of the loss with respect to the weights, and the product of the mixed second
derivative (weights, images) with a direction, which a hypergradient adds to it. On a shared machine
compare rows of one call.
"""

import argparse
import os
import pathlib
import sys
import time

import jax
import jax.numpy as jnp

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from configs import default
from fewshotseg.genseg import losses
from fewshotseg.models import factory


def cpu_seconds(function, *args, repeats):
    """The least of some calls, after one that compiles."""
    jax.block_until_ready(function(*args))
    taken = []
    for _ in range(repeats):
        started = time.process_time()
        jax.block_until_ready(function(*args))
        taken.append(time.process_time() - started)
    return min(taken)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=96, help="pixels along a side")
    parser.add_argument("--axes", type=int, default=2, help="2, or 3 for volumes")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--names", default=",".join(factory.SEGMENTERS))
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])  # idle threads count as CPU time
    config, size = default.get_config().segmenter, (args.size,) * args.axes
    config.efficient_unet.weights = ""
    spec = factory.Spec(2, size, 3 if args.axes == 2 else 1)
    shape = (args.batch, *size)
    images = jax.random.uniform(jax.random.key(0), (*shape, spec.channels), minval=-1, maxval=1)
    masks = jax.random.bernoulli(jax.random.key(1), 0.3, shape).astype(jnp.uint8)
    print(f"{args.batch} x {' x '.join(map(str, size))}, one core, {jax.default_backend()}")
    for name in args.names.split(","):
        network = factory.create_segmenter(name, config[name].to_dict(), spec)
        params = network.init(jax.random.key(2))
        number = sum(x.size for x in jax.tree.leaves(params))

        def loss(params, images, network=network):
            return losses.segmentation_loss(network.apply(params, images, None), masks).mean()

        def mixed(params, images, direction, loss=loss):
            slope = jax.grad(loss, argnums=1)
            return jax.jvp(lambda p: slope(p, images), (params,), (direction,))[1]

        step = cpu_seconds(jax.jit(jax.grad(loss)), params, images, repeats=args.repeats)
        print(f"{name:15} {number:>11,} parameters  gradient {step:6.2f} s", end="", flush=True)
        more = cpu_seconds(jax.jit(mixed), params, images, params, repeats=args.repeats)
        print(f"  mixed product {more:6.2f} s", flush=True)


if __name__ == "__main__":
    main()
