"""The estimators against closed forms, matrices written out, central differences and each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from fewshotseg import hypergradient as hg
from fewshotseg.hypergradient import host_evolution, host_loop, inner_gradient

OPTIMIZERS = {
    "sgd": optax.sgd(0.3),
    "momentum": optax.sgd(0.3, momentum=0.9),
    "adam": optax.adam(0.05, eps_root=1e-8),
}


@pytest.fixture(autouse=True, scope="module")
def _float64():
    with tiny.float64():
        yield


# --- A smooth problem with everything in it: two layers, noise, a direct term, integer state -----


def _predict(params, x):
    return jax.nn.silu(x @ params["in"]) @ params["out"]


def _inner_loss(params, outer, data):
    error = _predict(params, data["x"] + outer["shift"]) - data["y"]
    weights = jax.nn.sigmoid(outer["weights"] + data["y"])
    return (weights * error**2).mean(), {"inner/size": (error**2).mean()}


def _outer_loss(state, theta, batch):
    error = _predict(state["params"], batch["x"]) - batch["y"]
    direct = 0.1 * (theta["shift"] ** 2).sum()
    return (error**2).mean() + direct, {"outer/error": (error**2).mean()}


def _make_step(gradient=inner_gradient.mixed, optimizer="adam", axis_name=None):
    """Phi of the problem; its state also holds an integer and a key."""

    def inner_step(state, theta, batch, rng):
        noise = 0.1 * jax.random.normal(rng, batch["x"].shape[-1:])
        data = {"x": batch["x"] + noise, "y": batch["y"], "id": batch["id"]}
        (value, metrics), grads = gradient(_inner_loss)(state["params"], theta, data)
        if axis_name is not None:
            grads = jax.lax.pmean(grads, axis_name)
        updates, opt = OPTIMIZERS[optimizer].update(grads, state["opt"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        state = {**state, "params": params, "opt": opt, "steps": state["steps"] + 1}
        return state, {"inner/loss": value, **metrics}

    return inner_step


def _make_problem(optimizer="adam", num_steps=3, batch_size=4):
    """theta, inner state, batches, outer batch, keys."""
    numbers = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(numbers.standard_normal(shape))

    def draw_data(*lead):
        ids = jnp.arange(np.prod(lead)).reshape(lead)
        return {"x": draw(*lead, 3), "y": draw(*lead, 1), "id": ids}

    theta = {"shift": draw(3), "weights": draw(1)}
    params = {"in": draw(3, 4), "out": draw(4, 1)}
    state = {
        "params": params,
        "opt": OPTIMIZERS[optimizer].init(params),
        "steps": jnp.int32(0),
        "key": jax.random.key(3),
    }
    keys = jax.random.split(jax.random.key(1), num_steps)
    return theta, state, draw_data(num_steps, batch_size), draw_data(batch_size), keys


@functools.cache
def _plain_step(optimizer="adam"):
    return tiny.jit(_make_step(optimizer=optimizer))


def _train(optimizer, theta, state, batches, outer_batch, keys):
    """V and S_K after K plain steps, with the metrics of the last."""
    metrics = {}
    for k in range(keys.shape[0]):
        batch = jax.tree.map(lambda x, k=k: x[k], batches)
        state, metrics = _plain_step(optimizer)(state, theta, batch, keys[k])
    return _outer_loss(state, theta, outer_batch)[0], state, metrics


@functools.cache
def _estimate(loop="scan", gradient="mixed", optimizer="adam", remat="step"):
    """The problem, after its estimate was taken, and the estimate."""
    step = _make_step(inner_gradient.GRADIENTS[gradient], optimizer)
    problem = _make_problem(optimizer)
    return problem, _unrolled(step, loop, remat=remat)(*problem)


def _unrolled(inner_step, loop="scan", **options):
    if loop == "host":
        return host_loop.unrolled(inner_step, _outer_loss, compile=tiny.jit, **options)
    return tiny.jit(hg.unrolled(inner_step, _outer_loss, **options))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_unrolled_is_the_derivative_of_training(optimizer):
    (theta, *rest), result = _estimate(optimizer=optimizer)
    for seed in range(3):
        direction = tiny.random_direction(theta, seed)
        expected = tiny.derivative(lambda a: _train(optimizer, a, *rest)[0], theta, direction)
        assert tiny.dot(result.grad, direction) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize(
    "variant",
    [
        {"gradient": "reverse"},
        {"loop": "host"},
        {"loop": "host", "gradient": "reverse"},
        {"remat": "none"},
        {"remat": "none", "optimizer": "momentum"},
        {"loop": "host", "optimizer": "momentum"},
    ],
    ids=str,
)
def test_every_way_of_computing_it_gives_the_same(variant):
    _, result = _estimate(**variant)
    _, reference = _estimate(optimizer=variant.get("optimizer", "adam"))
    assert tiny.distance(result.grad, reference.grad) < 1e-12
    assert result.loss == pytest.approx(float(reference.loss), rel=1e-12)
    params = result.inner_state["params"], reference.inner_state["params"]
    assert tiny.distance(*params) < 1e-12
    assert result.metrics.keys() == reference.metrics.keys()
    for name, value in result.metrics.items():
        assert value == pytest.approx(float(reference.metrics[name]), rel=1e-12)


@pytest.mark.parametrize("loop", ["scan", "host"])
def test_training_goes_on_from_the_steps_of_the_estimator(loop):
    def numbers(tree):
        leaves = jax.tree.leaves(tree)
        is_key = [jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) for x in leaves]
        return [jax.random.key_data(x) if k else x for x, k in zip(leaves, is_key, strict=True)]

    problem, result = _estimate(loop=loop)
    for x, y in zip(numbers(problem), numbers(_make_problem()), strict=True):
        np.testing.assert_array_equal(x, y)  # the estimator moves nothing
    loss, state, metrics = _train("adam", *problem)
    for x, y in zip(numbers(result.inner_state), numbers(state), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-13, atol=1e-13)
    assert result.inner_state["steps"] == 3
    assert result.loss == pytest.approx(float(loss), rel=1e-13)
    assert result.metrics.keys() == {"inner/loss", "inner/size", "outer/error"}
    for name, value in metrics.items():
        assert result.metrics[name] == pytest.approx(float(value), rel=1e-12)


# --- What every estimator has in common --------------------------------------------------------


def _stationarity(optimizer="adam", gradient=inner_gradient.mixed, axis_name=None):
    def gradient_at(state, theta, batch, rng):
        noise = 0.1 * jax.random.normal(rng, batch["x"].shape[-1:])
        data = {"x": batch["x"] + noise, "y": batch["y"], "id": batch["id"]}
        grads = gradient(_inner_loss)(state["params"], theta, data)[1]
        return grads if axis_name is None else jax.lax.pmean(grads, axis_name)

    def update(grads, state):
        return OPTIMIZERS[optimizer].update(grads, state["opt"], state["params"])[0]

    return hg.Stationarity(
        lambda state: state["params"],
        lambda state, w: {**state, "params": w},
        gradient_at,
        update,
    )


def _with_particles(make):
    """`pes` as an estimator of five arguments: its first estimate."""

    def maker(*functions, **options):
        estimate = make(*functions, **options)

        def first(theta, state, *rest):
            return estimate(
                theta, state, *rest, hg.start_particles(theta, state, options["num_pairs"])
            )

        return first

    return maker


# Name -> the pure estimator, its twin for CPUs, and what both are given.
_IMPLICIT = hg.implicit_gradient, host_loop.implicit_gradient
EVERY = {
    "unrolled": (hg.unrolled, host_loop.unrolled, {}),
    "truncated": (hg.truncated, host_loop.unrolled, {"horizon": 2}),
    "one_step": (hg.one_step, functools.partial(host_loop.unrolled, horizon=1), {}),
    "identity": (*_IMPLICIT, {"solver": hg.identity(step_size=0.3)}),
    "neumann": (*_IMPLICIT, {"solver": hg.neumann(num_terms=3, step_size=0.3)}),
    "conjugate_gradient": (
        *_IMPLICIT,
        {"solver": hg.conjugate_gradient(num_terms=3, damping=2.0)},
    ),
    "sama": (*_IMPLICIT, {"solver": hg.sama()}),
    "forward_mode": (hg.forward_mode, host_loop.forward_mode, {}),
    "evolution_strategies": (
        hg.evolution_strategies,
        host_evolution.evolution_strategies,
        {"num_pairs": 2, "sigma": 0.1},
    ),
    "pes": (
        _with_particles(hg.pes),
        _with_particles(host_evolution.pes),
        {"num_pairs": 2, "sigma": 0.3, "num_unrolls": 2},
    ),
}

GRADIENT = {"forward_mode": inner_gradient.reverse}  # the others take the default


def _every(name, axis_name=None, compile=tiny.jit, loop="scan", step=None):
    make, make_host, options = EVERY[name]
    options = {**options, "axis_name": axis_name}
    if "solver" in options:
        options["stationarity"] = _stationarity(axis_name=axis_name)
    step = step or _make_step(GRADIENT.get(name, inner_gradient.mixed), axis_name=axis_name)
    if loop == "host":
        return make_host(step, _outer_loss, compile=compile, **options)
    return compile(make(step, _outer_loss, **options), batched_args=(2, 3))


@functools.cache
def _result(name, loop="scan"):
    return _every(name, loop=loop)(*_make_problem())


@pytest.mark.parametrize("loop", ["scan", "host"])
@pytest.mark.parametrize("name", EVERY)
def test_every_estimator_trains_on_and_moves_nothing_else(name, loop):
    problem = _make_problem()
    before = jax.tree.map(np.asarray, (problem[0], problem[1]["params"], problem[1]["opt"]))
    result = _result(name, loop)
    loss, state, metrics = _train("adam", *problem)
    assert tiny.distance(result.inner_state["params"], state["params"]) < 1e-13
    assert result.inner_state["steps"] == 3
    assert result.loss == pytest.approx(float(loss), rel=1e-12)
    assert result.metrics.keys() >= {"inner/loss", "inner/size", "outer/error"}
    assert result.metrics["inner/loss"] == pytest.approx(float(metrics["inner/loss"]), rel=1e-12)
    for x, y in zip(
        jax.tree.leaves(before),
        jax.tree.leaves((problem[0], problem[1]["params"], problem[1]["opt"])),
        strict=True,
    ):
        np.testing.assert_array_equal(x, y)
    assert tiny.norm(result.grad) > 1e-3


@pytest.mark.parametrize("name", EVERY)
def test_compiled_loop_equals_host_loop(name):
    scan, host = _result(name), _result(name, "host")
    assert tiny.distance(host.grad, scan.grad) < 1e-10
    assert host.metrics.keys() == scan.metrics.keys()
    for key, value in scan.metrics.items():
        assert host.metrics[key] == pytest.approx(float(value), rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("name", EVERY)
def test_compiled_equals_eager(name):
    eager = _every(name, compile=lambda function, batched_args: function)(*_make_problem())
    assert tiny.distance(eager.grad, _result(name).grad) < 1e-10


def test_estimators_differ_where_they_should():
    names = sorted(EVERY)
    for i, name in enumerate(names):
        for other in names[:i]:
            if {name, other} == {"unrolled", "forward_mode"}:  # both exact
                continue
            assert tiny.distance(_result(name).grad, _result(other).grad) > 1e-3, (name, other)


@pytest.mark.parametrize("name", EVERY)
def test_the_caller_wraps_it_in_jit_as_any_function(name):
    """`jax.jit(estimate)`, with nothing of ours around it."""
    make, _, options = EVERY[name]
    options = {"stationarity": _stationarity(), **options} if "solver" in options else options
    step = _make_step(GRADIENT.get(name, inner_gradient.mixed))
    result = jax.jit(make(step, _outer_loss, **options))(*_make_problem())
    assert tiny.distance(result.grad, _result(name).grad) < 1e-10


# --- Unrolling: how far, and what is kept --------------------------------------------------------


@pytest.mark.parametrize("horizon", [1, 2, 3, 9])
def test_truncated_is_the_derivative_of_the_last_steps(horizon):
    """Central differences of a training in which only the last steps see the other theta."""
    theta, state, batches, outer_batch, keys = _make_problem()
    estimate = tiny.jit(hg.truncated(_make_step(), _outer_loss, horizon=horizon))
    result = estimate(theta, state, batches, outer_batch, keys)
    for k in range(3 - min(horizon, 3)):
        batch = jax.tree.map(lambda x, k=k: x[k], batches)
        state, _ = _plain_step()(state, theta, batch, keys[k])
    rest = jax.tree.map(lambda x: x[-horizon:], batches), outer_batch, keys[-horizon:]
    direction = tiny.random_direction(theta, 5)
    expected = tiny.derivative(lambda a: _train("adam", a, state, *rest)[0], theta, direction)
    assert tiny.dot(result.grad, direction) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("loop", ["scan", "host"])
@pytest.mark.parametrize(("num_steps", "horizon"), [(6, None), (4, None), (5, None), (6, 4)])
def test_square_root_of_the_states_is_enough(num_steps, horizon, loop):
    problem = _make_problem("momentum", num_steps)
    step = _make_step(optimizer="momentum")
    reference = _unrolled(step, loop, horizon=horizon)(*problem)
    result = _unrolled(step, loop, horizon=horizon, remat="sqrt")(*problem)
    assert tiny.distance(result.grad, reference.grad) < 1e-12
    assert tiny.distance(result.inner_state["params"], reference.inner_state["params"]) < 1e-12
    for key, value in reference.metrics.items():
        assert result.metrics[key] == pytest.approx(float(value), rel=1e-10)


def test_square_root_keeps_fewer_states():
    """16 steps in 4 segments: 4 states at their starts, and 4 while one of them is pulled back."""
    _states_kept(16)


def test_square_root_needs_no_divisor():
    """23 steps in 5 segments of 4, and 3 steps."""
    _states_kept(23)


def _states_kept(num_steps):
    problem = _make_problem(num_steps=num_steps)
    temporary = {}
    for remat in ("none", "step", "sqrt"):
        estimate = _unrolled(_make_step(), remat=remat)
        analysis = estimate.lower(*problem).compile().memory_analysis()
        temporary[remat] = analysis.temp_size_in_bytes
    assert temporary["sqrt"] < temporary["step"] < temporary["none"]


@pytest.mark.parametrize("make", [hg.unrolled, host_loop.unrolled])
def test_unsound_options_are_refused(make):
    with pytest.raises(ValueError, match="'none', 'step' or 'sqrt', not 'all'"):
        make(_make_step(), _outer_loss, remat="all")
    with pytest.raises(ValueError, match="horizon is 0"):
        make(_make_step(), _outer_loss, horizon=0)
    with pytest.raises(ValueError, match="horizon is 0"):
        hg.truncated(_make_step(), _outer_loss, horizon=0)


@pytest.mark.parametrize(
    ("remat", "expected"),
    [
        ("none", []),  # every step is recorded together with its transpose
        ("step", [*range(10)]),  # the last one has a program of its own, with the outer loss
        ("sqrt", [*range(10), 6, 7, 3, 4, 0, 1]),
    ],
)
def test_host_loop_uses_the_step_it_is_given(remat, expected):
    calls = []
    step = _make_step()
    compiled = tiny.jit(hg.indexed(step))

    def counting(*args):
        calls.append(args[-1])
        return compiled(*args)

    _unrolled(step, "host", step=counting, remat=remat)(*_make_problem(num_steps=11))
    assert calls == expected


def test_two_steps_of_descent_with_all_matrices_written_out():
    theta, state, batches, outer_batch, keys = _make_problem("sgd", num_steps=2)
    rate, step = 0.3, _make_step(optimizer="sgd")
    params, unravel = jax.flatten_util.ravel_pytree(state["params"])
    outer, unravel_outer = jax.flatten_util.ravel_pytree(theta)

    def inner_gradient(s, a, k):
        noise = 0.1 * jax.random.normal(keys[k], (3,))
        data = {"x": batches["x"][k] + noise, "y": batches["y"][k]}
        return jax.grad(lambda s: _inner_loss(unravel(s), unravel_outer(a), data)[0])(s)

    def final_loss(s, a):
        return _outer_loss({"params": unravel(s)}, unravel_outer(a), outer_batch)[0]

    @tiny.jit
    def by_hand(params, outer):
        first = params - rate * inner_gradient(params, outer, 0)
        second = first - rate * inner_gradient(first, outer, 1)
        v, direct = jax.grad(final_loss, (0, 1))(second, outer)
        hessian = jax.jacfwd(inner_gradient)(first, outer, 1)
        cross = [jax.jacfwd(inner_gradient, 1)(s, outer, k) for k, s in enumerate((params, first))]
        return direct, -rate * (cross[1].T @ v + cross[0].T @ (v - rate * hessian @ v))

    direct, indirect = by_hand(params, outer)
    expected = np.asarray(direct) + np.asarray(indirect)
    estimate = _unrolled(step)
    found = jax.flatten_util.ravel_pytree(estimate(theta, state, batches, outer_batch, keys).grad)[
        0
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    assert np.linalg.norm(indirect) > 0.01 * np.linalg.norm(direct)


# --- A quadratic problem with a closed form ------------------------------------------------------


class _Quadratic:
    """L = 1/2 (S - C A - b)' H (S - C A - b),   V = 1/2 |S - t|^2 + 1/2 c |A|^2."""

    def __init__(self, curvatures, num_steps, rate=0.2):
        numbers = np.random.default_rng(1)
        size = len(curvatures)
        rotation = np.linalg.qr(numbers.standard_normal((size, size)))[0]
        self.hessian = rotation @ np.diag(curvatures) @ rotation.T
        self.coupling = numbers.standard_normal((size, 2))
        self.target, self.start = numbers.standard_normal((2, size))
        self.theta = numbers.standard_normal(2)
        self.shifts = numbers.standard_normal((num_steps, size))
        self.rate, self.direct, self.num_steps = rate, 0.7, num_steps

    def estimate(self, gradient=inner_gradient.mixed, loop="scan"):
        def loss(s, a, shift):
            rest = s - self.coupling @ a - shift
            return 0.5 * rest @ self.hessian @ rest, {}

        def step(s, a, shift, rng):
            del rng
            (_, _), g = gradient(loss)(s, a, shift)
            return s - self.rate * g, {}

        def outer(s, a, target):
            return 0.5 * ((s - target) ** 2).sum() + 0.5 * self.direct * (a**2).sum(), {}

        arrays = (self.theta, self.start, self.shifts, self.target, np.zeros(self.num_steps))
        make = host_loop.unrolled if loop == "host" else hg.unrolled
        return make(step, outer)(*map(jnp.asarray, arrays))

    def closed_form(self):
        """Loss, S_K and the hypergradient after K steps."""
        decay = np.eye(len(self.start)) - self.rate * self.hessian
        powers = [np.linalg.matrix_power(decay, k) for k in range(self.num_steps + 1)]
        s = powers[-1] @ self.start
        for k, shift in enumerate(self.shifts):
            minimum = self.coupling @ self.theta + shift
            s = s + powers[self.num_steps - 1 - k] @ (self.rate * self.hessian @ minimum)
        loss = 0.5 * np.sum((s - self.target) ** 2) + 0.5 * self.direct * np.sum(self.theta**2)
        response = (np.eye(len(s)) - powers[-1]) @ self.coupling  # dS_K / dA
        return loss, s, response.T @ (s - self.target) + self.direct * self.theta


