"""Evolution strategies against the exact hypergradient, by the statistics of their noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from fewshotseg import hypergradient
from fewshotseg.hypergradient import inner_gradient


@pytest.fixture(autouse=True, scope="module")
def _float64():
    with tiny.float64():
        yield


def _loss(w, a, batch):
    return ((w - a["goal"] * batch) ** 2).sum() * jnp.exp(a["sharp"]), {}


def _step(w, a, batch, rng):
    return w - 0.1 * inner_gradient.mixed(_loss)(w, a, batch)[1], {"inner/w": w.sum()}


def _outer(w, a, target):
    return (jnp.sin(w) - target).sum() ** 2 + 0.1 * a["sharp"] ** 2, {}


PROBLEM = (
    {"goal": np.array([0.5, -1.0]), "sharp": np.float64(0.2)},
    np.array([0.1, 0.3]),
    np.array([1.0, 2.0]),
    np.float64(0.3),
)


def _estimator(**options):
    estimate = tiny.jit(hypergradient.evolution_strategies(_step, _outer, **options))
    problem = jax.tree.map(jnp.asarray, PROBLEM)
    return lambda seed: estimate(*problem, jax.random.split(jax.random.key(seed), 2)).grad


def _exact():
    estimate = hypergradient.unrolled(_step, _outer)
    return estimate(*jax.tree.map(jnp.asarray, PROBLEM), jax.random.split(jax.random.key(0), 2))


def test_mean_and_variance_are_as_stated():
    exact, _ = jax.flatten_util.ravel_pytree(_exact().grad)
    estimate = _estimator(num_pairs=16, sigma=1e-3)
    draws = np.array([jax.flatten_util.ravel_pytree(estimate(seed))[0] for seed in range(200)])
    error = draws.std(0) / len(draws) ** 0.5
    assert (np.abs(draws.mean(0) - exact) < 4 * error).all()
    assert (error < 0.1 * np.linalg.norm(exact)).all()
    variance = draws.var(0).sum() / np.linalg.norm(exact) ** 2
    assert variance == pytest.approx((len(exact) + 1) / 16, rel=0.25)


@pytest.mark.parametrize(("size", "expected", "spread"), [(12, 0.64, 0.12), (24, 0.50, 0.11)])
def test_cosine_of_eight_pairs_is_as_stated(size, expected, spread):
    """V = A_0: the mean and spread quoted in benchmarks/README.md, and the formula of the docstring."""
    estimate = hypergradient.evolution_strategies(
        lambda w, a, batch, rng: (a[0], {}), lambda w, a, _: (w, {}), num_pairs=8, sigma=0.1
    )

    @tiny.jit
    def cosine(key):
        keys = jax.random.split(key, 1)
        grad = estimate(jnp.zeros(size), jnp.float64(0.0), None, None, keys).grad
        return grad[0] / jnp.linalg.norm(grad)

    draws = np.array(jax.vmap(cosine)(jax.random.split(jax.random.key(0), 2000)))
    assert draws.mean() == pytest.approx(expected, abs=0.015)
    assert draws.std() == pytest.approx(spread, abs=0.01)
    assert draws.mean() == pytest.approx((1 + (size + 1) / 8) ** -0.5, abs=0.03)


def test_of_a_linear_loss_in_one_variable_only_the_noise_remains():
    """V = 3 A: every pair gives 3 e^2, whatever sigma."""
    estimate = hypergradient.evolution_strategies(
        lambda w, a, batch, rng: (a, {}), lambda w, a, _: (3.0 * w, {}), num_pairs=5, sigma=0.7
    )
    grad = estimate(jnp.float64(1.0), jnp.float64(0.0), jnp.zeros(1), 0.0, jax.random.split(
        jax.random.key(3), 1)).grad  # fmt: skip
    other = hypergradient.evolution_strategies(
        lambda w, a, batch, rng: (a, {}), lambda w, a, _: (3.0 * w, {}), num_pairs=5, sigma=0.01
    )(jnp.float64(1.0), jnp.float64(0.0), jnp.zeros(1), 0.0, jax.random.split(
        jax.random.key(3), 1)).grad  # fmt: skip
    assert float(grad) == pytest.approx(float(other), rel=1e-9)
    assert 0 < float(grad) < 15


def test_other_keys_are_other_perturbations():
    estimate = _estimator(num_pairs=2, sigma=0.1)
    first, again, other = (estimate(seed) for seed in (0, 0, 1))
    assert tiny.distance(first, again) == 0
    assert tiny.distance(first, other) > 0.01


def test_needs_no_derivative():
    """Rounding has none; the estimate still shows the way down."""

    def step(w, a, batch, rng):
        return jnp.round(10 * a) / 10, {}

    estimate = hypergradient.evolution_strategies(
        step, lambda w, a, t: (((w - t) ** 2).sum(), {}), num_pairs=200, sigma=0.3
    )
    args = jnp.float64(1.0), jnp.float64(0.0), jnp.zeros(1), jnp.float64(0.25)
    grad = estimate(*args, jax.random.split(jax.random.key(0), 1)).grad
    assert grad == pytest.approx(2 * (1.0 - 0.25), rel=0.3)
