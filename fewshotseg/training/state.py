"""What a training carries from step to step: pytrees of arrays, nothing else.

No optimiser, no key, no configuration, no device axis: the same value is a scan carry, a checkpoint and
a test value.
"""

from typing import Any

import flax.struct
import jax

from fewshotseg.genseg import levels
from fewshotseg.types import Theta


@flax.struct.dataclass
class TrainState:
    """The state of a training.

    Attributes:
      players: of `genseg.levels`, by name.
      theta: the outer variables that move.
      theta_opt: state of their optimiser.
      step: int32 scalar, number of inner steps done.
      carry: memory of the estimator of the hypergradient; () if it has none.
    """

    players: levels.State
    theta: Theta
    theta_opt: Any
    step: jax.Array
    carry: Any = ()
