"""The code in docs/ does what the text beside it says."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from fewshotseg import hypergradient
from fewshotseg.training import estimators

DOCS = pathlib.Path(__file__).parents[2] / "docs"


def _blocks(name):
    return re.findall(r"```python\n(.*?)```", (DOCS / name).read_text(), re.DOTALL)


def test_weight_decay_per_feature_is_learned(capsys):
    script, others, pieces = _blocks("estimators.md")
    assert len([line for line in script.splitlines() if line.strip()]) < 40
    namespace = {}
    exec(script, namespace)
    said = re.search(r"prints (\S+) where it matters and (\S+) elsewhere", _text())
    decay = jax.nn.sigmoid(namespace["theta"])
    assert float(decay[:5].mean()) == pytest.approx(float(said[1]), rel=0.2)
    assert float(decay[5:].mean()) == pytest.approx(float(said[2]), rel=0.1)
    assert "decay where it matters" in capsys.readouterr().out
    # The other estimators of the page point the same way, away from the optimum.
    theta, state, validation = jnp.full(20, -3.0), namespace["state"], namespace["validation"]
    problem = theta, state, None, validation, jax.random.split(jax.random.key(0), 20)
    exact = namespace["estimate"](*problem).grad
    for line in others.split("\n\n"):
        exec(line, namespace)
        grad = namespace["estimate"](*problem).grad
        assert tiny.dot(grad, exact) > 0.8 * tiny.norm(grad) * tiny.norm(exact)
    # Forward mode in pieces, through the hundred steps of both chunks.
    exec(pieces, namespace)
    keys = [jax.random.split(jax.random.key(seed), 50) for seed in range(2)]
    unrolled = hypergradient.unrolled(namespace["inner_step"], namespace["validation_loss"])
    start = hypergradient.TrainState(namespace["w"], namespace["inner"].init(namespace["w"]))
    exact = jax.jit(unrolled)(namespace["theta"], start, None, validation, jnp.concatenate(keys))
    assert namespace["loss"] == pytest.approx(float(exact.loss), rel=1e-5)
    assert tiny.distance(namespace["grad"], exact.grad) < 1e-4


def _text():
    return (DOCS / "estimators.md").read_text()


def test_every_row_of_the_table_is_in_the_page():
    for name in [*estimators.ESTIMATORS, *estimators.GRADIENTS]:
        assert re.search(rf"^\| `{name}`", _text(), re.MULTILINE), name


def test_the_new_estimator_is_one(monkeypatch):
    """V = (w - t)^2 / 2 + 0.35 A^2 has the direct gradient 0.7 A, whatever the step does."""
    namespace = {"jax": jax, "hypergradient": hypergradient}
    (block,) = [text for text in _blocks("extending.md") if "def direct_only" in text]
    exec(block, namespace)
    row = estimators.Estimator(namespace["direct_only"])
    monkeypatch.setitem(estimators.ESTIMATORS, "direct_only", row)

    def step(w, a, batch, rng):
        return w - 0.1 * (w - a * batch.mean()), {"size": w**2}

    def outer_loss(w, a, target):
        return 0.5 * ((w - target) ** 2).mean() + 0.35 * a**2, {"w": w}

    theta, w = jnp.float32(1.5), jnp.float32(2.0)
    keys = jax.random.split(jax.random.key(0), 2)
    batches, target = jnp.arange(4.0).reshape(2, 2), jnp.array([1.0, 3.0])
    problem = theta, w, batches, target, keys
    exact = hypergradient.unrolled(step, outer_loss)(*problem)
    for loop in ("host", "scan"):
        estimate = estimators.create_estimator("direct_only", {}, step, outer_loss, loop=loop)
        result = estimate(*problem)
        assert float(result.grad) == pytest.approx(0.7 * 1.5, rel=1e-6)
        assert float(result.loss) == pytest.approx(float(exact.loss), rel=1e-6)
        assert result.metrics.keys() == exact.metrics.keys()
    mapped = jax.vmap(
        namespace["direct_only"](step, outer_loss, axis_name="i"),
        (None, None, 1, 0, None),
        axis_name="i",
    )
    np.testing.assert_allclose(mapped(*problem).grad, [0.7 * 1.5] * 2, rtol=1e-6)
