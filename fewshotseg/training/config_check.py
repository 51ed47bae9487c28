"""What can be wrong with a configuration beyond the types of its fields.

Every field is looked at (`config_tables` has bounds and choices), and what does not go together, before
any data is read or anything compiled.
"""

import fnmatch
import re
from collections.abc import Iterator, Mapping
from typing import Any

from fewshotseg import errors, labels
from fewshotseg.data import canvas
from fewshotseg.data.cases import spatial_axes
from fewshotseg.genseg import pair_sources
from fewshotseg.methods import GENERATED, METHODS
from fewshotseg.results import centre_lines
from fewshotseg.training import devices
from fewshotseg.training.build_pairs import (
    FAMILIES,
    moving_variables,
    resolve_method,
    searched_sides,
)
from fewshotseg.training.config_tables import BOUNDS, CHOICES, DIVIDED, MAY_BE_EMPTY
from fewshotseg.training.estimators import ESTIMATORS, choose_gradient, parse_choice


def check_config(config) -> None:
    """Checks what the types of the fields do not, for training on the devices of this process.

    Raises:
      InputError: names the field, the value and what is allowed.
    """
    check_fields(config)
    _check_combinations(config)
    for field in DIVIDED:
        devices.check_batch_size(field, _value(config, field))
    for name in config.methods:
        sources = resolve_method(config, name).sources
        if len(sources) > 1:
            devices.check_batch_size("train.batch_size", config.train.batch_size, len(sources))
        family = config.family.name
        if others := {*sources} & {*GENERATED} - {FAMILIES[family].source}:
            raise _fault(
                "pairs.sources",
                tuple(config.pairs.sources),
                f"{others.pop()!r} is not made by family.name={family!r}, name 'generator'",
            )
        if len({*sources}) < len(sources):
            raise _fault("pairs.sources", tuple(config.pairs.sources), "'generator' is there twice")


def check_fields(config) -> None:
    """Checks every field by itself: numbers, choices, names.

    Raises:
      InputError: names the field, the value and what is allowed.
    """
    for field, value in leaves(config):
        _check_choice(field, value)
        _check_bound(field, value)
        if field.endswith("folder.class_names"):
            _check_names(field, value)
            block = _value(config, field.removesuffix(".class_names"))
            found = labels.as_labels(block.class_ids, block.ignore_id)
            found.check(len(value), field.removesuffix(".class_names"))
    _check_axes(config)
    if config.evaluate.cldice:
        centre_lines.require_skimage()


