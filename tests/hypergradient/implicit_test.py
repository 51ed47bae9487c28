"""The implicit estimators against closed forms, dense matrices and central differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from fewshotseg import hypergradient as hg
from fewshotseg.hypergradient import host_loop, inner_gradient


@pytest.fixture(autouse=True, scope="module")
def _float64():
    with tiny.float64():
        yield


def _equation(loss, update=None, gradient=inner_gradient.mixed):
    """g of `loss(w, A, batch)`, where the state is w itself."""

    def gradient_at(w, theta, batch, rng):
        del rng
        return gradient(lambda p, o, d: (loss(p, o, d), {}))(w, theta, batch)[1]

    return hg.Stationarity(lambda s: s, lambda s, w: w, gradient_at, update)


def _stay(state, theta, batch, rng):
    """An inner step that does nothing: training has ended."""
    return state, {}


# --- The example of the contract's docstring ----------------------------------------------------------

RATE, ALPHA, CURVATURE, TARGET = 0.2, 0.3, 1.7, 0.4
LOSS = lambda w, a, batch: 0.5 * CURVATURE * (w - a) ** 2  # noqa: E731


def _example_step(w, a, batch, rng, gradient=inner_gradient.mixed):
    return w - RATE * gradient(lambda *x: (LOSS(*x), {}))(w, a, batch)[1], {}


def _forward_mode(step, outer):
    return hg.forward_mode(functools.partial(step, gradient=inner_gradient.reverse), outer)


def _implicit(solver):
    """`implicit_gradient` of the example, whose equation is made of its loss."""
    equation = _equation(LOSS, lambda g, w: -RATE * g)
    return lambda step, outer: hg.implicit_gradient(step, outer, equation, solver)


@pytest.mark.parametrize(
    ("make", "factor"),
    [
        (hg.unrolled, 1 - (1 - RATE * CURVATURE) ** 4),
        (functools.partial(hg.truncated, horizon=3), 1 - (1 - RATE * CURVATURE) ** 3),
        (hg.one_step, RATE * CURVATURE),
        (_forward_mode, 1 - (1 - RATE * CURVATURE) ** 4),
        (_implicit(hg.identity(step_size=ALPHA)), ALPHA * CURVATURE),
        (_implicit(hg.neumann(step_size=ALPHA, num_terms=5)), 1 - (1 - ALPHA * CURVATURE) ** 6),
        (
            _implicit(hg.conjugate_gradient(num_terms=2, damping=0.5)),
            CURVATURE / (CURVATURE + 0.5),
        ),
        (_implicit(hg.sama()), RATE * CURVATURE),
    ],
    ids="unrolled truncated one_step forward_mode identity neumann cg sama".split(),
)
def test_table_of_the_contract(make, factor):
    estimate = make(_example_step, lambda w, a, t: (0.5 * (w - t) ** 2, {}))
    start, a, keys = jnp.float64(3.0), jnp.float64(-1.2), jnp.zeros(4)
    result = estimate(a, start, jnp.zeros(4), jnp.float64(TARGET), keys)
    w = a + (1 - RATE * CURVATURE) ** 4 * (start - a)
    assert result.inner_state == pytest.approx(float(w), rel=1e-13)
    assert result.grad == pytest.approx(float(factor * (w - TARGET)), rel=1e-12)


# --- A quadratic with matrices written out ----------------------------------------------------------


class _Quadratic:
    """g(w, A) = H (w - C A), V = 1/2 |w - t|^2 + 0.35 |A|^2; H symmetric or not."""

    def __init__(self, curvatures, skew=0.0):
        numbers = np.random.default_rng(4)
        size = len(curvatures)
        basis = np.linalg.qr(numbers.standard_normal((size, size)))[0]
        rotation = numbers.standard_normal((size, size))
        self.h = basis @ np.diag(curvatures) @ basis.T + skew * (rotation - rotation.T)
        self.c = numbers.standard_normal((size, 2))
        self.w, self.t = numbers.standard_normal((2, size))
        self.a = numbers.standard_normal(2)
        self.v = self.w - self.t

    def estimate(self, solver):
        def gradient(w, theta, batch, rng):
            return self.h @ (w - self.c @ theta)

        equation = hg.Stationarity(lambda s: s, lambda s, w: w, gradient)

        def outer(w, a, t):
            return 0.5 * ((w - t) ** 2).sum() + 0.35 * (a**2).sum(), {}

        arrays = (self.a, self.w, np.zeros(1), self.t, np.zeros(1))
        estimate = hg.implicit_gradient(_stay, outer, equation, solver)
        return estimate(*map(jnp.asarray, arrays))

    def hypergradient(self, q):
        """grad_A V - M^T q, M = -H C."""
        return 0.7 * self.a + (self.h @ self.c).T @ q


@pytest.mark.parametrize("skew", [0.0, 0.3], ids=["symmetric", "not symmetric"])
def test_neumann_series_with_all_matrices_written_out(skew):
    problem = _Quadratic((0.5, 1.0, 2.0, 4.0), skew)
    alpha, decay = 0.2, np.eye(4) - 0.2 * problem.h.T
    for n in (0, 1, 7):
        q = alpha * sum(np.linalg.matrix_power(decay, j) @ problem.v for j in range(n + 1))
        result = problem.estimate(hg.neumann(num_terms=n, step_size=alpha))
        np.testing.assert_allclose(result.grad, problem.hypergradient(q), rtol=1e-12)
        last = np.linalg.norm(np.linalg.matrix_power(decay, n) @ problem.v)
        ratio = last / np.linalg.norm(problem.v)
        assert result.metrics["neumann/last_term"] == pytest.approx(ratio, rel=1e-12)
    assert np.abs(problem.h - problem.h.T).max() == pytest.approx(0.0, abs=1e-12) or skew


@pytest.mark.parametrize("skew", [0.0, 0.3], ids=["symmetric", "not symmetric"])
def test_neumann_converges_to_the_implicit_gradient_at_the_stated_rate(skew):
    problem = _Quadratic((0.5, 1.0, 2.0, 4.0), skew)
    exact = problem.hypergradient(np.linalg.solve(problem.h.T, problem.v))
    errors = [
        np.linalg.norm(problem.estimate(hg.neumann(num_terms=n, step_size=0.2)).grad - exact)
        for n in (40, 60, 400)
    ]
    slowest = np.abs(np.linalg.eigvals(np.eye(4) - 0.2 * problem.h)).max()
    assert errors[1] / errors[0] == pytest.approx(slowest**20, rel=0.02)
    assert errors[2] < 1e-12


def test_neumann_shows_that_it_diverges():
    problem = _Quadratic((1.0, 11.0))
    result = problem.estimate(hg.neumann(num_terms=20, step_size=0.2))
    assert result.metrics["neumann/last_term"] > 10


@pytest.mark.parametrize("damping", [0.0, 0.8])
def test_conjugate_gradient_solves_exactly_after_as_many_steps_as_unknowns(damping):
    problem = _Quadratic((0.01, 0.5, 3.0, 40.0))
    result = problem.estimate(hg.conjugate_gradient(num_terms=4, damping=damping))
    q = np.linalg.solve(problem.h + damping * np.eye(4), problem.v)
    np.testing.assert_allclose(result.grad, problem.hypergradient(q), rtol=1e-8)
    assert result.metrics["cg/residual"] < 1e-8
    more = problem.estimate(hg.conjugate_gradient(num_terms=50, damping=damping))
    np.testing.assert_allclose(more.grad, result.grad, rtol=1e-8)
    assert more.metrics["cg/iterations"] < 10


def test_conjugate_gradient_needs_as_many_steps_as_different_eigenvalues():
    problem = _Quadratic((0.5, 0.5, 0.5, 3.0, 3.0))
    exact = problem.hypergradient(np.linalg.solve(problem.h, problem.v))
    first, second = (
        problem.estimate(hg.conjugate_gradient(num_terms=n, damping=0.0)).grad for n in (1, 2)
    )
    assert np.linalg.norm(first - exact) > 0.1
    np.testing.assert_allclose(second, exact, rtol=1e-9)


def test_conjugate_gradient_stops_at_negative_curvature():
    problem = _Quadratic((-1.0, 2.0, 3.0))
    result = problem.estimate(hg.conjugate_gradient(num_terms=50, damping=0.0))
    assert np.isfinite(result.grad).all()
    iterations = int(result.metrics["cg/iterations"])
    assert iterations < 3
    same = problem.estimate(hg.conjugate_gradient(num_terms=max(1, iterations), damping=0.0))
    np.testing.assert_array_equal(result.grad, same.grad)
    damped = problem.estimate(hg.conjugate_gradient(num_terms=50, damping=1.5))
    q = np.linalg.solve(problem.h + 1.5 * np.eye(3), problem.v)
    np.testing.assert_allclose(damped.grad, problem.hypergradient(q), rtol=1e-8)


@pytest.mark.parametrize(
    "solver",
    [hg.neumann(num_terms=3, step_size=0.2), hg.conjugate_gradient(num_terms=3, damping=0.0)],
    ids=("neumann", "cg"),
)
def test_no_validation_gradient_no_hypergradient(solver):
    problem = _Quadratic((0.5, 1.0))
    problem.t, problem.a = problem.w, np.zeros(2)
    result = problem.estimate(solver)
    np.testing.assert_array_equal(result.grad, 0.0)
    assert all(np.isfinite(x) for x in result.metrics.values())


# --- At a true optimum, against central differences of the retrained model ---------------------------


def _ridge(w, theta, data):
    """Weighted ridge regression: the weights of the cases and the ridge are outer variables."""
    error = data["x"] @ w - data["y"] + theta["shift"] * jnp.tanh(w).sum()
    weights = jax.nn.softplus(theta["cases"])
    return (weights * error**2).mean() + 0.5 * jnp.exp(theta["ridge"]) * (w**2).sum()


def _ridge_problem():
    numbers = np.random.default_rng(0)
    data = {"x": jnp.asarray(numbers.standard_normal((6, 3))), "y": jnp.arange(6.0) / 3}
    theta = {
        "cases": jnp.asarray(numbers.standard_normal(6)),
        "ridge": jnp.float64(-1.0),
        "shift": jnp.float64(0.1),
    }
    unseen = jnp.asarray(numbers.standard_normal(3))
    return theta, data, unseen


def _ridge_validation(w, theta, unseen):
    return ((jnp.sin(w) - unseen) ** 2).sum() + 0.1 * theta["ridge"] ** 2, {}


def _retrain(theta, data):
    """The optimum, by Newton's method."""
    w = jnp.zeros(3)
    for _ in range(30):
        g, h = jax.grad(_ridge)(w, theta, data), jax.hessian(_ridge)(w, theta, data)
        w = w - jnp.linalg.solve(h, g)
    return w


