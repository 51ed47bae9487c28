"""From a configuration to what it says of synthetic pairs: sources, their fields, what theta holds."""

from typing import Any

from fewshotseg.genseg import pair_sources
from fewshotseg.methods import METHODS, Method, resolve


def resolve_method(config, name: str) -> Method:
    """The row of a method, its sources of pairs named."""
    return resolve(METHODS[name], config.pairs.sources)


def moving_variables(config, method: Method) -> tuple[str, ...]:
    """The outer variables in theta: of `outer.variables` those that make a difference to the method.

    Those of `cross_fit.variables` where the method searches for them before it trains.
    Theta holds no others: an outer optimiser moves what has no gradient, too (weight decay).
    """
    if method.search:
        return tuple(config.cross_fit.variables)
    if not method.moves_theta:
        return ()
    known = pair_sources.variables(method.sources)
    return tuple(name for name in config.outer.variables if name in known)


def pair_settings(
    config, method: Method, moving: tuple[str, ...], channels: int
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The settings of the outer variables that pairs look at, and by source, its fields."""
    blocks = {name: config.pairs[name].to_dict() for name in method.sources if name in config.pairs}
    settings, fields = pair_sources.divide(method.sources, blocks)
    settings["synthetic_weight"] = config.loss.synthetic_weight
    # Those that start as no change at all are not in use where they do not move.
    settings |= {name: channels for name in pair_sources.COLOURS if name in moving}
    return settings, fields
