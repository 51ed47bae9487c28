"""Derivatives of a validation loss through the training before it: `from fewshotseg import hypergradient`.

`contract` has the notation and a worked example, docs/estimators.md a bilevel problem from start to end.
"""

from fewshotseg.hypergradient import forward, host_evolution, host_loop, inner_gradient
from fewshotseg.hypergradient.contract import (
    Hypergradient,
    check,
    indexed,
    mean_over_devices,
    steps,
)
from fewshotseg.hypergradient.evolution import Particles, evolution_strategies, pes, start_particles
from fewshotseg.hypergradient.forward import forward_mode
from fewshotseg.hypergradient.implicit import (
    Solver,
    Stationarity,
    conjugate_gradient,
    identity,
    implicit_gradient,
    neumann,
    sama,
)
from fewshotseg.hypergradient.one_player import TrainState, gradient_step, stationarity
from fewshotseg.hypergradient.unroll import one_step, truncated, unrolled

__all__ = [
    "Hypergradient",
    "Particles",
    "Solver",
    "Stationarity",
    "TrainState",
    "check",
    "conjugate_gradient",
    "evolution_strategies",
    "forward",
    "forward_mode",
    "gradient_step",
    "host_evolution",
    "host_loop",
    "identity",
    "implicit_gradient",
    "indexed",
    "inner_gradient",
    "mean_over_devices",
    "neumann",
    "one_step",
    "pes",
    "sama",
    "start_particles",
    "stationarity",
    "steps",
    "truncated",
    "unrolled",
]
