"""Schedules and first steps by hand; hypergradients through every optimiser."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from fewshotseg import errors, hypergradient
from fewshotseg.hypergradient import inner_gradient
from fewshotseg.training import optimizers

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
    with pytest.raises(
        errors.InputError, match="optimizer is 'adamax': use one of sgd, adam, adamw, rmsprop"
    ):
        create("adamax", 0.1, 10)
    with pytest.raises(errors.InputError, match="schedule is 'step': use 'constant' or 'cosine'"):
        create("sgd", 0.1, 10, schedule="step")
    with pytest.raises(errors.InputError, match="second_moment is 'constant'"):
        create("adam", 0.1, 10, second_moment="constant")


STOCK = {
    "sgd": lambda rate, **o: optax.sgd(rate, momentum=o.get("momentum")),
    "adam": lambda rate, **o: optax.adam(rate, b1=o.get("b1", 0.9), eps=o.get("eps", 1e-8)),
    "adamw": lambda rate, **o: optax.adamw(rate, weight_decay=o.get("weight_decay", 0.0)),
    "rmsprop": lambda rate, **o: optax.rmsprop(
        rate, 0.999, eps=1e-8, eps_in_sqrt=False, momentum=o.get("momentum")
    ),
}


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("sgd", {"momentum": 0.9}),
        ("adam", {}),
        ("adam", {"b1": 0.5, "eps": 1e-5}),
        ("adamw", {"weight_decay": 0.1}),
        ("rmsprop", {"momentum": 0.9}),
        ("rmsprop", {}),
    ],
)
def test_steps_are_those_of_stock_optax(name, fields, schedule):
    """Over 12 steps of gradients from 1 down to 1e-12, some exactly 0, in float32."""
    rate = optimizers.learning_rate_schedule(0.1, 12, schedule)
    stock = STOCK[name](rate, **fields)
    ours = create(name, 0.1, 12, schedule=schedule, differentiable=True, **fields)
    numbers = np.random.default_rng(0)
    sizes = np.float32(10.0 ** -np.arange(13))
    gradients = numbers.standard_normal((12, 13)).astype(np.float32) * sizes
    gradients[:, 3], gradients[:4, 7] = 0.0, 0.0  # one dead unit, and one that wakes up
    params = jnp.ones(13)
    states = stock.init(params), ours.init(params)
    for g in jnp.asarray(gradients):
        expected, stock_state = stock.update(g, states[0], params)
        found, our_state = ours.update(g, states[1], params)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-12)
        states = stock_state, our_state
    plain = create(name, 0.1, 12, schedule=schedule, **fields)  # not differentiable: stock itself
    np.testing.assert_array_equal(
        plain.update(g, plain.init(params), params)[0],
        stock.update(g, stock.init(params), params)[0],
    )


@pytest.mark.parametrize("differentiable", [False, True])
def test_clipping_is_that_of_stock_optax(differentiable):
    """By the norm of all parts together, before anything else; here 10, 1, 0.1, 0 and 5 of at most 1."""
    stock = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9))
    ours = create("sgd", 0.1, 5, momentum=0.9, clip=1.0, differentiable=differentiable)
    numbers = np.random.default_rng(0)
    direction = {"a": jnp.asarray(numbers.standard_normal((2, 3))), "b": jnp.ones(4)}
    direction = optax.tree.scale(1 / optax.tree.norm(direction), direction)
    states = stock.init(direction), ours.init(direction)
    for size in (10.0, 1.0, 0.1, 0.0, 5.0):
        grads = optax.tree.scale(size, direction)
        expected, stock_state = stock.update(grads, states[0])
        found, our_state = ours.update(grads, states[1])
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), found, expected)
        states = stock_state, our_state


def test_the_derivative_of_clipping_by_hand():
    """Of g / |g|: the part across g over |g|; of a gradient that is short enough, or 0: the identity."""
    optimizer = create("sgd", 1.0, 5, clip=1.0, differentiable=True)
    state = optimizer.init(jnp.zeros(2))
    with tiny.float64():
        for g, expected in (
            ([3.0, 4.0], -np.array([[16.0, -12.0], [-12.0, 9.0]]) / 125),
            ([0.3, 0.4], -np.eye(2)),
            ([0.0, 0.0], -np.eye(2)),
        ):
            found = jax.jacobian(lambda g: optimizer.update(g, state)[0])(jnp.asarray(g))
            np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("differentiable", [False, True])
def test_parts_with_rate_0_cost_nothing(differentiable):
    """No moments, no say in the clipping, no arithmetic; the others move as if they were alone."""

    def make(**options):
        return create(
            "adamw", 0.1, 9, weight_decay=0.01, clip=0.5, differentiable=differentiable, **options
        )

    def parts(size):
        return {"encoder": jnp.ones(size), "head": jnp.arange(4.0), "stem": jnp.ones(2)}

    def flops(size):
        update = make(rates={"encoder": 0.0}).update

        def step(grads, state, params):
            updates, state = update(grads, state, params)
            return optax.apply_updates(params, updates), state

        args = parts(size), state, parts(size)
        return jax.jit(step).lower(*args).compile().cost_analysis()["flops"]

    alone = {name: part for name, part in parts(1).items() if name != "encoder"}
    state, expected_state = make(rates={"encoder": 0.0}).init(parts(1000)), make().init(alone)
    for _ in range(2):
        found, state = make(rates={"encoder": 0.0}).update(parts(1000), state, parts(1000))
        expected, expected_state = make().update(alone, expected_state, alone)
        assert jax.tree.structure(state) == jax.tree.structure(expected_state)
        assert not found.pop("encoder").any()
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert flops(1000) == flops(10)


def test_a_schedule_of_a_later_stage_begins_anew():
    """Where the optimiser has already taken 30 steps, as the generator's after pre-training."""
    first = create("sgd", 0.1, 30, schedule="cosine")
    second = create("sgd", 0.1, 10, schedule="cosine", start=30)
    state, rates = first.init(jnp.float32(0.0)), []
    for step in range(40):
        optimizer = first if step < 30 else second
        update, state = optimizer.update(jnp.float32(-1.0), state)
        rates.append(float(update))
    whole = [0.05 * (1 + np.cos(np.pi * i / n)) for n in (30, 10) for i in range(n)]
    np.testing.assert_allclose(rates, whole, atol=1e-6)


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
    theta = {"scale": jnp.asarray(1.5)}
    x, y = numbers.standard_normal((2, 8, 2)), numbers.standard_normal((2, 8, 1))
    x, y = jnp.asarray(x), jnp.asarray(y)
    batches, batch = {"x": x, "y": y}, {"x": x[0], "y": y[1]}

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
@pytest.mark.parametrize("name", STOCK)
def test_hypergradient_is_right_from_the_first_step_with_a_dead_unit(name, momentum):
    fields = {"momentum": momentum} if name in ("sgd", "rmsprop") else {"b1": momentum}
    optimizer = create(name, 0.05, 10, weight_decay=1e-3, differentiable=True, **fields)
    with tiny.float64():
        grad, expected = _hypergradient(optimizer)
    assert abs(expected) > 1e-5
    assert grad == pytest.approx(expected, rel=1e-6)
    in_float32, _ = _hypergradient(optimizer)
    assert in_float32 == pytest.approx(expected, rel=1e-2)


