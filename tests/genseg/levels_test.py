"""The three levels: the whole chain of real networks, and what each step does and does not move."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from fewshotseg import hypergradient
from fewshotseg.genseg import levels, segmenter
from fewshotseg.hypergradient import host_loop, inner_gradient

RATES = {"sgd": 0.3, "adam": 1e-2}
TOY_RATES = {"sgd": 2.0, "adam": 0.1}
STEPS = {"sgd": 3e-4, "adam": 1e-5}  # of finite differences: Adam bends where gradients are small


@pytest.fixture(autouse=True, scope="module")
def _float64():
    with tiny.float64():
        yield


class _Chain:
    """A method, a problem, and its steps, compiled once."""

    def __init__(self, method, problem):
        self.method = method
        self.theta, self.inner, self.batches, self.outer_batch, self.keys = problem
        generator = tuple(method.family.players)
        self.gan_step = tiny.jit(method.inner_step(moving=generator))
        self.segmenter_step = tiny.jit(method.inner_step(moving=("segmenter",)))
        self.outer_loss = tiny.jit(method.outer_loss())

    def batch(self, k=0):
        return jax.tree.map(lambda x: x[k], self.batches), self.keys[k]

    def step(self, state, theta, batch, rng, drawing=None):
        """One inner step; the segmenter may see another theta than the generator's training."""
        state, gan_metrics = self.gan_step(state, theta, batch, rng)
        state, metrics = self.segmenter_step(state, drawing or theta, batch, rng)
        return state, {**gan_metrics, **metrics}

    def validation_loss(self, theta, drawing=None):
        """V after all steps."""
        state = self.inner
        for k in range(self.keys.shape[0]):
            state, _ = self.step(state, theta, *self.batch(k), drawing)
        return self.outer_loss(state, theta, self.outer_batch)[0]

    def estimate(self, loop, remat="step", horizon=None, **inner_step_options):
        def step(state, theta, batches, rngs, k):
            return self.step(state, theta, jax.tree.map(lambda x: x[k], batches), rngs[k])

        pieces = self.method.inner_step(**inner_step_options), self.method.outer_loss()
        options = dict(remat=remat, horizon=horizon)
        if loop == "host":
            estimate = host_loop.unrolled(*pieces, compile=tiny.jit, step=step, **options)
        else:
            estimate = tiny.jit(hypergradient.unrolled(*pieces, **options))
        return estimate(self.theta, self.inner, self.batches, self.outer_batch, self.keys)


@functools.cache
def _real(optimizer):
    method = tiny.make_method(optimizer=optimizer, learning_rate=RATES[optimizer])
    return _Chain(method, tiny.make_problem(method, num_steps=2))


@functools.cache
def _toy(optimizer="adam", num_steps=2, **overrides):
    rate = TOY_RATES[optimizer]
    method = tiny.make_toy_method(optimizer=optimizer, learning_rate=rate, **overrides)
    return _Chain(method, tiny.make_toy_problem(method, num_steps))


# --- d(validation loss) / d(architecture) ----------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "through_generator", "loop"),
    [
        ("adam", True, "host"),
        ("adam", False, "scan"),
        ("sgd", True, "scan"),
    ],
)
def test_whole_chain_of_real_networks_against_central_differences(
    optimizer, through_generator, loop
):
    chain = _real(optimizer)
    result = chain.estimate(loop, through_generator=through_generator)
    assert result.loss == pytest.approx(float(chain.validation_loss(chain.theta)), rel=1e-12)
    for side in ("encoder", "decoder"):
        assert np.abs(result.grad["architecture"][side]).min() > 1e-9
    # Without the path through its training, the generator is trained with the old architecture.
    trained_with = None if through_generator else chain.theta

    def loss(theta):
        return chain.validation_loss(trained_with or theta, drawing=theta)

    for seed in range(2):
        direction = tiny.random_direction(chain.theta, seed)
        expected = tiny.derivative(loss, chain.theta, direction, step=STEPS[optimizer])
        assert tiny.dot(result.grad, direction) == pytest.approx(expected, rel=1e-6)


