"""R: what it looks at, and how far the ratings reach theta, against central differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from fewshotseg import hypergradient
from fewshotseg.genseg import adapt, pair_sources, reward
from fewshotseg.hypergradient import host_loop


@pytest.fixture(autouse=True, scope="module")
def _float64():
    with tiny.float64():
        yield


def random_pixels(num_channels, seed=0):
    size = 4 * num_channels
    size += size * (size + 1) // 2
    numbers = np.random.default_rng(seed)
    return reward.Pixels(
        jnp.asarray(0.1 * numbers.normal(size=size)),
        jnp.asarray(numbers.uniform(0.5, 2, size)),
        jnp.asarray(numbers.normal(size=size)),
        jnp.asarray(-0.5),
    )


def random_reward(num_axes=2, num_channels=tiny.CHANNELS, seed=0, slope=1.5):
    num_features = 6 * num_channels + 12 + num_axes
    numbers = np.random.default_rng(seed)
    return reward.Reward(
        pixels=random_pixels(num_channels, seed),
        center=jnp.asarray(numbers.normal(size=num_features)),
        scale=jnp.asarray(numbers.uniform(0.5, 2, num_features)),
        weights=jnp.asarray(0.3 * numbers.normal(size=2 * num_features)),
        bias=jnp.asarray(0.2),
        slope=jnp.asarray(slope),
        offset=jnp.asarray(-0.3),
        members=jnp.asarray(0.3 * numbers.normal(size=(5, 2 * num_features + 1))),
    )


SOURCES = ("generator", "copy_paste")


@functools.cache
def _problem(beta=0.7, num_sources=2):
    """The toy method with the term, and an outer batch that has what pairs are made of."""
    method = tiny.make_toy_method(
        optimizer="adam", learning_rate=0.1, sources=SOURCES[:num_sources]
    )
    term = reward.term(method.sources, method.use)
    method = method._replace(terms=(*method.terms, (1.0, term)))
    theta, inner, batches, outer, keys = tiny.make_toy_problem(method, num_steps=2)
    if num_sources > 1:
        theta = {**theta, "mixture": np.array([0.3, -0.2])}
    numbers = np.random.default_rng(5)
    more = tiny.make_batch(numbers, (2, 2), 4), tiny.make_batch(numbers, (4,), 4)
    names = {"synthetic": "synthetic_image", "donor": "donor_image"}

    def with_pairs(batch, other):
        found = {**batch, names["synthetic"]: other["image"], names["donor"]: other["image"][::-1]}
        found |= {"donor_mask": other["mask"], "donor_case": other["synthetic_case"]}
        return found | {"synthetic_mask": other["synthetic_mask"]}

    batches = with_pairs(batches, more[0]) | {"synthetic_case": batches["synthetic_case"]}
    outer = with_pairs(outer, more[1]) | {
        "synthetic_case": more[1]["synthetic_case"],
        "synthetic_key": more[1]["key"],
        "reward": random_reward(),
        "beta": jnp.asarray(beta),
    }
    return method, theta, inner, batches, outer, keys


def _loss(method, inner, batches, outer, keys):
    step, judge = tiny.jit(method.inner_step()), tiny.jit(method.outer_loss())

    def loss(theta):
        state = inner
        for k in range(len(keys)):
            state, _ = step(state, theta, jax.tree.map(lambda x, k=k: x[k], batches), keys[k])
        return judge(state, theta, outer)[0]

    return loss


@pytest.mark.parametrize("num_sources, loop", [(1, "scan"), (2, "host")])
def test_ratings_reach_theta_through_the_hypergradient(num_sources, loop):
    method, theta, *problem = _problem(num_sources=num_sources)
    pieces = method.inner_step(), method.outer_loss()
    if loop == "host":
        estimate = host_loop.unrolled(*pieces, compile=tiny.jit)
    else:
        estimate = tiny.jit(hypergradient.unrolled(*pieces))
    result = estimate(theta, *problem)
    loss = _loss(method, *problem)
    for seed in range(3):
        direction = tiny.random_direction(theta, seed)
        expected = tiny.derivative(loss, theta, direction, step=1e-4)
        assert tiny.dot(result.grad, direction) == pytest.approx(expected, rel=1e-6, abs=1e-11)
    # and it is another hypergradient than that of the validation loss alone
    silent = method._replace(terms=method.terms[:1])
    alone = tiny.jit(hypergradient.unrolled(silent.inner_step(), silent.outer_loss()))
    other = alone(theta, *problem).grad
    assert tiny.distance(result.grad, other) > 0.05
    assert "outer/rejected" in result.metrics and 0 < result.metrics["outer/rejected"] < 1


def test_a_source_whose_pairs_are_refused_loses_its_share():
    """The term alone, at given images: its derivative by the mixture is that of the weighted mean."""
    method, theta, inner, _, outer, _ = _problem()
    ((_, term),) = method.terms[1:]
    keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(outer["synthetic_key"])
    pairs = pair_sources.make_pairs(method.sources, inner, theta, outer, keys)
    images = adapt.recolour(pairs.images, method.use(theta))
    accepted = reward.accept_probability(random_reward(), images, pairs.masks)
    of_source = np.array([accepted[0::2].mean(), accepted[1::2].mean()])
    share = np.asarray(method.use(theta)["mixture"])
    value, _ = term(inner, theta, outer)
    assert float(value) == pytest.approx(0.7 * (1 - share @ of_source), rel=1e-12)
    gradient = jax.grad(lambda t: term(inner, t, outer)[0])(theta)["mixture"]
    assert np.sign(gradient[0] - gradient[1]) == np.sign(of_source[1] - of_source[0])


def disc(size=32, radius=8, centre=(16, 16)):
    row, column = np.indices((size, size))
    return ((row - centre[0]) ** 2 + (column - centre[1]) ** 2 < radius**2).astype(np.uint8)


def test_features_by_hand():
    """A bright disc on a dark ground, whose label is right, moved, or has been given a twin."""
    mask = disc()
    image = np.where(mask, 0.5, -0.5)[..., None] + np.zeros((32, 32, 3))
    image = image * np.array([1.0, 0.5, 0.0])
    moved = disc(centre=(16, 22))
    twin = np.maximum(disc(radius=5, centre=(8, 8)), disc(radius=5, centre=(24, 24)))
    found = np.asarray(
        reward.features(
            random_pixels(3), jnp.asarray([image] * 3), jnp.asarray([mask, moved, twin])
        )
    )
    assert found.shape == (3, 6 * 3 + 12 + 2)
    share = mask.mean()
    area = mask.sum() / (mask.sum() + 1e-3 * mask.size)
    np.testing.assert_allclose(found[0, :3], area * np.array([0.5, 0.25, 0]), rtol=1e-6)
    inside, false, dice = found[:, 18], found[:, 19], found[:, 20]
    assert inside[0] > 0.95 and false[0] < 0.05 and dice[0] > 0.95
    assert dice[1] < 0.75 and dice[1] < dice[0]
    np.testing.assert_allclose(found[0, 28], np.log(share + 1e-3), rtol=1e-6)
    # a disc of radius r in pixels of 2/31: mean square distance from the centre r^2 / 2
    extent = 0.5 * (8 * 2 / 31) ** 2
    assert found[0, 29] == pytest.approx(np.log(extent + 1e-3) - np.log(share + 1e-3), abs=0.05)
    assert found[2, 29] > found[0, 29] + 1
    np.testing.assert_allclose(found[1, 30:], [1 / 31, 13 / 31], atol=0.01)


@pytest.mark.parametrize("mask", [np.zeros((8, 8)), np.ones((8, 8))])
def test_no_foreground_or_nothing_else_is_finite_with_its_derivative(mask):
    image = jnp.zeros((1, 8, 8, 2))
    mask = jnp.asarray(mask, jnp.uint8)[None]
    found = random_reward(num_channels=2)
    value, gradient = jax.value_and_grad(lambda x: reward.accept_probability(found, x, mask).sum())(
        image
    )
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_the_derivative_by_the_image_against_central_differences():
    numbers = np.random.default_rng(2)
    images = jnp.asarray(numbers.uniform(-1, 1, (2, 6, 7, 5, 1)))  # a volume
    masks = jnp.asarray(numbers.random((2, 6, 7, 5)) < 0.4, jnp.uint8)
    found = random_reward(3, 1, seed=3)

    def total(x):
        return reward.accept_probability(found, x, masks).sum()

    gradient = jax.grad(total)(images)
    direction = numbers.normal(size=images.shape)
    expected = tiny.derivative(total, images, direction, step=1e-4)
    assert float((gradient * direction).sum()) == pytest.approx(expected, rel=1e-7)


def test_a_slope_of_0_says_nothing():
    numbers = np.random.default_rng(2)
    images = jnp.asarray(numbers.uniform(-1, 1, (3, 8, 8, 1)))
    masks = jnp.asarray(numbers.random((3, 8, 8)) < 0.4, jnp.uint8)
    silent = random_reward(slope=0.0)
    np.testing.assert_allclose(
        reward.accept_probability(silent, images, masks), 1 / (1 + np.exp(0.3)), rtol=1e-12
    )
