"""The generator family of the paper: a conditional GAN (pix2pix, Isola et al., CVPR 2017)."""

from collections.abc import Callable, Mapping, Sequence

import chex
import jax.numpy as jnp
import optax

from fewshotseg.genseg import diff_augment, levels, losses, pair_sources
from fewshotseg.types import Batch

# Purposes of keys (`levels.example_keys`): the generator's noise in training, and the augmentation of what
# the discriminator is shown; 1 to 5 are those of `segmenter.py`.
TRAINING_NOISE, SHOWN_REAL, SHOWN_DRAWN, SHOWN_FOOLING = 0, 6, 7, 8


def family(
    networks: Mapping[str, Callable],
    optimizer: optax.GradientTransformation,
    use: Callable,
    *,
    num_classes: int = 2,
    adversarial: str = "vanilla",
    l1_weight: float = 100.0,
    feature_weight: float = 0.0,
    augmented: Sequence[str] = (),
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
      adversarial: a name of `losses.ADVERSARIAL`.
      l1_weight: of the L1 loss.
      feature_weight: of the L1 distance of the discriminator's activations (`losses.feature_loss`); above
        0, `discriminate(params, masks, images, True)` has to return them beside the logits.
      augmented: names of `diff_augment.OPERATIONS`: what happens to mask and image, together, before
        the discriminator sees them.
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
        data = {"masks": masks, "real": batch["image"], "keys": keys, "code": code}
        if augmented:
            purposes = {"real": SHOWN_REAL, "drawn": SHOWN_DRAWN, "fooling": SHOWN_FOOLING}
            data["shown"] = {k: levels.example_keys(batch, n) for k, n in purposes.items()}
        return data

    def shown(data, images, occasion):
        """What the discriminator is given of a pair."""
        if not augmented:
            return data["masks"], images
        return diff_augment.augment(data["masks"], images, data["shown"][occasion], augmented)

    def discriminator_inputs(state, theta, batch):
        data = real_pairs(batch)
        generator = state["generator"].params
        drawn = draw(generator, theta, data["masks"], data["keys"], data["code"])
        return {"drawn": drawn}, data

    def discriminator_loss(params, outer, data):
        real = discriminate(params, *shown(data, data["real"], "real"))
        fake = discriminate(params, *shown(data, outer["drawn"], "drawn"))
        loss = losses.discriminator_loss(real, fake, adversarial).mean()
        return loss, {"discriminator/loss": loss}

    def generator_inputs(state, theta, batch):
        return {"theta": theta, "discriminator": state["discriminator"].params}, real_pairs(batch)

    def generator_loss(params, outer, data):
        drawn = draw(params, outer["theta"], data["masks"], data["keys"], data["code"])
        chex.assert_equal_shape((drawn, data["real"]))
        judge = outer["discriminator"]
        pair = shown(data, drawn, "fooling")
        if feature_weight:
            logits, features = discriminate(judge, *pair, True)
            _, wanted = discriminate(judge, *shown(data, data["real"], "fooling"), True)
        else:
            logits = discriminate(judge, *pair)
        fooled = losses.fooling_loss(logits, adversarial).mean()
        l1 = losses.l1_loss(drawn, data["real"]).mean()
        loss = fooled + l1_weight * l1
        named = {"adversarial": fooled, "l1": l1}
        if feature_weight:
            named["features"] = losses.feature_loss(features, wanted).mean()
            loss = loss + feature_weight * named["features"]
        named["loss"] = loss
        return loss, {f"generator/{name}": value for name, value in named.items()}

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
