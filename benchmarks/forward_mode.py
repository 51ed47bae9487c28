"""Processor time of a step that carries tangents along, by how the linearised step is applied to them.

    python benchmarks/forward_mode.py --size=64 --variables=4

A U-Net (width 16, batch 8) with Adam; theta weighs the examples. All ways take a step in turn, and
the ratios to the plain step of the same round are printed: median (lowest to highest).
"""

import argparse
import pathlib
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from fewshotseg import hypergradient
from fewshotseg.hypergradient import forward
from fewshotseg.models import unet

BATCH_SIZE = 8
PLAIN = "plain, no tangent"


def make_problem(size, num_variables):
    """Inner step without batches or keys, its state and tangents, and theta."""
    net, numbers = unet.UNet(), np.random.default_rng(0)
    images = jnp.asarray(numbers.uniform(-1, 1, (BATCH_SIZE, size, size, 3)), jnp.float32)
    masks = jnp.asarray(numbers.integers(0, 2, (BATCH_SIZE, size, size, 1)), jnp.float32)

    def loss(params, theta, batch, rng):
        shares = jax.nn.softmax(theta)[jnp.arange(BATCH_SIZE) % num_variables] * num_variables
        logits = net.apply(params, images)
        each = optax.sigmoid_binary_cross_entropy(logits, masks).mean((1, 2, 3))
        return (shares * each).mean(), {}

    optimizer = optax.adam(1e-3, eps_root=1e-16)
    step = hypergradient.gradient_step(
        loss, optimizer, gradient=hypergradient.inner_gradient.reverse
    )
    params = jax.jit(net.init)(jax.random.key(0), images)
    state = hypergradient.TrainState(params, optimizer.init(params))
    theta = jnp.zeros(num_variables)
    tangents = [jnp.asarray(numbers.standard_normal(t.shape), t.dtype)
                for t in forward.start(theta, state)]  # fmt: skip
    return lambda state, theta: step(state, theta, None, None)[0], state, tangents, theta


def make_ways(step, state, tangents, theta):
    """Name -> function of nothing that takes a step, and the programs it is made of, compiled in time."""
    linearized = forward.linearized(lambda state, theta, batch, rng: (step(state, theta), {}))
    columns = forward.columns(theta)
    single = [([t[i] for t in tangents], columns[i]) for i in range(theta.size)]

    def linearize(state, theta):
        state, _, push = linearized(state, theta, None, None)
        return state, push

    def jvp(state, theta, tangent, direction):
        return linearize(state, theta)[1](tangent, direction)

    def at_once(state, theta, apply):
        state, push = linearize(state, theta)
        return state, apply(push)

    def unrolled(push):
        return [push(*pair) for pair in single]

    def mapped(push):
        return jax.vmap(push)(tangents, columns)

    plain, linear, forward_only = jax.jit(step), jax.jit(linearize), jax.jit(jvp)
    one, several = jax.jit(lambda push, *pair: push(*pair)), jax.jit(mapped)
    together, vmapped = (jax.jit(lambda s, a, f=f: at_once(s, a, f)) for f in (unrolled, mapped))

    def step_by_variable():
        new, push = linear(state, theta)
        return new, [one(push, *pair) for pair in single]

    def step_then_vmap():
        new, push = linear(state, theta)
        return new, several(push)

    return {
        PLAIN: lambda: plain(state, theta),
        "linearised, then each by itself (host_loop.advance)": step_by_variable,
        "linearised, then vmap": step_then_vmap,
        "jvp of the step for each": lambda: [forward_only(state, theta, *p) for p in single],
        "one program, vmap (forward.advance)": lambda: vmapped(state, theta),
        "one program, one after the other": lambda: together(state, theta),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--variables", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    ways = make_ways(*make_problem(args.size, args.variables))
    first = {name: seconds(take) for name, take in ways.items()}  # compiles
    rounds = [{name: seconds(take) for name, take in ways.items()} for _ in range(args.repeats)]
    print("| a step | over a plain one | first call (s) |\n| --- | --- | --- |")
    for name in ways:
        ratios = [found[name] / found[PLAIN] for found in rounds]
        spread = f"({min(ratios):.1f} to {max(ratios):.1f})"
        print(f"| {name} | {statistics.median(ratios):.1f} {spread} | {first[name]:.0f} |")


def seconds(take):
    """Processor time of one call."""
    started = time.process_time()
    jax.block_until_ready(take())
    return time.process_time() - started


if __name__ == "__main__":
    main()
