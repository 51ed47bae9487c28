"""Every generator family, whole: its hypergradient, its losses, its draws, and its formulas by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from fewshotseg import hypergradient
from fewshotseg.genseg import diff_augment, diffusion, gan, vae, wgan
from fewshotseg.models import factory, generators

CONVOLUTIONS = {"width": 2, "max_width": 4, "num_levels": 1, "groups": 1, "latent_size": 3}
UNET = {"width": 2, "num_levels": 1, "groups": 1, "activation": "silu", "pool": "avg"}
PATCHES = {"width": 2, "num_levels": 1, "groups": 1}
PIX2PIX = {"num_levels": 2, "width": 2, "max_width": 4, "groups": 1}
RESIDUAL = {"width": 2, "multipliers": (1, 2), "groups": 1}
ENCODER = (generators.create_encoder, "convolutions", CONVOLUTIONS)
DECODER = (generators.create_decoder, "convolutions", CONVOLUTIONS)
SAMPLER = (generators.create_pair_generator, "convolutions", CONVOLUTIONS)
DISCRIMINATOR = (factory.create_discriminator, "patchgan", PATCHES)
SCALES = (factory.create_discriminator, "patchgan", {**PATCHES, "num_levels": 0, "num_scales": 2})

# Family, its networks, its fields.
FAMILIES = {
    "diffusion": (
        functools.partial(diffusion.family, num_steps=3, picture_steps=4),
        {"denoiser": (generators.create_denoiser, "residual_unet", RESIDUAL)},
    ),
    "vae": (
        functools.partial(vae.family, latent_size=3),
        {"vae_encoder": ENCODER, "vae_decoder": DECODER},
    ),
    "wgan": (
        functools.partial(wgan.family, latent_size=3),
        {"discriminator": DISCRIMINATOR, "pair_generator": SAMPLER},
    ),
    "gan": (
        functools.partial(
            gan.family,
            adversarial="hinge",
            l1_weight=10.0,
            feature_weight=10.0,
            augmented=("colour", "translation", "cutout"),
        ),
        {
            "discriminator": SCALES,
            "generator": (factory.create_generator, "pix2pix", PIX2PIX),
        },
    ),
}
RATES = {"diffusion": 0.3, "vae": 0.3, "wgan": 0.01, "gan": 0.03}
LOSSES = {
    "diffusion": {"denoiser": "generator/loss"},
    "vae": {"vae_encoder": "encoder/loss", "vae_decoder": "generator/loss"},
    "wgan": {"discriminator": "discriminator/loss", "pair_generator": "generator/loss"},
    "gan": {"discriminator": "discriminator/loss", "generator": "generator/loss"},
}


@pytest.fixture(autouse=True, scope="module")
def _float64():
    with tiny.float64():
        yield


class _Chain:
    """A whole method with this family's real networks, a problem, and what is compiled of it, once."""

    def __init__(self, name, size=8, axes=2, num_steps=2):
        create, makers = FAMILIES[name]
        searched = ("encoder", "decoder")
        spec = factory.Spec(2, (size,) * axes, tiny.CHANNELS, searched)
        made = {
            n: make(row, dict(f, dtype="float64"), spec) for n, (make, row, f) in makers.items()
        }
        segmenter = factory.create_segmenter("unet", dict(UNET, dtype="float64"), spec)
        self.networks = {**made, "segmenter": segmenter}
        self.method = tiny.make_toy_method(
            optimizer="sgd",  # the chain through Adam is in `levels_test.py`
            learning_rate=RATES[name],
            networks={n: network.apply for n, network in self.networks.items()},
            create_family=lambda networks, optimizer, use, _: create(networks, optimizer, use),
            sources=("sampled" if name == "wgan" else "generator",),
        )
        problem = tiny.make_family_problem(self.method, self.networks, size, num_steps, axes=axes)
        self.theta, self.inner, self.batches, self.outer_batch, self.keys = problem
        self.inner_step = self.method.inner_step()  # one function, traced once
        self.step = tiny.jit(self.inner_step)
        self.outer_loss = tiny.jit(self.method.outer_loss())

    def batch(self, k=0):
        return jax.tree.map(lambda x: x[k], self.batches), self.keys[k]

    def validation_loss(self, theta):
        state = self.inner
        for k in range(self.keys.shape[0]):
            state, _ = self.step(state, theta, *self.batch(k))
        return self.outer_loss(state, theta, self.outer_batch)[0]

    def estimate(self):
        estimate = tiny.jit(hypergradient.unrolled(self.inner_step, self.method.outer_loss()))
        return estimate(self.theta, self.inner, self.batches, self.outer_batch, self.keys)


