"""From a configuration to the search of a method for outer variables; see `search` and `cross_fit`."""

import functools
from collections.abc import Callable
from typing import Any

from fewshotseg.data import cases, folds
from fewshotseg.genseg import levels
from fewshotseg.models import factory
from fewshotseg.training import build_pairs, build_parts, cross_fit, search, stages


def search_fields(config) -> dict[str, Any]:
    """The fields of `config.cross_fit`, the number of steps of a trial and of sources to choose from."""
    fields = config.cross_fit.to_dict()
    num_components = len(config.pairs.sources) if "mixture" in fields["variables"] else 0
    num_steps = fields["num_steps"] or config.train.num_steps
    return {**fields, "num_steps": num_steps, "num_components": num_components}


def make_cheaper(segmenter, width, frozen_encoder):
    """Changes the block of the configuration to that of the segmenter that searches."""

    def narrow(channels):  # a multiple of what group normalisation wants
        return max(8, 4 * round(width * channels / 4))

    segmenter.unet.width = min(segmenter.unet.width, narrow(segmenter.unet.width))
    encoder = segmenter.efficient_unet
    encoder.widths = tuple(min(channels, narrow(channels)) for channels in encoder.widths)
    if frozen_encoder:
        encoder.trained = "frozen"
    for network in (segmenter.deeplab, segmenter.swin_unet):
        if network.weights:  # whose widths are those of the file
            network.trained = "frozen" if frozen_encoder else network.trained
        else:
            for field in ("width", "head_width"):
                if field in network:
                    network[field] = min(network[field], narrow(network[field]))


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
        config.train.num_steps = fields["num_steps"]
        config.outer.gradient = "reverse"  # the others bar forward mode
        make_cheaper(config.segmenter, fields["width_share"], fields["frozen_encoder"])
    networks = build_parts.create_networks(config, spec, method)
    given = networks["segmenter"].init(stages.step_key(config.seed, "init", 2))
    networks["segmenter"] = factory.without_frozen(networks["segmenter"], given)
    parts = build_parts.create_parts(
        config, spec, method, "train", axis_name=None, networks=networks
    )
    loss = functools.partial(levels.outer_loss, terms=parts.terms)
    labelled, arrays = data.labelled

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
        build_parts.create_draw(config, spec.num_classes, method, config.train.batch_size),
        arrays,
        folds.divide(data.survey, labelled, fields["num_folds"], config.seed),
        parts.theta,
        num_steps=fields["num_steps"],
        num_starts=fields["num_starts"],
        key=stages.step_key(config.seed, "search", 0),
        describe=describe,
        report=report,
    )
