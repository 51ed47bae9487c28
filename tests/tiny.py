"""A tiny but complete method: real generator, discriminator and U-Net, everything smooth, float64."""

import functools

import jax
import jax.numpy as jnp
import optax

from fewshotseg import augment, genseg, optimizers, state
from fewshotseg.models import discriminator, generator, search_space, unet

SIZE, CHANNELS, LEVELS = 8, 1, 2


def make_method(*, optimizer="adam", learning_rate=1e-2, dtype=jnp.float64, **overrides):
    """A `genseg.Method` whose U-Net has no kinks, so that finite differences can judge it."""
    networks = make_networks(dtype)
    player = functools.partial(optimizers.create_optimizer, optimizer, learning_rate, 100)
    fields = dict(
        generate=lambda p, a, m, keys: networks["generator"].apply({"params": p}, m, a, keys),
        discriminate=lambda p, m, x: networks["discriminator"].apply({"params": p}, m, x),
        segment=lambda p, x: networks["segmenter"].apply({"params": p}, x),
        jitter=functools.partial(augment.jitter, strength=augment.Intensity()),
        generator_optimizer=player(),
        discriminator_optimizer=player(),
        segmenter_optimizer=player(),
        l1_weight=10.0,
    )
    return genseg.Method(**{**fields, **overrides})


def make_networks(dtype=jnp.float64):
    return {
        "generator": generator.Generator(
            num_channels=CHANNELS, num_levels=LEVELS, width=2, max_width=4, groups=1, dtype=dtype
        ),
        "discriminator": discriminator.Discriminator(width=2, num_levels=1, groups=1, dtype=dtype),
        "segmenter": unet.UNet(
            width=2, num_levels=1, groups=1, activation="silu", pool="avg", dtype=dtype
        ),
    }


def make_problem(method, num_steps, batch_size=2, seed=0):
    """theta, inner state, K batches, an outer batch, and K keys."""
    networks = make_networks()
    keys = jax.random.split(jax.random.key(seed), 10)
    # Larger than in training, so that the architecture matters from the first step.
    architecture = search_space.init_architecture(keys[0], LEVELS, ("encoder", "decoder"))
    theta = {"architecture": jax.tree.map(lambda x: 300 * x.astype(jnp.float64), architecture)}
    image, mask = jnp.zeros((1, SIZE, SIZE, CHANNELS)), jnp.zeros((1, SIZE, SIZE, 1))

    def init(name, key, *inputs):
        params = networks[name].init(key, *inputs)["params"]
        return jax.tree.map(lambda x: x.astype(jnp.float64), params)

    gan = state.init_gan(
        init("generator", keys[1], mask, theta["architecture"], None),
        init("discriminator", keys[2], mask, image),
        method.generator_optimizer,
        method.discriminator_optimizer,
    )
    segmenter = state.init_segmenter(init("segmenter", keys[3], image), method.segmenter_optimizer)
    batches = make_batch(keys[4], (num_steps, batch_size))
    outer = make_batch(keys[5], (2 * batch_size,))
    outer = {"image": outer["image"], "mask": outer["mask"], "weight": jnp.ones(2 * batch_size)}
    inner = state.InnerState(gan, segmenter)
    return theta, inner, batches, outer, jax.random.split(keys[6], num_steps)


def make_batch(key, lead):
    k_image, k_mask, k_synthetic, k_keys = jax.random.split(key, 4)
    size = (*lead, SIZE, SIZE)
    return {
        "image": jax.random.uniform(k_image, (*size, CHANNELS), jnp.float64, -1, 1),
        "mask": jax.random.bernoulli(k_mask, 0.4, size).astype(jnp.uint8),
        "synthetic_mask": jax.random.bernoulli(k_synthetic, 0.4, size).astype(jnp.uint8),
        "key": jax.random.split(k_keys, lead),
    }


def random_direction(tree, seed):
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    draws = [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
    norm = optax.global_norm(draws)
    return jax.tree.unflatten(structure, [d / norm for d in draws])


def along(tree, direction, amount):
    return jax.tree.map(lambda x, d: x + amount * d, tree, direction)


def dot(a, b):
    return sum(jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