def _theirs(v, transpose_h, transpose_u):
    """Somebody else's solver."""
    return jax.scipy.sparse.linalg.cg(transpose_h, v, tol=1e-12)[0]


def _dense_solve(v, transpose_h, transpose_u):
    """H written out, and solved as one does."""
    return jnp.linalg.solve(jax.vmap(transpose_h)(jnp.eye(v.size)).T, v)


@pytest.mark.parametrize(
    "solver",
    [
        hg.conjugate_gradient(num_terms=3, damping=0.0),
        hg.neumann(num_terms=2000, step_size=0.1),
        hg.Solver(_theirs),
        hg.Solver(_dense_solve),
    ],
    ids=("cg", "neumann", "cg of jax.scipy", "dense"),
)
def test_at_the_optimum_it_is_the_derivative_of_retraining(solver):
    theta, data, unseen = _ridge_problem()
    w = _retrain(theta, data)
    assert np.abs(jax.grad(_ridge)(w, theta, data)).max() < 1e-12
    estimate = tiny.jit(hg.implicit_gradient(_stay, _ridge_validation, _equation(_ridge), solver))
    batches = jax.tree.map(lambda x: x[None], data)
    grad = estimate(theta, w, batches, unseen, jnp.zeros(1)).grad
    retrained = tiny.jit(lambda a: _ridge_validation(_retrain(a, data), a, unseen)[0])
    for seed in range(3):
        direction = tiny.random_direction(theta, seed)
        expected = tiny.derivative(retrained, theta, direction)
        assert tiny.dot(grad, direction) == pytest.approx(expected, rel=1e-7)


