"""Two tiny complete methods: one of real networks, one of toy networks. Everything is smooth.

The real one (generator, discriminator and U-Net at 8 pixels) shows that the chain is right; XLA needs
half a minute to compile its hypergradient. The toy one (a few numbers per network) goes through the
same code of `genseg` in a second or two, and serves wherever the networks do not matter.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fewshotseg.data import augment
from fewshotseg.genseg import gan, levels, losses, pair_sources, segmenter
from fewshotseg.genseg.outer_variables import OUTER_VARIABLES
from fewshotseg.hypergradient import inner_gradient
from fewshotseg.methods import METHODS
from fewshotseg.models import factory, patchgan, pix2pix, unet
from fewshotseg.training import build_parts, optimizers, stages

SIZE, CHANNELS, LEVELS = 8, 1, 1


# Halves what XLA takes to compile; the programs are slower and their numbers the same. Options come
# and go with XLA's versions: those that the installed one does not know are left out.
FAST_COMPILE = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}


def jit(function, batched_args=(), batched_results=()):
    """`jax.jit` for numbers only; also the `compile=` of an estimator on one device."""
    del batched_args, batched_results
    return jax.jit(function, compiler_options=_known_options())


@functools.cache
def _known_options():
    return {name: value for name, value in FAST_COMPILE.items() if _is_known(name, value)}


def _is_known(name, value):
    try:
        jax.jit(lambda: 0, compiler_options={name: value})()
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return False
    return True


@contextlib.contextmanager
def float64():
    """64-bit numbers, and single operations compiled fast, until the end of the block."""
    names = "jax_disable_most_optimizations", "jax_enable_x64"
    before = {name: jax.config.values[name] for name in names}
    try:
        for name in names:
            jax.config.update(name, True)
        yield
    finally:
        for name in names:
            jax.config.update(name, before[name])


# --- Methods -------------------------------------------------------------------------------------


class Method(NamedTuple):
    """Players, and what makes steps and losses of them."""

    family: levels.Family
    players: dict
    terms: tuple
    sources: dict
    jitter: Callable
    use: Callable
    options: dict

    def moving(self, trains_generator=True):
        return (*(self.family.players if trains_generator else ()), "segmenter")

    def inner_step(self, trains_generator=True, through_generator=True, moving=None):
        step = functools.partial(
            levels.inner_step,
            players=self.players,
            moving=moving or self.moving(trains_generator),
            through=None if through_generator else ("segmenter",),
            **self.options,
        )
        return jax.jit(step)  # as `stages.create_inner_step` does

    def outer_loss(self):
        return functools.partial(levels.outer_loss, terms=self.terms)

    def stationarity(self, through_generator=True):
        return levels.stationarity(
            players=self.players, moving=self.moving(through_generator), **self.options
        )


def _make(
    networks,
    jitter,
    optimizer,
    learning_rate,
    l1_weight,
    draws=True,
    create_family=lambda *args: gan.family(*args[:3], l1_weight=args[3]),
    sources=("generator",),
    fields=None,
    synthetic_weight=1.0,
    gradient=inner_gradient.mixed,
    axis_name=None,
    average_decay=0.99,
    use=None,
):
    def player():
        return optimizers.create_optimizer(optimizer, learning_rate, 100, differentiable=True)

    sources = sources if draws else ()
    settings = {"synthetic_weight": synthetic_weight, "blend_width": 1.0, "residual_gain": 0.5}
    settings |= {"mixture": sources} if sources else {}
    starts = {name: OUTER_VARIABLES[name].init(None, s) for name, s in settings.items()}
    settings |= {"architecture": {}, "colour_gain": CHANNELS, "colour_shift": CHANNELS}
    settings["object_scale"] = pair_sources.LARGEST_SCALE

    def use_all(theta):
        values = {**starts, **theta}
        return {n: OUTER_VARIABLES[n].use(values[n], s) for n, s in settings.items() if n in values}

    use = use or use_all
    family = create_family(networks, player(), use, l1_weight)
    segment = networks["segmenter"]
    tools = pair_sources.Tools(family.draw, family.refine, use, sample=family.sample)
    sources = pair_sources.create(sources, tools, fields or {})
    segmenter_player = segmenter.player(
        segment, jitter, player(), sources=sources, use=use, average_decay=average_decay
    )
    loss = segmenter.validation_loss(segment, axis_name=axis_name)
    options = {"gradient": gradient, "axis_name": axis_name}
    players = {**family.players, "segmenter": segmenter_player}
    return Method(family, players, ((1.0, loss),), sources, jitter, use, options)


def make_networks(dtype=jnp.float64):
    """The real networks; the U-Net has no kinks, so that finite differences can judge it."""
    return {
        "generator": pix2pix.Generator(
            num_channels=CHANNELS, num_levels=LEVELS, width=2, max_width=4, groups=1, dtype=dtype
        ),
        "discriminator": patchgan.Discriminator(width=2, num_levels=1, groups=1, dtype=dtype),
        "segmenter": unet.UNet(
            width=2, num_levels=1, groups=1, activation="silu", pool="avg", dtype=dtype
        ),
    }


def make_method(*, optimizer="adam", learning_rate=1e-2, dtype=jnp.float64, **options):
    """A `Method` of real networks."""
    networks = {name: factory.network(m).apply for name, m in make_networks(dtype).items()}
    jitter = functools.partial(augment.jitter, strength=augment.Intensity())
    return _make(networks, jitter, optimizer, learning_rate, 10.0, **options)


def toy_generate(params, masks, mixing, keys):
    """Mixtures of three shifts in and out, two hidden channels, and noise from the keys."""

    def mix(x, weights):
        shifts = x, jnp.roll(x, 1, 1), jnp.roll(x, 1, 2)
        return sum(w * s for w, s in zip(weights[0], shifts, strict=True))

    x = mix(2.0 * masks - 1.0, mixing["encoder"]) @ params["in"] + params["bias"]
    x = x if keys is None else x + _numbers_of(keys, x)
    return jnp.tanh(mix(jax.nn.silu(x), mixing["decoder"]) @ params["out"])


def toy_discriminate(params, masks, images):
    """Two layers per pixel."""
    x = jnp.concatenate([2.0 * masks - 1.0, images], -1)
    return jax.nn.silu(x @ params["in"] + params["bias"]) @ params["out"]


def toy_segment(params, images, keys=None):
    """Two layers per pixel, which sees its upper neighbour too."""
    del keys
    x = jnp.concatenate([images, jnp.roll(images, 1, 1)], -1)
    return jax.nn.silu(x @ params["in"] + params["bias"]) @ params["out"]


def toy_jitter(images, keys):
    """Contrast from the keys."""
    return images * (1.0 + 0.5 * _numbers_of(keys, images))


def _numbers_of(keys, like):
    """One number in [0, 1] per example, read off its key (a true draw takes long to compile)."""
    bits = jax.random.key_data(keys)[:, 0] >> 8
    return (bits.astype(like.dtype) / 2**24).reshape(-1, *(1,) * (like.ndim - 1))


TOYS = {"generator": toy_generate, "discriminator": toy_discriminate, "segmenter": toy_segment}


def make_toy_method(*, optimizer="adam", learning_rate=1e-2, networks=TOYS, **options):
    """A `Method` of toy networks."""
    jitter = options.pop("jitter", toy_jitter)
    return _make(networks, jitter, optimizer, learning_rate, 1.0, **options)


# --- Networks for a configuration ----------------------------------------------------------------


def paint_family(networks, optimizer, use, *, num_classes, **fields):
    """A family of one player, whose network paints mixtures of three shifts of the mask."""
    ((name, paint),) = networks.items()

    def draw(params, theta, masks, keys):
        shifts = masks, jnp.roll(masks, 2, 1), jnp.roll(masks, 4, 2)
        weights = use(theta)["architecture"]["encoder"][0]
        return paint(params, sum(w * s for w, s in zip(weights, shifts, strict=True)))

    def inputs(state, theta, batch):
        masks = losses.one_hot_foreground(batch["mask"], num_classes)
        return {"theta": theta}, {"masks": masks, "real": batch["image"]}

    def loss(params, outer, data):
        drawn = draw(params, outer["theta"], data["masks"], None)
        value = losses.l1_loss(drawn, data["real"]).mean()
        return value, {f"{name}/loss": value}

    return levels.Family(
        {name: levels.Player(loss, inputs, optimizer)},
        lambda state, theta, masks, keys: draw(state[name].params, theta, masks, keys),
    )


def create_painter(name, fields, spec):
    """Its network: a colour."""
    return factory.Network(
        lambda key: {"colour": jax.random.normal(key, (1, spec.channels))},
        lambda params, masks: jnp.tanh(masks @ params["colour"]),
        {"encoder": (1, 3)},
    )


def create_pixel_segmenter(name, fields, spec):
    """A segmenter of two layers per pixel."""
    shapes = {"in": (spec.channels, 4), "out": (4, 1)}

    def init(key):
        keys = jax.random.split(key, len(shapes))
        return {n: jax.random.normal(k, shapes[n]) for n, k in zip(shapes, keys, strict=True)}

    def apply(params, images, keys):
        return jax.nn.silu(images @ params["in"]) @ params["out"]

    return factory.Network(init, apply)


def output_shapes(config, num_classes=2):
    """Shapes of an image, its mask, the segmenter's logits and a drawn image; nothing is compiled."""
    spec = build_parts.create_spec(config, num_classes)
    parts = build_parts.create_parts(config, spec, METHODS["end2end"], "train", axis_name=None)
    image, mask = (jnp.zeros((1, *spec.image_size, n)) for n in (spec.channels, 1))

    def outputs():
        players = stages.init_family(parts, config.seed)
        segmenter_params = stages.init_segmenter(parts, config.seed).params
        logits = parts.networks["segmenter"].apply(segmenter_params, image, None)
        return image, mask, logits, parts.family.draw(players, parts.theta, mask, None)

    return [x.shape for x in jax.eval_shape(outputs)]


