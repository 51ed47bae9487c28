"""A generator family that draws image and mask together from noise: pairs without a mask to start from.

A Wasserstein GAN with gradient penalty (Gulrajani et al., NeurIPS 2017), whose critic sees real pairs and
drawn ones. One step of the critic goes with one of the generator, so that both are players like others.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from fewshotseg.genseg import levels, losses
from fewshotseg.genseg.gan import TRAINING_NOISE


def family(
    networks: Mapping[str, Callable],
    optimizer: optax.GradientTransformation,
    use: Callable,
    *,
    num_classes: int = 2,
    latent_size: int = 32,
    penalty_weight: float = 10.0,
) -> levels.Family:
    """Generator against critic, called discriminator, which moves first.

    Its loss is `critic(drawn) - critic(real) + w (|gradient| - 1)^2`, the gradient being that with respect
    to a pair anywhere between a real and a drawn one; the generator's is `-critic(drawn)`.

    Args:
      networks: 'pair_generator', `(params, latents [B, L], mixing) -> images [B, *spatial, C]` in
        [-1, 1] `and masks [B, *spatial, K]`, probabilities of the foreground classes; 'discriminator',
        `(params, masks, images) -> [B, *patches, 1]`, whose mean over patches is the critic.
      optimizer: of both players.
      use: theta -> the outer variables in use; 'architecture' are the mixing weights of the generator.
      num_classes: background included.
      latent_size: L.
      penalty_weight: w.
    """

    def critic(params, masks, images):
        scales = jax.tree.leaves(networks["discriminator"](params, masks, images))
        each = [x.mean(axis=tuple(range(1, x.ndim))) for x in scales]
        return sum(each) / len(each)

    def draw_pairs(params, theta, keys):
        dtype = jax.tree.leaves(params)[0].dtype
        latents = jax.vmap(lambda key: jax.random.normal(key, (latent_size,), dtype))(keys)
        return networks["pair_generator"](params, latents, use(theta)["architecture"])

    def keys_of(batch):
        keys = levels.example_keys(batch, TRAINING_NOISE)
        return jax.vmap(jax.random.split, out_axes=1)(keys)

    def discriminator_inputs(state, theta, batch):
        k_latents, k_between = keys_of(batch)
        images, masks = draw_pairs(state["pair_generator"].params, theta, k_latents)
        real_masks = losses.one_hot_foreground(batch["mask"], num_classes)
        data = {"masks": real_masks, "real": batch["image"], "keys": k_between}
        return {"images": images, "masks": masks}, data

    def discriminator_loss(params, outer, data):
        real = critic(params, data["masks"], data["real"])
        drawn = critic(params, outer["masks"], outer["images"])
        shares = jax.vmap(lambda k: jax.random.uniform(k, (), real.dtype))(data["keys"])

        def between(a, b):
            return a + shares.reshape(-1, *(1,) * (a.ndim - 1)) * (b - a)

        masks, images = (
            between(data["masks"], outer["masks"]),
            between(data["real"], outer["images"]),
        )
        slopes = jax.grad(lambda *pair: critic(params, *pair).sum(), argnums=(0, 1))(masks, images)
        squares = sum((g**2).sum(axis=tuple(range(1, g.ndim))) for g in slopes)
        norm = jnp.sqrt(squares + 1e-12)  # its derivative at 0 is finite
        penalty = penalty_weight * ((norm - 1.0) ** 2).mean()
        distance = (real - drawn).mean()
        named = {"loss": penalty - distance, "distance": distance, "penalty": penalty}
        return named["loss"], {f"discriminator/{name}": value for name, value in named.items()}

    def generator_inputs(state, theta, batch):
        outer = {"theta": theta, "discriminator": state["discriminator"].params}
        return outer, {"keys": keys_of(batch)[0]}

    def generator_loss(params, outer, data):
        images, masks = draw_pairs(params, outer["theta"], data["keys"])
        loss = -critic(outer["discriminator"], masks, images).mean()
        return loss, {"generator/loss": loss}

    def sample(state, theta, keys):
        """The class of a pixel is the most likely one: masks are data, and only images differentiable."""
        images, masks = draw_pairs(state["pair_generator"].params, theta, keys)
        background = 1.0 - masks.sum(-1, keepdims=True)
        classes = jnp.concatenate([background, masks], -1).argmax(-1)
        return images, classes.astype(jnp.uint8)

    return levels.Family(
        players={
            "discriminator": levels.Player(discriminator_loss, discriminator_inputs, optimizer),
            "pair_generator": levels.Player(generator_loss, generator_inputs, optimizer),
        },
        sample=sample,
    )
