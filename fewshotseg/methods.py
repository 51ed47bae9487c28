"""The methods that are compared: who moves, does the generator draw, does theta move. A row each."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Method:
    """One way of training the segmenter.

    Attributes:
      moving: the players that take a step, in this order; 'generator' stands for the whole table of
        players of the generator's family.
      draws: whether synthetic pairs are drawn beside the real ones.
      moves_theta: whether the hypergradient moves the outer variables.
      augments: whether real pairs are augmented.
    """

    moving: tuple[str, ...]
    draws: bool
    moves_theta: bool = False
    augments: bool = True


METHODS = {
    "real_only": Method(("segmenter",), draws=False),
    "separate": Method(("segmenter",), draws=True),
    "joint": Method(("generator", "segmenter"), draws=True),
    "end2end": Method(("generator", "segmenter"), draws=True, moves_theta=True),
}
