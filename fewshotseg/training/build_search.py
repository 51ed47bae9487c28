"""From a configuration to the search of a method for outer variables; see `search` and `cross_fit`."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fewshotseg.data import cases, folds
from fewshotseg.genseg import levels
from fewshotseg.models import factory
from fewshotseg.training import build_pairs, build_parts, cross_fit, search, stages


def search_fields(config) -> dict[str, Any]:
    """The fields of `config.cross_fit`, the number of steps of a trial and of sources to choose from.

    Beside them 'shrinks': whether trials are as long as the training.
    """
    fields = config.cross_fit.to_dict()
    num_components = len(config.pairs.sources) if "mixture" in fields["variables"] else 0
    num_steps = fields["num_steps"] or config.train.num_steps
    more = {"num_components": num_components, "shrinks": not fields["num_steps"]}
    return {**fields, **more, "num_steps": num_steps}


def make_cheaper(segmenter, width, frozen_encoder):
    """Changes the block of the configuration to that of the segmenter that searches."""

    def narrow(channels):  # a multiple of what group normalisation wants
        return max(8, 4 * round(width * channels / 4))

    segmenter.unet.width = min(segmenter.unet.width, narrow(segmenter.unet.width))
    encoder = segmenter.efficient_unet
    encoder.widths = tuple(min(channels, narrow(channels)) for channels in encoder.widths)
    if frozen_encoder and encoder.weights:  # drawn ones have to be trained
        encoder.trained = "frozen"
    for network in (segmenter.deeplab, segmenter.swin_unet):
        if network.weights:  # whose widths are those of the file
            network.trained = "frozen" if frozen_encoder else network.trained
        else:
            for field in ("width", "head_width"):
                if field in network:
                    network[field] = min(network[field], narrow(network[field]))


def create_pool(examples: Callable, draw: Callable, encode: Callable, number: int) -> Callable:
    """`(arrays of some cases, key) -> batches`, `number` of them; see `cross_fit.create_problem`.

    Args:
      examples: `batch -> examples`, see `segmenter.create_examples`.
      draw: `(arrays of some cases, key) -> batch`.
      encode: `images -> features`, in place of the images.
      number: of batches.
    """

    @jax.jit
    def make(cases, key):
        made = examples(draw(cases, key))
        images = [name for name in made if name.endswith("images")]
        return made | {name: encode(made[name]) for name in images}

    def make_all(cases, key):
        made = [make(cases, jax.random.fold_in(key, i)) for i in range(number)]
        return jax.tree.map(lambda *x: jnp.stack(x), *made)

    return make_all


def _numbers(size):
    return list(map(str, range(size))) if size > 1 else [""]


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
        build_parts.set_num_steps(config, fields["num_steps"])
        config.outer.gradient = "reverse"  # the others bar forward mode
        make_cheaper(config.segmenter, fields["width_share"], fields["frozen_encoder"])
    networks = build_parts.create_networks(config, spec, method)
    given = networks["segmenter"].init(stages.step_key(config.seed, "init", 2))
    networks["segmenter"] = factory.without_frozen(networks["segmenter"], given)
    encode = networks["segmenter"].encode
    pooled = fields["pool_batches"] if encode else 0
    parts = build_parts.create_parts(
        config,
        spec,
        method,
        "train",
        axis_name=None,
        networks=networks,
        pooled=bool(pooled),
    )
    loss = functools.partial(levels.outer_loss, terms=parts.terms)
    labelled, arrays = data.labelled
    draw = build_parts.create_draw(config, spec.num_classes, method, config.train.batch_size)
    make_pool = None
    if pooled:
        make_pool = create_pool(
            lambda batch: parts.examples({}, parts.theta, batch),
            draw,
            functools.partial(encode, {}),
            pooled,
        )

    def init(key):
        params = parts.networks["segmenter"].init(key)
        return {"segmenter": levels.init_player(params, parts.players["segmenter"])}

    def describe(theta):
        used = parts.use(theta)
        names = {"mixture": method.sources}
        return {
            variable: dict(
                zip(
                    names.get(variable, _numbers(used[variable].size)),
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
        draw,
        arrays,
        folds.divide(
            data.survey, labelled, fields["num_folds"], config.seed, config.data.look_alike
        ),
        parts.theta,
        num_steps=fields["num_steps"],
        num_starts=fields["num_starts"],
        key=stages.step_key(config.seed, "search", 0),
        make_pool=make_pool,
        describe=describe,
        report=report,
    )
