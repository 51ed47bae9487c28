"""The methods that are compared: which players move, which synthetic pairs they see, does theta move.

A row each.
"""

import dataclasses
from collections.abc import Sequence

# Sources of synthetic pairs that ask a generator, which is trained before any of them is used.
GENERATED = ("generator", "appearance", "composite", "sampled")


@dataclasses.dataclass(frozen=True)
class Method:
    """One way of training the segmenter.

    Attributes:
      trains_generator: whether the players of the generator move beside the segmenter, before it in
        every step. (Before the training, they are trained alone, for every method that draws.)
      sources: of synthetic pairs, rows of `genseg/pair_sources.py`: as many pairs as real ones, in
        equal parts. () for none; None for those of `pairs.sources` of the configuration. 'generator' stands
        for that of the generator family.
      moves_theta: whether the hypergradient moves the outer variables, beside the training.
      search: how the outer variables are found before the training, by whole trainings on folds of the
        labelled cases; a strategy of `training/search.py`, '' for none.
      augments: whether real pairs are augmented.
      real_batches: real pairs per step, as a multiple of `train.batch_size`; with 2 and without
        synthetic pairs, a method sees as many images per step as one with them.
      segmenter: which network is trained, a row of `models/factory.py`; '' for that of the configuration.
      summary: for people.
    """

    trains_generator: bool = False
    sources: tuple[str, ...] | None = ()
    moves_theta: bool = False
    search: str = ""
    augments: bool = True
    real_batches: int = 1
    segmenter: str = ""
    summary: str = ""

    @property
    def draws(self) -> bool:
        """Whether a generator is needed; of a method that leaves its sources open, see `resolve`."""
        return any(source in GENERATED for source in self.sources or ())


METHODS = {
    "unet_plain": Method(
        augments=False,
        real_batches=2,
        segmenter="unet",
        summary="a U-Net from scratch on real pairs as they are",
    ),
    "unet_only": Method(
        real_batches=2, segmenter="unet", summary="a U-Net from scratch on augmented real pairs"
    ),
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
    "mixture_searched": Method(
        sources=None,
        search="hypergradient",
        summary="their parts are found by the hypergradient through whole trainings, cross-fitted",
    ),
    "mixture_chosen": Method(
        sources=None, search="choice", summary="all of them, or one alone: by cross-validation"
    ),
    "mixture_random": Method(
        sources=None, search="random", summary="their parts are found by random search"
    ),
    "mixture_population": Method(
        sources=None, search="population", summary="their parts are found by random steps"
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


def segmenter_name(method: str, configured: str) -> str:
    """The segmenter that a method trains: its own, or the one of the configuration."""
    return METHODS[method].segmenter if method and METHODS[method].segmenter else configured


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
