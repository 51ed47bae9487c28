"""Evolution strategies against the exact hypergradient, by the statistics of their noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from fewshotseg import hypergradient
from fewshotseg.hypergradient import host_evolution, inner_gradient


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


# --- Particles that live on ----------------------------------------------------------------------

K, RATE, CURVATURE, TARGET = 2, 0.2, 1.7, 0.4  # the example of the contract's docstring


def _example_step(w, a, batch, rng):
    return w - RATE * CURVATURE * (w - a), {}


def _example_loss(w, a, target):
    return 0.5 * (w - target) ** 2, {}


def _persist(num_pairs=1, num_unrolls=9, make=hypergradient.pes, sigma=0.3):
    return make(
        _example_step,
        _example_loss,
        num_pairs=num_pairs,
        sigma=sigma,
        num_unrolls=num_unrolls,
        **({} if make is hypergradient.pes else {"compile": tiny.jit}),
    )


def _results(estimate, num_estimates, num_pairs=1, seed=0):
    """One after the other, at a theta that stands still."""
    a, w, found = jnp.float64(-1.2), jnp.float64(3.0), []
    particles = hypergradient.start_particles(a, w, num_pairs)
    for i in range(num_estimates):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), i), K)
        found.append(estimate(a, w, None, jnp.float64(TARGET), keys, particles))
        w, particles = found[-1].inner_state, found[-1].carry
    return found


def test_particles_see_all_steps_since_they_started():
    """Mean and variance of one pair, over 4000: (1 - (1 - eta h)^{jK}) D, without any bias, however large
    sigma, as V is quadratic. Evolution strategies see the last K steps: another number."""
    decay = 1 - RATE * CURVATURE
    for j, result in enumerate(_results(tiny.jit(_persist(4000)), 3, 4000), start=1):
        rest = -1.2 + decay ** (j * K) * (3.0 + 1.2) - TARGET  # D, of the unperturbed state
        assert float(result.inner_state - TARGET) == pytest.approx(rest, rel=1e-12)
        assert result.loss == pytest.approx(0.5 * rest**2, rel=1e-12)
        expected = (1 - decay ** (j * K)) * rest
        weights = np.array(
            [decay ** (i * K) * (1 - decay**K) for i in range(j)]
        )  # of the estimates
        variance = rest**2 * (j * (weights**2).sum() + weights.sum() ** 2)
        noise, slopes = np.asarray(result.carry.noise), _slopes(result.carry, rest)
        each = noise * slopes  # what every pair contributes
        assert float(result.grad) == pytest.approx(each.mean(), rel=1e-9)
        assert abs(result.grad - expected) < 4 * (variance / 4000) ** 0.5
        assert each.var() == pytest.approx(variance, rel=0.3)
        assert noise.var() == pytest.approx(j, rel=0.1)
        if j > 1:
            assert abs(result.grad - (1 - decay**K) * rest) > 5 * (variance / 4000) ** 0.5


def _slopes(particles, rest, sigma=0.3):
    """Of the losses of both particles of every pair."""
    right, left = (0.5 * (np.asarray(w) - TARGET) ** 2 for w in particles.states)
    return (right - left) / (2 * sigma)


def test_variance_of_the_two_extremes_is_as_stated():
    """n unrolls, N = 1: 2 of the square if all contribute alike, n + 1 if it was one of them."""
    n, numbers = 6, np.random.default_rng(0)
    e = numbers.standard_normal((200_000, n))
    alike, one = e.sum(1) * e.mean(1), e.sum(1) * e[:, -1]
    assert alike.mean() == pytest.approx(1, rel=0.02) and one.mean() == pytest.approx(1, rel=0.02)
    assert alike.var() == pytest.approx(2, rel=0.03) and one.var() == pytest.approx(n + 1, rel=0.03)


@pytest.mark.parametrize("make", [hypergradient.pes, host_evolution.pes], ids=["scan", "host"])
def test_with_one_unroll_they_are_evolution_strategies(make):
    """Number for number; and particles that start anew have forgotten everything."""
    estimate = _persist(2, 2, make)
    single = _persist(2, 1, make)
    if make is hypergradient.pes:
        estimate, single = map(tiny.jit, (estimate, single))
    strategies = tiny.jit(
        hypergradient.evolution_strategies(_example_step, _example_loss, num_pairs=2, sigma=0.3)
    )
    state, expected = jnp.float64(3.0), []
    for i in range(3):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), i), K)
        result = strategies(jnp.float64(-1.2), state, None, jnp.float64(TARGET), keys)
        state = result.inner_state
        expected.append(float(result.grad))
    for j, (persistent, once) in enumerate(
        zip(_results(estimate, 3, 2), _results(single, 3, 2), strict=True)
    ):
        assert float(once.grad) == pytest.approx(expected[j], rel=1e-12)
        assert int(persistent.carry.unrolls) == (1, 2, 1)[j] and int(once.carry.unrolls) == 1
        same = float(persistent.grad) == pytest.approx(expected[j], rel=1e-12)
        assert same == (j != 1)
