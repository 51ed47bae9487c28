"""A generator family that makes pasted objects fit: a residual on copy-paste composites, trained as a GAN.

After Tsai et al., "Deep Image Harmonization" (CVPR 2017), with an adversary instead of pairs of the same
scene in other colours. The generator's last layer starts at zero, so that before any training its images
are the composites themselves.
"""

from collections.abc import Callable, Mapping

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
    residual_weight: float = 10.0,
) -> levels.Family:
    """Generator against discriminator, which tells refined composites from real pairs.

    A refined composite is `image + gain * residual`: the residual is the generator's, in [-1, 1], the
    gain the outer variable 'residual_gain'. The composites of training are those of
    `pair_sources.paste`, and the batch holds what it needs. The discriminator moves first; its loss is
    halved, as in pix2pix.

    Args:
      networks: 'generator', `(params, [one-hot masks, images in [0, 1]], mixing, keys [B] or None) ->
        residuals [B, *spatial, C]` in [-1, 1]; 'discriminator', `(params, one_hot_masks, images) ->
        logits [B, *patches, 1]`.
      optimizer: of both players.
      use: theta -> the outer variables in use: 'architecture', the mixing weights of the generator,
        'blend_width' and 'residual_gain'.
      num_classes: background included.
      adversarial: a name of `losses.ADVERSARIAL`.
      residual_weight: of the mean absolute residual.
    """

    discriminate = networks["discriminator"]

    def residual(params, theta, images, masks, keys):
        inputs = jnp.concatenate([masks, 0.5 * (images + 1.0)], -1)
        return networks["generator"](params, inputs, use(theta)["architecture"], keys)

    def refine(state, theta, images, masks, keys):
        found = residual(state["generator"].params, theta, images, masks, keys)
        return images + use(theta)["residual_gain"] * found

    def composites(theta, batch: Batch):
        images, masks = pair_sources.paste(batch, use(theta)["blend_width"])
        return images, losses.one_hot_foreground(masks, num_classes)

    def data_of(batch):
        names = ("synthetic_image", "synthetic_mask", "donor_image", "donor_mask")
        return {
            **{name: batch[name] for name in names},
            "masks": losses.one_hot_foreground(batch["mask"], num_classes),
            "real": batch["image"],
            "keys": levels.example_keys(batch, TRAINING_NOISE),
        }

    def discriminator_inputs(state, theta, batch):
        data = data_of(batch)
        images, data["pasted"] = composites(theta, batch)
        return {"refined": refine(state, theta, images, data["pasted"], data["keys"])}, data

    def discriminator_loss(params, outer, data):
        real = discriminate(params, data["masks"], data["real"])
        fake = discriminate(params, data["pasted"], outer["refined"])
        loss = losses.discriminator_loss(real, fake, adversarial).mean()
        return loss, {"discriminator/loss": loss}

    def generator_inputs(state, theta, batch):
        return {"theta": theta, "discriminator": state["discriminator"].params}, data_of(batch)

    def generator_loss(params, outer, data):
        theta = outer["theta"]
        images, masks = composites(theta, data)
        found = residual(params, theta, images, masks, data["keys"])
        refined = images + use(theta)["residual_gain"] * found
        logits = discriminate(outer["discriminator"], masks, refined)
        fooled = losses.fooling_loss(logits, adversarial).mean()
        size = jnp.abs(found).mean()
        loss = fooled + residual_weight * size
        named = {"loss": loss, "adversarial": fooled, "residual": size}
        return loss, {f"generator/{name}": value for name, value in named.items()}

    return levels.Family(
        players={
            "discriminator": levels.Player(discriminator_loss, discriminator_inputs, optimizer),
            "generator": levels.Player(generator_loss, generator_inputs, optimizer),
        },
        refine=refine,
    )
