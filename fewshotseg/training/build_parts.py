"""From a configuration to the pieces of a training: networks, players, outer variables and draws."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fewshotseg.data import augment, batches, canvas, tiles
from fewshotseg.genseg import levels, outer_variables, pair_sources, segmenter
from fewshotseg.methods import Method
from fewshotseg.models import factory
from fewshotseg.training import build_pairs, devices, estimators, optimizers, stages
from fewshotseg.training.build_pairs import FAMILIES

RATED = 1003  # folded into the key of an outer batch, for the pairs whose rating counts


def set_num_steps(config, num_steps: int) -> None:
    """Gives the training so many steps, and a warm-up that is over before they are."""
    config.train.num_steps = num_steps
    config.optim.warmup_steps = min(config.optim.warmup_steps, num_steps - 1)


def create_spec(config, num_classes: int) -> factory.Spec:
    """What data and search decide about the networks."""
    size, searched = canvas.as_size(config.data.image_size), build_pairs.searched_sides(config)
    return factory.Spec(num_classes, size, config.data.channels, searched)


def _block(config, name: str = "") -> tuple[str, dict[str, Any]]:
    """A name in a configuration block, by default its own, and the fields of the block of that name."""
    name = name or config.name
    return name, config[name].to_dict() if name in config else {}


def create_networks(
    config, spec: factory.Spec, method: Method | None = None
) -> dict[str, factory.Network]:
    """The segmenter, that of the method if it has its own, and the networks of the generator's family."""
    named = _block(config.segmenter, method.segmenter if method else "")
    networks = {"segmenter": factory.create_segmenter(*named, spec)}
    makers = FAMILIES[config.family.name].networks
    return networks | {name: make(*_block(config[name]), spec) for name, make in makers.items()}


def _optimizer(config, num_steps: int, factor: float = 1.0, **options):
    fields = config.to_dict()
    rate = factor * fields.pop("learning_rate")
    return optimizers.create_optimizer(fields.pop("name"), rate, num_steps, **fields, **options)


def outer_loop(config) -> stages.OuterLoop:
    """When theta moves."""
    outer = config.outer
    return stages.OuterLoop(
        outer.num_inner_steps, outer.every, outer.start, outer.through_generator_training
    )


def outer_fields(config, name: str) -> dict[str, Any]:
    """The fields of an estimator or a gradient, from its block of `config.outer`; {} if it has none."""
    return config.outer[name].to_dict() if name in config.outer else {}


def create_parts(
    config,
    spec: factory.Spec,
    method: Method,
    stage: str,
    axis_name: str | None = devices.AXIS_NAME,
    networks: Mapping[str, factory.Network] | None = None,
    pooled: bool = False,
) -> stages.Parts:
    """Players, outer variables and optimisers of one stage of one method.

    With `pooled`, the batches are what `Parts.examples` has made already.
    """
    networks = networks or create_networks(config, spec, method)
    moving = build_pairs.moving_variables(config, method) if stage == "train" else ()
    settings, pair_fields = build_pairs.pair_settings(config, method, moving, spec.channels)
    searched = [network.mixing for network in networks.values()]
    settings["architecture"] = {side: shape for sides in searched for side, shape in sides.items()}
    theta, use = outer_variables.create(settings, moving, stages.step_key(config.seed, "init", 0))

    gan_optimizer = _optimizer(config.gan_optim, config.pretrain.num_steps)
    if stage == "train":  # its own schedule, from where pre-training ended
        gan_optimizer = _optimizer(
            config.gan_optim,
            config.train.num_steps,
            factor=config.gan_finetune_factor,
            start=config.pretrain.num_steps,
            differentiable=bool(moving),
        )
    name, fields = _block(config.family)
    row = FAMILIES[name]
    family = row.create(
        {player: networks[player].apply for player in row.networks},
        gan_optimizer,
        use,
        num_classes=spec.num_classes,
        **fields,
    )
    intensity = augment.Intensity(**config.augment.intensity.to_dict())
    jitter = functools.partial(augment.jitter, strength=intensity)
    segment = networks["segmenter"].apply
    tools = pair_sources.Tools(family.draw, family.refine, use, spec.num_classes, family.sample)
    sources = pair_sources.create(method.sources, tools, pair_fields)
    jitter = jitter if method.augments else lambda images, keys: images
    examples = segmenter.create_examples(
        jitter, sources=sources, use=use, num_classes=spec.num_classes
    )
    player = segmenter.player(
        segment,
        jitter,
        _optimizer(
            config.optim,
            config.train.num_steps,
            differentiable=bool(moving),
            rates=networks["segmenter"].rates,
        ),
        sources=sources,
        use=use,
        overlap=config.loss.overlap,
        average_decay=config.train.ema_decay,
        num_classes=spec.num_classes,
        examples=(lambda state, theta, batch: batch) if pooled else examples,
    )
    name = estimators.choose_gradient(config.outer.estimator, config.outer.gradient)
    gradient = estimators.create_gradient(name, outer_fields(config, name))
    num_outer_steps = outer_loop(config).num_outer_steps(config.train.num_steps)
    loss = segmenter.validation_loss(segment, overlap=config.loss.overlap, axis_name=axis_name)
    return stages.Parts(
        family=family,
        sources=sources,
        examples=examples,
        networks=networks,
        theta=theta,
        use=use,
        players={**family.players, "segmenter": player},
        terms=((1.0, loss),),
        options={"gradient": gradient, "axis_name": axis_name},
        outer_optimizer=_optimizer(config.outer_optim, num_outer_steps),
    )


