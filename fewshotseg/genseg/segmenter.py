"""The segmenter as a player, on real and synthetic pairs (level 2), and its validation loss (level 3)."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import optax

from fewshotseg.genseg import levels, losses
from fewshotseg.types import Batch

# Purposes of the keys; see `levels.example_keys`. `gan.TRAINING_NOISE` is 0.
SYNTHETIC_NOISE, SYNTHETIC_JITTER, REAL_JITTER, REAL_DROPOUT, SYNTHETIC_DROPOUT = 1, 2, 3, 4, 5


def synthesize(
    draw: Callable, jitter: Callable, state: levels.State, theta, batch: Batch, num_classes: int
) -> jax.Array:
    """Images `[B, *spatial, C]` in [-1, 1] for `batch['synthetic_mask']`, jittered, differentiable."""
    masks = losses.one_hot_foreground(batch["synthetic_mask"], num_classes)
    drawn = draw(state, theta, masks, levels.example_keys(batch, SYNTHETIC_NOISE))
    return jitter(drawn, levels.example_keys(batch, SYNTHETIC_JITTER))


def player(
    segment: Callable,
    jitter: Callable,
    optimizer: optax.GradientTransformation,
    *,
    draw: Callable | None = None,
    use: Callable | None = None,
    num_classes: int = 2,
    overlap: str = "dice",
    average_decay: float = 0.99,
) -> levels.Player:
    """The segmenter: real and synthetic pairs go through the network as one batch.

    Its loss is `(real + gamma synthetic) / (1 + gamma)`, so that it has one scale with and without
    synthetic pairs.

    Args:
      segment: `(params, images, keys [B]) -> logits [B, *spatial, K]`.
      jitter: `(images, keys [B]) -> images`, differentiable intensity augmentation.
      optimizer: of its weights.
      draw: of a `levels.Family`; None: real images only.
      use: theta -> the outer variables in use; 'synthetic_weight' is gamma.
      num_classes: background included.
      overlap: 'dice' or 'jaccard'.
      average_decay: of the average of the weights that is evaluated.
    """

    def inputs(state, theta, batch):
        data = {
            "images": jitter(batch["image"], levels.example_keys(batch, REAL_JITTER)),
            "masks": batch["mask"],
            "keys": levels.example_keys(batch, REAL_DROPOUT),
        }
        if draw is None:
            return {}, data
        drawn = synthesize(draw, jitter, state, theta, batch, num_classes)
        chex.assert_equal_shape_suffix((drawn, batch["image"]), drawn.ndim - 1)
        data["masks"] = jnp.concatenate([data["masks"], batch["synthetic_mask"]])
        dropout = levels.example_keys(batch, SYNTHETIC_DROPOUT)
        data["keys"] = jnp.concatenate([data["keys"], dropout])
        return {"synthetic": drawn, "weight": use(theta)["synthetic_weight"]}, data

    def loss(params, outer, data):
        images, num_real = data["images"], data["images"].shape[0]
        if outer:
            images = jnp.concatenate([images, outer["synthetic"]])
        logits = segment(params, images, data["keys"])
        chex.assert_equal_shape_prefix((logits, data["masks"]), data["masks"].ndim)
        each = losses.segmentation_loss(logits, data["masks"], overlap)
        total = real = each[:num_real].mean()
        metrics = {"segmenter/real_loss": real}
        if outer:
            synthetic = each[num_real:].mean()
            metrics["segmenter/synthetic_loss"] = synthetic
            weight = outer["weight"]
            total = (real + weight * synthetic) / (1.0 + weight)
        return total, {"segmenter/loss": total, **metrics}

    return levels.Player(loss, inputs, optimizer, average_decay)


def validation_loss(
    segment: Callable, *, overlap: str = "dice", axis_name: str | None = None
) -> Callable:
    """A term of `levels.outer_loss`: the loss of the segmenter's current weights on validation images.

    Args:
      segment: as for `player`, called without keys.
      overlap: 'dice' or 'jaccard'.
      axis_name: of the devices.

    Returns:
      `(state, theta, batch) -> (loss, metrics)` with 'image' `[B, *spatial, C]`, 'mask' `[B, *spatial]`
      and 'weight' `[B]` in the batch: 1 for cases, 0 for padding.
    """

    def term(state, theta, batch):
        del theta  # the validation loss depends on it through the state alone
        logits = segment(state["segmenter"].params, batch["image"], None)
        each = losses.segmentation_loss(logits, batch["mask"], overlap)
        # Every device divides by the same number, so that the mean over devices is the weighted mean.
        cases = batch["weight"].sum()
        cases = cases if axis_name is None else jax.lax.pmean(cases, axis_name)
        loss = (each * batch["weight"]).sum() / cases
        return loss, {"outer/validation_loss": loss}

    return term