@pytest.mark.parametrize("loop", ["scan", "host"])
@pytest.mark.parametrize(
    "gradient", inner_gradient.GRADIENTS.values(), ids=inner_gradient.GRADIENTS
)
def test_quadratic_problem_against_its_closed_form(gradient, loop):
    problem = _Quadratic((0.3, 1.0, 4.0), num_steps=5)
    result = problem.estimate(gradient, loop)
    loss, s, grad = problem.closed_form()
    assert result.loss == pytest.approx(loss, rel=1e-12)
    np.testing.assert_allclose(result.inner_state, s, rtol=1e-12)
    # A quadratic has a linear gradient, of which even finite differences are exact.
    np.testing.assert_allclose(result.grad, grad, rtol=1e-9)


def test_bias_of_a_short_horizon_decays_as_stated():
    curvature, rate = 0.5, 0.2

    def bias(num_steps):
        problem = _Quadratic((curvature,) * 3, num_steps, rate)
        problem.shifts[:] = 0.0
        problem.start = minimum = problem.coupling @ problem.theta
        converged = problem.coupling.T @ (minimum - problem.target) + problem.direct * problem.theta
        return np.linalg.norm(problem.estimate().grad - converged)

    assert bias(1) > 0.1
    assert bias(6) / bias(2) == pytest.approx((1 - rate * curvature) ** 4, rel=1e-9)