@functools.cache
def _chain(name):
    return _Chain(name)


def _check_hypergradient(chain, step=1e-5):
    result = chain.estimate()
    assert result.loss == pytest.approx(float(chain.validation_loss(chain.theta)), rel=1e-10)
    for side, alpha in result.grad["architecture"].items():
        assert np.abs(alpha).max() > 1e-9, side
    direction = tiny.random_direction(chain.theta, 0)
    expected = tiny.derivative(chain.validation_loss, chain.theta, direction, step)
    rounding = 1e-15 * abs(float(result.loss)) / step  # of a central difference
    assert tiny.dot(result.grad, direction) == pytest.approx(expected, rel=1e-6, abs=rounding)


@pytest.mark.parametrize("name", FAMILIES)
def test_hypergradient_through_drawing_and_training_against_central_differences(name):
    _check_hypergradient(_chain(name))


def test_hypergradient_of_the_autoencoder_in_three_dimensions():
    _check_hypergradient(_Chain("vae", size=4, axes=3, num_steps=1), step=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_loss_of_every_player_falls_on_one_batch(name):
    chain = _chain(name)
    batch, rng = chain.batch()
    for player, key in LOSSES[name].items():
        state, found = chain.inner, []
        for _ in range(30):
            moved, metrics = chain.step(state, chain.theta, batch, rng)
            state = {**state, player: moved[player]}  # the others stay as they are
            found.append(float(metrics[key]))
        assert found[-1] < found[0] - 0.1 * abs(found[0]), player
        assert found[-1] < np.mean(found[10:20]) < np.mean(found[:10]), player


@pytest.mark.parametrize("name", ["diffusion", "vae", "gan"])
@pytest.mark.parametrize("keyed", [True, False])
def test_draws_depend_on_the_mask_and_on_the_keys(name, keyed):
    chain = _chain(name)
    batch, _ = chain.batch()
    masks = batch["mask"][..., None].astype(float)
    other = masks.at[0, 2:6, 2:6].set(1 - masks[0, 2:6, 2:6])
    keys, other_keys = (jax.random.split(jax.random.key(i), 2) for i in range(2))

    def draw(masks, keys):
        return chain.method.family.draw(chain.inner, chain.theta, masks, keys if keyed else None)

    images = draw(masks, keys)
    assert images.shape == batch["image"].shape and np.abs(images).max() <= 1
    changed = draw(other, keys)
    assert np.abs(changed[0] - images[0]).max() > 1e-3
    np.testing.assert_allclose(changed[1], images[1], atol=1e-12)  # an example for itself
    moved = np.abs(draw(masks, other_keys) - images).max()
    # (The GAN's noise is dropout, which so few levels have none of.)
    assert moved > 1e-3 if keyed and name != "gan" else moved == 0


def test_pairs_from_noise_have_masks_of_their_own():
    chain = _chain("wgan")
    keys = jax.random.split(jax.random.key(0), 16)
    images, masks = chain.method.family.sample(chain.inner, chain.theta, keys)
    assert images.shape == (16, 8, 8, 1) and masks.shape == (16, 8, 8)
    assert masks.dtype == np.uint8 and set(np.unique(masks)) == {0, 1}
    assert (masks[0] != masks[1]).any() and np.abs(images[0] - images[1]).max() > 1e-3
    batch, _ = chain.batch()
    (make,) = chain.method.sources.values()
    pairs = make(chain.inner, chain.theta, batch, keys[:2])
    np.testing.assert_allclose(pairs.images, images[:2])
    np.testing.assert_array_equal(pairs.provenance, [[-1], [-1]])


# --- Formulas by hand --------------------------------------------------------------------------------


def test_a_bridge_stays_a_bridge_at_every_stop():
    """What is left of the noise and what is added give the bridge's variance; and by drawing."""
    assert diffusion.stops(4).tolist() == [999, 666, 333, 0]
    np.testing.assert_allclose(
        diffusion.VARIANCES[[0, 499, 999]], [0.001998, 0.4999995, 0.001998], rtol=1e-8
    )
    for now, then in ((999, 500), (666, 333), (3, 0)):
        for eta in (0.0, 0.5, 1.0):
            share, keep, spread = diffusion.coefficients(now, then, eta)
            assert share == pytest.approx(0.001 + 0.998 * then / 999)
            variance = keep**2 * diffusion.VARIANCES[now] + spread**2
            assert variance == pytest.approx(diffusion.VARIANCES[then])
    # With eta 1 the step is the bridge's own: what x_now says of x_then beyond its ends. The covariance of
    # two times is (1 - m_now) / (1 - m_then) d_then, hence the slope of x_then on x_now:
    _, keep, _ = diffusion.coefficients(666, 333, 1.0)
    m, d = diffusion.SHARES, diffusion.VARIANCES
    assert keep == pytest.approx((1 - m[666]) / (1 - m[333]) * d[333] / d[666])


def test_a_denoiser_that_knows_the_image_draws_it_and_pays_nothing():
    numbers = np.random.default_rng(0)
    image = jnp.asarray(numbers.uniform(-1, 1, (2, 4, 4, 1)))
    mask = jnp.asarray(numbers.random((2, 4, 4)) < 0.5, np.uint8)

    def denoise(params, x, masks, times, mixing):
        return x - image + params

    family = diffusion.family(
        {"denoiser": denoise}, None, lambda theta: {"architecture": {}}, num_steps=4
    )
    keys = jax.random.split(jax.random.key(1), 2)
    state = {"denoiser": type("State", (), {"params": 0.0})}
    for k in (keys, None):
        drawn = family.draw(state, {}, mask[..., None].astype(float), k)
        np.testing.assert_allclose(drawn, image, atol=1e-12)
    player = family.players["denoiser"]
    outer, data = player.inputs({}, {}, {"image": image, "mask": mask, "key": keys})
    assert player.loss(0.0, outer, data)[0] == pytest.approx(0.0, abs=1e-12)
    assert player.loss(0.25, outer, data)[0] == pytest.approx(0.25)  # an L1 distance


def test_losses_of_the_autoencoder_by_hand():
    """One pixel, one latent of no variance: every term is a number."""
    state = {
        "vae_encoder": 0.0,
        "vae_decoder": 2.0,
    }  # mean of the latents: half the image plus params

    def encode(params, masks, images, mixing):
        mean = images.reshape(-1, 1) / 2 + params
        return mean, jnp.full_like(mean, -1e3)

    def decode(params, masks, latents, mixing):
        return (latents * params).reshape(-1, 1, 1, 1)

    nets = {"vae_encoder": encode, "vae_decoder": decode}
    fields = dict(latent_size=1, reconstruction_weight=1.0, kl_weight=0.0, negative_weight=0.0)
    family = vae.family(nets, None, lambda theta: {"architecture": {}}, **fields)
    players = {n: type("State", (), {"params": jnp.float64(p)}) for n, p in state.items()}
    batch = {
        "image": jnp.full((1, 1, 1, 1), 0.6),
        "mask": jnp.zeros((1, 1, 1), np.uint8),
        "key": jax.random.split(jax.random.key(0), 1),
    }
    encoder, decoder = family.players["vae_encoder"], family.players["vae_decoder"]
    outer, data = encoder.inputs(players, {}, batch)
    np.testing.assert_allclose(outer["redrawn"], 0.6)  # 0.6 / 2 * 2
    loss, _ = encoder.loss(jnp.float64(0.0), outer, data)
    assert loss == pytest.approx(0.5)  # no errors: 1/4 e^0 + 1/4 e^0
    # With latents 0.1 too large every redrawn image is 0.2 too light.
    loss, _ = encoder.loss(jnp.float64(0.1), outer, data)
    assert loss == pytest.approx(0.04 + 0.5 * np.exp(-2 * 0.04))
    outer, data = decoder.inputs(players, {}, batch)
    loss, _ = decoder.loss(jnp.float64(3.0), outer, data)
    assert loss == pytest.approx(0.09)  # 0.3 * 3 - 0.6
    mean, log_variance = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, np.log(2.0)]])
    np.testing.assert_allclose(vae.divergence(mean, log_variance), 0.5 + 0.5 * (1 - np.log(2.0)))


