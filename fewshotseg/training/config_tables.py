"""What the fields of a configuration may be: one table of bounds, one of choices.

A row's name is a pattern (`*` stands for anything, dots included), so that blocks that repeat, such as
the optimisers, the sources of further test sets, or a network's own block, share their rows. A new
number without a row fails tests/training/config_check_test.py.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from fewshotseg.data import cases
from fewshotseg.data.cases import SOURCES
from fewshotseg.genseg import diff_augment, losses, pair_sources
from fewshotseg.genseg.outer_variables import OUTER_VARIABLES
from fewshotseg.labels import HIGHEST
from fewshotseg.methods import METHODS
from fewshotseg.models import efficient_unet, factory, generators, pretrained, unet
from fewshotseg.results import synthetic_folder
from fewshotseg.training import optimizers
from fewshotseg.training.build_pairs import FAMILIES
from fewshotseg.training.estimators import ESTIMATORS, GRADIENTS

SEEDS = 2**32 - 1  # what both NumPy's and JAX's generators take


@dataclasses.dataclass(frozen=True)
class Bound:
    """An interval of finite numbers; `open_low` and `open_high` leave out its ends."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: float) -> bool:
        """Whether `value` lies in it; NaN and infinity never do."""
        if not abs(value) < math.inf:
            return False
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)

    def __str__(self):
        if self.high == math.inf:
            return f"a number above {self.low}" if self.open_low else f"at least {self.low}"
        ends = [
            f"{end} (left out)" if is_open else str(end)
            for end, is_open in ((self.low, self.open_low), (self.high, self.open_high))
        ]
        return f"a number between {ends[0]} and {ends[1]}"


def at_least(low) -> Bound:
    return Bound(low)


def above(low) -> Bound:
    return Bound(low, open_low=True)


def between(low, high, open_low=False, open_high=False) -> Bound:
    return Bound(low, high, open_low, open_high)


BOUNDS: Mapping[str, Bound] = {
    "seed": between(0, SEEDS),
    "*phantom.num_cases": at_least(1),
    "*phantom.seed": between(0, SEEDS),
    "*phantom.image_size": at_least(16),
    "*.ignore_id": between(-1, HIGHEST),
    "*volumes.channel": at_least(0),
    "*volumes.window": between(-1e6, 1e6),
    "*volumes.percentiles": between(0, 100),
    "data.image_size": at_least(16),
    "data.tiles.spacing": at_least(0),
    "data.tiles.overlap": between(0, 0.9),
    "data.tiles.foreground_share": between(0, 1),
    "data.num_train": at_least(0),
    "data.num_validation": at_least(0),
    "data.num_test": at_least(0),
    "data.fold": at_least(0),
    "data.look_alike": between(0, 1, open_low=True),
    "segmenter.unet.rate": above(0),
    "*.width": at_least(1),
    "*.max_width": at_least(1),
    "segmenter*.widths": at_least(efficient_unet.CHANNELS_PER_GROUP),
    "segmenter*.encoder_rate": at_least(0),
    "segmenter*.depths": at_least(1),
    "segmenter*.head_width": at_least(1),
    "segmenter*.atrous": at_least(1),
    "segmenter*.window": at_least(2),
    "segmenter*.num_levels": at_least(1),
    "generator*.num_levels": at_least(1),
    "discriminator*.num_levels": at_least(1),
    "discriminator*.num_scales": between(1, 4),
    "vae_*.num_levels": at_least(1),
    "pair_generator*.num_levels": at_least(1),
    "denoiser*.multipliers": at_least(1),
    "*.groups": at_least(1),
    "*.dropout_rate": between(0, 1, open_high=True),
    "loss.*_weight": at_least(0),
    "family.*_weight": at_least(0),
    "*.latent_size": at_least(1),
    "family.diffusion.*_steps": at_least(2),
    "family.diffusion.eta": between(0, 1),
    "augment.*.flip": between(0, 1),
    "augment.*.scale": between(0, 1, open_high=True),
    "augment.*.translate": between(0, 1),
    "augment.*.rotate": between(0, 180),
    "augment.*.shear": between(0, 90, open_high=True),
    "augment.*.elastic": between(0, 1),
    "augment.intensity.brightness": between(0, 2),
    "augment.intensity.contrast": between(0, 1),
    "augment.intensity.colour": between(0, 1),
    "augment.intensity.gamma": between(0, 1),
    "augment.intensity.blur": between(0, 1),
    "augment.intensity.noise": between(0, 2),
    "pairs.blend_width": at_least(0.05),
    "pairs.residual_gain": between(0, 0.5, open_low=True),
    "pairs.*.largest_share": between(0, 1, open_low=True),
    "pairs.*.strength": between(0, 1),
    "cross_fit.num_folds": at_least(2),
    "predict.workers": at_least(1),
    "cross_fit.num_starts": at_least(1),
    "cross_fit.num_steps": at_least(0),
    "cross_fit.num_rounds": at_least(1),
    "cross_fit.pool_batches": at_least(0),
    "cross_fit.width_share": between(0, 1, open_low=True),
    "cross_fit.rate": at_least(0),
    "cross_fit.level": between(0, 1),
    "cross_fit.num_candidates": at_least(1),
    "cross_fit.spread": at_least(0),
    "pretrain.num_steps": at_least(1),
    "train.num_steps": at_least(1),
    "*.batch_size": at_least(1),
    "train.ema_decay": between(0, 1, open_high=True),
    "*optim.learning_rate": above(0),
    "*optim.warmup_steps": at_least(0),
    "*optim.weight_decay": at_least(0),
    "*optim.momentum": between(0, 1, open_high=True),
    "*optim.b[12]": between(0, 1, open_high=True),
    "*optim.eps": above(0),
    "*optim.clip": at_least(0),
    "gan_finetune_factor": at_least(0),
    "outer.num_inner_steps": at_least(1),
    "outer.every": at_least(1),
    "outer.start": at_least(0),
    "outer.*horizon": at_least(1),
    "outer.*radius": above(0),
    "outer.*step_size": above(0),
    "outer.*num_terms": at_least(1),
    "outer.*damping": at_least(0),
    "outer.*num_pairs": at_least(1),
    "outer.*sigma": above(0),
    "outer.*num_unrolls": at_least(1),
    "feedback.betas": at_least(0),
    "feedback.min_ratings": at_least(20),
    "feedback.pool_size": at_least(16),
    "feedback.num_steps": at_least(0),
    "feedback.num_starts": at_least(1),
    "review.num_shown": between(1, 48),
    "review.num_pairs": at_least(1),
    "review.real_share": between(0, 0.5),
    "review.repeat_share": between(0, 0.5),
    "review.diversity": at_least(0),
    "review.seed": between(0, SEEDS),
    "synthesize.min_consistency": between(0, 1),
    "synthesize.max_tries": at_least(1),
    "synthesize.seed": between(0, SEEDS),
    "diagnose.inner_steps": at_least(1),
    "diagnose.draws": at_least(1),
    "diagnose.repeats": at_least(1),
    "*_every": at_least(1),
    "evaluate.nsd_tolerance": above(0),
    "evaluate.nsd_mm": at_least(0),
    "evaluate.num_pairs": at_least(0),
    "evaluate.threshold": between(0, 1, open_low=True, open_high=True),
}