# --- SAMA: what the optimiser does --------------------------------------------------------------------


@pytest.mark.parametrize(
    "optimizer",
    [optax.sgd(0.3), optax.adam(0.05, eps_root=1e-8), optax.rmsprop(0.05, eps_in_sqrt=True)],
    ids=["sgd", "adam", "rmsprop"],
)
def test_sama_is_one_more_step_of_the_optimizer(optimizer):
    """To first order in v: the unroll of one more step, with v taken before it."""
    theta, data, unseen = _ridge_problem()
    w = jnp.array([0.3, -0.2, 0.5])
    opt = optimizer.init(w)
    for _ in range(2):  # so that the moments are not zero
        _, opt = optimizer.update(jax.grad(_ridge)(w, theta, data), opt, w)
    equation = _equation(_ridge, lambda g, w: optimizer.update(g, opt, w)[0])
    estimate = tiny.jit(hg.implicit_gradient(_stay, _ridge_validation, equation, hg.sama()))
    batches = jax.tree.map(lambda x: x[None], data)
    grad = estimate(theta, w, batches, unseen, jnp.zeros(1)).grad
    v = jax.grad(lambda w: _ridge_validation(w, theta, unseen)[0])(w)

    def next_step(a):
        update, _ = optimizer.update(jax.grad(_ridge)(w, a, data), opt, w)
        return jnp.vdot(v, update) + _ridge_validation(w, a, unseen)[0]

    for seed in range(2):
        direction = tiny.random_direction(theta, seed)
        expected = tiny.derivative(next_step, theta, direction)
        assert tiny.dot(grad, direction) == pytest.approx(expected, rel=1e-6)
    first_order = _equation(
        _ridge,
        lambda g, w: optimizer.update(g, opt, w)[0],
        functools.partial(inner_gradient.finite_difference, radius=1e-4),
    )
    estimate = tiny.jit(hg.implicit_gradient(_stay, _ridge_validation, first_order, hg.sama()))
    approximate = estimate(theta, w, batches, unseen, jnp.zeros(1)).grad
    assert 0 < tiny.distance(approximate, grad) < 1e-6