def test_hypergradient_through_clipping():
    """Whose gradients are longer than allowed, in both of the two steps."""
    with tiny.float64():
        optimizer = create("adam", 0.05, 10, clip=0.1, eps=1e-2, differentiable=True)
        grad, expected = _hypergradient(optimizer)
        unclipped = create("adam", 0.05, 10, eps=1e-2, differentiable=True)
        assert abs(grad / _hypergradient(unclipped)[0] - 1) > 0.05
    assert abs(expected) > 1e-5
    assert grad == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("stock", [optax.adam(0.05), optax.rmsprop(0.05, eps_in_sqrt=False)])
def test_stock_optimizers_would_fail(stock):
    """What the test above is for; if this one fails, the twins are needed no longer."""
    with tiny.float64():
        grad, _ = _hypergradient(stock)
    assert np.isnan(grad)


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-6, 1e-9, 1e-15, 1e-25, 0.0])
def test_derivative_of_three_steps_in_float32_is_that_in_float64(size):
    """For any size of gradients, also where their squares are 0 in float32."""

    def total(shift, gradients, dtype):
        optimizer = create("adam", 1.0, 3, differentiable=True)
        state, moved = optimizer.init(shift), 0.0
        for k, g in enumerate(gradients.astype(dtype)):
            update, state = optimizer.update(jnp.asarray(g) + (k == 0) * shift, state)
            moved += update.sum()
        return moved

    gradients = size * np.random.default_rng(1).standard_normal((3, 50))
    single = jax.grad(total)(jnp.zeros(50, np.float32), gradients, np.float32)
    with tiny.float64():
        double = jax.grad(total)(jnp.zeros(50), gradients, np.float64)
    assert np.isfinite(single).all()
    if size not in (1e-25,):  # there, 1e-50 is 0 in float32, and the step is m / eps
        np.testing.assert_allclose(single, double, rtol=1e-2, atol=1e-4 * np.abs(double).max())


def test_a_second_moment_that_is_given_is_a_constant():
    """Of step t, d(update)/dg = -rate (1 - b1) / (1 - b1^t) / (sqrt(v_hat) + eps)."""
    optimizer = create("adam", 0.1, 9, differentiable=True, second_moment="given")
    with tiny.float64():
        state = optimizer.init(jnp.float64(0.0))
        _, state = optimizer.update(jnp.float64(0.5), state)
        slope = jax.grad(lambda g: optimizer.update(g, state)[0])(jnp.float64(2.0))
    v = (0.999 * 0.001 * 0.25 + 0.001 * 4.0) / (1 - 0.999**2)
    assert slope == pytest.approx(-0.1 * 0.1 / (1 - 0.81) / (v**0.5 + 1e-8), rel=1e-9)


def test_one_rate_for_all_other_parts():
    grads = {"encoder": jnp.ones(2), "head": jnp.ones(2)}
    optimizer = create("sgd", 0.1, 9, rates={"": 3.0, "encoder": 0.5})
    updates, _ = optimizer.update(grads, optimizer.init(grads), grads)
    np.testing.assert_allclose(updates["head"], -0.3, rtol=1e-6)
    np.testing.assert_allclose(updates["encoder"], -0.05, rtol=1e-6)