def test_example_of_the_module_docstring():
    loss = lambda S, A, batch: (0.5 * jnp.sum((S - A * batch) ** 2), {})  # noqa: E731
    gradient = inner_gradient.mixed(loss)

    def inner_step(S, A, batch, rng):
        (value, _), g = gradient(S, A, batch)
        return S - 0.1 * g, {"loss": value}

    def outer_loss(S, A, batch):
        return 0.5 * jnp.sum((S - batch) ** 2), {}

    result = hg.unrolled(inner_step, outer_loss)(
        jnp.float64(2.0), jnp.float64(1.0), jnp.array([3.0, 5.0]), jnp.float64(-1.0), jnp.zeros(2)
    )
    # S1 = 0.9 + 0.1 * 6 = 1.5; S2 = 0.9 * 1.5 + 0.1 * 10 = 2.35; dS2/dA = 0.9 * 0.3 + 0.5 = 0.77
    assert float(result.inner_state) == pytest.approx(2.35, rel=1e-14)
    assert float(result.loss) == pytest.approx(0.5 * 3.35**2, rel=1e-14)
    assert float(result.grad) == pytest.approx(3.35 * 0.77, rel=1e-14)
    assert float(result.metrics["loss"]) == pytest.approx(0.5 * (1.5 - 10.0) ** 2, rel=1e-14)