# --- Problems ------------------------------------------------------------------------------------


def make_problem(method, num_steps, batch_size=2, seed=0, dtype=np.float64):
    """theta, inner state, K batches, an outer batch and K keys, for real networks."""
    modules = make_networks(dtype)
    architecture = {"encoder": np.zeros((LEVELS, 3)), "decoder": np.zeros((LEVELS, 3))}
    image, mask = np.zeros((1, SIZE, SIZE, CHANNELS)), np.zeros((1, SIZE, SIZE, 1))
    inputs = {
        "generator": (mask, architecture, None),
        "discriminator": (mask, image),
        "segmenter": (image,),
    }
    shapes = {
        name: nn.meta.unbox(
            jax.eval_shape(functools.partial(modules[name].init, jax.random.key(0)), *x)["params"]
        )
        for name, x in inputs.items()
    }
    return _problem(method, shapes, architecture, SIZE, num_steps, batch_size, seed, dtype)


def make_toy_problem(method, num_steps, batch_size=2, seed=0, dtype=np.float64):
    """The same for toy networks, at 4 pixels."""
    architecture = {"encoder": np.zeros((1, 3)), "decoder": np.zeros((1, 3))}
    width = {
        "generator": (1, 2),
        "discriminator": (1 + CHANNELS, 3),
        "segmenter": (2 * CHANNELS, 3),
    }
    shapes = {
        name: {"in": np.zeros((n, h)), "bias": np.zeros(h), "out": np.zeros((h, 1))}
        for name, (n, h) in width.items()
    }
    return _problem(method, shapes, architecture, 4, num_steps, batch_size, seed, dtype)


