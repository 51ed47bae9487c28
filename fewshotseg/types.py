"""Names for the things every module passes around, and the vocabulary of shapes.

Shapes in docstrings: `B` batch, `*spatial` one size per spatial dimension (`H, W` or `D, H, W`),
`C` image channels, `K` class channels (1 for one foreground class with a sigmoid; number of classes
with the background first, with a softmax), `N` cases in memory.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import numpy as np

Params = Any  # pytree of float32 arrays: the weights of one network
Theta = Any  # pytree of float arrays: the outer variables
Batch = Mapping[str, jax.Array]  # leaves [B, ...]
PRNGKey = jax.Array
Metrics = Mapping[str, jax.Array]  # scalars


@dataclasses.dataclass(frozen=True)
class Case:
    """One labelled image at its original size.

    Attributes:
      id: unique within its source.
      image: `[*spatial, C]` of grey values or colours from 0 to 255, C is 1 or 3: uint8 `[H, W, C]`, or
        float32 `[D, H, W, C]` where a volume's own values were brought there without rounding.
      mask: uint8 `[*spatial]` of class ids, 0 is background.
      group: patient or series; cases of one group stay on one side of a split. '' if unknown.
      notes: conversions a user should know of ("alpha channel dropped").
      spacing: of the pixels along each spatial axis, in mm; () if unknown.
      affine: float64 `[4, 4]` from the indices of a volume to mm in the patient, see `data/geometry.py`;
        None if unknown.
    """

    id: str
    image: np.ndarray
    mask: np.ndarray
    group: str = ""
    notes: tuple[str, ...] = ()
    spacing: tuple[float, ...] = ()
    affine: np.ndarray | None = None


class CaseSource(Protocol):
    """A data set as the rest of the package sees it: named cases, loaded one at a time.

    Attributes:
      name: of the data set.
      class_names: the foreground classes; their ids are 1, 2, ... in this order.
      ids: all case ids, sorted.
      official_splits: 'train', 'validation', 'test' as published; empty if there are none.
    """

    name: str
    class_names: tuple[str, ...]
    ids: tuple[str, ...]
    official_splits: Mapping[str, tuple[str, ...]]

    def load(self, case_id: str) -> Case: ...