def test_loss_of_a_linear_critic_by_hand():
    """Critic w_x sum x + w_m sum m: its gradient is known everywhere."""
    networks = {
        "discriminator": lambda p, masks, images: (
            p[0] * images.sum((1, 2, 3)) + p[1] * masks.sum((1, 2, 3))
        )[:, None, None, None],
        "pair_generator": lambda p, latents, mixing: (
            p * jnp.ones((2, 2, 2, 1)),
            jnp.full((2, 2, 2, 1), 0.25),
        ),
    }
    family = wgan.family(networks, None, lambda theta: {"architecture": {}}, penalty_weight=10.0)
    critic, generator = family.players.values()
    players = {"pair_generator": 0.5, "discriminator": jnp.array([0.3, 0.4])}
    players = {n: type("State", (), {"params": jnp.asarray(p)}) for n, p in players.items()}
    batch = {
        "image": jnp.full((2, 2, 2, 1), -0.5),
        "mask": jnp.ones((2, 2, 2), np.uint8),
        "key": jax.random.split(jax.random.key(0), 2),
    }
    outer, data = critic.inputs(players, {}, batch)
    loss, metrics = critic.loss(jnp.array([0.3, 0.4]), outer, data)
    real, drawn = 4 * (-0.5 * 0.3 + 0.4), 4 * (0.5 * 0.3 + 0.25 * 0.4)
    assert metrics["discriminator/distance"] == pytest.approx(real - drawn)
    length = np.sqrt(4 * 0.3**2 + 4 * 0.4**2)  # 1
    assert length == pytest.approx(1.0) and loss == pytest.approx(drawn - real, abs=1e-9)
    loss, _ = critic.loss(jnp.array([0.6, 0.8]), outer, data)
    assert loss == pytest.approx(2 * (drawn - real) + 10.0)
    outer, data = generator.inputs(players, {}, batch)
    assert generator.loss(jnp.float64(0.5), outer, data)[0] == pytest.approx(-drawn)


