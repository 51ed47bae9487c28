"""What can be wrong with a configuration beyond the types of its fields: one table of bounds, one of
choices. Every field is looked at before any data is read or anything compiled.

A row's name is a pattern (`*` stands for anything, dots included), so that blocks that repeat, such as
the optimisers, the sources of further test sets, or a network's own block, share their rows. A new
number without a row fails tests/training/config_check_test.py.
"""

import dataclasses
import fnmatch
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from fewshotseg import errors
from fewshotseg.data import canvas
from fewshotseg.data.cases import SOURCES, SPATIAL_AXES
from fewshotseg.genseg import pair_sources
from fewshotseg.genseg.outer_variables import OUTER_VARIABLES
from fewshotseg.methods import GENERATED, METHODS
from fewshotseg.models import efficient_unet, factory, unet
from fewshotseg.training import devices, optimizers
from fewshotseg.training.build_pairs import FAMILIES, moving_variables, resolve_method
from fewshotseg.training.estimators import ESTIMATORS, GRADIENTS, choose_gradient, parse_choice

SEEDS = 2**32 - 1  # what both NumPy's and JAX's generators take


@dataclasses.dataclass(frozen=True)
class Bound:
    """An interval of finite numbers; `open_low` and `open_high` leave out its ends."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: float) -> bool:
        """Whether `value` lies in it; NaN and infinity never do."""
        if not abs(value) < math.inf:
            return False
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)

    def __str__(self):
        if self.high == math.inf:
            return f"a number above {self.low}" if self.open_low else f"at least {self.low}"
        ends = [
            f"{end} (left out)" if is_open else str(end)
            for end, is_open in ((self.low, self.open_low), (self.high, self.open_high))
        ]
        return f"a number between {ends[0]} and {ends[1]}"


def at_least(low) -> Bound:
    return Bound(low)


def above(low) -> Bound:
    return Bound(low, open_low=True)


def between(low, high, open_low=False, open_high=False) -> Bound:
    return Bound(low, high, open_low, open_high)


BOUNDS: Mapping[str, Bound] = {
    "seed": between(0, SEEDS),
    "*phantom.num_cases": at_least(1),
    "*phantom.seed": between(0, SEEDS),
    "*phantom.image_size": at_least(16),
    "*volumes.channel": at_least(0),
    "*volumes.window": between(-1e6, 1e6),
    "*volumes.percentiles": between(0, 100),
    "data.image_size": at_least(16),
    "data.num_train": at_least(0),
    "data.num_validation": at_least(0),
    "data.num_test": at_least(0),
    "segmenter.unet.rate": at_least(0),
    "*.width": at_least(1),
    "*.max_width": at_least(1),
    "segmenter*.widths": at_least(efficient_unet.CHANNELS_PER_GROUP),
    "segmenter*.encoder_rate": at_least(0),
    "segmenter*.num_levels": at_least(1),
    "generator*.num_levels": at_least(1),
    "discriminator*.num_levels": at_least(1),
    "*.groups": at_least(1),
    "*.dropout_rate": between(0, 1, open_high=True),
    "loss.*_weight": at_least(0),
    "family.*_weight": at_least(0),
    "augment.*.flip": between(0, 1),
    "augment.*.scale": between(0, 1, open_high=True),
    "augment.*.translate": between(0, 1),
    "augment.*.rotate": between(0, 180),
    "augment.*.shear": between(0, 90, open_high=True),
    "augment.*.elastic": between(0, 1),
    "augment.intensity.brightness": between(0, 2),
    "augment.intensity.contrast": between(0, 1),
    "augment.intensity.colour": between(0, 1),
    "augment.intensity.gamma": between(0, 5),
    "augment.intensity.blur": between(0, 1),
    "augment.intensity.noise": between(0, 2),
    "pairs.blend_width": at_least(0.05),
    "pairs.residual_gain": between(0, 0.5, open_low=True),
    "pairs.*.largest_share": between(0, 1, open_low=True),
    "pairs.*.strength": between(0, 1),
    "cross_fit.num_folds": at_least(2),
    "cross_fit.num_starts": at_least(1),
    "cross_fit.num_steps": at_least(0),
    "cross_fit.num_rounds": at_least(1),
    "cross_fit.width_share": between(0, 1, open_low=True),
    "cross_fit.rate": at_least(0),
    "cross_fit.level": between(0, 1),
    "cross_fit.num_candidates": at_least(1),
    "cross_fit.spread": at_least(0),
    "pretrain.num_steps": at_least(1),
    "train.num_steps": at_least(1),
    "*.batch_size": at_least(1),
    "train.ema_decay": between(0, 1, open_high=True),
    "*optim.learning_rate": above(0),
    "*optim.warmup_steps": at_least(0),
    "*optim.weight_decay": at_least(0),
    "*optim.momentum": between(0, 1, open_high=True),
    "*optim.b[12]": between(0, 1, open_high=True),
    "*optim.eps": above(0),
    "*optim.clip": at_least(0),
    "gan_finetune_factor": at_least(0),
    "outer.num_inner_steps": at_least(1),
    "outer.every": at_least(1),
    "outer.start": at_least(0),
    "outer.*horizon": at_least(1),
    "outer.*radius": above(0),
    "outer.*step_size": above(0),
    "outer.*num_terms": at_least(1),
    "outer.*damping": at_least(0),
    "outer.*num_pairs": at_least(1),
    "outer.*sigma": above(0),
    "outer.*num_unrolls": at_least(1),
    "diagnose.inner_steps": at_least(1),
    "diagnose.draws": at_least(1),
    "diagnose.repeats": at_least(1),
    "*_every": at_least(1),
    "evaluate.nsd_tolerance": above(0),
    "evaluate.threshold": between(0, 1, open_low=True, open_high=True),
}

NUMBER_CHOICES: Mapping[str, tuple[int, ...]] = {
    "data.channels": (1, 3),
    "augment.*.flip_axes": (-1, -2, -3),
}

CHOICES: Mapping[str, tuple[Any, ...]] = {
    **NUMBER_CHOICES,
    "methods": tuple(METHODS),
    "predict.method": ("", *METHODS),
    "data.source": tuple(SOURCES),
    "test_sets.*.source": tuple(SOURCES),
    "*phantom.style": ("dermoscopy", "ultrasound"),
    "segmenter.name": tuple(factory.SEGMENTERS),
    "generator.name": tuple(factory.GENERATORS),
    "discriminator.name": tuple(factory.DISCRIMINATORS),
    "segmenter*.activation": tuple(unet.ACTIVATIONS),
    "segmenter*.pool": tuple(unet.POOLS),
    "segmenter*.trained": efficient_unet.TRAINED,
    "*.dtype": tuple(factory.DTYPES),
    "loss.overlap": ("dice", "jaccard"),
    "family.name": tuple(FAMILIES),
    "family.*.adversarial": ("vanilla", "lsgan"),
    "pairs.sources": tuple(pair_sources.PAIR_SOURCES),
    "train.select": ("last", "best"),
    "*optim.second_moment": optimizers.SECOND_MOMENTS,
    "*optim.name": ("sgd", "adam", "adamw", "rmsprop"),
    "*optim.schedule": ("constant", "cosine"),
    "outer.estimator": tuple(ESTIMATORS),
    "outer.gradient": tuple(GRADIENTS),
    "outer.*remat": ("none", "step", "sqrt"),
    "outer.loop": ("auto", "host", "scan"),
    "outer.variables": tuple(OUTER_VARIABLES),
    "cross_fit.variables": tuple(OUTER_VARIABLES),
}
MAY_BE_EMPTY = ("outer.variables", "augment.*.flip_axes")
DIVIDED = ("pretrain.batch_size", "train.batch_size", "outer.batch_size")  # over the devices


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
    _check_axes(config)


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
    axes = SPATIAL_AXES.get(source, 2)
    numbers = len(size) if isinstance(size, tuple | list) else 2
    if numbers != axes:
        sizes = "(depth, height, width)" if axes == 3 else "a number, or (height, width)"
        raise _fault("data.image_size", size, f"with data.source={source!r}, give {sizes}")
    for name, fields in config.test_sets.items():
        if SPATIAL_AXES.get(fields.source, 2) != axes:
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


def _check_combinations(config):
    num_train, num_validation = config.data.num_train, config.data.num_validation
    if min(num_train, num_validation) < 1 and (num_train, num_validation) != (0, 0):
        raise errors.InputError(
            f"data.num_train is {num_train} and data.num_validation {num_validation}: use at least 1 "
            "each, or 0 for both."
        )
    for field, levels in leaves(config):
        if field.endswith(".num_levels") and not field.startswith("generator"):
            _check_levels(field, levels, min(canvas.as_size(config.data.image_size)))
    if config.optim.warmup_steps >= config.train.num_steps:
        raise errors.InputError(
            f"optim.warmup_steps is {config.optim.warmup_steps}: it must be below "
            f"train.num_steps={config.train.num_steps}."
        )
    _check_outer(config)


def _check_levels(field, levels, image_size):
    most = image_size.bit_length() - 1
    if levels > most:
        raise _fault(field, levels, f"{image_size} pixels can be halved {most} times at most")


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
