"""Conditional PatchGAN discriminator (Isola et al., 2017)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fewshotseg.models import layers


class Discriminator(nn.Module):
    """Mask and image to a map of logits, one per overlapping patch: real or drawn.

    Attributes:
      width: channels after the first halving; doubled at each level up to 8 times.
      num_levels: strided layers; 3 gives patches of 70 pixels.
      groups: of the group normalisation.
      dtype: of the computation; parameters and logits are float32.
    """

    width: int = 64
    num_levels: int = 3
    groups: int = 8
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, masks: jax.Array, images: jax.Array) -> jax.Array:
        """Logits `[B, *patches, 1]` of masks `[B, *spatial, K]` and images `[B, *spatial, C]`."""
        x = jnp.concatenate([2.0 * masks - 1.0, images], axis=-1).astype(self.dtype)
        for level in range(self.num_levels + 1):
            features = self.width * min(2**level, 8)
            stride = 2 if level < self.num_levels else 1
            x = layers.Conv(features, 4, stride, padding=1, name=f"conv_{level}")(x)
            if level > 0:
                x = layers.GroupNorm(self.groups, name=f"norm_{level}")(x)
            x = nn.leaky_relu(x, 0.2)
        logits = layers.Conv(1, 4, padding=1, name="logits")(x)
        return logits.astype(jnp.promote_types(jnp.float32, self.dtype))
