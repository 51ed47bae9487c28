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
      num_scales: discriminators; each after the first sees half the resolution of the one before (Wang et
        al., CVPR 2018).
      groups: of the group normalisation.
      dtype: of the computation; parameters and logits are float32.
    """

    width: int = 64
    num_levels: int = 3
    num_scales: int = 1
    groups: int = 8
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, masks: jax.Array, images: jax.Array, with_features: bool = False):
        """Logits `[B, *patches, 1]` of masks `[B, *spatial, K]` and images `[B, *spatial, C]`.

        With several scales, a tuple of such; `with_features` returns `(logits, activations)`, the latter a
        list of those of every layer before the logits.
        """
        x = jnp.concatenate([2.0 * masks - 1.0, images], axis=-1).astype(self.dtype)
        logits, features = [], []
        for scale in range(self.num_scales):
            if scale > 0:
                x = layers.avg_pool_2x(x)
            logits.append(self._at_one_scale(x, f"scale_{scale}_" if scale else "", features))
        logits = tuple(logits) if self.num_scales > 1 else logits[0]
        return (logits, features) if with_features else logits

    def _at_one_scale(self, x, prefix, features):
        for level in range(self.num_levels + 1):
            channels = self.width * min(2**level, 8)
            stride = 2 if level < self.num_levels else 1
            x = layers.Conv(channels, 4, stride, padding=1, name=f"{prefix}conv_{level}")(x)
            if level > 0:
                x = layers.GroupNorm(self.groups, name=f"{prefix}norm_{level}")(x)
            x = nn.leaky_relu(x, 0.2)
            features.append(x)
        logits = layers.Conv(1, 4, padding=1, name=f"{prefix}logits")(x)
        return logits.astype(jnp.promote_types(jnp.float32, self.dtype))
