"""From a configuration to the objects of one experiment, once. Below this file, nothing sees a config."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fewshotseg.data import augment, batches, canvas, cases, folds
from fewshotseg.genseg import levels, outer_variables, pair_sources, segmenter
from fewshotseg.methods import Method
from fewshotseg.models import factory
from fewshotseg.results import predictor
from fewshotseg.training import (
    build_data,
    build_pairs,
    cross_fit,
    devices,
    estimators,
    optimizers,
    search,
    stages,
)
from fewshotseg.training.build_pairs import FAMILIES

NUM_SAMPLES = 6  # rows of a picture of synthetic pairs


@dataclasses.dataclass(frozen=True)
class Loop:
    """Intervals and choices of the loop, in steps.

    Attributes:
      select: 'last' or 'best': which average of the weights is the model, that of the last step or that
        with the highest Dice on the validation cases.
    """

    log_every: int
    eval_every: int
    sample_every: int
    checkpoint_every: int
    select: str


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How trained models are measured.

    Attributes:
      batch_size: images at once.
      nsd_tolerance: of the normalised surface Dice, share of the image's diagonal.
    """

    batch_size: int
    nsd_tolerance: float


@dataclasses.dataclass(frozen=True)
class Experiment:
    """All objects of one experiment.

    Attributes:
      name: of the experiment, for people.
      seed: of everything.
      methods: name -> row, its sources named, in the order of the configuration.
      data: the cases.
      spec: what the data decide about the networks.
      pretraining: makes the stage of the generator alone.
      training: `(method, theta that a search has found, or None) -> its stage`, made when called.
      search: `(method, report) -> search.Problem`, likewise; see `cross_fit.create_problem`.
      search_fields: of the search.
      notices: what people should know of weights that were not trained here.
      loop: intervals of the loop.
      evaluation: how models are measured.
      threshold: probability from which a pixel is foreground, one class.
      create_predictor: `(weights, *, source) -> Predictor`.
    """

    name: str
    seed: int
    methods: Mapping[str, Method]
    data: cases.Data
    spec: factory.Spec
    pretraining: Callable[[], stages.Stage]
    training: Callable[..., stages.Stage]
    search: Callable[..., search.Problem]
    search_fields: Mapping[str, Any]
    notices: tuple[str, ...]
    loop: Loop
    evaluation: Evaluation
    threshold: float
    create_predictor: Callable[..., predictor.Predictor]


def create_spec(config, num_classes: int) -> factory.Spec:
    """What data and search decide about the networks."""
    searched = tuple(side for side in ("encoder", "decoder") if config.search[side])
    return factory.Spec(
        num_classes, canvas.as_size(config.data.image_size), config.data.channels, searched
    )


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
) -> stages.Parts:
    """Players, outer variables and optimisers of one stage of one method."""
    networks = networks or create_networks(config, spec, method)
    moving = build_pairs.moving_variables(config, method) if stage == "train" else ()
    settings, pair_fields = build_pairs.pair_settings(config, method, moving, spec.channels)
    settings["architecture"] = next((n.mixing for n in networks.values() if n.mixing), {})
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
    tools = pair_sources.Tools(family.draw, family.refine, use, spec.num_classes)
    sources = pair_sources.create(method.sources, tools, pair_fields)
    player = segmenter.player(
        segment,
        jitter if method.augments else lambda images, keys: images,
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
    )
    name = estimators.choose_gradient(config.outer.estimator, config.outer.gradient)
    gradient = estimators.create_gradient(name, outer_fields(config, name))
    num_outer_steps = outer_loop(config).num_outer_steps(config.train.num_steps)
    loss = segmenter.validation_loss(segment, overlap=config.loss.overlap, axis_name=axis_name)
    return stages.Parts(
        family=family,
        sources=sources,
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
):
    """`draw(data, keys [K])` and `draw_outer(data, key)`, compiled for all devices by default."""

    def geometry(fields):
        return augment.Geometry(**{**fields.to_dict(), "flip_axes": tuple(fields.flip_axes)})

    donors = geometry(config.augment.donor)
    draw_one = functools.partial(
        batches.draw_batch,
        batch_size=method.real_batches * batch_size,
        num_synthetic=batch_size if method.sources else 0,
        geometry=geometry(config.augment.real) if method.augments else None,
        mask_geometry=geometry(config.augment.mask),
        synthetic_images=pair_sources.looks_at(method.sources, "images"),
        donor_geometry=donors if pair_sources.looks_at(method.sources, "donors") else None,
        num_classes=num_classes,
        axis_name=axis_name,
    )
    draw_outer = functools.partial(
        batches.draw_outer_batch, batch_size=config.outer.batch_size, axis_name=axis_name
    )

    def draw(data, keys):
        return jax.lax.map(lambda key: draw_one(data, key), keys)

    return compile(draw), compile(draw_outer)


def create_pretraining(config, data: cases.Data, spec: factory.Spec) -> stages.Stage:
    """See `stages.pretraining`."""
    method = build_pairs.pretraining_method(config)
    parts = create_parts(config, spec, method, "pretrain")
    draw, _ = create_draws(config, spec.num_classes, method, config.pretrain.batch_size)
    return stages.pretraining(
        parts,
        draw,
        data.train,
        config.pretrain.num_steps,
        config.seed,
        _draw_samples(config, spec, method),
    )


