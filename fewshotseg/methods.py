"""The methods that are compared: who moves, does the generator draw, does theta move. A row each."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Method:
    """One way of training the segmenter.

    Attributes:
      trains_generator: whether the players of the generator move beside the segmenter, before it in
        every step. (Before the training, they are trained alone, for every method that draws.)
      draws: whether synthetic pairs are drawn, as many as real ones.
      moves_theta: whether the hypergradient moves the outer variables.
      augments: whether real pairs are augmented.
      real_batches: real pairs per step, as a multiple of `train.batch_size`; with 2 and without
        synthetic pairs, a method sees as many images per step as one that draws.
      summary: for people.
    """

    trains_generator: bool = False
    draws: bool = False
    moves_theta: bool = False
    augments: bool = True
    real_batches: int = 1
    summary: str = ""


METHODS = {
    "real_plain": Method(
        augments=False, real_batches=2, summary="real pairs as they are, no augmentation"
    ),
    "real_only": Method(real_batches=2, summary="augmented real pairs"),
    "real_only_half": Method(summary="augmented real pairs, half as many images per step"),
    "separate": Method(draws=True, summary="the generator is trained first, then frozen"),
    "joint": Method(
        trains_generator=True, draws=True, summary="the generator goes on training beside"
    ),
    "end2end": Method(
        trains_generator=True,
        draws=True,
        moves_theta=True,
        summary="likewise, and the hypergradient moves the outer variables",
    ),
}