def make_family_problem(method, networks, size, num_steps, batch_size=2, seed=0, axes=2):
    """The same for any networks of `models`, with what they have to search."""
    shapes = {n: jax.eval_shape(net.init, jax.random.key(0)) for n, net in networks.items()}
    mixing = {side: np.zeros(s) for net in networks.values() for side, s in net.mixing.items()}
    args = method, shapes, mixing, size, num_steps, batch_size, seed, np.float64
    return _problem(*args, axes=axes)


def _problem(method, shapes, architecture, size, num_steps, batch_size, seed, dtype, axes=2):
    numbers = np.random.default_rng(seed)
    # Larger than in training, so that the architecture matters from the first step.
    theta = {"architecture": draw_like(architecture, numbers, dtype, 0.3)}
    params = {name: draw_like(tree, numbers, dtype) for name, tree in shapes.items()}
    players = {n: levels.init_player(p, method.players[n]) for n, p in params.items()}
    batches = make_batch(numbers, (num_steps, batch_size), size, dtype, axes)
    outer = make_batch(numbers, (2 * batch_size,), size, dtype, axes)
    outer = {k: outer[k] for k in ("image", "mask")} | {"weight": jnp.ones(2 * batch_size, dtype)}
    keys = jax.random.split(jax.random.key(seed), num_steps)
    return theta, players, batches, outer, keys


