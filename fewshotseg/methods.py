"""The methods that are compared: which players move, which synthetic pairs they see, does theta move.

A row each.
"""

import dataclasses
from collections.abc import Sequence

# Sources of synthetic pairs that ask a generator, which is trained before any of them is used.
GENERATED = ("generator", "appearance", "composite")


@dataclasses.dataclass(frozen=True)
class Method:
    """One way of training the segmenter.

    Attributes:
      trains_generator: whether the players of the generator move beside the segmenter, before it in
        every step. (Before the training, they are trained alone, for every method that draws.)
      sources: of synthetic pairs, rows of `genseg/pair_sources.py`: as many pairs as real ones, in
        equal parts. () for none; None for those of `pairs.sources` of the configuration. 'generator' stands
        for that of the generator family.
      moves_theta: whether the hypergradient moves the outer variables.
      augments: whether real pairs are augmented.
      real_batches: real pairs per step, as a multiple of `train.batch_size`; with 2 and without
        synthetic pairs, a method sees as many images per step as one with them.
      summary: for people.
    """

    trains_generator: bool = False
    sources: tuple[str, ...] | None = ()
    moves_theta: bool = False
    augments: bool = True
    real_batches: int = 1
    summary: str = ""

    @property
    def draws(self) -> bool:
        """Whether a generator is needed; of a method that leaves its sources open, see `resolve`."""
        return any(source in GENERATED for source in self.sources or ())


METHODS = {
    "real_plain": Method(
        augments=False, real_batches=2, summary="real pairs as they are, no augmentation"
    ),
    "real_only": Method(real_batches=2, summary="augmented real pairs"),
    "real_only_half": Method(summary="augmented real pairs, half as many images per step"),
    "copy_paste": Method(
        sources=("copy_paste",), summary="objects of one image in another, beside real pairs"
    ),
    "cutmix": Method(sources=("cutmix",), summary="a box of one image in another"),
    "colour_transfer": Method(
        sources=("colour_transfer",), summary="an image in the colours of another"
    ),
    "mixture": Method(sources=None, summary="several sources of pairs in equal parts"),
    "mixture_learned": Method(
        sources=None,
        moves_theta=True,
        summary="likewise, and the hypergradient moves the outer variables",
    ),
    "separate": Method(
        sources=("generator",), summary="the generator is trained first, then frozen"
    ),
    "joint": Method(
        trains_generator=True,
        sources=("generator",),
        summary="the generator goes on training beside",
    ),
    "end2end": Method(
        trains_generator=True,
        sources=("generator",),
        moves_theta=True,
        summary="likewise, and the hypergradient moves the outer variables",
    ),
}


def resolve(method: Method, sources: Sequence[str], generated: str = "generator") -> Method:
    """The row with its sources named.

    Args:
      method: the row.
      sources: those of the configuration, where the row has none of its own.
      generated: that of the generator family.
    """
    named = sources if method.sources is None else method.sources
    named = tuple(generated if source == "generator" else source for source in named)
    return dataclasses.replace(method, sources=named)