def test_last_step_of_real_networks_against_central_differences():
    chain = _real("adam")
    result = chain.estimate("host", horizon=1)
    first, _ = chain.step(chain.inner, chain.theta, *chain.batch(0))

    def loss(theta):
        state, _ = chain.step(first, theta, *chain.batch(1))
        return chain.outer_loss(state, theta, chain.outer_batch)[0]

    direction = tiny.random_direction(chain.theta, 0)
    expected = tiny.derivative(loss, chain.theta, direction, step=STEPS["adam"])
    assert tiny.dot(result.grad, direction) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("loop", "through_generator"), [("scan", False), ("host", True)])
def test_without_synthetic_images_the_architecture_does_not_matter(loop, through_generator):
    chain = _toy(synthetic_weight=0.0)
    grad = chain.estimate(loop, through_generator=through_generator).grad
    for leaf in jax.tree.leaves(grad):
        np.testing.assert_array_equal(leaf, 0.0)


@functools.cache
def _toy_estimate(loop="scan", gradient="mixed", remat="step", **options):
    chain = _toy(num_steps=3, gradient=inner_gradient.GRADIENTS[gradient])
    return chain, chain.estimate(loop, remat, **options)


@pytest.mark.parametrize(
    "variant", [{"gradient": "reverse"}, {"loop": "host"}, {"remat": "none"}], ids=str
)
def test_every_way_of_computing_it_gives_the_same(variant):
    _, reference = _toy_estimate()
    _, result = _toy_estimate(**variant)
    assert tiny.distance(result.grad, reference.grad) < 1e-10
    assert tiny.distance(result.inner_state, reference.inner_state) < 1e-10
    assert result.metrics.keys() == reference.metrics.keys()
    for name, value in result.metrics.items():
        assert value == pytest.approx(float(reference.metrics[name]), rel=1e-10)


@pytest.mark.parametrize("through_generator", [True, False])
def test_three_steps_of_toy_networks_against_central_differences(through_generator):
    chain, result = _toy_estimate(through_generator=through_generator)
    trained_with = None if through_generator else chain.theta
    for seed in range(3):
        direction = tiny.random_direction(chain.theta, seed)
        expected = tiny.derivative(
            lambda a: chain.validation_loss(trained_with or a, drawing=a),
            chain.theta,
            direction,
            3e-4,
        )
        assert tiny.dot(result.grad, direction) == pytest.approx(expected, rel=1e-6)


def test_both_paths_count():
    _, both = _toy_estimate()
    _, direct = _toy_estimate(through_generator=False)
    assert tiny.distance(both.grad, direct.grad) > 0.01
    assert tiny.distance(both.inner_state, direct.inner_state) < 1e-12  # training is the same


