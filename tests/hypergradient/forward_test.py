"""Forward mode through whole trainings, against central differences, reverse mode and what it holds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from fewshotseg import hypergradient as hg
from fewshotseg.hypergradient import forward, host_loop, inner_gradient

NUM_STEPS = 12
OPTIMIZER = optax.adam(optax.cosine_decay_schedule(0.1, NUM_STEPS), eps_root=1e-8)


@pytest.fixture(autouse=True, scope="module")
def _float64():
    with tiny.float64():
        yield


def _loss(params, theta, batch, rng):
    """Two sources of cases, mixed by theta, and a penalty; noise on the inputs."""
    x = batch["x"] + 0.1 * jax.random.normal(rng, batch["x"].shape)
    error = jnp.tanh(x @ params["in"]) @ params["out"] - batch["y"]
    shares = jax.nn.softmax(theta["mixture"])[batch["source"]]
    return (shares * error**2).mean() + jnp.exp(theta["decay"]) * (params["in"] ** 2).sum(), {}


def _step(state, theta, batch, rng, gradient=inner_gradient.reverse):
    """A step of Adam on a cosine schedule, and the average of the weights: the end of a training."""
    trained, average = state
    trained, metrics = hg.gradient_step(_loss, OPTIMIZER, gradient=gradient)(
        trained, theta, batch, rng
    )
    average = jax.tree.map(lambda a, p: 0.8 * a + 0.2 * p, average, trained.params)
    return (trained, average), metrics


def _outer_loss(state, theta, batch):
    """Of the average, with a direct term."""
    error = jnp.tanh(batch["x"] @ state[1]["in"]) @ state[1]["out"] - batch["y"]
    return (error**2).mean() + 0.1 * theta["decay"] ** 2, {"error": jnp.abs(error).mean()}


def _problem():
    numbers = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(numbers.standard_normal(shape))

    def cases(*lead):
        source = jnp.asarray(numbers.integers(0, 2, lead))
        return {"x": draw(*lead, 3), "y": draw(*lead) + source, "source": source}

    theta = {"mixture": draw(2), "decay": jnp.float64(-4.0)}
    params = {"in": draw(3, 4), "out": draw(4)}
    state = hg.TrainState(params, OPTIMIZER.init(params)), params
    keys = jax.random.split(jax.random.key(1), NUM_STEPS)
    return theta, state, cases(NUM_STEPS, 6), cases(8), keys


@functools.cache
def _exact():
    return tiny.jit(hg.unrolled(_step, _outer_loss))(*_problem())


@functools.cache
def _steps(loop):
    if loop == "host":
        return host_loop.advance(_step, compile=tiny.jit)
    return tiny.jit(forward.advance(_step))


@functools.cache
def _end():
    return tiny.jit(forward.finish(_outer_loss))


def test_it_is_the_derivative_of_training():
    theta, state, batches, unseen, keys = _problem()
    train = tiny.jit(hg.steps(_step))
    result = tiny.jit(hg.forward_mode(_step, _outer_loss))(theta, state, batches, unseen, keys)
    for seed in range(3):
        direction = tiny.random_direction(theta, seed)
        expected = tiny.derivative(
            lambda a: _outer_loss(train(state, a, batches, keys)[0], a, unseen)[0], theta, direction
        )
        assert tiny.dot(result.grad, direction) == pytest.approx(expected, rel=1e-7)
    assert tiny.distance(result.grad, _exact().grad) < 1e-10
    assert result.loss == pytest.approx(float(_exact().loss), rel=1e-12)
    assert result.metrics.keys() == _exact().metrics.keys()


@pytest.mark.parametrize("loop", ["scan", "host"])
def test_pieces_go_as_far_as_one_likes(loop):
    """Chunks of steps with all of it saved in between: the same derivative at the end; and on the way
    that of any loss of the state, here of the weights where the outer loss takes their average."""
    theta, state, batches, unseen, keys = _problem()
    tangents = forward.start(theta, state)
    for begin, end in ((0, 5), (5, NUM_STEPS)):
        chunk = jax.tree.map(lambda x, s=slice(begin, end): x[s], (batches, keys))
        state, tangents, metrics = _steps(loop)(state, tangents, theta, *chunk)
        state, tangents = jax.tree.map(jnp.asarray, jax.device_get((state, tangents)))
        if end == 5:
            early = _end()(state, tangents, theta, unseen)
            other = forward.finish(lambda s, a, batch: ((s[0].params["in"] ** 2).sum(), {}))
            of_weights = tiny.jit(other)(state, tangents, theta, None)
    loss, grad, outer_metrics = _end()(state, tangents, theta, unseen)
    assert tiny.distance(grad, _exact().grad) < 1e-10
    assert loss == pytest.approx(float(_exact().loss), rel=1e-12)
    assert {**metrics, **outer_metrics}.keys() == _exact().metrics.keys()
    first = jax.tree.map(lambda x: x[:5], (batches, keys))
    theta, state, *_ = _problem()
    train = tiny.jit(hg.steps(_step))
    for found, at in (
        (early[1], lambda s, a: _outer_loss(s, a, unseen)[0]),
        (of_weights[1], lambda s, a: (s[0].params["in"] ** 2).sum()),
    ):
        direction = tiny.random_direction(theta, 7)
        expected = tiny.derivative(
            lambda a, at=at: at(train(state, a, *first)[0], a), theta, direction
        )
        assert tiny.dot(found, direction) == pytest.approx(expected, rel=1e-6)


def test_counts_and_keys_carry_no_tangent():
    theta, (trained, average), *_ = _problem()
    state = {"trained": trained, "average": average, "key": jax.random.key(0), "steps": 3}
    tangents = forward.start(theta, state)
    shapes = [(3, *x.shape) for x in jax.tree.leaves((average, trained.params))]
    assert sorted(t.shape for t in tangents) == sorted(shapes + 2 * shapes[: len(average)])
    assert all(t.dtype == jnp.float64 and not t.any() for t in tangents)


def test_directions_are_the_columns_of_the_identity():
    theta = {"a": jnp.ones((2, 2)), "b": jnp.float32(1.0), "c": jnp.ones(3)}
    columns = forward.columns(theta)
    assert [columns[name].shape for name in "abc"] == [(8, 2, 2), (8,), (8, 3)]
    assert columns["b"].dtype == jnp.float32
    flat = np.concatenate([x.reshape(8, -1) for x in columns.values()], axis=1)
    np.testing.assert_array_equal(flat, np.eye(8))


def test_memory_does_not_grow_with_the_steps():
    """Temporaries of the program; reverse mode keeps the states, forward mode nothing."""

    def temporaries(make, num_steps):
        theta, state, batches, unseen, keys = _problem()
        repeated = jax.tree.map(lambda x: jnp.concatenate([x] * num_steps), (batches, keys))
        program = jax.jit(make(_step, _outer_loss)).lower(
            theta, state, repeated[0], unseen, repeated[1]
        )
        return program.compile().memory_analysis().temp_size_in_bytes

    def growth(make):
        return (temporaries(make, 6) - temporaries(make, 2)) / (4 * NUM_STEPS)

    size = sum(x.nbytes for x in jax.tree.leaves(_problem()[1]))
    assert growth(hg.forward_mode) < 20  # bytes per step: the metric of the scan, and its key
    assert growth(hg.unrolled) > 0.7 * size  # nothing need be kept of the average


@pytest.mark.parametrize("name", ["mixed", "finite_difference"])
@pytest.mark.parametrize("make", [hg.forward_mode, host_loop.forward_mode], ids=["scan", "host"])
def test_a_gradient_with_a_reverse_rule_is_refused(make, name):
    step = functools.partial(_step, gradient=inner_gradient.GRADIENTS[name])
    with pytest.raises(ValueError, match="make it with inner_gradient.reverse"):
        make(step, _outer_loss)(*_problem())


def test_another_mistake_is_not_taken_for_it():
    def step(state, theta, batch, rng):
        jax.jvp(lambda x: x, (theta["decay"],), (jnp.ones(3),))  # JAX has something to say
        return _step(state, theta, batch, rng)

    with pytest.raises((TypeError, ValueError)) as caught:
        hg.forward_mode(step, _outer_loss)(*_problem())
    assert "inner_gradient" not in str(caught.value)
