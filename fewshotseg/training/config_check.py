"""What can be wrong with a configuration beyond the types of its fields."""

from fewshotseg import errors
from fewshotseg.methods import METHODS
from fewshotseg.training import devices as parallel
from fewshotseg.training.estimators import ESTIMATORS

CHOICES = {
    "methods": tuple(METHODS),
    "data.channels": (1, 3),
    "loss.overlap": ("dice", "jaccard"),
    "loss.adversarial": ("vanilla", "lsgan"),
    "outer.estimator": tuple(ESTIMATORS),
    "outer.remat": ("none", "step", "sqrt"),
    "outer.loop": ("auto", "host", "scan"),
    "outer.variables": ("architecture", "synthetic_weight"),
    "diagnose.estimators": tuple(ESTIMATORS),
}
MAY_BE_EMPTY = ("outer.variables",)
LEAST = {
    "data.image_size": 16,
    "outer.horizon": 1,
    "outer.num_terms": 1,
    "outer.num_pairs": 1,
    "outer.damping": 0,
    "diagnose.inner_steps": 1,
    "diagnose.repeats": 1,
}
ABOVE_ZERO = ("outer.radius", "outer.step_size", "outer.sigma")
BATCHES = ("pretrain", "train", "outer")


def check_config(config) -> None:
    """Checks what the types of the fields do not.

    Raises:
      InputError: names the field, the value and what is allowed.
    """
    for field, allowed in CHOICES.items():
        values, listed = _values(config, field), ", ".join(repr(value) for value in allowed)
        if not values and field not in MAY_BE_EMPTY:
            raise _fault(config, field, f"name some of {listed}")
        if unknown := [value for value in values if value not in allowed]:
            several = isinstance(_value(config, field), tuple)
            reason = f"{unknown[0]!r} is none of" if several else "use one of"
            raise _fault(config, field, f"{reason} {listed}")
    for field, least in LEAST.items():
        if min(_values(config, field), default=least - 1) < least:
            raise _fault(config, field, f"use at least {least}")
    for field in ABOVE_ZERO:
        if not _value(config, field) > 0:
            raise _fault(config, field, "use a number above 0")
    for block in BATCHES:
        parallel.check_batch_size(f"{block}.batch_size", config[block].batch_size)
    _check_combinations(config)


def _check_combinations(config):
    num_train, num_validation = config.data.num_train, config.data.num_validation
    if min(num_train, num_validation) < 1 and (num_train, num_validation) != (0, 0):
        raise errors.InputError(
            f"data.num_train is {num_train} and data.num_validation {num_validation}: use at least 1 "
            "each, or 0 for both."
        )
    outer = config.outer
    if not 1 <= outer.num_inner_steps <= outer.every:
        raise errors.InputError(
            f"outer.num_inner_steps is {outer.num_inner_steps}: it must be between 1 and "
            f"outer.every={outer.every}."
        )
    if outer.estimator == "conjugate_gradient" and outer.through_generator_training:
        raise errors.InputError(
            "outer.estimator is 'conjugate_gradient', which needs a symmetric Hessian: set "
            "outer.through_generator_training=False, or use 'neumann'."
        )


def _value(config, field: str):
    for name in field.split("."):
        config = config[name]
    return config


def _values(config, field):
    value = _value(config, field)
    return value if isinstance(value, tuple) else (value,)


def _fault(config, field, remedy):
    return errors.InputError(f"{field} is {_value(config, field)!r}: {remedy}.")
