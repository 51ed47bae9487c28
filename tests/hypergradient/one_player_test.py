"""A bilevel problem from start to end: weight decay per feature of a logistic regression."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from fewshotseg import hypergradient
from fewshotseg.hypergradient import inner_gradient

OPTIMIZER = optax.sgd(0.5, momentum=0.5)


@pytest.fixture(autouse=True, scope="module")
def _float64():
    with tiny.float64():
        yield


def _draw(seed, num_cases):
    numbers = np.random.default_rng(seed)
    x = numbers.standard_normal((num_cases, 5))
    noise = numbers.standard_normal(num_cases)
    return x, (x[:, 0] - x[:, 1] + noise > 0).astype(float)


TRAIN, VALIDATION = _draw(0, 12), _draw(1, 30)
THETA = np.array([-1.0, 0.5, 0.0, 1.0, -2.0])


def _cross_entropy(w, data):
    x, y = data
    return optax.sigmoid_binary_cross_entropy(jnp.asarray(x) @ w, y).mean()


def _train_loss(w, theta, batch, rng):
    loss = _cross_entropy(w, TRAIN)
    return loss + 0.5 * (jax.nn.sigmoid(theta) * w**2).sum(), {"inner/cross_entropy": loss}


def _validation_loss(state, theta, data):
    params = state.params if hasattr(state, "params") else state
    return _cross_entropy(params, data), {}


def _start():
    return hypergradient.TrainState(jnp.zeros(5), OPTIMIZER.init(jnp.zeros(5)))


def _problem(num_steps):
    keys = jax.random.split(jax.random.key(0), num_steps)
    return jnp.asarray(THETA), _start(), None, VALIDATION, keys


def _train_by_hand(theta, num_steps):
    """Heavy ball, written out, with the gradient written out."""
    (x, y), w, velocity = TRAIN, np.zeros(5), np.zeros(5)
    decay = 1 / (1 + np.exp(-theta))
    for _ in range(num_steps):
        p = 1 / (1 + np.exp(-x @ w))
        velocity = 0.5 * velocity + x.T @ (p - y) / len(y) + decay * w
        w = w - 0.5 * velocity
    return w


def _validation_by_hand(theta, num_steps):
    x, y = VALIDATION
    logits = x @ _train_by_hand(theta, num_steps)
    return (np.logaddexp(0, logits) - y * logits).mean()


@pytest.mark.parametrize("gradient", ["mixed", "reverse"])
def test_unrolled_is_the_difference_of_retraining_by_hand(gradient):
    step = hypergradient.gradient_step(
        _train_loss, OPTIMIZER, gradient=inner_gradient.GRADIENTS[gradient]
    )
    result = tiny.jit(hypergradient.unrolled(step, _validation_loss))(*_problem(7))
    np.testing.assert_allclose(result.inner_state.params, _train_by_hand(THETA, 7), rtol=1e-12)
    assert result.loss == pytest.approx(_validation_by_hand(THETA, 7), rel=1e-12)
    assert result.metrics.keys() == {"inner/loss", "inner/cross_entropy"}
    direction = tiny.random_direction(THETA, 0)
    expected = tiny.derivative(lambda a: _validation_by_hand(a, 7), THETA, direction)
    assert tiny.dot(result.grad, direction) == pytest.approx(expected, rel=1e-8)


def _closed_form(w):
    """-M^T H^{-1} v with the Hessian of logistic regression, M = diag(sigmoid'(theta) w)."""
    (x, y), (x_unseen, y_unseen) = TRAIN, VALIDATION
    decay = 1 / (1 + np.exp(-THETA))
    p, p_unseen = (1 / (1 + np.exp(-z @ w)) for z in (x, x_unseen))
    h = x.T @ np.diag(p * (1 - p)) @ x / len(y) + np.diag(decay)
    v = x_unseen.T @ (p_unseen - y_unseen) / len(y_unseen)
    return -decay * (1 - decay) * w * np.linalg.solve(h, v)


@pytest.mark.parametrize("state", ["TrainState", "weights", "flax"])
def test_implicit_gradient_is_its_closed_form(state):
    equation = hypergradient.stationarity(_train_loss)
    solver = hypergradient.conjugate_gradient(num_terms=5, damping=0.0)
    w = jnp.asarray(_train_by_hand(THETA, 200))
    start = {"TrainState": _start()._replace(params=w), "weights": w, "flax": _FlaxLike(w)}[state]
    estimate = hypergradient.implicit_gradient(
        lambda state, theta, batch, rng: (state, {}), _validation_loss, equation, solver
    )
    theta, _, *rest = _problem(1)
    result = tiny.jit(estimate)(theta, start, *rest)
    np.testing.assert_allclose(result.grad, _closed_form(np.asarray(w)), rtol=1e-9)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["params"], meta_fields=[])