# --- The ways of differentiating an inner gradient -----------------------------------------------


@pytest.mark.parametrize("name", inner_gradient.GRADIENTS)
def test_differentiable_gradient_is_the_gradient(name):
    theta, state, batches, _, _ = _make_problem()
    data = jax.tree.map(lambda x: x[0], batches)
    (value, aux), grads = inner_gradient.GRADIENTS[name](_inner_loss)(state["params"], theta, data)
    expected = jax.grad(lambda p: _inner_loss(p, theta, data)[0])(state["params"])
    assert tiny.distance(grads, expected) < 1e-14
    assert value == _inner_loss(state["params"], theta, data)[0]
    assert aux["inner/size"] == _inner_loss(state["params"], theta, data)[1]["inner/size"]


@pytest.mark.parametrize("name", ["mixed", "finite_difference"])
def test_pullback_of_value_and_gradient_together(name):
    theta, state, batches, _, _ = _make_problem()
    data = jax.tree.map(lambda x: x[0], batches)
    w = tiny.random_direction(state["params"], 0)

    def scalar(gradient, params, outer):
        (value, _), grads = gradient(_inner_loss)(params, outer, data)
        return 3.0 * value + sum(jax.tree.leaves(jax.tree.map(jnp.vdot, grads, w)))

    small_radius = functools.partial(inner_gradient.finite_difference, radius=1e-4)
    gradient = inner_gradient.mixed if name == "mixed" else small_radius
    found, expected = (
        tiny.jit(jax.grad(functools.partial(scalar, g), (0, 1)))(state["params"], theta)
        for g in (gradient, inner_gradient.reverse)
    )
    assert tiny.distance(found, expected) < {"mixed": 1e-13, "finite_difference": 1e-7}[name]


