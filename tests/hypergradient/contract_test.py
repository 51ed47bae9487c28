"""What is no bilevel problem is refused with one sentence, before anything is compiled."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewshotseg import hypergradient as hg
from fewshotseg.hypergradient import host_evolution, host_loop

EQUATION = hg.Stationarity(
    lambda state: state["w"],
    lambda state, w: {**state, "w": w},
    lambda state, theta, batch, rng: state["w"] - theta["a"],
)
MAKERS = {
    "unrolled": hg.unrolled,
    "one_step": hg.one_step,
    "implicit_gradient": functools.partial(
        hg.implicit_gradient, stationarity=EQUATION, solver=hg.identity(step_size=1.0)
    ),
    "forward_mode": hg.forward_mode,
    "evolution_strategies": functools.partial(hg.evolution_strategies, num_pairs=1, sigma=0.1),
    "host unrolled": host_loop.unrolled,
    "host forward_mode": host_loop.forward_mode,
    "host implicit_gradient": functools.partial(
        host_loop.implicit_gradient, stationarity=EQUATION, solver=hg.identity(step_size=1.0)
    ),
    "host evolution_strategies": functools.partial(
        host_evolution.evolution_strategies, num_pairs=1, sigma=0.1
    ),
}


def _step(state, theta, batch, rng):
    return {"w": 0.9 * state["w"] + theta["a"] * batch["x"].mean()}, {}


def _outer(state, theta, batch):
    return (state["w"] ** 2).sum(), {}


def _problem():
    return {
        "theta": {"a": jnp.float32(1.0)},
        "inner_state": {"w": jnp.ones(3)},
        "inner_batches": {"x": jnp.ones((2, 4))},
        "outer_batch": None,
        "rngs": jax.random.split(jax.random.key(0), 2),
    }


def _without(*args):
    return _step(*args)[0]


FAULTS = {
    "step without metrics": (
        {"step": _without},
        r"inner_step returned a dict: it must return the pair \(inner_state, metrics\)",
    ),
    "metrics that are a number": (
        {"step": lambda *args: (_without(*args), jnp.float32(0.0))},
        r"inner_step returned a tuple of 2: it must return the pair \(inner_state, metrics\)",
    ),
    "a new leaf in the state": (
        {"step": lambda *args: ({**_without(*args), "v": jnp.ones(3)}, {})},
        r"another structure than .* \(inner_state\['v'\] is new\)",
    ),
    "a lost leaf": (
        {"step": lambda *args: ({}, {})},
        r"another structure than .* \(inner_state\['w'\] is missing\)",
    ),
    "another container": (
        {"step": lambda s, *_: (list(s), {}), "inner_state": (jnp.ones(3),)},
        r"another structure than .* \(a container has another type\)",
    ),
    "another type": (
        {"step": lambda *args: ({"w": _without(*args)["w"].astype(jnp.bfloat16)}, {})},
        r"made bfloat16\[3\] of inner_state\['w'\], which was float32\[3\]",
    ),
    "another shape": (
        {"step": lambda *args: ({"w": _without(*args)["w"][:2]}, {})},
        r"made float32\[2\] of inner_state\['w'\], which was float32\[3\]",
    ),
    "integers in theta": (
        {"theta": {"a": jnp.float32(1.0), "n": jnp.arange(3)}},
        r"theta\['n'\] is int32\[3\]: outer variables are differentiated",
    ),
    "nothing in theta": ({"theta": {}}, "theta holds no array"),
    "a vector of losses": (
        {"outer": lambda state, theta, batch: (state["w"] ** 2, {})},
        r"outer_loss returned float32\[3\] as its loss: it must be one floating point number",
    ),
    "a loss of integers": (
        {"outer": lambda state, theta, batch: (jnp.int32(0), {})},
        r"outer_loss returned int32\[\] as its loss",
    ),
    "a loss without metrics": (
        {"outer": lambda state, theta, batch: (state["w"] ** 2).sum()},
        r"outer_loss returned float32\[\]: it must return the pair \(loss, metrics\)",
    ),
    "batches of another K": (
        {"inner_batches": {"x": jnp.ones((3, 4))}},
        r"inner_batches\['x'\] is float32\[3, 4\], but there are 2 rngs",
    ),
    "a batch without K": (
        {"inner_batches": {"x": jnp.float32(1.0)}},
        r"inner_batches\['x'\] is float32\[\], but there are 2 rngs",
    ),
    "no step": (
        {"inner_batches": {"x": jnp.ones((0, 4))}, "rngs": jnp.zeros((0, 2), jnp.uint32)},
        r"rngs has no keys \(K = 0\)",
    ),
    "a single key": ({"rngs": jax.random.key(0)}, "rngs is a single key: give K of them"),
}


def _estimate(name, fault, wrap=lambda function: function):
    problem = {"step": _step, "outer": _outer, **_problem(), **fault}
    estimate = MAKERS[name](problem.pop("step"), problem.pop("outer"))
    return wrap(estimate)(*problem.values())


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_no_problem_is_refused(fault):
    changed, message = FAULTS[fault]
    with pytest.raises(ValueError, match=message) as caught:
        _estimate("unrolled", changed)
    assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize("name", MAKERS)
def test_every_estimator_checks(name):
    for fault in ("step without metrics", "integers in theta", "batches of another K", "no step"):
        changed, message = FAULTS[fault]
        with pytest.raises(ValueError, match=message):
            _estimate(name, changed)


@pytest.mark.parametrize("name", [name for name in MAKERS if "host" not in name])
def test_nothing_is_compiled_before_the_check(name):
    compiled = []

    def step(state, theta, batch, rng):
        jax.debug.callback(lambda: compiled.append(name))  # runs when compiled, not when traced
        return _without(state, theta, batch, rng)

    with pytest.raises(ValueError, match="inner_step returned a dict"):
        _estimate(name, {"step": step}, jax.jit)
    jax.effects_barrier()
    assert not compiled


@pytest.mark.parametrize("name", MAKERS)
def test_a_sound_problem_passes(name):
    result = _estimate(name, {})
    np.testing.assert_allclose(result.inner_state["w"], 0.9 * (0.9 + 1) + 1, rtol=1e-6)


@pytest.mark.parametrize("name", MAKERS)
def test_batches_may_be_drawn_inside_the_step(name):
    """From its key; `inner_batches` is then a pytree without leaves."""

    def draw(rng):
        return {"x": jax.random.normal(rng, (4,))}

    def drawing(state, theta, batch, rng):
        assert batch == {}
        return _step(state, theta, draw(rng), rng)

    drawn = jax.vmap(draw)(_problem()["rngs"])
    expected = _estimate(name, {"inner_batches": drawn})
    result = _estimate(name, {"step": drawing, "inner_batches": {}})
    assert float(result.loss) == pytest.approx(float(expected.loss), rel=1e-6)
    assert float(result.grad["a"]) == pytest.approx(float(expected.grad["a"]), rel=1e-5)
    assert float(result.loss) != _estimate(name, {}).loss


def test_numbers_of_python_and_no_batches_will_do():
    """What a first script has: theta a float, a state of floats, nothing to draw."""
    estimate = hg.unrolled(
        lambda s, a, batch, rng: (0.5 * (s + a), {}), lambda s, a, t: (s - t, {})
    )
    result = estimate(1.0, 3.0, None, 0.5, jax.random.split(jax.random.key(0), 2))
    assert float(result.loss) == pytest.approx(1.5 - 0.5)  # 3 -> 2 -> 1.5
    assert float(result.grad) == pytest.approx(0.75)