def leaves(config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every field of a configuration that is not a block, as `("train.num_steps", 1500)`."""
    for key, value in config.items():
        if hasattr(value, "items"):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def rows(table: Mapping[str, Any] | tuple[str, ...], field: str) -> list[str]:
    """The rows of a table that are about a field; there should be at most one."""
    return [pattern for pattern in table if fnmatch.fnmatchcase(field, pattern)]


def _check_choice(field, value):
    for row in rows(CHOICES, field):
        listed = ", ".join(repr(choice) for choice in CHOICES[row])
        several = isinstance(value, tuple | list)
        values = tuple(value) if several else (value,)
        if not values and not rows(MAY_BE_EMPTY, field):
            raise _fault(field, value, f"name some of {listed}")
        if len(set(values)) < len(values):
            raise _fault(field, value, "name each only once")
        if unknown := [v for v in values if v not in CHOICES[row]]:
            reason = f"{unknown[0]!r} is none of" if several else "use one of"
            raise _fault(field, value, f"{reason} {listed}")


def _check_bound(field, value):
    for row in rows(BOUNDS, field):
        values = value if isinstance(value, tuple | list) else (value,)
        if not values or not all(BOUNDS[row].holds(v) for v in values):
            raise _fault(field, value, f"use {BOUNDS[row]}")


def _check_names(field, names):
    if not names or len(set(names)) < len(names) or not all(re.search(r"\S", n) for n in names):
        raise _fault(field, tuple(names), "name every foreground class once, as in ('lesion',)")


def _check_axes(config):
    """The canvas, the flips and the further test sets have the axes of the source."""
    size, source = config.data.image_size, config.data.source
    axes = spatial_axes(source, config.data.get(source, {}))
    numbers = len(size) if isinstance(size, tuple | list) else 2
    if numbers != axes:
        sizes = "(depth, height, width)" if axes == 3 else "a number, or (height, width)"
        raise _fault("data.image_size", size, f"with data.source={source!r}, give {sizes}")
    _check_spacing(tuple(config.data.tiles.spacing), config.data.fit, axes)
    for name, fields in config.test_sets.items():
        if spatial_axes(fields.source, fields.get(fields.source, {})) != axes:
            raise _fault(
                f"test_sets.{name}.source",
                fields.source,
                f"data.source is {source!r}, test on its kind",
            )
    if axes == 3 and config.test_folders:
        raise _fault(
            "test_folders",
            config.test_folders,
            "it is for pictures, put further test sets of volumes into test_sets",
        )
    for field, flipped in leaves(config.augment):
        if field.endswith("flip_axes") and any(axis < -axes for axis in flipped):
            raise _fault(
                f"augment.{field}", tuple(flipped), f"there are {axes} axes, -1 is the last"
            )


def _check_spacing(spacing, fit, axes):
    if len(spacing) != 3 or (any(spacing) and not all(spacing)):
        raise _fault(
            "data.tiles.spacing", spacing, "give (depth, height, width) in mm, or three zeros"
        )
    if any(spacing) and (axes, fit) != (3, "tiles"):
        raise _fault("data.tiles.spacing", spacing, "it is for volumes, with data.fit='tiles'")


def _check_combinations(config):
    num_train, num_validation = config.data.num_train, config.data.num_validation
    fewest = num_train if config.data.validate == "none" else min(num_train, num_validation)
    if fewest < 1 and (num_train, num_validation) != (0, 0):
        raise errors.InputError(
            f"data.num_train is {num_train} and data.num_validation {num_validation}: use at least 1 "
            "each, or 0 for both."
        )
    if config.data.validate == "none":
        _check_nothing_held_out(config)
    for field, levels in leaves(config):
        if field.endswith(".num_levels") and not field.startswith("generator"):
            _check_levels(field, levels, min(canvas.as_size(config.data.image_size)))
    _check_scales(config)
    if config.optim.warmup_steps >= config.train.num_steps:
        raise errors.InputError(
            f"optim.warmup_steps is {config.optim.warmup_steps}: it must be below "
            f"train.num_steps={config.train.num_steps}."
        )
    betas = tuple(config.feedback.betas)
    if len(betas) > 1 and (0 not in betas or len(set(betas)) < len(betas)):
        raise _fault("feedback.betas", betas, "of several, one is 0, and no two are the same")
    _check_outer(config)


def _check_nothing_held_out(config):
    """Nothing is decided by validation cases where there are none."""
    if config.train.select != "last":
        raise _fault(
            "train.select",
            config.train.select,
            "it looks at images held out, and data.validate='none' holds none out: use 'last'",
        )
    if config.feedback.file and len(config.feedback.betas) > 1:
        raise _fault(
            "feedback.betas",
            tuple(config.feedback.betas),
            "images held out choose among them, and data.validate='none' holds none out: give one",
        )
    for name in config.methods:
        if moving_variables(config, resolve_method(config, name)) and METHODS[name].moves_theta:
            raise errors.InputError(
                f"data.validate is 'none', and {name} differentiates the loss on images held out: use "
                "'held_out', or leave the method out."
            )


def require_held_out(config, mode: str) -> None:
    """Raises `InputError` where a mode looks at validation cases and the run has none."""
    if config.data.validate == "none":
        raise errors.InputError(
            f"{mode} looks at images held out, and data.validate='none' holds none out: give it a run with "
            "data.validate='held_out'."
        )


def _check_levels(field, levels, image_size):
    most = image_size.bit_length() - 1
    if levels > most:
        raise _fault(field, levels, f"{image_size} pixels can be halved {most} times at most")


def _check_scales(config):
    """The coarsest discriminator has a patch left: two of its layers take one pixel off without halving."""
    block = config.discriminator[config.discriminator.name]
    size = min(canvas.as_size(config.data.image_size))
    most = max((n for n in range(1, 5) if (size >> (n - 1 + block.num_levels)) > 2), default=0)
    if not most:
        raise _fault(
            "discriminator.patchgan.num_levels",
            block.num_levels,
            f"nothing is left of {size} pixels, use at most {max(1, (size // 3).bit_length() - 1)}",
        )
    if block.num_scales > most:
        raise _fault(
            "discriminator.patchgan.num_scales",
            block.num_scales,
            f"with num_levels={block.num_levels}, {size} pixels have room for {most}",
        )


def _check_outer(config):
    outer = config.outer
    if not 1 <= outer.num_inner_steps <= outer.every:
        raise errors.InputError(
            f"outer.num_inner_steps is {outer.num_inner_steps}: it must be between 1 and "
            f"outer.every={outer.every}."
        )
    for name in config.methods:
        method = resolve_method(config, name)
        if method.search:
            _check_search(config, name, method)
        if not method.moves_theta:
            continue
        if outer.start >= config.train.num_steps:
            raise errors.InputError(
                f"outer.start is {outer.start}: with train.num_steps={config.train.num_steps}, {name} "
                "would never take a hypergradient."
            )
        if outer.variables and not moving_variables(config, method):
            known = ", ".join(map(repr, sorted(pair_sources.variables(method.sources))))
            if not searched_sides(config):
                known += " ('architecture' moves with search.encoder or search.decoder)"
            raise _fault(
                "outer.variables",
                tuple(outer.variables),
                f"they make no difference to {name}, name some of {known}",
            )
    if ESTIMATORS[outer.estimator].needs_symmetry and outer.through_generator_training:
        raise errors.InputError(
            f"outer.estimator is {outer.estimator!r}, which needs a symmetric Hessian: set "
            "outer.through_generator_training=False, or use 'neumann'."
        )
    if ESTIMATORS[outer.estimator].draws and not outer.through_generator_training:
        raise errors.InputError(
            f"outer.estimator is {outer.estimator!r}, which compares whole trainings, the generator's "
            "included: set outer.through_generator_training=True, or use 'unrolled'."
        )
    if ESTIMATORS[outer.estimator].start and outer.num_inner_steps < outer.every:
        raise errors.InputError(
            f"outer.estimator is {outer.estimator!r}, whose particles have to take every step: set "
            f"outer.every to outer.num_inner_steps={outer.num_inner_steps}, or the other way round."
        )
    try:
        choose_gradient(outer.estimator, outer.gradient)
    except errors.InputError as error:
        raise errors.InputError(f"outer.estimator and outer.gradient: {error}") from error
    for choice in config.diagnose.estimators:
        try:
            parse_choice(choice)
        except errors.InputError as error:
            raise errors.InputError(f"diagnose.estimators: {error}") from error


def _value(config, field: str):
    for name in field.split("."):
        config = config[name]
    return config


def _fault(field, value, remedy):
    return errors.InputError(f"{field} is {value!r}: {remedy}.")


def _check_search(config, name, method):
    if config.data.fit == "tiles":
        raise _fault(
            "data.fit",
            config.data.fit,
            f"{name} judges whole cases that are held out, use 'squash', or another method",
        )
    if method.draws:
        raise _fault(
            "pairs.sources",
            tuple(config.pairs.sources),
            f"{name} trains on all folds but one, and a generator would have seen that one: leave out "
            f"{', '.join(map(repr, GENERATED))}",
        )
    known = pair_sources.variables(method.sources)
    if not set(config.cross_fit.variables) <= known:
        raise _fault(
            "cross_fit.variables",
            tuple(config.cross_fit.variables),
            f"some make no difference to {name}, name some of {', '.join(map(repr, sorted(known)))}",
        )
    if config.cross_fit.pool_batches and set(config.cross_fit.variables) - set(
        pair_sources.WEIGHTS
    ):
        raise _fault(
            "cross_fit.pool_batches",
            config.cross_fit.pool_batches,
            "pairs are drawn once, before they are differentiated, so cross_fit.variables may name "
            f"{' and '.join(map(repr, pair_sources.WEIGHTS))} alone; 0 draws them anew in every step",
        )
    if method.search == "choice" and "mixture" not in config.cross_fit.variables:
        raise _fault(
            "cross_fit.variables",
            tuple(config.cross_fit.variables),
            f"{name} chooses among the sources of pairs: name 'mixture'",
        )
