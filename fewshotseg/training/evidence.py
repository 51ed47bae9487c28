"""What the hypergradients of several folds say together, and a step that is taken on evidence alone.

A hypergradient from a few validation images is mostly noise: it has a sign for every outer variable,
whether there is anything to learn or not. Folds give several of each; where their mean is not clearly
different from 0, the outer variable stays where it is.

Trainings of one fold from several starts are judged by the same cases: their mean is what counts as one.
The training sets of two folds have most of their cases in common, so their hypergradients are not quite
independent, and the p values are a little too small. They are adjusted for the number of outer variables
(Holm), which errs the other way.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from scipy import stats

from fewshotseg.results import statistics
from fewshotseg.types import Theta


class Evidence(NamedTuple):
    """A summary of n hypergradients, each field with the structure of theta, in float64.

    Attributes:
      mean: of the hypergradients.
      error: standard error of the mean.
      t: mean / error.
      p: two-sided, of Student's t with n - 1 degrees of freedom, adjusted over all components (Holm).
    """

    mean: Theta
    error: Theta
    t: Theta
    p: Theta


def weigh(gradients: Sequence[Theta]) -> Evidence:
    """The evidence in n >= 2 hypergradients; a component that is always the same has t = +-inf, or 0."""
    leaves, structure = zip(*map(jax.tree.flatten, gradients), strict=True)
    shapes = [np.shape(x) for x in leaves[0]]
    rows = np.stack([np.concatenate([np.ravel(x) for x in each]) for each in leaves])
    rows = rows.astype(np.float64)
    number = len(rows)
    mean, error = rows.mean(0), rows.std(0, ddof=1) / math.sqrt(number)
    t = np.divide(
        mean, error, out=np.where(mean == 0, 0.0, np.copysign(np.inf, mean)), where=error > 0
    )
    p = np.array(statistics.holm((2 * stats.t.sf(np.abs(t), number - 1)).tolist()))

    def as_theta(flat):
        parts = np.split(flat, np.cumsum([math.prod(shape) for shape in shapes])[:-1])
        parts = [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
        return jax.tree.unflatten(structure[0], parts)

    return Evidence(*map(as_theta, (mean, error, t, p)))


def step(theta: Theta, evidence: Evidence, *, rate: float, level: float) -> Theta:
    """Theta after one step against the hypergradient, in the components that it is significant for.

    Args:
      theta: a dictionary of outer variables.
      evidence: of its hypergradients.
      rate: length of the largest step of every outer variable, in its own free units: the size of a
        hypergradient says how much there is to gain, not how far to go.
      level: largest p value of a component that moves.
    """

    def move(value, mean, p):
        significant = np.where(p <= level, mean, 0.0)
        largest = np.abs(significant).max(initial=0.0)
        if largest == 0:
            return value
        return np.asarray(value - rate * significant / largest, np.result_type(value))

    return jax.tree.map(move, theta, evidence.mean, evidence.p)
