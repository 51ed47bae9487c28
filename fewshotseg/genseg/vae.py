r"""A generator family without a discriminator: the conditional soft-introspective VAE.

After Daniel and Tamar, "Soft-IntroVAE" (CVPR 2021), with the mask y as a condition. The encoder finds
latents of an image, the decoder draws an image of latents and mask. With the bound, per value of an image,

    E(x) = -(r |x - D(z, y)|^2 + k KL(q(z | x, y) || N(0, 1)))

the encoder makes it large for real images and small for drawn ones, the decoder large for both:

    encoder    -E(x) + 1/4 exp 2 E'(D(z)) + 1/4 exp 2 E'(D(z_0))
    decoder    r |x - D(z)|^2 + k/2 (KL(D(z)) + KL(D(z_0)))

with z the latents of the real image, z_0 drawn from N(0, 1), and in E' the larger `negative_weight` for k.
The authors' code also asks the decoder to redraw drawn images well, at a weight of 1e-8: left out.
"""

from collections.abc import Callable, Mapping

import chex
import jax
import jax.numpy as jnp
import optax

from fewshotseg.genseg import levels, losses
from fewshotseg.genseg.gan import TRAINING_NOISE


def divergence(mean: jax.Array, log_variance: jax.Array) -> jax.Array:
    """KL divergence of normal distributions from N(0, 1), summed over latents: `[B]`."""
    return 0.5 * (jnp.exp(log_variance) + mean**2 - 1.0 - log_variance).sum(-1)


def family(
    networks: Mapping[str, Callable],
    optimizer: optax.GradientTransformation,
    use: Callable,
    *,
    num_classes: int = 2,
    latent_size: int = 32,
    reconstruction_weight: float = 1.0,
    kl_weight: float = 0.5,
    negative_weight: float = 256.0,
) -> levels.Family:
    """Encoder and decoder, which move in this order.

    Args:
      networks: 'vae_encoder', `(params, one_hot_masks, images, mixing) -> mean, log variance [B, L]`;
        'vae_decoder', `(params, one_hot_masks, latents [B, L], mixing) -> images [B, *spatial, C]` in
        [-1, 1].
      optimizer: of both players.
      use: theta -> the outer variables in use; 'architecture' are the mixing weights of both.
      num_classes: background included.
      latent_size: L.
      reconstruction_weight: r, of the mean squared error.
      kl_weight: k, of the divergence over the number of an image's values.
      negative_weight: k', of the divergence of drawn images where the encoder pushes it up.
    """
    encode, decode = networks["vae_encoder"], networks["vae_decoder"]

    def data_of(batch):
        keys = levels.example_keys(batch, TRAINING_NOISE)
        return {
            "masks": losses.one_hot_foreground(batch["mask"], num_classes),
            "real": batch["image"],
            "keys": jax.vmap(lambda key: jax.random.split(key, 4), out_axes=1)(keys),
        }

    def redraw(nets, theta, masks, images, keys):
        """Images drawn of the latents of images, how far they are off, and the divergence per value."""
        mixing = use(theta)["architecture"]
        mean, log_variance = encode(nets["vae_encoder"], masks, images, mixing)
        latents = mean + jnp.exp(0.5 * log_variance) * _normal(keys, latent_size, mean.dtype)
        drawn = decode(nets["vae_decoder"], masks, latents, mixing)
        chex.assert_equal_shape((drawn, images))
        error = ((drawn - images) ** 2).mean(axis=tuple(range(1, images.ndim)))
        return drawn, error, divergence(mean, log_variance) / images[0].size

    def draw_freely(nets, theta, masks, keys):
        latents = _normal(keys, latent_size, jax.tree.leaves(nets["vae_decoder"])[0].dtype)
        return decode(nets["vae_decoder"], masks, latents, use(theta)["architecture"])

    def encoder_inputs(state, theta, batch):
        """Drawn images are to the encoder what real ones are: they do not move with it."""
        data = data_of(batch)
        nets = {name: state[name].params for name in ("vae_encoder", "vae_decoder")}
        redrawn, *_ = redraw(nets, theta, data["masks"], data["real"], data["keys"][0])
        outer = {
            "theta": theta,
            "vae_decoder": nets["vae_decoder"],
            "redrawn": redrawn,
            "free": draw_freely(nets, theta, data["masks"], data["keys"][1]),
        }
        return outer, data

    def encoder_loss(params, outer, data):
        nets = {"vae_encoder": params, "vae_decoder": outer["vae_decoder"]}

        def bound(images, keys, weight):
            _, error, kl = redraw(nets, outer["theta"], data["masks"], images, keys)
            return -(reconstruction_weight * error + weight * kl), kl

        real, kl = bound(data["real"], data["keys"][0], kl_weight)
        loss = -real
        for name, keys in (("redrawn", data["keys"][2]), ("free", data["keys"][3])):
            loss = loss + 0.25 * jnp.exp(2.0 * bound(outer[name], keys, negative_weight)[0])
        return loss.mean(), {"encoder/loss": loss.mean(), "encoder/kl": kl.mean()}

    def decoder_inputs(state, theta, batch):
        return {"theta": theta, "vae_encoder": state["vae_encoder"].params}, data_of(batch)

    def decoder_loss(params, outer, data):
        nets = {"vae_encoder": outer["vae_encoder"], "vae_decoder": params}
        theta, masks = outer["theta"], data["masks"]
        redrawn, error, _ = redraw(nets, theta, masks, data["real"], data["keys"][0])
        free = draw_freely(nets, theta, masks, data["keys"][1])
        mixing = use(theta)["architecture"]
        kl = [
            divergence(*encode(nets["vae_encoder"], masks, images, mixing)) / images[0].size
            for images in (redrawn, free)
        ]
        named = {"error": error.mean(), "kl": 0.5 * (kl[0] + kl[1]).mean()}
        loss = reconstruction_weight * named["error"] + kl_weight * named["kl"]
        named["loss"] = loss
        return loss, {f"generator/{name}": value for name, value in named.items()}

    def draw(state, theta, masks, keys):
        """Latents drawn from N(0, 1); without keys, their mean."""
        nets = {"vae_decoder": state["vae_decoder"].params}
        if keys is not None:
            return draw_freely(nets, theta, masks, keys)
        latents = jnp.zeros((masks.shape[0], latent_size), masks.dtype)
        return decode(nets["vae_decoder"], masks, latents, use(theta)["architecture"])

    return levels.Family(
        players={
            "vae_encoder": levels.Player(encoder_loss, encoder_inputs, optimizer),
            "vae_decoder": levels.Player(decoder_loss, decoder_inputs, optimizer),
        },
        draw=draw,
    )


def _normal(keys, size, dtype):
    return jax.vmap(lambda key: jax.random.normal(key, (size,), dtype))(keys)
