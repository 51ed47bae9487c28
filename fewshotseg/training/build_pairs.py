"""From a configuration to what it says of synthetic pairs: sources, their fields, what theta holds."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fewshotseg.genseg import diffusion, gan, harmonizer, pair_sources, vae, wgan
from fewshotseg.methods import METHODS, Method, resolve
from fewshotseg.models import factory, generators


class FamilyRow(NamedTuple):
    """A generator family.

    Attributes:
      create: `(networks, optimizer, use, *, num_classes, **fields) -> levels.Family`.
      networks: their makers, by the names of its players.
      source: the source of pairs that asks it.
    """

    create: Callable
    networks: Mapping[str, Callable]
    source: str = "generator"


FAMILIES = {
    "gan": FamilyRow(
        gan.family,
        {"generator": factory.create_generator, "discriminator": factory.create_discriminator},
    ),
    "appearance": FamilyRow(
        functools.partial(gan.family, appearance=True),
        {
            "generator": factory.create_appearance_generator,
            "discriminator": factory.create_discriminator,
        },
        source="appearance",
    ),
    "harmonizer": FamilyRow(
        harmonizer.family,
        {"generator": factory.create_harmonizer, "discriminator": factory.create_discriminator},
        source="composite",
    ),
    "diffusion": FamilyRow(diffusion.family, {"denoiser": generators.create_denoiser}),
    "vae": FamilyRow(
        vae.family,
        {"vae_encoder": generators.create_encoder, "vae_decoder": generators.create_decoder},
    ),
    "wgan": FamilyRow(
        wgan.family,
        {
            "discriminator": factory.create_discriminator,
            "pair_generator": generators.create_pair_generator,
        },
        source="sampled",
    ),
}


def resolve_method(config, name: str) -> Method:
    """The row of a method, its sources of pairs named."""
    return resolve(METHODS[name], config.pairs.sources, FAMILIES[config.family.name].source)


def pretraining_method(config) -> Method:
    """What the generator is trained with alone: real pairs, and more where its own source takes more."""
    source = FAMILIES[config.family.name].source
    return Method(sources=() if source == "generator" else (source,))


def searched_sides(config) -> tuple[str, ...]:
    """Of the generator, those whose architecture is searched."""
    return tuple(side for side in ("encoder", "decoder") if config.search[side])


def moving_variables(config, method: Method) -> tuple[str, ...]:
    """The outer variables in theta: of `outer.variables` those that make a difference to the method.

    Those of `cross_fit.variables` where the method searches for them before it trains.
    Theta holds no others: an outer optimiser moves what has no gradient, too (weight decay).
    """
    if method.search:
        return tuple(config.cross_fit.variables)
    if not method.moves_theta:
        return ()
    known = set(pair_sources.variables(method.sources))
    if not searched_sides(config):
        known.discard("architecture")
    return tuple(name for name in config.outer.variables if name in known)


def pair_settings(
    config, method: Method, moving: tuple[str, ...], channels: int
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The settings of the outer variables that pairs look at, and by source, its fields.

    A field of `config.pairs` that has the name of an outer variable is its setting.
    """
    fields = {name: config.pairs[name].to_dict() for name in method.sources if name in config.pairs}
    looked_at = sorted(pair_sources.variables(method.sources))
    settings = {name: config.pairs[name] for name in looked_at if name in config.pairs}
    settings["synthetic_weight"] = config.loss.synthetic_weight
    if method.sources:
        settings["mixture"] = method.sources
    # Those that start as no change at all are not in use where they do not move.
    settings |= {name: channels for name in pair_sources.COLOURS if name in moving}
    if pair_sources.SCALE in moving:
        settings[pair_sources.SCALE] = pair_sources.LARGEST_SCALE
    return settings, fields