def test_finite_difference_error_falls_with_the_square_of_the_radius():
    exact = _estimate(optimizer="sgd")[1].grad
    errors = []
    for radius in (1e-1, 1e-2, 1e-3):
        step = _make_step(functools.partial(inner_gradient.finite_difference, radius=radius), "sgd")
        result = _unrolled(step)(*_make_problem("sgd"))
        errors.append(tiny.distance(result.grad, exact))
    assert 1e-6 < errors[0] < 0.5
    for larger, smaller in zip(errors[:-1], errors[1:], strict=True):
        assert larger / smaller == pytest.approx(100, rel=0.1)


def test_finite_difference_with_one_step_is_darts():
    rate, radius = 0.3, 1e-2
    theta, state, batches, outer_batch, keys = _make_problem("sgd", num_steps=1)
    noise = 0.1 * jax.random.normal(keys[0], (3,))
    data = {"x": batches["x"][0] + noise, "y": batches["y"][0]}

    gradients = tiny.jit(jax.grad(lambda p, a: _inner_loss(p, a, data)[0], (0, 1)))
    stepped = tiny.along(state["params"], gradients(state["params"], theta)[0], -rate)
    v, direct = jax.grad(
        lambda p, a: _outer_loss({"params": p}, a, outer_batch)[0], argnums=(0, 1)
    )(stepped, theta)
    epsilon = radius / tiny.norm(v)
    plus, minus = (
        gradients(tiny.along(state["params"], v, sign * epsilon), theta)[1] for sign in (1, -1)
    )
    expected = jax.tree.map(lambda d, p, m: d - rate * (p - m) / (2 * epsilon), direct, plus, minus)
    step = _make_step(functools.partial(inner_gradient.finite_difference, radius=radius), "sgd")
    estimate = _unrolled(step)
    result = estimate(theta, state, batches, outer_batch, keys)
    assert tiny.distance(result.grad, expected) < 1e-11