def test_one_step_of_descent_is_the_formula():
    """u, v and the discriminator's w written out, with losses of their own."""
    chain = _toy("sgd", num_steps=1, synthetic_weight=0.75)
    batch, _ = chain.batch()
    rate, weight, l1_weight = TOY_RATES["sgd"], 0.75, 1.0
    keys = [jax.vmap(lambda k, n=n: jax.random.fold_in(k, n))(batch["key"]) for n in range(4)]
    masks, synthetic_masks = (
        batch[name].astype(float)[..., None] for name in ("mask", "synthetic_mask")
    )
    jitter = chain.method.jitter

    def mixing(a):
        return jax.tree.map(lambda x: jnp.exp(x) / jnp.exp(x).sum(-1, keepdims=True), a)

    def segmentation(s, images, masks):
        logits = tiny.toy_segment(s, images)
        p = jax.nn.sigmoid(logits)
        both, total = (p * masks).sum((1, 2, 3)), (p + masks).sum((1, 2, 3))
        cross_entropy = -jnp.log(jnp.where(masks == 1, p, 1 - p)).mean((1, 2, 3))
        return (cross_entropy + 1 - (2 * both + 1) / (total + 1)).mean()

    def loss_s(s, g, a):
        drawn = jitter(tiny.toy_generate(g, synthetic_masks, mixing(a), keys[1]), keys[2])
        real = segmentation(s, jitter(batch["image"], keys[3]), masks)
        synthetic = segmentation(s, drawn, synthetic_masks)
        return (real + weight * synthetic) / (1 + weight)

    def loss_h(h, g, a):
        real = tiny.toy_discriminate(h, masks, batch["image"])
        fake = tiny.toy_discriminate(h, masks, tiny.toy_generate(g, masks, mixing(a), keys[0]))
        return -0.5 * (jnp.log(jax.nn.sigmoid(real)) + jnp.log(1 - jax.nn.sigmoid(fake))).mean()

    def loss_g(g, a, h):
        drawn = tiny.toy_generate(g, masks, mixing(a), keys[0])
        fooled = -jnp.log(jax.nn.sigmoid(tiny.toy_discriminate(h, masks, drawn))).mean()
        return fooled + l1_weight * jnp.abs(drawn - batch["image"]).mean()

    def loss_v(s):
        return segmentation(s, chain.outer_batch["image"], chain.outer_batch["mask"][..., None])

    def descend(tree, grads):
        return jax.tree.map(lambda x, g: x - rate * g, tree, grads)

    def product(a, b):
        return sum(jnp.vdot(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))

    @tiny.jit
    def by_hand(a, s, g, h):
        h1 = descend(h, jax.grad(loss_h)(h, g, a))
        g1 = descend(g, jax.grad(loss_g)(g, a, h1))
        s1 = descend(s, jax.grad(loss_s)(s, g1, a))
        v = jax.grad(loss_v)(s1)
        u, direct = jax.grad(
            lambda g, a: -rate * product(jax.grad(loss_s)(s, g, a), v), argnums=(0, 1)
        )(g1, a)
        w, by_g = jax.grad(
            lambda h, a: -rate * product(jax.grad(loss_g)(g, a, h), u), argnums=(0, 1)
        )(h1, a)
        by_h = jax.grad(lambda a: -rate * product(jax.grad(loss_h)(h, g, a), w))(a)
        losses = loss_h(h, g, a), loss_g(g, a, h1), loss_s(s, g1, a), loss_v(s1)
        return (h1, g1, s1), losses, (direct, by_g, by_h)

    start = {name: player.params for name, player in chain.inner.items()}
    players, losses, (direct, by_g, by_h) = by_hand(
        chain.theta["architecture"], start["segmenter"], start["generator"], start["discriminator"]
    )
    result = chain.estimate("scan")
    final = result.inner_state
    found = [final[name].params for name in ("discriminator", "generator", "segmenter")]
    for player, expected in zip(found, players, strict=True):
        assert tiny.distance(player, expected) < 1e-12
    names = "discriminator/loss", "generator/loss", "segmenter/loss", "outer/loss"
    for name, loss in zip(names, losses, strict=True):
        assert result.metrics[name] == pytest.approx(float(loss), rel=1e-12)
    total = tiny.along(tiny.along(direct, by_g, 1.0), by_h, 1.0)
    assert tiny.distance(result.grad["architecture"], total) < 1e-10
    without = chain.estimate("scan", through_generator=False)
    assert tiny.distance(without.grad["architecture"], direct) < 1e-10
    for part in (by_g, by_h):
        assert tiny.norm(part) > 1e-4 * tiny.norm(direct)


def test_weight_of_the_synthetic_loss_as_outer_variable():
    chain = _toy(synthetic_weight=0.6)
    weight = lambda theta: chain.method.use(theta)["synthetic_weight"]  # noqa: E731
    assert weight(chain.theta) == pytest.approx(0.6)
    start = {**chain.theta, "synthetic_weight": jnp.float64(0.0)}
    assert weight(start) == pytest.approx(0.6)
    for value, limit in ((60.0, 1.2), (-60.0, 0.0)):
        assert weight({"synthetic_weight": jnp.float64(value)}) == pytest.approx(limit, abs=1e-12)
    assert chain.validation_loss(start) == pytest.approx(
        float(chain.validation_loss(chain.theta)), rel=1e-6
    )
    variant = _Chain(
        chain.method, (start, chain.inner, chain.batches, chain.outer_batch, chain.keys)
    )
    grad = variant.estimate("scan").grad
    direction = jax.tree.map(np.zeros_like, start) | {"synthetic_weight": np.float64(1.0)}
    expected = tiny.derivative(variant.validation_loss, start, direction, step=3e-4)
    assert abs(expected) > 1e-6
    assert grad["synthetic_weight"] == pytest.approx(expected, rel=1e-6)


# --- What a step moves -----------------------------------------------------------------------------


def _moved(before, after):
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    return any(not np.array_equal(x, y) for x, y in pairs)