def create_training(
    config, data: cases.Data, spec: factory.Spec, name: str, theta=None
) -> stages.Stage:
    """See `stages.training`; `name` is that of the method, `theta` what a search has found for it."""
    method = build_pairs.resolve_method(config, name)
    parts = create_parts(config, spec, method, "train")
    if theta is not None:
        parts = parts._replace(theta=jax.tree.map(jnp.asarray, theta))
    return stages.training(
        name,
        method,
        parts,
        outer_loop(config),
        create_draws(config, spec.num_classes, method, config.train.batch_size),
        (data.train, data.validation),
        functools.partial(create_estimate, config, parts, method),
        config.train.num_steps,
        config.seed,
        draw_samples=_draw_samples(config, spec, method),
        start_estimate=functools.partial(
            estimators.start, config.outer.estimator, outer_fields(config, config.outer.estimator)
        ),
    )


def search_fields(config) -> dict[str, Any]:
    """The fields of `config.cross_fit`, the number of steps of a trial and of sources to choose from."""
    fields = config.cross_fit.to_dict()
    num_components = len(config.pairs.sources)
    num_steps = fields["num_steps"] or config.train.num_steps
    return {**fields, "num_steps": num_steps, "num_components": num_components}


def _make_cheaper(segmenter, width, frozen_encoder):
    """Changes the block of the configuration to that of the segmenter that searches."""

    def narrow(channels):  # a multiple of what group normalisation wants
        return max(8, 4 * round(width * channels / 4))

    segmenter.unet.width = min(segmenter.unet.width, narrow(segmenter.unet.width))
    encoder = segmenter.efficient_unet
    encoder.widths = tuple(min(channels, narrow(channels)) for channels in encoder.widths)
    if frozen_encoder:
        encoder.trained = "frozen"


def create_search(
    config,
    data: cases.Data,
    spec: factory.Spec,
    name: str,
    report: Callable[[int, int, int], None] = lambda fold, start, taken: None,
) -> search.Problem:
    """The trials of a method that searches for outer variables; see `cross_fit.create_problem`."""
    fields, method = search_fields(config), build_pairs.resolve_method(config, name)
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.train.num_steps = fields["num_steps"]
        config.outer.gradient = "reverse"  # the others bar forward mode
        _make_cheaper(config.segmenter, fields["width_share"], fields["frozen_encoder"])
    networks = create_networks(config, spec, method)
    given = networks["segmenter"].init(stages.step_key(config.seed, "init", 2))
    networks["segmenter"] = factory.without_frozen(networks["segmenter"], given)
    parts = create_parts(config, spec, method, "train", axis_name=None, networks=networks)
    draw_batches, _ = create_draws(
        config,
        spec.num_classes,
        method,
        config.train.batch_size,
        axis_name=None,
        compile=lambda f: f,
    )
    loss = functools.partial(levels.outer_loss, terms=parts.terms)
    labelled = (*data.split.train, *data.split.validation)

    def init(key):
        params = parts.networks["segmenter"].init(key)
        return {"segmenter": levels.init_player(params, parts.players["segmenter"])}

    def describe(theta):
        used = parts.use(theta)
        names = {"mixture": method.sources}
        return {
            variable: dict(
                zip(
                    names.get(variable, map(str, range(used[variable].size))),
                    used[variable].ravel().tolist(),
                    strict=True,
                )
            )
            for variable in theta
        }

    return cross_fit.create_problem(
        stages.create_inner_step(parts, ("segmenter",)),
        cross_fit.of_average(loss),
        init,
        lambda arrays, key: jax.tree.map(lambda x: x[0], draw_batches(arrays, key[None])),
        {k: np.concatenate([data.train[k], data.validation[k]]) for k in data.train},
        folds.divide(data.survey, labelled, fields["num_folds"], config.seed),
        parts.theta,
        num_steps=fields["num_steps"],
        num_starts=fields["num_starts"],
        key=stages.step_key(config.seed, "search", 0),
        describe=describe,
        report=report,
    )


def _draw_samples(config, spec, method):
    options = dict(axis_name=None, compile=jax.jit)
    return create_draws(config, spec.num_classes, method, NUM_SAMPLES, **options)[0]


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


def build(config) -> Experiment:
    """Reads a checked configuration, once: data are loaded, nothing is compiled.

    Args:
      config: as `configs/default.py` describes it, checked by `config_check`.

    Raises:
      InputError: whatever is wrong with the data.
    """
    data = build_data.create_data(config)
    spec = create_spec(config, data.num_classes)
    methods = {name: build_pairs.resolve_method(config, name) for name in config.methods}
    notices = {}
    for method in methods.values():  # a wrong field is refused before anything is trained,
        for network in create_networks(config, spec, method).values():  # and missing weights
            network.given()
            notices[network.notice] = None
    return Experiment(
        name=config.name,
        seed=config.seed,
        methods=methods,
        data=data,
        spec=spec,
        pretraining=functools.partial(create_pretraining, config, data, spec),
        training=functools.partial(create_training, config, data, spec),
        search=functools.partial(create_search, config, data, spec),
        search_fields=search_fields(config),
        notices=tuple(notice for notice in notices if notice),
        loop=Loop(
            log_every=config.log_every,
            eval_every=config.eval_every,
            sample_every=config.sample_every,
            checkpoint_every=config.checkpoint_every,
            select=config.train.select,
        ),
        evaluation=Evaluation(config.evaluate.batch_size, config.evaluate.nsd_tolerance),
        threshold=config.evaluate.threshold,
        create_predictor=functools.partial(
            predictor.create_predictor, config.to_dict(), class_names=data.source.class_names
        ),
    )
