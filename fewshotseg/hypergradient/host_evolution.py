"""Evolution strategies as Python loops over compiled pieces, for CPUs: see `host_loop`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fewshotseg.hypergradient import evolution, host_loop
from fewshotseg.hypergradient.contract import Hypergradient


def evolution_strategies(
    inner_step: Callable,
    outer_loss: Callable,
    *,
    num_pairs: int,
    sigma: float,
    axis_name: str | None = None,
    compile: Callable = host_loop.jit,
    step: Callable | None = None,
) -> Callable:
    """`evolution.evolution_strategies`; compiles its own pieces.

    Args:
      inner_step: see `evolution.evolution_strategies`, as for the other arguments.
      compile: see `host_loop`.
      step: see `host_loop.steps`.
    """
    check, run, draw, perturb, add = _evolution(
        inner_step, outer_loss, num_pairs, sigma, axis_name, compile, step
    )

    def estimate(theta, inner_state, *problem):
        check(theta, inner_state, *problem)
        rngs = problem[-1]
        loss, final, metrics = run(inner_state, theta, *problem)
        grad = jax.tree.map(jnp.zeros_like, theta)
        for i in range(num_pairs):
            noise = draw(theta, rngs, i)
            thetas = (perturb(theta, noise, sign) for sign in evolution.SIGNS)
            grad = add(grad, noise, *(run(inner_state, a, *problem)[0] for a in thetas))
        return Hypergradient(loss, grad, final, metrics)

    return estimate


def pes(
    inner_step: Callable,
    outer_loss: Callable,
    *,
    num_pairs: int,
    sigma: float,
    num_unrolls: int,
    axis_name: str | None = None,
    compile: Callable = host_loop.jit,
    step: Callable | None = None,
) -> Callable:
    """`evolution.pes`; compiles its own pieces.

    Args:
      inner_step: see `evolution.pes`, as for the other arguments.
      compile: see `host_loop`.
      step: see `host_loop.steps`.
    """
    check, run, draw, perturb, add = _evolution(
        inner_step, outer_loss, num_pairs, sigma, axis_name, compile, step
    )
    renew = compile(lambda *args: evolution.renew(*args, num_unrolls))
    pick = compile(lambda tree, i: jax.tree.map(lambda x: x[i], tree))
    more = compile(lambda noise, fresh: jax.tree.map(jnp.add, noise, fresh))

    def estimate(theta, inner_state, inner_batches, outer_batch, rngs, particles):
        problem = inner_batches, outer_batch, rngs
        check(theta, inner_state, *problem)
        particles, pairs = renew(particles, inner_state), []
        loss, final, metrics = run(inner_state, theta, *problem)
        grad = jax.tree.map(jnp.zeros_like, theta)
        for i in range(num_pairs):
            states, noise = pick((particles.states, particles.noise), i)
            fresh = draw(theta, rngs, i)
            noise = more(noise, fresh)
            thetas = [perturb(theta, fresh, sign) for sign in evolution.SIGNS]
            ends = [run(state, a, *problem) for state, a in zip(states, thetas, strict=True)]
            grad = add(grad, noise, *(end[0] for end in ends))
            pairs.append((tuple(end[1] for end in ends), noise))
        states, noise = jax.tree.map(lambda *x: jnp.stack(x), *pairs)
        carry = evolution.Particles(states, noise, particles.unrolls + 1)
        return Hypergradient(loss, grad, final, metrics, carry)

    return estimate


def _evolution(inner_step, outer_loss, num_pairs, sigma, axis_name, compile, step):
    """Check, K steps with their outer loss, and the other pieces of `evolution.pieces`, compiled."""
    draw, perturb, outer, add = evolution.pieces(outer_loss, num_pairs, sigma, axis_name)
    take_steps = host_loop.steps(inner_step, compile=compile, step=step)
    run = evolution.trainer(take_steps, compile(outer, batched_args=(2,)))
    check = host_loop.compile_check(inner_step, outer_loss, compile)
    return check, run, compile(draw), compile(perturb), compile(add)