def test_players_move_in_turn_each_seeing_what_those_before_it_have_become():
    chain = _toy()
    batch, rng = chain.batch()
    state, metrics = tiny.jit(chain.method.inner_step())(chain.inner, chain.theta, batch, rng)
    expected, expected_metrics = chain.step(chain.inner, chain.theta, batch, rng)
    assert tiny.distance(state, expected) < 1e-13
    assert metrics.keys() == expected_metrics.keys()
    for name in ("discriminator", "generator", "segmenter"):
        assert _moved(chain.inner[name].params, state[name].params)
        assert _moved(chain.inner[name].opt, state[name].opt)
        assert state[name].steps == 1
    assert _moved(chain.inner["segmenter"].average, state["segmenter"].average)
    # Another order is another step: the segmenter would still see the old generator.
    turned = tiny.jit(chain.method.inner_step(moving=("segmenter", "discriminator", "generator")))
    other, _ = turned(chain.inner, chain.theta, batch, rng)
    assert tiny.distance(other["generator"].params, state["generator"].params) < 1e-13
    assert tiny.distance(other["segmenter"].params, state["segmenter"].params) > 1e-8


def test_only_the_segmenter_moves_when_the_generator_is_not_trained():
    chain = _toy()
    batch, rng = chain.batch()
    step = tiny.jit(chain.method.inner_step(trains_generator=False))
    state, metrics = step(chain.inner, chain.theta, batch, rng)
    for name in ("discriminator", "generator"):
        assert not _moved(chain.inner[name], state[name])
    assert _moved(chain.inner["segmenter"], state["segmenter"])
    assert metrics.keys() == {
        "segmenter/loss", "segmenter/real_loss", "segmenter/synthetic_loss"
    }  # fmt: skip


def test_training_on_real_images_needs_no_generator():
    chain = _toy(draws=False)
    batch, rng = chain.batch()
    alone = {"segmenter": chain.inner["segmenter"]}
    del batch["synthetic_mask"]
    step = tiny.jit(chain.method.inner_step(trains_generator=False))
    state, metrics = step(alone, {}, batch, rng)
    assert state.keys() == {"segmenter"}
    assert metrics.keys() == {"segmenter/loss", "segmenter/real_loss"}
    assert metrics["segmenter/loss"] == metrics["segmenter/real_loss"]
    assert _moved(alone["segmenter"], state["segmenter"])


@pytest.mark.parametrize("player", ["generator", "discriminator", "segmenter"])
def test_loss_of_every_player_falls_on_one_batch(player):
    chain = _real("adam")
    batch, rng = chain.batch()
    state, losses = chain.inner, []
    for _ in range(30):
        step = chain.segmenter_step if player == "segmenter" else chain.gan_step
        moved, metrics = step(state, chain.theta, batch, rng)
        state = {**state, player: moved[player]}  # the opponent stays as it is
        losses.append(float(metrics[f"{player}/loss"]))
    assert losses[-1] < 0.9 * losses[0]
    assert losses[-1] < np.mean(losses[10:20]) < np.mean(losses[:10])


def test_all_randomness_comes_from_the_keys_of_the_examples():
    chain = _toy()
    batch, rng = chain.batch()
    first, _ = chain.step(chain.inner, chain.theta, batch, rng)
    again, _ = chain.step(chain.inner, chain.theta, batch, jax.random.key(99))
    assert not _moved(first, again)
    other = {**batch, "key": jax.random.split(jax.random.key(5), 2)}
    third, _ = chain.step(chain.inner, chain.theta, other, rng)
    for name in ("generator", "segmenter"):
        assert _moved(first[name].params, third[name].params)


def test_no_key_is_used_twice():
    """The GAN's noise, the synthetic images', both jitters and both dropouts have keys of their own."""
    batch, rng = _toy().batch()
    used = []

    def record(position):
        def call(*args):
            used.append(np.asarray(jax.random.key_data(args[position])))
            return networks[position](*args)

        return call

    networks = {3: tiny.toy_generate, 1: tiny.toy_jitter, 2: tiny.toy_segment}
    spied = {**tiny.TOYS, "generator": record(3), "segmenter": record(2)}
    method = tiny.make_toy_method(networks=spied, jitter=record(1), gradient=inner_gradient.reverse)
    chain = _toy()
    with jax.disable_jit():
        method.inner_step(moving=("discriminator",))(chain.inner, chain.theta, batch, rng)
        method.inner_step(moving=("segmenter",))(chain.inner, chain.theta, batch, rng)
    assert [len(keys) for keys in used] == [2, 2, 2, 2, 4]
    keys = np.concatenate([*used, jax.random.key_data(batch["key"])])
    assert len(np.unique(keys, axis=0)) == len(keys)