# --- Three levels: generator, discriminator and segmenter ---------------------------------------------


def _dense(tree):
    return jax.flatten_util.ravel_pytree(tree)


def _chain(solver, through_generator, real=False):
    """The estimate for a chain of toy (or real) networks, and what is needed to check it."""
    method = (tiny.make_method if real else tiny.make_toy_method)(learning_rate=0.05)
    problem = (tiny.make_problem if real else tiny.make_toy_problem)(method, num_steps=1)
    equation = method.stationarity(through_generator)
    step, outer = method.inner_step(), method.outer_loss()
    estimate = host_loop.implicit_gradient(step, outer, equation, solver, compile=tiny.jit)
    return method, problem, equation, estimate(*problem)


def _field(equation, problem, state):
    """g as a function of dense w and dense theta, and the dense values."""
    theta, _, batches, _, keys = problem
    w, unravel = _dense(equation.weights(state))
    a, unravel_theta = _dense(theta)
    batch = jax.tree.map(lambda x: x[0], batches)

    @tiny.jit
    def field(w, a):
        moved = equation.replace(state, unravel(w))
        return _dense(equation.gradient(moved, unravel_theta(a), batch, keys[0]))[0]

    return field, w, a


def _validation_gradient(method, problem, equation, state):
    @tiny.jit
    def gradient(w):
        def loss(w):
            moved = equation.replace(state, w)
            return method.outer_loss()(moved, problem[0], problem[3])[0]

        return _dense(jax.grad(loss)(w))[0]

    return np.asarray(gradient(equation.weights(state)))