NUMBER_CHOICES: Mapping[str, tuple[int, ...]] = {
    "data.channels": (1, 3),
    "augment.*.flip_axes": (-1, -2, -3),
}

CHOICES: Mapping[str, tuple[Any, ...]] = {
    **NUMBER_CHOICES,
    "methods": tuple(METHODS),
    "predict.method": ("", *METHODS),
    "synthesize.layout": tuple(synthetic_folder.LAYOUTS),
    "data.source": tuple(SOURCES),
    "data.fit": ("squash", "tiles"),
    "data.validate": cases.VALIDATE,
    "test_sets.*.source": tuple(SOURCES),
    "*phantom.style": ("dermoscopy", "ultrasound"),
    "segmenter.name": tuple(factory.SEGMENTERS),
    "generator.name": tuple(factory.GENERATORS),
    "discriminator.name": tuple(factory.DISCRIMINATORS),
    "denoiser.name": tuple(generators.DENOISERS),
    "vae_encoder.name": tuple(generators.ENCODERS),
    "vae_decoder.name": tuple(generators.DECODERS),
    "pair_generator.name": tuple(generators.DECODERS),
    "segmenter*.activation": tuple(unet.ACTIVATIONS),
    "segmenter*.pool": tuple(unet.POOLS),
    "segmenter*.trained": pretrained.TRAINED,
    "*.dtype": tuple(factory.DTYPES),
    "loss.overlap": ("dice", "jaccard"),
    "family.name": tuple(FAMILIES),
    "family.*.adversarial": losses.ADVERSARIAL,
    "family.*.augmented": tuple(diff_augment.OPERATIONS),
    "pairs.sources": tuple(pair_sources.PAIR_SOURCES),
    "train.select": ("last", "best"),
    "*optim.second_moment": optimizers.SECOND_MOMENTS,
    "*optim.name": ("sgd", "adam", "adamw", "rmsprop"),
    "*optim.schedule": ("constant", "cosine"),
    "outer.estimator": tuple(ESTIMATORS),
    "outer.gradient": tuple(GRADIENTS),
    "outer.*remat": ("none", "step", "sqrt"),
    "outer.loop": ("auto", "host", "scan"),
    "outer.variables": tuple(OUTER_VARIABLES),
    "cross_fit.variables": tuple(OUTER_VARIABLES),
}
MAY_BE_EMPTY = ("outer.variables", "augment.*.flip_axes", "family.*.augmented")
DIVIDED = ("pretrain.batch_size", "train.batch_size", "outer.batch_size")  # over the devices