def test_average_of_the_segmenters_weights_holds_nothing_of_the_first_weights():
    chain = _toy(average_decay=0.75)
    batch, rng = chain.batch()
    state, weights = chain.inner, []
    for _ in range(3):
        state, _ = chain.step(state, chain.theta, batch, rng)
        weights.append(state["segmenter"].params)
    shares = np.array([0.75**2, 0.75, 1.0]) / (0.75**2 + 0.75 + 1.0)
    expected = jax.tree.map(lambda *w: sum(s * x for s, x in zip(shares, w, strict=True)), *weights)
    assert tiny.distance(state["segmenter"].average, expected) < 1e-12
    assert tiny.distance(state["segmenter"].average, state["segmenter"].params) > 1e-3
    assert state["generator"].average is None


def test_synthetic_images_are_drawn_from_their_own_masks():
    chain = _toy()
    batch, _ = chain.batch()
    method = chain.method

    def draw(batch):
        return segmenter.synthesize(
            method.sources, method.jitter, method.use, chain.inner, chain.theta, batch
        ).images

    images = draw(batch)
    assert images.shape == (2, 4, 4, 1)
    other_pairs = {**batch, "mask": 1 - batch["mask"], "image": -batch["image"]}
    np.testing.assert_array_equal(draw(other_pairs), images)
    other_masks = {**batch, "synthetic_mask": 1 - batch["synthetic_mask"]}
    assert _moved(draw(other_masks), images)


def test_validation_loss_leaves_padding_out():
    chain = _toy()
    weight = jnp.array([1.0, 1.0, 0.0, 1.0])
    batch = {**chain.outer_batch, "weight": weight}
    loss, metrics = chain.outer_loss(chain.inner, chain.theta, batch)
    each = []
    for i in (0, 1, 3):
        one = {k: v[i : i + 1] for k, v in chain.outer_batch.items()}
        each.append(float(chain.outer_loss(chain.inner, chain.theta, one)[0]))
    assert loss == metrics["outer/loss"] == pytest.approx(np.mean(each), rel=1e-12)
    other = {**batch, "image": batch["image"].at[2].set(7.0), "mask": batch["mask"].at[2].set(0)}
    assert chain.outer_loss(chain.inner, chain.theta, other)[0] == loss
    averaged = {"segmenter": chain.inner["segmenter"].replace(average=None)}
    assert chain.outer_loss(averaged, chain.theta, batch)[0] == pytest.approx(float(loss))


def test_terms_of_the_outer_loss_are_weighted_and_summed():
    chain = _toy()
    params = chain.inner["segmenter"].params

    def size(state, theta, batch):
        value = sum((x**2).sum() for x in jax.tree.leaves(state["segmenter"].params))
        return value, {"outer/size": value}

    terms = (*chain.method.terms, (0.25, size))
    args = (chain.inner, chain.theta, chain.outer_batch)
    alone, _ = levels.outer_loss(*args, terms=chain.method.terms)
    both, metrics = levels.outer_loss(*args, terms=terms)
    expected = float(alone) + 0.25 * tiny.norm(params) ** 2
    assert both == metrics["outer/loss"] == pytest.approx(expected, rel=1e-12)
    assert metrics["outer/validation_loss"] == pytest.approx(float(alone), rel=1e-12)


@pytest.mark.parametrize(
    ("player", "network", "moving"),
    [
        ("segmenter", lambda p, images, keys=None: images[:, ::2] @ p["out"][:1], "segmenter"),
        ("generator", lambda p, masks, mixing, keys: masks[:, ::2] * p["bias"].sum(), "generator"),
    ],
)
def test_a_network_of_the_wrong_output_size_is_named_before_anything_is_compiled(
    player, network, moving
):
    """Broadcasting would train on nonsense without a word."""
    method = tiny.make_toy_method(networks={**tiny.TOYS, player: network})
    batch, rng = _toy().batch()
    with pytest.raises(AssertionError, match="shape"):
        jax.eval_shape(method.inner_step(moving=(moving,)), _toy().inner, _toy().theta, batch, rng)