def draw_like(shapes, numbers, dtype=np.float64, spread=None):
    """Weights of the given shapes: He-normal kernels, scales about 1, biases about 0."""

    def draw(path, leaf):
        shape = leaf.shape
        fan_in = int(np.prod(shape[:-1]))
        centre = 1.0 if path[-1].key == "scale" else 0.0
        deviation = spread or (0.1 if len(shape) == 1 else (2.0 / fan_in) ** 0.5)
        return jnp.asarray(centre + deviation * numbers.standard_normal(shape), dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def make_batch(numbers, lead, size=SIZE, dtype=np.float64, axes=2):
    """Random images, masks and keys with the leading axes `lead`."""
    shape = (*lead, *(size,) * axes)
    keys = jax.random.key(int(numbers.integers(2**31)))
    return {
        "image": jnp.asarray(numbers.uniform(-1, 1, (*shape, CHANNELS)), dtype),
        "mask": jnp.asarray(numbers.random(shape) < 0.4, np.uint8),
        "synthetic_mask": jnp.asarray(numbers.random(shape) < 0.4, np.uint8),
        "synthetic_case": jnp.zeros(lead, np.int32),
        "key": jax.random.split(keys, lead),
    }


# --- Judging derivatives -------------------------------------------------------------------------


def random_direction(tree, seed):
    """A pytree of norm 1."""
    numbers = np.random.default_rng(seed)
    draws = jax.tree.map(lambda x: numbers.standard_normal(np.shape(x)), tree)
    length = norm(draws)
    return jax.tree.map(lambda d: d / length, draws)


def along(tree, direction, amount):
    return jax.tree.map(lambda x, d: np.asarray(x) + amount * np.asarray(d), tree, direction)


def dot(a, b):
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return float(sum(np.vdot(x, y) for x, y in leaves))


def norm(tree):
    return dot(tree, tree) ** 0.5


def derivative(function, tree, direction, step=1e-5):
    """Directional derivative of `function` at `tree`: central differences, error O(step^4)."""

    def difference(h):
        right, left = (function(along(tree, direction, sign * h)) for sign in (1, -1))
        return (float(right) - float(left)) / (2 * h)

    return (4 * difference(step) - difference(2 * step)) / 3


def distance(a, b):
    """Norm of the difference of two pytrees, relative to that of the second."""
    return norm(along(a, b, -1.0)) / norm(b)
