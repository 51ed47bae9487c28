"""`jax.pmap(estimate)`, `jax.jit(estimate)` on sharded batches and one device: the same numbers.

Run as a program, this file computes them on two simulated devices; the test starts it once and compares.
"""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
NUM_DEVICES, NUM_STEPS, BATCH_SIZE = 2, 3, 4
ESTIMATORS = (
    *("unrolled", "truncated", "one_step", "forward_mode"),
    *("identity", "neumann", "conjugate_gradient", "sama", "evolution", "pes"),
)


def _estimator(name, axis_name=None):
    """Of a two-layer network with Adam, theta shifting its inputs and weighing its ridge."""
    import jax
    import jax.numpy as jnp
    import optax

    from fewshotseg import hypergradient as hg

    def loss(params, theta, batch, rng):
        x = batch["x"] + theta["shift"] + 0.1 * jax.random.normal(rng, (3,))
        error = jnp.tanh(x @ params["in"]) @ params["out"] - batch["y"]
        ridge = jax.nn.sigmoid(theta["ridge"]) * (params["in"] ** 2).sum()
        return (error**2).mean() + ridge, {"error": jnp.abs(error).mean()}

    def outer_loss(state, theta, batch):
        error = jnp.tanh(batch["x"] @ state.params["in"]) @ state.params["out"] - batch["y"]
        return (error**2).mean() + 0.1 * theta["ridge"] ** 2, {}

    optimizer = optax.adam(0.05, eps_root=1e-8)
    gradient = hg.inner_gradient.reverse if name == "forward_mode" else hg.inner_gradient.mixed
    step = hg.gradient_step(loss, optimizer, gradient=gradient, axis_name=axis_name)
    equation = hg.stationarity(loss, optimizer, axis_name=axis_name)
    solvers = {
        "identity": hg.identity(step_size=0.3),
        "neumann": hg.neumann(num_terms=3, step_size=0.3),
        "conjugate_gradient": hg.conjugate_gradient(num_terms=3, damping=2.0),
        "sama": hg.sama(),
    }
    if name in solvers:
        return hg.implicit_gradient(step, outer_loss, equation, solvers[name], axis_name=axis_name)

    def pes(*functions, **options):
        def first(theta, state, *rest):
            return hg.pes(*functions, **options)(
                theta, state, *rest, hg.start_particles(theta, state, 2)
            )

        return first

    make, options = {
        "unrolled": (hg.unrolled, {"remat": "sqrt"}),
        "truncated": (hg.truncated, {"horizon": 2}),
        "one_step": (hg.one_step, {}),
        "forward_mode": (hg.forward_mode, {}),
        "pes": (pes, {"num_pairs": 2, "sigma": 0.1, "num_unrolls": 2}),
        "evolution": (hg.evolution_strategies, {"num_pairs": 2, "sigma": 0.1}),
    }[name]
    return make(step, outer_loss, axis_name=axis_name, **options)


def _problem():
    import jax
    import jax.numpy as jnp
    import optax

    from fewshotseg import hypergradient as hg

    numbers = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(numbers.standard_normal(shape))

    theta = {"shift": draw(3), "ridge": draw()}
    params = {"in": draw(3, 4), "out": draw(4)}
    state = hg.TrainState(params, optax.adam(0.05, eps_root=1e-8).init(params))
    batches = {"x": draw(NUM_STEPS, BATCH_SIZE, 3), "y": draw(NUM_STEPS, BATCH_SIZE)}
    unseen = {"x": draw(BATCH_SIZE, 3), "y": draw(BATCH_SIZE)}
    return theta, state, batches, unseen, jax.random.split(jax.random.key(1), NUM_STEPS)


def _compute(name):
    """Way of computing -> all numbers of the result, flat."""
    import jax

    theta, state, batches, unseen, keys = _problem()
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("devices",))

    def shard(tree, axis):
        parts = jax.sharding.PartitionSpec(*[None] * axis, "devices")
        sharding = jax.sharding.NamedSharding(mesh, parts)
        return jax.tree.map(lambda x: jax.device_put(x, sharding), tree)

    def split(tree, axis):
        return jax.tree.map(lambda x: np.stack(np.split(x, NUM_DEVICES, axis)), tree)

    jitted = jax.jit(_estimator(name))
    sharded = shard(batches, 1), shard(unseen, 0)
    pmapped = jax.pmap(
        _estimator(name, "devices"), axis_name="devices", in_axes=(None, None, 0, 0, None)
    )
    results = {
        "one": jitted(theta, state, batches, unseen, keys),
        "jit_of_shards": jitted(theta, state, *sharded, keys),
        "pmap": pmapped(theta, state, split(batches, 1), split(unseen, 0), keys),
    }
    first = jax.tree.map(lambda x: x[0], results["pmap"])
    last = jax.tree.map(lambda x: x[-1], results["pmap"])
    results.update(pmap=first, pmap_last=last)
    return {way: np.concatenate([np.ravel(x) for x in jax.tree.leaves(result)])
            for way, result in results.items()}  # fmt: skip


def _main(file):
    import jax

    jax.config.update("jax_enable_x64", True)
    assert len(jax.devices()) == NUM_DEVICES
    np.savez(
        file, **{f"{name}/{way}": x for name in ESTIMATORS for way, x in _compute(name).items()}
    )


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    file = tmp_path_factory.mktemp("sharding") / "numbers.npz"
    flags = (
        f"--xla_force_host_platform_device_count={NUM_DEVICES} {os.environ.get('XLA_FLAGS', '')}"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": flags,
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    command = [sys.executable, __file__, str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return dict(np.load(file))


@pytest.mark.parametrize("way", ["jit_of_shards", "pmap", "pmap_last"])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_two_devices_are_one(numbers, name, way):
    found, expected = numbers[f"{name}/{way}"], numbers[f"{name}/one"]
    assert np.isfinite(expected).all() and np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


if __name__ == "__main__":
    _main(pathlib.Path(sys.argv[1]))
