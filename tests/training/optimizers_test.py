"""Schedules and first steps by hand; hypergradients through every optimiser."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from fewshotseg import errors, hypergradient
from fewshotseg.hypergradient import inner_gradient
from fewshotseg.training import optimizers

NAMES = ("sgd", "adam", "adamw", "rmsprop")
create = optimizers.create_optimizer


def test_schedules_by_hand():
    constant = optimizers.learning_rate_schedule(0.5, 100, "constant")
    assert [constant(i) for i in (0, 99, 1000)] == [0.5] * 3
    cosine = optimizers.learning_rate_schedule(0.5, 100, "cosine")
    np.testing.assert_allclose([cosine(i) for i in (0, 50, 100, 200)], [0.5, 0.25, 0, 0], atol=1e-7)
    warm = optimizers.learning_rate_schedule(0.5, 110, "cosine", warmup_steps=10)
    np.testing.assert_allclose(
        [warm(i) for i in (0, 5, 10, 60, 110)], [0, 0.25, 0.5, 0.25, 0], atol=1e-7
    )
    warm = optimizers.learning_rate_schedule(0.5, 5, "constant", warmup_steps=2)
    np.testing.assert_allclose([warm(i) for i in range(4)], [0, 0.25, 0.5, 0.5])


def test_cosine_survives_a_warmup_as_long_as_the_training():
    schedule = optimizers.learning_rate_schedule(0.5, 10, "cosine", warmup_steps=10)
    assert np.isfinite([schedule(i) for i in (9, 10, 11)]).all()


def test_unknown_names_are_refused():
    with pytest.raises(errors.InputError, match="optimizer is 'adamax': use 'sgd', 'adam'"):
        create("adamax", 0.1, 10)
    with pytest.raises(errors.InputError, match="schedule is 'step': use 'constant' or 'cosine'"):
        create("sgd", 0.1, 10, schedule="step")


def _updates(optimizer, params, gradients):
    state, found = optimizer.init(params), []
    for g in gradients:
        update, state = optimizer.update(jnp.float32(g), state, params)
        found.append(float(update))
    return found


@pytest.mark.parametrize(
    ("name", "fields", "expected"),
    [
        # weight 2, gradients 0.5 and then 1, rate 0.1
        ("sgd", {}, [-0.05, -0.1]),
        ("sgd", {"weight_decay": 0.25}, [-0.1, -0.15]),
        ("sgd", {"momentum": 0.5}, [-0.05, -0.125]),
        ("sgd", {"schedule": "cosine"}, [-0.05, -0.1 * (1 + np.cos(np.pi / 4)) / 2]),
        ("adam", {}, [-0.1, -0.1 * 0.145 / 0.19 / (0.00124975 / 0.001999) ** 0.5]),
        ("adam", {"weight_decay": 0.25, "b1": 0.0}, [-0.1, None]),
        ("adam", {"b1": 0.0, "b2": 0.0}, [-0.1, -0.1]),
        ("adamw", {"weight_decay": 0.25, "b1": 0.0}, [-0.15, None]),
        ("rmsprop", {"b2": 0.75}, [-0.1 / 0.25**0.5, -0.1 / (0.75 * 0.0625 + 0.25) ** 0.5]),
        ("rmsprop", {"b2": 0.75, "momentum": 0.5}, [-0.2, None]),
        ("rmsprop", {"b2": 0.75, "weight_decay": 0.25}, [-0.2, None]),
    ],
)
def test_first_two_steps_by_hand(name, fields, expected):
    optimizer = create(name, 0.1, 4, **fields)
    found = _updates(optimizer, jnp.float32(2.0), (0.5, 1.0))
    for update, value in zip(found, expected, strict=True):
        if value is not None:
            assert update == pytest.approx(value, rel=1e-4)


# --- The derivative through the first steps, with a dead unit ----------------------------------------


def _forward(params, x):
    return jax.nn.relu(x @ params["in"] + params["bias"]) @ params["out"]


def _inner_loss(params, theta, data):
    return ((_forward(params, data["x"]) - theta["scale"] * data["y"]) ** 2).mean(), {}


def _outer_loss(state, theta, batch):
    del theta
    return ((_forward(state[0], batch["x"]) - batch["y"]) ** 2).mean(), {}


def _hypergradient(optimizer):
    """The estimate, and what it should be in the direction of theta."""
    numbers = np.random.default_rng(0)
    params = {
        "in": jnp.asarray(numbers.standard_normal((2, 3))),
        "bias": jnp.array([0.3, -100.0, 0.2]),  # the second unit never fires
        "out": jnp.asarray(numbers.standard_normal((3, 1))),
    }
    theta = {"scale": jnp.float64(1.5)}
    x, y = numbers.standard_normal((2, 8, 2)), numbers.standard_normal((2, 8, 1))
    batches, batch = {"x": jnp.asarray(x), "y": jnp.asarray(y)}, {"x": x[0], "y": y[1]}

    def step(state, theta, data, rng):
        (_, _), grads = inner_gradient.mixed(_inner_loss)(state[0], theta, data)
        updates, opt = optimizer.update(grads, state[1], state[0])
        return (optax.apply_updates(state[0], updates), opt), {}

    problem = (params, optimizer.init(params)), batches, batch, jnp.zeros(2)
    estimate = tiny.jit(hypergradient.unrolled(step, _outer_loss))
    grad = estimate(theta, *problem).grad["scale"]
    expected = tiny.derivative(lambda a: estimate(a, *problem).loss, theta, {"scale": 1.0})
    return float(grad), expected


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("name", NAMES)
def test_hypergradient_is_right_from_the_first_step_with_a_dead_unit(name, momentum):
    with tiny.float64():
        fields = {"momentum": momentum} if name in ("sgd", "rmsprop") else {"b1": momentum}
        grad, expected = _hypergradient(create(name, 0.05, 10, weight_decay=1e-3, **fields))
    assert np.isfinite(grad)
    assert abs(expected) > 1e-5
    assert grad == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "unsafe",
    [
        functools.partial(optax.adam, 0.05),
        functools.partial(optax.rmsprop, 0.05, eps_in_sqrt=False),
    ],
)
def test_stock_optimizers_would_fail(unsafe):
    """What the test above is for; if this one fails, the epsilons are needed no longer."""
    with tiny.float64():
        grad, _ = _hypergradient(unsafe())
    assert np.isnan(grad)
