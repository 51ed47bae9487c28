"""Draws, steps and hypergradients on one, two and four simulated devices are the same numbers.

Run as a program, this file trains for a few steps on as many devices as it is told and saves all
numbers; the test starts it once and compares.
"""

import functools
import os
import pathlib
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
NUM_DEVICES = (1, 2, 4)
NUM_STEPS, BATCH_SIZE, NUM_VALIDATION = 2, 8, 5  # the validation batch of 8 is padded unevenly


def _train(loop):
    """Two rounds of K steps and an outer step; all that is drawn and computed, as a dict."""
    import jax
    import jax.numpy as jnp
    import optax
    import tiny

    from fewshotseg.data import augment
    from fewshotseg.data import batches as input_pipeline
    from fewshotseg.training import devices as parallel
    from fewshotseg.training import estimators

    axis_name = parallel.AXIS_NAME
    method = tiny.make_toy_method(optimizer="adam", learning_rate=0.1, axis_name=axis_name)
    theta, inner, *_ = tiny.make_toy_problem(method, 1)
    train, validation = (
        {k: v for k, v in tiny.make_batch(np.random.default_rng(s), (n,), 4).items() if k != "key"}
        for s, n in ((1, 6), (2, NUM_VALIDATION))
    )
    draw_one = functools.partial(
        input_pipeline.draw_batch,
        batch_size=BATCH_SIZE,
        num_synthetic=BATCH_SIZE,
        geometry=augment.Geometry(),
        mask_geometry=augment.Geometry(),
        num_classes=2,
        axis_name=axis_name,
    )
    draw = parallel.compile_draw(lambda data, keys: jax.lax.map(lambda k: draw_one(data, k), keys))
    draw_outer = parallel.compile_draw(
        functools.partial(input_pipeline.draw_outer_batch, batch_size=8, axis_name=axis_name)
    )
    estimate = estimators.create_estimator(
        "unrolled",
        {},
        method.inner_step(),
        method.outer_loss(),
        loop=loop,
        axis_name=axis_name,
        compile=parallel.compile_step,
    )
    found = {}
    for turn in range(2):
        keys = jax.random.split(jax.random.key(turn), NUM_STEPS)
        batches, outer_batch = draw(train, keys), draw_outer(validation, keys[0])
        result = estimate(theta, inner, batches, outer_batch, keys)
        theta = optax.apply_updates(theta, jax.tree.map(lambda g: -100 * g, result.grad))
        inner = result.inner_state
        images = jnp.moveaxis(batches["image"], 0, 1)  # devices first: put them behind the steps
        found[f"{turn}/images"] = images.reshape(NUM_STEPS, BATCH_SIZE, *images.shape[3:])
        found[f"{turn}/weights"] = outer_batch["weight"].reshape(-1)
        values = {"grad": result.grad, "theta": theta, "loss": result.loss, "state": inner}
        for path, leaf in jax.tree_util.tree_leaves_with_path({**values, **result.metrics}):
            found[f"{turn}/{jax.tree_util.keystr(path)}"] = leaf
    return {name: np.asarray(leaf) for name, leaf in found.items()}


def _main(folder):
    import jax

    jax.config.update("jax_enable_x64", True)
    for loop, n in [*(("host", n) for n in NUM_DEVICES), ("scan", 2)]:
        pmap = functools.partial(jax.pmap, devices=jax.devices()[:n])
        with mock.patch.object(jax, "pmap", pmap):
            with mock.patch.object(jax, "local_device_count", lambda n=n: n):
                np.savez(folder / f"{loop}_{n}.npz", **_train(loop))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("devices")
    flags = f"--xla_force_host_platform_device_count=4 {os.environ.get('XLA_FLAGS', '')}"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "XLA_FLAGS": flags,
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    command = [sys.executable, __file__, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return {path.stem: dict(np.load(path)) for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("host_2", "host_1"),
        ("host_4", "host_1"),
        ("scan_2", "host_1"),
    ],
)
def test_any_number_of_devices_computes_the_same(results, name, reference):
    found, expected = results[name], results[reference]
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        scale = max(np.abs(value).max(), 1e-4)
        np.testing.assert_allclose(found[key], value, rtol=0, atol=1e-10 * scale, err_msg=key)


def test_the_comparison_is_not_of_nothing(results):
    numbers = results["host_1"]
    np.testing.assert_array_equal(numbers["0/weights"], [1] * 5 + [0] * 3)
    gradients = [v for k, v in numbers.items() if k.startswith("1/['grad']")]
    assert len(gradients) == 2 and all(np.abs(g).max() > 1e-6 for g in gradients)
    assert any(k.startswith("1/['state']['discriminator']") for k in numbers)
    assert np.abs(numbers["0/images"][0] - numbers["0/images"][1]).max() > 0.1


if __name__ == "__main__":
    _main(pathlib.Path(sys.argv[1]))
