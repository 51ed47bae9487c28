"""From a configuration to the objects of one experiment. Below this file, nothing sees a config."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fewshotseg.data import augment, canvas
from fewshotseg.data import batches as input_pipeline
from fewshotseg.genseg import levels as genseg
from fewshotseg.genseg import state as state_lib
from fewshotseg.hypergradient import inner_gradient
from fewshotseg.models import factory as model_factory
from fewshotseg.models import layers, search_space
from fewshotseg.models import pix2pix as generator_lib
from fewshotseg.training import devices as parallel
from fewshotseg.training import estimators as estimator_factory
from fewshotseg.training import optimizers

STAGES = {"pretrain": 0, "train": 1, "init": 2}  # folded into the seed; never renumber


def create_networks(config, num_classes: int) -> dict[str, Any]:
    """Generator, discriminator and segmenter modules."""
    fields = dict(config.generator)
    fields["num_levels"] = generator_lib.max_levels(
        min(canvas.as_size(config.data.image_size)), fields["num_levels"]
    )
    return {
        "generator": model_factory.create_generator(fields, config.data.channels),
        "discriminator": model_factory.create_discriminator(dict(config.discriminator)),
        "segmenter": model_factory.create_segmenter(
            dict(config.segmenter), model_factory.num_outputs(num_classes)
        ),
    }


def _optimizer(config, num_steps, factor=1.0):
    fields = config.to_dict()
    rate = fields.pop("learning_rate") * factor
    return optimizers.create_optimizer(fields.pop("name"), rate, num_steps, **fields)


def create_method(config, networks: Mapping[str, Any], num_classes: int, method: str, stage: str):
    """`genseg.Method` for one stage of one method, and its outer optimiser."""
    pretraining = stage == "pretrain"
    num_steps = config[stage].num_steps
    gan_optimizer = _optimizer(
        config.gan_optim, num_steps, 1.0 if pretraining else config.gan_finetune_factor
    )
    gradient = inner_gradient.GRADIENTS[estimator_factory.ESTIMATORS[config.outer.estimator]]
    if gradient is inner_gradient.finite_difference:
        gradient = functools.partial(gradient, radius=config.outer.radius)
    intensity = augment.Intensity(**config.augment.intensity.to_dict())
    bundle = genseg.Method(
        generate=lambda p, a, m, keys: networks["generator"].apply({"params": p}, m, a, keys),
        discriminate=lambda p, m, x: networks["discriminator"].apply({"params": p}, m, x),
        segment=lambda p, x: networks["segmenter"].apply({"params": p}, x),
        jitter=functools.partial(augment.jitter, strength=intensity),
        generator_optimizer=gan_optimizer,
        discriminator_optimizer=gan_optimizer,
        segmenter_optimizer=_optimizer(config.optim, num_steps),
        num_classes=num_classes,
        overlap=config.loss.overlap,
        adversarial=config.loss.adversarial,
        l1_weight=config.loss.l1_weight,
        synthetic_weight=0.0 if method == "real_only" else config.loss.synthetic_weight,
        ema_decay=config.train.ema_decay,
        gradient=gradient,
        axis_name=parallel.AXIS_NAME,
    )
    return bundle, _optimizer(config.outer_optim, num_steps)


def _keys(config, stage):
    return jax.random.fold_in(jax.random.key(config.seed), STAGES[stage])


def step_key(config, stage: str, step: int) -> jax.Array:
    """The key of a step: seed, stage and step fold into it, and nothing else."""
    return jax.random.fold_in(_keys(config, stage), step)


def init_theta(config, num_levels: int) -> dict[str, Any]:
    """Outer variables at their start."""
    sides = tuple(side for side in ("encoder", "decoder") if config.search[side])
    key = jax.random.fold_in(_keys(config, "init"), 0)
    theta = {"architecture": search_space.init_architecture(key, num_levels, sides)}
    if "synthetic_weight" in config.outer.variables:
        theta["synthetic_weight"] = jnp.float32(0.0)
    return theta


def init_gan(config, networks, method: genseg.Method) -> state_lib.GanState:
    """Untrained generator and discriminator."""
    size, channels = canvas.as_size(config.data.image_size), config.data.channels
    theta = init_theta(config, networks["generator"].num_levels)
    mask = jnp.zeros((1, *size, method.num_classes - 1))
    image = jnp.zeros((1, *size, channels))
    keys = jax.random.split(jax.random.fold_in(_keys(config, "init"), 1))

    @jax.jit
    def init(key_g, key_d):
        architecture = theta["architecture"]
        generator = layers.init_params(networks["generator"], key_g, mask, architecture, None)
        discriminator = layers.init_params(networks["discriminator"], key_d, mask, image)
        optimizers_ = method.generator_optimizer, method.discriminator_optimizer
        return state_lib.init_gan(generator, discriminator, *optimizers_)

    return init(*keys)


def init_segmenter(config, networks, method: genseg.Method) -> state_lib.SegmenterState:
    """Untrained segmenter; the same for every method of one seed."""
    image = jnp.zeros((1, *canvas.as_size(config.data.image_size), config.data.channels))

    @jax.jit
    def init(key):
        params = layers.init_params(networks["segmenter"], key, image)
        return state_lib.init_segmenter(params, method.segmenter_optimizer)

    return init(jax.random.fold_in(_keys(config, "init"), 2))


def init_state(
    gan: state_lib.GanState | None,
    segmenter: state_lib.SegmenterState | None,
    theta: dict[str, Any],
    outer_optimizer: optax.GradientTransformation,
) -> state_lib.GenSegState:
    """Puts the pieces together at step 0."""
    inner = state_lib.InnerState(gan, segmenter)
    return state_lib.GenSegState(inner, theta, outer_optimizer.init(theta), jnp.int32(0))


def create_draws(
    config,
    num_classes: int,
    batch_size: int,
    axis_name: str | None = parallel.AXIS_NAME,
    compile: Callable = parallel.compile_draw,
):
    """`draw(data, keys [K])` and `draw_outer(data, key)`, compiled for all devices by default."""

    def geometry(fields):
        return augment.Geometry(**{**fields.to_dict(), "flip_axes": tuple(fields.flip_axes)})

    draw_one = functools.partial(
        input_pipeline.draw_batch,
        batch_size=batch_size,
        geometry=geometry(config.augment.real),
        mask_geometry=geometry(config.augment.mask),
        num_classes=num_classes,
        axis_name=axis_name,
    )
    draw_outer = functools.partial(
        input_pipeline.draw_outer_batch, batch_size=config.outer.batch_size, axis_name=axis_name
    )

    def draw(data, keys):
        return jax.lax.map(lambda key: draw_one(data, key), keys)

    return compile(draw), compile(draw_outer)
