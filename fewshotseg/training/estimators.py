"""Estimators of the hypergradient by name, as `outer.estimator` gives it."""

import functools
from collections.abc import Callable

import jax

from fewshotseg.genseg import levels as genseg
from fewshotseg.hypergradient import evolution, implicit
from fewshotseg.hypergradient import unroll as hypergradient
from fewshotseg.training import devices as parallel

# Estimator of the hypergradient -> how it has the inner gradient differentiated.
ESTIMATORS = {
    "mixed_mode": "mixed",
    "unrolled": "reverse",
    "truncated": "mixed",
    "one_step": "mixed",
    "finite_difference": "finite_difference",
    "identity": "mixed",
    "neumann": "mixed",
    "conjugate_gradient": "mixed",
    "sama": "finite_difference",
    "evolution_strategies": "mixed",
}


def create_estimator(
    config,
    method: genseg.Method,
    step: Callable | None = None,
    axis_name: str | None = parallel.AXIS_NAME,
    compile: Callable = parallel.compile_step,
) -> Callable:
    """The estimator `config.outer.estimator`, compiled for all devices by default.

    Args:
      config: the configuration.
      method: from `create_method`, for the method 'end2end'.
      step: the compiled inner step, if there is one already (see `hypergradient.unrolled`).
      axis_name: of the devices.
      compile: likewise.
    """
    outer = config.outer
    loop = outer.loop
    if loop == "auto":
        loop = "host" if jax.default_backend() == "cpu" else "scan"
    inner_step = functools.partial(
        genseg.inner_step, method=method, through_generator=outer.through_generator_training
    )
    stationarity = genseg.stationarity(
        method=method, through_generator=outer.through_generator_training
    )
    makers = {
        "mixed_mode": functools.partial(hypergradient.unrolled, remat=outer.remat),
        "unrolled": functools.partial(hypergradient.unrolled, remat=outer.remat),
        "truncated": functools.partial(
            hypergradient.truncated, horizon=outer.horizon, remat=outer.remat
        ),
        "one_step": hypergradient.one_step,
        "finite_difference": hypergradient.one_step,
        "identity": functools.partial(
            implicit.identity, stationarity=stationarity, step_size=outer.step_size
        ),
        "neumann": functools.partial(
            implicit.neumann,
            stationarity=stationarity,
            num_terms=outer.num_terms,
            step_size=outer.step_size,
        ),
        "conjugate_gradient": functools.partial(
            implicit.conjugate_gradient,
            stationarity=stationarity,
            num_terms=outer.num_terms,
            damping=outer.damping,
        ),
        "sama": functools.partial(implicit.sama, stationarity=stationarity),
        "evolution_strategies": functools.partial(
            evolution.evolution_strategies, num_pairs=outer.num_pairs, sigma=outer.sigma
        ),
    }
    return makers[outer.estimator](
        inner_step,
        functools.partial(genseg.outer_loss, method=method),
        loop=loop,
        axis_name=axis_name,
        compile=compile,
        step=step,
    )
