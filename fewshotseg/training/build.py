"""From a configuration to the objects of one experiment, once. Below this file, nothing sees a config."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fewshotseg.data import cases
from fewshotseg.methods import Method
from fewshotseg.models import factory
from fewshotseg.results import evaluate, predictor
from fewshotseg.training import (
    build_data,
    build_feedback,
    build_pairs,
    build_parts,
    build_search,
    estimators,
    pair_quality,
    search,
    stages,
)


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
      nsd_mm: in mm, in its place where the spacing is known; 0 for none.
      cldice: whether clDice is measured.
    """

    batch_size: int
    nsd_tolerance: float
    nsd_mm: float = 0.0
    cldice: bool = False


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
      feedback: `(method, players, theta, record of an earlier call or None) -> build_feedback.Choice`,
        from the ratings that the configuration names; None if it names none.
      rating_trials: that choose how far a method listens to them.
      notices: what people should know of weights that were not trained here.
      loop: intervals of the loop.
      evaluation: how models are measured.
      threshold: probability from which a pixel is foreground, one class.
      create_predictor: `(weights, *, source) -> Predictor`.
      measure_pairs: `(folder of the run, method)`: see `pair_quality.measure`.
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
    feedback: Callable[..., build_feedback.Choice] | None
    rating_trials: build_feedback.Trials
    notices: tuple[str, ...]
    loop: Loop
    evaluation: Evaluation
    threshold: float
    create_predictor: Callable[..., predictor.Predictor]
    measure_pairs: Callable[..., Any]


def create_pretraining(config, data: cases.Data, spec: factory.Spec) -> stages.Stage:
    """See `stages.pretraining`."""
    method = build_pairs.pretraining_method(config)
    parts = build_parts.create_parts(config, spec, method, "pretrain")
    draw, _ = build_parts.create_draws(config, spec.num_classes, method, config.pretrain.batch_size)
    return stages.pretraining(
        parts,
        draw,
        data.train,
        config.pretrain.num_steps,
        config.seed,
        _draw_samples(config, spec, method),
    )


def create_training(
    config, data: cases.Data, spec: factory.Spec, name: str, theta=None, feedback=None
) -> stages.Stage:
    """See `stages.training`.

    Args:
      config: the configuration.
      data: the cases.
      spec: of the networks.
      name: of the method.
      theta: what a search has found for it.
      feedback: what ratings say about its pairs, a `feedback.Feedback`.
    """
    method = build_pairs.resolve_method(config, name)
    parts = build_parts.create_parts(config, spec, method, "train")
    if theta is not None:
        parts = parts._replace(theta=jax.tree.map(jnp.asarray, theta))
    listening = build_feedback.listen(config, data, parts, method, feedback)
    return stages.training(
        name,
        method,
        listening.parts,
        build_parts.outer_loop(config),
        build_parts.create_draws(
            config, spec.num_classes, method, config.train.batch_size, **listening.options
        ),
        listening.arrays,
        functools.partial(build_parts.create_estimate, config, listening.parts, method),
        config.train.num_steps,
        config.seed,
        draw_samples=_draw_samples(config, spec, method),
        start_estimate=functools.partial(
            estimators.start,
            config.outer.estimator,
            build_parts.outer_fields(config, config.outer.estimator),
        ),
    )


def _draw_samples(config, spec, method):
    return jax.jit(build_parts.create_draw(config, spec.num_classes, method, stages.NUM_SAMPLES))


def build(config) -> Experiment:
    """Reads a checked configuration, once: data are loaded, nothing is compiled.

    Args:
      config: as `configs/default.py` describes it, checked by `config_check`.

    Raises:
      InputError: whatever is wrong with the data.
    """
    data = build_data.create_data(config)
    spec = build_parts.create_spec(config, data.num_classes)
    methods = {name: build_pairs.resolve_method(config, name) for name in config.methods}
    notices = {}
    for method in methods.values():  # a wrong field is refused before anything is trained,
        for network in build_parts.create_networks(
            config, spec, method
        ).values():  # and missing weights
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
        search=functools.partial(build_search.create_search, config, data, spec),
        search_fields=build_search.search_fields(config),
        feedback=build_feedback.create_feedback(config, data, spec, create_training),
        rating_trials=build_feedback.rating_trials(config),
        notices=tuple(notice for notice in notices if notice),
        loop=Loop(
            log_every=config.log_every,
            eval_every=config.eval_every,
            sample_every=config.sample_every,
            checkpoint_every=config.checkpoint_every,
            select=config.train.select,
        ),
        evaluation=Evaluation(**{key: config.evaluate[key] for key in evaluate.SETTINGS}),
        threshold=config.evaluate.threshold,
        create_predictor=functools.partial(
            predictor.create_predictor, config.to_dict(), class_names=data.source.class_names
        ),
        measure_pairs=functools.partial(pair_quality.measure, config, data, spec),
    )
