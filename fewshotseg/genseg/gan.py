"""The generator family of the paper: a conditional GAN (pix2pix, Isola et al., CVPR 2017)."""

from collections.abc import Callable, Mapping

import chex
import jax.numpy as jnp
import optax

from fewshotseg.genseg import levels, losses, pair_sources
from fewshotseg.types import Batch

TRAINING_NOISE = 0  # purpose of the keys that the generator is trained with


def family(
    networks: Mapping[str, Callable],
    optimizer: optax.GradientTransformation,
    use: Callable,
    *,
    num_classes: int = 2,
    adversarial: str = "vanilla",
    l1_weight: float = 100.0,
    appearance: bool = False,
) -> levels.Family:
    """Generator against discriminator, with an L1 loss between drawn and real image.

    The discriminator moves first; its loss is halved, as in pix2pix.

    Args:
      networks: 'generator', `(params, one_hot_masks, mixing, keys [B] or None) -> images
        [B, *spatial, C]` in [-1, 1]; 'discriminator', `(params, one_hot_masks, images) -> logits
        [B, *patches, 1]`.
      optimizer: of both players.
      use: theta -> the outer variables in use; 'architecture' are the mixing weights of the generator.
      num_classes: background included.
      adversarial: 'vanilla' or 'lsgan'.
      l1_weight: of the L1 loss.
      appearance: whether the generator sees a code of the image's colours beside the mask, as planes of
        constant value (`pair_sources.appearance_code`): that of the real image in training, of another
        case's when it draws. `draw` takes it after the keys.
    """

    discriminate = networks["discriminator"]

    def draw(params, theta, masks, keys, code):
        inputs = jnp.concatenate([masks, _planes(code, masks)], -1) if appearance else masks
        return networks["generator"](params, inputs, use(theta)["architecture"], keys)

    def real_pairs(batch: Batch):
        masks = losses.one_hot_foreground(batch["mask"], num_classes)
        keys = levels.example_keys(batch, TRAINING_NOISE)
        code = pair_sources.appearance_code(batch["image"]) if appearance else None
        return {"masks": masks, "real": batch["image"], "keys": keys, "code": code}

    def discriminator_inputs(state, theta, batch):
        data = real_pairs(batch)
        generator = state["generator"].params
        drawn = draw(generator, theta, data["masks"], data["keys"], data["code"])
        return {"drawn": drawn}, data

    def discriminator_loss(params, outer, data):
        real = discriminate(params, data["masks"], data["real"])
        fake = discriminate(params, data["masks"], outer["drawn"])
        loss = losses.discriminator_loss(real, fake, adversarial).mean()
        return loss, {"discriminator/loss": loss}

    def generator_inputs(state, theta, batch):
        return {"theta": theta, "discriminator": state["discriminator"].params}, real_pairs(batch)

    def generator_loss(params, outer, data):
        drawn = draw(params, outer["theta"], data["masks"], data["keys"], data["code"])
        chex.assert_equal_shape((drawn, data["real"]))
        logits = discriminate(outer["discriminator"], data["masks"], drawn)
        fooled = losses.adversarial_loss(logits, True, adversarial).mean()
        l1 = losses.l1_loss(drawn, data["real"]).mean()
        loss = fooled + l1_weight * l1
        return loss, {"generator/loss": loss, "generator/adversarial": fooled, "generator/l1": l1}

    return levels.Family(
        players={
            "discriminator": levels.Player(discriminator_loss, discriminator_inputs, optimizer),
            "generator": levels.Player(generator_loss, generator_inputs, optimizer),
        },
        draw=lambda state, theta, masks, keys, code=None: draw(
            state["generator"].params, theta, masks, keys, code
        ),
    )


def _planes(code, masks):
    """A code `[B, 2 C]` as constant planes `[B, *spatial, 2 C]`."""
    code = code.reshape(code.shape[0], *(1,) * (masks.ndim - 2), code.shape[-1])
    return jnp.broadcast_to(code, (*masks.shape[:-1], code.shape[-1])).astype(masks.dtype)