def create_draws(
    config,
    num_classes: int,
    method: Method,
    batch_size: int,
    axis_name: str | None = devices.AXIS_NAME,
    compile: Callable = devices.compile_draw,
    num_pooled: int = 0,
    rated: bool = False,
):
    """`draw(data, keys [K])` and `draw_outer(data, key)`, compiled for all devices by default.

    With `num_pooled` cases, synthetic pairs come from a pool made of these, whose key and logits are in the
    data as 'pool' (`pooled`). If they are `rated`, the outer batch has what some are made of, too, any
    number as often as any other; its data then also hold the training cases as 'train', and 'reward' and
    'beta', which are passed on to it.
    """
    draw_plain = create_draw(config, num_classes, method, batch_size, axis_name)

    def draw_one(data, key):
        if not num_pooled:
            return draw_plain(data, key)
        return draw_plain(data, key, pool=pool_of(data["pool"], num_pooled))

    draw_cases = functools.partial(
        batches.draw_outer_batch,
        batch_size=config.outer.batch_size,
        axis_name=axis_name,
        tiles=tiles.create(config.data),
    )

    def draw_outer(data, key):
        batch = draw_cases(data, key)
        if not rated:
            return batch
        of_pairs = jax.random.fold_in(key, RATED)
        pool = pool_of(data["pool"], num_pooled)
        even = pool._replace(logits=jnp.zeros_like(pool.logits))
        numbers = batches.draw_numbers(even, of_pairs, batch_size, axis_name)
        found = batches.pool_examples(
            data["train"], even, numbers, **pool_fields(config, num_classes, method)
        )
        return {**batch, **found, "reward": data["reward"], "beta": data["beta"]}

    def draw(data, keys):
        return jax.lax.map(lambda key: draw_one(data, key), keys)

    return compile(draw), compile(draw_outer)


def create_draw(
    config,
    num_classes: int,
    method: Method,
    batch_size: int,
    axis_name: str | None = None,
) -> Callable:
    """`(data, key) -> batch` of a method, not compiled; see `batches.draw_batch`."""
    fields = pool_fields(config, num_classes, method)
    return functools.partial(
        batches.draw_batch,
        batch_size=method.real_batches * batch_size,
        num_synthetic=batch_size if method.sources else 0,
        geometry=_geometry(config.augment.real) if method.augments else None,
        mask_geometry=fields.pop("geometry"),
        **fields,
        axis_name=axis_name,
        tiles=tiles.create(config.data),
    )


def pooled(pool: batches.Pool) -> dict[str, Any]:
    """The numbers of a pool as data, so that another pool is no other program."""
    return {"key": jax.random.key_data(pool.key), "logits": pool.logits}


def pool_of(numbers: Mapping[str, Any], num_cases: int) -> batches.Pool:
    """The pool of `pooled`."""
    return batches.Pool(jax.random.wrap_key_data(numbers["key"]), numbers["logits"], num_cases)


def pool_fields(config, num_classes: int, method: Method) -> dict[str, Any]:
    """What `batches.pool_examples` is told of the synthetic pairs of a method."""
    donors = _geometry(config.augment.donor)
    return {
        "geometry": _geometry(config.augment.mask),
        "num_classes": num_classes,
        "synthetic_images": pair_sources.looks_at(method.sources, "images"),
        "donor_geometry": donors if pair_sources.looks_at(method.sources, "donors") else None,
    }


def _geometry(fields):
    return augment.Geometry(**{**fields.to_dict(), "flip_axes": tuple(fields.flip_axes)})


def create_estimate(
    config,
    parts: stages.Parts,
    method: Method,
    inner_step: Callable,
    step: Callable | None = None,
    axis_name: str | None = devices.AXIS_NAME,
    compile: Callable = devices.compile_step,
) -> Callable:
    """The estimator that `config.outer.estimator` names, compiled for all devices by default."""
    moving = stages.moving_players(parts, method)
    if not config.outer.through_generator_training:
        moving = ("segmenter",)
    return estimators.create_estimator(
        config.outer.estimator,
        outer_fields(config, config.outer.estimator),
        inner_step,
        functools.partial(levels.outer_loss, terms=parts.terms),
        levels.stationarity(players=parts.players, moving=moving, **parts.options),
        loop=config.outer.loop,
        axis_name=axis_name,
        compile=compile,
        step=step,
    )