@pytest.mark.parametrize("name", diff_augment.OPERATIONS)
@pytest.mark.parametrize("axes", [2, 3])
def test_what_the_discriminator_is_shown_keeps_mask_and_image_together(name, axes):
    numbers = np.random.default_rng(0)
    spatial = (16, 12, 8)[:axes]
    mask = jnp.asarray(numbers.random((32, *spatial, 1)) < 0.5, float)
    image = jnp.concatenate([2 * mask - 1] * 3, -1)
    keys = jax.random.split(jax.random.key(0), 32)
    masks, images = diff_augment.augment(mask, image, keys, (name,))
    assert masks.shape == mask.shape and images.shape == image.shape
    if name == "colour":
        np.testing.assert_array_equal(masks, mask)
        contrast = (
            images.max(tuple(range(1, axes + 2))) - images.min(tuple(range(1, axes + 2)))
        ) / 2
        assert 0.5 <= contrast.min() < 0.7 and 1.3 < contrast.max() <= 1.5
    else:
        blank = (images == 0).all(-1)
        np.testing.assert_array_equal(blank, np.where(blank, blank, False))
        np.testing.assert_array_equal(np.where(blank, 0, images[..., 0] > 0), masks[..., 0])
        shares = blank.mean(tuple(range(1, axes + 1)))
        if name == "cutout":
            assert 0 < shares.min() and shares.max() == 0.5**axes
        else:
            lost = 1 - np.prod([1 - np.rint(n / 8) / n for n in spatial])
            assert shares.min() < 0.1 and shares.max() <= lost + 1e-6
            one = np.asarray(images[0]), np.asarray(image[0])
            found = [
                s
                for s in np.ndindex(*(2 * int(n / 8 + 0.5) + 1 for n in spatial))
                if np.array_equal(_shifted(one[1], s), one[0])
            ]
            assert len(found) == 1
    one_by_one = diff_augment.augment(mask[3:4], image[3:4], keys[3:4], (name,))[1][0]
    np.testing.assert_allclose(one_by_one, images[3])


def _shifted(x, start):
    reach = [int(n / 8 + 0.5) for n in x.shape[:-1]]
    padded = np.pad(x, [*((r, r) for r in reach), (0, 0)])
    return padded[tuple(slice(s, s + n) for s, n in zip(start, x.shape, strict=False))]
