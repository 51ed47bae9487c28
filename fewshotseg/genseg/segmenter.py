"""The segmenter as a player, on real and synthetic pairs (level 2), and its validation loss (level 3)."""

from collections.abc import Callable, Mapping

import chex
import jax
import jax.numpy as jnp
import optax

from fewshotseg.genseg import adapt, levels, losses, pair_sources
from fewshotseg.types import Batch

# Purposes of the keys; see `levels.example_keys`. `gan.TRAINING_NOISE` is 0.
SYNTHETIC_NOISE, SYNTHETIC_JITTER, REAL_JITTER, REAL_DROPOUT, SYNTHETIC_DROPOUT = 1, 2, 3, 4, 5


def synthesize(
    sources: Mapping[str, Callable],
    jitter: Callable,
    use: Callable,
    state: levels.State,
    theta,
    batch: Batch,
    num_classes: int = 2,
) -> pair_sources.Pairs:
    """The synthetic pairs of a batch, in its order, adapted, their images jittered; see `adapt.adapt`."""
    of_pairs = {"key": batch.get("synthetic_key", batch["key"])}
    keys = levels.example_keys(of_pairs, SYNTHETIC_NOISE)
    pairs = pair_sources.make_pairs(sources, state, theta, batch, keys)
    pairs = adapt.adapt(pairs, use(theta), num_classes)
    images = jitter(pairs.images, levels.example_keys(batch, SYNTHETIC_JITTER))
    return pairs._replace(images=images)


def create_examples(
    jitter: Callable,
    *,
    sources: Mapping[str, Callable] | None = None,
    use: Callable | None = None,
    num_classes: int = 2,
) -> Callable:
    """`(state, theta, batch) -> examples`: what goes through the segmenter in one step.

    Examples are 'images', 'masks' and 'keys' of the real pairs and, with sources, 'synthetic_images',
    'synthetic_masks' and 'synthetic_keys', each `[B, ...]`. Arguments as for `player`.
    """

    def examples(state, theta, batch):
        real = {
            "images": jitter(batch["image"], levels.example_keys(batch, REAL_JITTER)),
            "masks": batch["mask"],
            "keys": levels.example_keys(batch, REAL_DROPOUT),
        }
        if not sources:
            return real
        pairs = synthesize(sources, jitter, use, state, theta, batch, num_classes)
        chex.assert_equal_shape_suffix((pairs.images, batch["image"]), pairs.images.ndim - 1)
        keys = levels.example_keys(batch, SYNTHETIC_DROPOUT)
        synthetic = {"images": pairs.images, "masks": pairs.masks, "keys": keys}
        return real | {f"synthetic_{name}": value for name, value in synthetic.items()}

    return examples


def player(
    segment: Callable,
    jitter: Callable,
    optimizer: optax.GradientTransformation,
    *,
    sources: Mapping[str, Callable] | None = None,
    use: Callable | None = None,
    overlap: str = "dice",
    average_decay: float = 0.99,
    num_classes: int = 2,
    examples: Callable | None = None,
) -> levels.Player:
    """The segmenter: real and synthetic pairs go through the network as one batch.

    Its loss is `(real + gamma sum_s w_s synthetic_s) / (1 + gamma)`, so that it has one scale with and
    without synthetic pairs, and from any number of sources s. Each has an equal part of the batch: w are
    importance weights, and the derivative with respect to them is exact.

    Args:
      segment: `(params, images, keys [B]) -> logits [B, *spatial, K]`.
      jitter: `(images, keys [B]) -> images`, differentiable intensity augmentation.
      optimizer: of its weights.
      sources: of synthetic pairs, name -> `make` (`pair_sources.create`); none: real images only.
      use: theta -> the outer variables in use; 'synthetic_weight' is gamma, 'mixture' `[S]` is w, which
        one source alone does without, and those of `adapt.adapt` need not be there.
      overlap: 'dice' or 'jaccard'.
      average_decay: of the average of the weights that is evaluated.
      num_classes: background included.
      examples: as `create_examples` says; None: as it makes them. Images may be what the network takes in
        their place, `factory.Network.encode`.
    """
    examples = examples or create_examples(
        jitter, sources=sources, use=use, num_classes=num_classes
    )

    def inputs(state, theta, batch):
        made = examples(state, theta, batch)
        data = {name: made[name] for name in ("images", "masks", "keys")}
        if not sources:
            return {}, data
        data["keys"] = jnp.concatenate([data["keys"], made["synthetic_keys"]])
        used, masks = use(theta), made["synthetic_masks"]
        outer = {"synthetic": made["synthetic_images"], "weight": used["synthetic_weight"]}
        if masks.ndim > data["masks"].ndim:  # soft: they depend on theta, too
            outer["masks"] = masks
        else:
            data["masks"] = jnp.concatenate([data["masks"], masks])
        if len(sources) > 1:
            outer["mixture"] = used["mixture"]
        return outer, data

    def loss(params, outer, data):
        images = data["images"]
        num_real = jax.tree.leaves(images)[0].shape[0]
        if outer:
            images = jax.tree.map(lambda *x: jnp.concatenate(x), images, outer["synthetic"])
        logits = segment(params, images, data["keys"])
        masks = [data["masks"], *([outer["masks"]] if "masks" in outer else ())]
        each = _each_loss(logits, masks, overlap)
        total = real = each[:num_real].mean()
        metrics = {"segmenter/real_loss": real}
        if outer:
            synthetic = each[num_real:]
            if "mixture" in outer:
                of_source = synthetic.reshape(-1, len(sources)).mean(0)
                metrics |= {f"segmenter/{s}_loss": of_source[i] for i, s in enumerate(sources)}
                synthetic = (outer["mixture"] * of_source).sum()
            else:
                synthetic = synthetic.mean()
            metrics["segmenter/synthetic_loss"] = synthetic
            weight = outer["weight"]
            total = (real + weight * synthetic) / (1.0 + weight)
        return total, {"segmenter/loss": total, **metrics}

    return levels.Player(loss, inputs, optimizer, average_decay)


def _each_loss(logits, masks, overlap):
    """The loss of every example, `[B]`, of masks in one or two parts: class ids, and soft ones."""
    each, start = [], 0
    for part in masks:
        of_part = logits[start : start + len(part)]
        chex.assert_equal_shape_prefix((of_part, part), logits.ndim - 1)
        each.append(losses.segmentation_loss(of_part, part, overlap))
        start += len(part)
    chex.assert_axis_dimension(logits, 0, start)
    return jnp.concatenate(each) if len(each) > 1 else each[0]


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