@pytest.mark.parametrize("through_generator", [True, False])
def test_neumann_on_three_levels_with_all_matrices_written_out(through_generator):
    method, problem, equation, result = _chain(
        hg.neumann(num_terms=4, step_size=0.3), through_generator
    )
    state = result.inner_state
    v = _validation_gradient(method, problem, equation, state)
    h, m = _jacobians(method, equation, problem, state)
    decay = np.eye(len(v)) - 0.3 * h.T
    q = 0.3 * sum(np.linalg.matrix_power(decay, j) @ v for j in range(5))
    np.testing.assert_allclose(_dense(result.grad)[0], -m.T @ q, rtol=1e-9, atol=1e-14)
    assert (np.abs(h - h.T).max() > 1e-3) == through_generator


def _jacobians(method, equation, problem, state):
    """H and M from plain gradients, by forward mode, one column at a time."""
    plain = method._replace(options={**method.options, "gradient": inner_gradient.reverse})
    through = "generator" in equation.weights(state)
    equation = plain.stationarity(through)
    (w, unravel), (a, unravel_theta) = _dense(equation.weights(state)), _dense(problem[0])
    batch = jax.tree.map(lambda x: x[0], problem[2])

    def field(w, a):
        moved = equation.replace(state, unravel(w))
        return _dense(equation.gradient(moved, unravel_theta(a), batch, problem[4][0]))[0]

    return [np.asarray(x) for x in tiny.jit(jax.jacfwd(field, (0, 1)))(w, a)]


def test_the_path_through_the_generators_training_needs_a_neumann_term():
    """v is zero for the generator: `identity` on all players is `identity` on the segmenter alone."""
    every, alone = (
        _chain(hg.identity(step_size=0.3), through)[-1].grad for through in (True, False)
    )
    assert tiny.distance(every, alone) < 1e-12
    every, alone = (
        _chain(hg.neumann(num_terms=1, step_size=0.3), through)[-1].grad
        for through in (True, False)
    )
    assert tiny.distance(every, alone) > 1e-3


def test_conjugate_gradient_on_the_segmenter_with_the_hessian_written_out():
    method, problem, equation, result = _chain(
        hg.conjugate_gradient(num_terms=60, damping=1.0), False
    )
    state = result.inner_state
    v = _validation_gradient(method, problem, equation, state)
    h, m = _jacobians(method, equation, problem, state)
    assert np.linalg.eigvalsh(h).min() > -1.0
    q = np.linalg.solve(h + np.eye(len(v)), v)
    np.testing.assert_allclose(_dense(result.grad)[0], -m.T @ q, rtol=1e-7, atol=1e-13)


_REAL = {
    "identity": hg.identity(step_size=0.2),
    "neumann": hg.neumann(num_terms=2, step_size=0.2),
    "conjugate_gradient": hg.conjugate_gradient(num_terms=2, damping=20.0),
    "sama": hg.sama(),
}


