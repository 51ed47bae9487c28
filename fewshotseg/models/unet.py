"""U-Net segmenter (Ronneberger et al., 2015) in two or three dimensions."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fewshotseg.models import layers

ACTIVATIONS = {"relu": nn.relu, "silu": nn.silu}
POOLS = {"max": layers.max_pool_2x, "avg": layers.avg_pool_2x}


class UNet(nn.Module):
    """Image to class logits, a pure function of parameters and input.

    Attributes:
      num_outputs: K, channels of the logits.
      width: channels at full resolution; doubled at each level.
      num_levels: how often the resolution is halved.
      groups: of the group normalisation.
      activation: 'relu', or 'silu' where second derivatives have to be smooth.
      pool: 'max' or 'avg'.
      rate: times the learning rate, where one optimiser serves several segmenters.
      dtype: of the computation; parameters and logits are float32.
    """

    num_outputs: int = 1
    width: int = 16
    num_levels: int = 4
    groups: int = 8
    activation: str = "relu"
    pool: str = "max"
    rate: float = 1.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """Logits `[B, *spatial, K]` of images `[B, *spatial, C]` in [-1, 1], any spatial size.

        `keys` `[B]` are for networks with dropout; this one has none.
        """
        del keys
        x = images.astype(self.dtype)
        skips = []
        for level in range(self.num_levels):
            x = self._double_conv(x, self.width * 2**level, f"down_{level}")
            skips.append(x)
            x = POOLS[self.pool](x)
        x = self._double_conv(x, self.width * 2**self.num_levels, "bottom")
        for level in reversed(range(self.num_levels)):
            features = self.width * 2**level
            x = layers.ConvTranspose2x(features, name=f"up_{level}_resize")(x)
            x = layers.pad_to(x, skips[level].shape[1:-1])
            x = self._double_conv(jnp.concatenate([skips[level], x], -1), features, f"up_{level}")
        logits = layers.Conv(self.num_outputs, kernel_size=1, name="logits")(x)
        return logits.astype(jnp.promote_types(jnp.float32, self.dtype))

    @nn.nowrap
    def rates(self) -> dict[str, float]:
        """Learning rates relative to that of the optimiser; '' for all parts."""
        return {} if self.rate == 1.0 else {"": self.rate}

    def _double_conv(self, x, features, name):
        for i in range(2):
            x = layers.Conv(features, use_bias=False, name=f"{name}_conv_{i}")(x)
            x = layers.GroupNorm(self.groups, name=f"{name}_norm_{i}")(x)
            x = ACTIVATIONS[self.activation](x)
        return x
