"""The table of estimators: what `outer.estimator` and `outer.gradient` may say.

A row names the pure function and, where it pays, the host loop that CPUs want. To add an estimator, write
the function (see docs/extending.md) and its row here; the fields of its block in the configuration are
its keyword arguments.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

from fewshotseg import errors, hypergradient
from fewshotseg.hypergradient import host_evolution, host_loop, inner_gradient


@dataclasses.dataclass(frozen=True)
class Estimator:
    """One row.

    Attributes:
      make: `(inner_step, outer_loss, *, axis_name, **fields) -> estimate`, pure. With
        `needs_stationarity`, also takes `stationarity`.
      make_host: the same as a Python loop over compiled pieces, which also takes `compile` and `step`;
        None: `make`, compiled as a whole, serves everywhere.
      needs_stationarity: whether it takes the inner problem as an equation.
      needs_symmetry: whether that equation must have a symmetric derivative, that is, one player.
      gradient: how inner gradients must be differentiated; '': in any way.
      draws: whether it draws noise, from the keys.
      start: `(theta, inner_state, **fields) -> carry`, of an estimator with a memory: what it is given
        after the keys at first, and its result brings along for the next time. None: it has none.
    """

    make: Callable
    make_host: Callable | None = None
    needs_stationarity: bool = False
    needs_symmetry: bool = False
    gradient: str = ""
    draws: bool = False
    start: Callable | None = None


def _implicit(solver: Callable, needs_symmetry: bool = False) -> Estimator:
    """The row of a solver of the implicit family, whose keyword arguments are the fields."""

    def make(inner_step, outer_loss, *, stationarity, axis_name, **fields):
        return hypergradient.implicit_gradient(
            inner_step, outer_loss, stationarity, solver(**fields), axis_name=axis_name
        )

    def make_host(inner_step, outer_loss, *, stationarity, axis_name, compile, step, **fields):
        return host_loop.implicit_gradient(
            inner_step,
            outer_loss,
            stationarity,
            solver(**fields),
            axis_name=axis_name,
            compile=compile,
            step=step,
        )

    return Estimator(make, make_host, True, needs_symmetry)


def _start_particles(theta, inner_state, *, num_pairs, **fields):
    del fields
    return hypergradient.start_particles(theta, inner_state, num_pairs)


ESTIMATORS = {
    "unrolled": Estimator(hypergradient.unrolled, host_loop.unrolled),
    "truncated": Estimator(hypergradient.truncated, host_loop.unrolled),
    "one_step": Estimator(hypergradient.one_step, functools.partial(host_loop.unrolled, horizon=1)),
    "forward_mode": Estimator(
        hypergradient.forward_mode, host_loop.forward_mode, gradient="reverse"
    ),
    "identity": _implicit(hypergradient.identity),
    "neumann": _implicit(hypergradient.neumann),
    "conjugate_gradient": _implicit(hypergradient.conjugate_gradient, needs_symmetry=True),
    "sama": _implicit(hypergradient.sama),
    "evolution_strategies": Estimator(
        hypergradient.evolution_strategies, host_evolution.evolution_strategies, draws=True
    ),
    "pes": Estimator(hypergradient.pes, host_evolution.pes, draws=True, start=_start_particles),
}

# How inner gradients are differentiated once more; the fields are keyword arguments beside the loss.
GRADIENTS = inner_gradient.GRADIENTS


def create_gradient(name: str, fields: Mapping[str, Any]) -> Callable:
    """The way of differentiating inner gradients that `outer.gradient` names.

    Args:
      name: one of `GRADIENTS`.
      fields: of its block, e.g. {"radius": 0.01}.

    Returns:
      `loss -> gradient`, see `inner_gradient`.
    """
    return functools.partial(GRADIENTS[name], **fields) if fields else GRADIENTS[name]


def choose_gradient(estimator: str, gradient: str) -> str:
    """The gradient that an estimator gets: `gradient`, or the one it must have if the numbers are the same.

    Raises:
      InputError: they would not be the same.
    """
    needed = ESTIMATORS[estimator].gradient
    if needed and gradient == "finite_difference":
        raise errors.InputError(
            f"the estimator {estimator!r} is exact and differentiates the inner gradient itself: take "
            f"{needed!r} (or 'mixed') for its gradient, not {gradient!r}."
        )
    return needed or gradient


def start(name: str, fields: Mapping[str, Any], theta: Any, inner_state: Any) -> Any:
    """What the estimator is given after the keys at its first estimate; () if it has no memory."""
    make = ESTIMATORS[name].start
    return make(theta, inner_state, **fields) if make else ()


def create_estimator(
    name: str,
    fields: Mapping[str, Any],
    inner_step: Callable,
    outer_loss: Callable,
    stationarity: hypergradient.Stationarity | None = None,
    *,
    loop: str = "auto",
    axis_name: str | None = None,
    compile: Callable = host_loop.jit,
    step: Callable | None = None,
) -> Callable:
    """The estimator that `outer.estimator` names, compiled.

    Args:
      name: one of `ESTIMATORS`.
      fields: of its block, e.g. {"num_terms": 10, "step_size": 0.01}.
      inner_step: see `hypergradient.unrolled`.
      outer_loss: likewise.
      stationarity: the inner problem as an equation; for the estimators that need it.
      loop: 'host' | 'scan' | 'auto': the host loop on CPUs, one program on accelerators.
      axis_name: of the devices, None for one.
      compile: `(function, batched_args, batched_results) -> compiled function`, see `host_loop`.
      step: the compiled, indexed inner step, if there is one already.

    Returns:
      `(theta, inner_state, inner_batches, outer_batch, rngs) -> Hypergradient`; with a memory, it takes
      that of the last result, or of `start`, after the keys.

    Raises:
      KeyError: no such estimator.
      ValueError: it needs a stationarity and has none.
    """
    row = ESTIMATORS[name]
    if loop == "auto":
        loop = "host" if jax.default_backend() == "cpu" else "scan"
    options = {**fields, "axis_name": axis_name}
    if row.needs_stationarity:
        if stationarity is None:
            raise ValueError(f"{name} needs the inner problem as an equation: give a stationarity.")
        options["stationarity"] = stationarity
    if loop == "host" and row.make_host is not None:
        return row.make_host(inner_step, outer_loss, compile=compile, step=step, **options)
    return compile(row.make(inner_step, outer_loss, **options), batched_args=(2, 3))


def parse_choice(choice: str) -> tuple[str, str]:
    """Estimator and gradient of 'unrolled' or 'one_step+finite_difference'; no gradient means 'mixed'.

    Raises:
      InputError: there is no such estimator or gradient, or they do not go together.
    """
    name, _, gradient = choice.partition("+")
    gradient = gradient or "mixed"
    for value, allowed in ((name, ESTIMATORS), (gradient, GRADIENTS)):
        if value not in allowed:
            raise errors.InputError(
                f"{value!r} is none of {', '.join(map(repr, allowed))}: an estimator is given as in "
                "'unrolled' or 'one_step+finite_difference'."
            )
    choose_gradient(name, gradient)
    return name, gradient