def test_reverse_can_be_pushed_forward():
    """Forward mode through two steps: what `mixed` bars, as it has a derivative rule of its own."""
    theta, state, batches, outer_batch, keys = _make_problem("sgd", num_steps=2)

    def loss(gradient, theta):
        step, trained = _make_step(gradient, "sgd"), state
        for k in range(2):
            trained, _ = step(trained, theta, jax.tree.map(lambda x, k=k: x[k], batches), keys[k])
        return _outer_loss(trained, theta, outer_batch)[0]

    direction = tiny.random_direction(theta, 0)
    forward = functools.partial(loss, inner_gradient.reverse)
    _, tangent = tiny.jit(lambda a, d: jax.jvp(forward, (a,), (d,)))(theta, direction)
    result = _unrolled(_make_step(optimizer="sgd"))(theta, state, batches, outer_batch, keys)
    assert float(tangent) == pytest.approx(tiny.dot(result.grad, direction), rel=1e-12)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(functools.partial(loss, inner_gradient.mixed), (theta,), (direction,))


def test_finite_difference_of_nothing_is_zero():
    """At the optimum of the validation loss the displacement has no direction."""
    problem = _Quadratic((0.3, 1.0, 4.0), num_steps=1)
    problem.target, problem.direct = problem.closed_form()[1], 0.0
    grad = problem.estimate(functools.partial(inner_gradient.finite_difference, radius=1e-2)).grad
    np.testing.assert_allclose(grad, 0.0, atol=1e-12)
    params, zero = jnp.ones(3), jnp.zeros(3)
    gradient = inner_gradient.finite_difference(lambda p, a, _: ((p * a).sum() ** 2, {}))
    _, pull = jax.vjp(lambda p, a: gradient(p, a, None)[1], params, params)
    for cotangent in pull(zero):
        np.testing.assert_array_equal(cotangent, 0.0)