@pytest.mark.parametrize("name", _REAL)
def test_real_networks_against_differences_of_their_gradients(name):
    """Every product with H, M or the optimiser's Jacobian replaced by a central difference."""
    _, problem, equation, result = _chain(_REAL[name], False, real=True)
    field, w, a, v = _real_chain_at_the_end()

    def multiply_h(x):  # H is symmetric
        size = np.linalg.norm(x)
        return _difference(lambda e: field(w + e * x / size, a)) * size

    if name == "identity":
        q = 0.2 * v
    elif name == "neumann":
        second = v - 0.2 * multiply_h(v)
        q = 0.2 * (v + second + second - 0.2 * multiply_h(second))
    elif name == "conjugate_gradient":
        q, r, p = 0 * v, v, v
        for _ in range(2):
            hp = multiply_h(p) + 20.0 * p
            step = (r @ r) / (p @ hp)
            q, r, before = q + step * p, r - step * hp, r
            p = r + (r @ r) / (before @ before) * p
    else:  # Adam treats every weight alone: its Jacobian is a diagonal
        g, unravel = np.asarray(field(w, a)), _dense(equation.weights(result.inner_state))[1]

        def update(h):
            return _dense(equation.update(unravel(g * (1 + h)), result.inner_state))[0]

        q = -_difference(update) / g * v
    for seed in range(2):
        direction = np.random.default_rng(seed).standard_normal(len(a))
        direction /= np.linalg.norm(direction)
        expected = -float(q @ _difference(lambda e, d=direction: field(w, a + e * d)))
        found = float(np.vdot(_dense(result.grad)[0], direction))
        assert found == pytest.approx(expected, rel=1e-5)
        assert abs(expected) > 1e-8


@functools.cache
def _real_chain_at_the_end():
    """The field, w, theta and v at S_1: the same for every estimator, so compiled once."""
    method, problem, equation, result = _chain(hg.identity(step_size=1.0), False, real=True)
    field, w, a = _field(equation, problem, result.inner_state)
    return field, w, a, _validation_gradient(method, problem, equation, result.inner_state)


def _difference(function, step=1e-4):
    def central(h):
        return (np.asarray(function(h)) - np.asarray(function(-h))) / (2 * h)

    return (4 * central(step) - central(2 * step)) / 3


# --- Meta-training reaches the optimum that is known ---------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        hg.unrolled,
        functools.partial(hg.truncated, horizon=2),
        hg.one_step,
        hg.identity(step_size=0.3),
        hg.neumann(num_terms=5, step_size=0.3),
        hg.conjugate_gradient(num_terms=2, damping=0.1),
        hg.sama(),
        functools.partial(hg.evolution_strategies, num_pairs=4, sigma=0.1),
    ],
    ids="unrolled truncated one_step identity neumann cg sama es".split(),
)
def test_meta_training_reaches_the_optimum(make):
    """w follows A at two speeds; the validation loss is least where both are the target."""
    curvature, target = jnp.array([0.4, 2.0]), jnp.array([1.5, -0.5])

    def loss(w, a, batch):
        return 0.5 * (curvature * (w - a) ** 2).sum()

    def step(w, a, batch, rng):
        return w - 0.3 * inner_gradient.mixed(lambda *x: (loss(*x), {}))(w, a, batch)[1], {}

    def outer(w, a, t):
        return 0.5 * ((w - t) ** 2).sum(), {}

    if isinstance(make, hg.Solver):
        equation = _equation(loss, lambda g, w: -0.3 * g)
        estimate = tiny.jit(hg.implicit_gradient(step, outer, equation, make))
    else:
        estimate = tiny.jit(make(step, outer))
    a, w, loss_at_start = jnp.zeros(2), jnp.array([3.0, 3.0]), None
    for i in range(250):
        keys = jax.random.split(jax.random.key(i), 3)
        result = estimate(a, w, jnp.zeros(3), target, keys)
        a, w = a - 0.3 * result.grad, result.inner_state
        loss_at_start = loss_at_start or float(result.loss)
    np.testing.assert_allclose(a, target, atol=1e-3)
    assert result.loss < 1e-6 * loss_at_start