class _FlaxLike:
    """A state with `params` and `replace`, as Flax has it."""

    def __init__(self, params):
        self.params = params

    def replace(self, params):
        return _FlaxLike(params)


def test_unrolling_to_the_end_is_the_closed_form():
    step = hypergradient.gradient_step(_train_loss, OPTIMIZER)
    result = tiny.jit(hypergradient.unrolled(step, _validation_loss))(*_problem(200))
    expected = _closed_form(np.asarray(result.inner_state.params))
    np.testing.assert_allclose(result.grad, expected, rtol=1e-9)


def test_sama_with_its_optimizer_is_the_last_step():
    """To first order in the step: v is taken after it there, and M at S_K here."""
    step = hypergradient.gradient_step(_train_loss, OPTIMIZER)
    estimate = hypergradient.implicit_gradient(
        step,
        _validation_loss,
        hypergradient.stationarity(_train_loss, OPTIMIZER),
        hypergradient.sama(),
    )
    *problem, keys = _problem(200)
    found = tiny.jit(estimate)(*problem, keys).grad
    one_step = tiny.jit(hypergradient.one_step(step, _validation_loss))(*problem, keys).grad
    np.testing.assert_allclose(found, one_step, rtol=1e-9)  # at the optimum both are the same


def test_sama_without_an_optimizer_is_refused():
    estimate = hypergradient.implicit_gradient(
        hypergradient.gradient_step(_train_loss, OPTIMIZER),
        _validation_loss,
        hypergradient.stationarity(_train_loss),
        hypergradient.sama(),
    )
    with pytest.raises(ValueError, match="stationarity has no `update`: give it one"):
        estimate(*_problem(1))


def test_two_shards_of_the_training_points_are_one_device():
    """Gradients are averaged in the step and in the equation."""

    def loss(w, theta, batch, rng):
        value = _cross_entropy(w, batch)
        return value + 0.5 * (jax.nn.sigmoid(theta) * w**2).sum(), {}

    def estimator(axis_name):
        return hypergradient.implicit_gradient(
            hypergradient.gradient_step(loss, OPTIMIZER, axis_name=axis_name),
            _validation_loss,
            hypergradient.stationarity(loss, OPTIMIZER, axis_name=axis_name),
            hypergradient.neumann(num_terms=3, step_size=0.3),
            axis_name=axis_name,
        )

    theta, state, _, unseen, keys = _problem(4)
    batches = jax.tree.map(lambda x: np.stack([x] * 4), TRAIN)
    alone = tiny.jit(estimator(None))(theta, state, batches, unseen, keys)
    shards = jax.tree.map(lambda x: np.stack(np.split(x, 2, 1)), batches)
    halves = jax.tree.map(lambda x: np.stack(np.split(x, 2)), unseen)
    mapped = jax.vmap(estimator("i"), (None, None, 0, 0, None), axis_name="i")
    both = tiny.jit(mapped)(theta, state, shards, halves, keys)
    for x, y in zip(jax.tree.leaves(both), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(x, np.stack([y, y]), rtol=1e-11, atol=1e-14)