# --- Several devices, simulated by a mapped axis -------------------------------------------------


@pytest.mark.parametrize("loop", ["scan", "host"])
@pytest.mark.parametrize("name", EVERY)
def test_two_shards_of_every_batch_equal_one_device(name, loop):
    theta, state, batches, outer_batch, keys = _make_problem()

    def shard(tree, axis):
        return jax.tree.map(lambda x: np.stack(np.split(np.asarray(x), 2, axis)), tree)

    def compile_mapped(function, batched_args=(), batched_results=()):
        def mapped(*args):
            axes = [0 if i in batched_args else None for i in range(len(args))]
            size = dict(axis_size=2) if not batched_args else {}
            out = tuple(0 if i in batched_results else None for i in range(3))
            out = out if batched_results else None
            return jax.vmap(function, axes, out, axis_name="devices", **size)(*args)

        return tiny.jit(mapped)

    def step_with_averaged_metrics(state, theta, batch, rng):
        gradient = GRADIENT.get(name, inner_gradient.mixed)
        state, metrics = _make_step(gradient, axis_name="devices")(state, theta, batch, rng)
        return state, jax.lax.pmean(metrics, "devices")

    estimate = _every(name, "devices", compile_mapped, loop, step_with_averaged_metrics)
    result = estimate(theta, state, shard(batches, 1), shard(outer_batch, 0), keys)
    expected = _result(name)
    assert tiny.distance(result.grad, expected.grad) < 1e-12
    assert tiny.distance(result.inner_state["params"], expected.inner_state["params"]) < 1e-12
    assert result.loss == pytest.approx(float(expected.loss), rel=1e-12)
    for key, value in result.metrics.items():
        assert value == pytest.approx(float(expected.metrics[key]), rel=1e-12)
