"""The network of the diffusion model: a U-Net of residual blocks that knows the time (Ho et al., 2020)."""

import math
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from fewshotseg.models import layers, search_space

CELLS_PER_BLOCK = 2


def time_features(times: jax.Array, size: int) -> jax.Array:
    """Sines and cosines of times `[B]` at `size // 2` geometric frequencies from 1 to 1e-4: `[B, size]`.

    Vaswani et al., NeurIPS 2017, section 3.5.
    """
    frequencies = jnp.exp(-math.log(1e4) * jnp.arange(size // 2) / (size // 2)).astype(times.dtype)
    angles = times[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)


class Block(nn.Module):
    """Two searchable convolutions, scaled and shifted by the time between them, around a shortcut.

    Dhariwal and Nichol, NeurIPS 2021, section 3.

    Attributes:
      features: number of output channels.
      groups: of the group normalisation.
      dtype: of the computation.
    """

    features: int
    groups: int = 8
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, time, mixing):
        """Args: x `[B, *n, C]`; time `[B, E]`; mixing `[2, 3]` or None."""
        h = nn.silu(layers.GroupNorm(self.groups, name="norm_0")(x))
        h = search_space.SameCell(self.features, name="cell_0")(h, search_space.row(mixing, 0))
        # After the normalisation, which would take away again what is added before.
        moved = nn.Dense(2 * self.features, dtype=self.dtype, name="time")(nn.silu(time))
        moved = moved.reshape(-1, *(1,) * (x.ndim - 2), 2 * self.features)
        scale, shift = jnp.split(moved, 2, -1)
        h = nn.silu(layers.GroupNorm(self.groups, name="norm_1")(h) * (1.0 + scale) + shift)
        h = search_space.SameCell(self.features, name="cell_1")(h, search_space.row(mixing, 1))
        if x.shape[-1] != self.features:
            x = layers.Conv(self.features, 1, name="shortcut")(x)
        return x + h


class ResidualUNet(nn.Module):
    """Noisy images, the images they are to become like, masks and times to what is to be taken off.

    Attributes:
      num_channels: C, channels of the images.
      width: channels at full resolution.
      multipliers: of the width, one per resolution; each is half the one before.
      groups: of the group normalisation.
      dtype: of the computation; parameters and outputs are float32.
    """

    num_channels: int = 3
    width: int = 32
    multipliers: tuple[int, ...] = (1, 2, 2, 4)
    groups: int = 8
    dtype: jnp.dtype = jnp.float32

    @property
    def mixing_shapes(self) -> dict[str, tuple[int, int]]:
        """Shapes of the mixing weights by side: two cells per block, the deepest being an encoder's."""
        blocks, candidates = len(self.multipliers), len(search_space.SAME_SIZES)
        return {
            "encoder": (CELLS_PER_BLOCK * blocks, candidates),
            "decoder": (CELLS_PER_BLOCK * (blocks - 1), candidates),
        }

    @nn.compact
    def __call__(
        self, noisy: jax.Array, masks: jax.Array, times: jax.Array, mixing: Mapping[str, jax.Array]
    ) -> jax.Array:
        """The estimate, zero before any training.

        Args:
          noisy: `[B, *spatial, C]`.
          masks: `[B, *spatial, K]`, one-hot foreground.
          times: `[B]`, from 0 (images) to the number of times.
          mixing: weights as in `mixing_shapes`, rows of sum 1; a side that is missing uses kernel size 3.

        Returns:
          `[B, *spatial, C]`.
        """
        spatial = noisy.shape[1:-1]
        multiple = 2 ** (len(self.multipliers) - 1)
        padded = [-(-n // multiple) * multiple for n in spatial]
        x = jnp.concatenate([noisy, 2.0 * masks - 1.0], -1).astype(self.dtype)
        x = layers.pad_to(x, padded)
        size = 4 * self.width
        time = time_features(times, self.width).astype(self.dtype)
        time = nn.silu(nn.Dense(size, dtype=self.dtype, name="time_0")(time))
        time = nn.Dense(size, dtype=self.dtype, name="time_1")(time)

        def block(name, level, x, number):
            weights = mixing.get(name)
            if weights is not None:
                weights = weights[CELLS_PER_BLOCK * number : CELLS_PER_BLOCK * (number + 1)]
            features = self.width * self.multipliers[level]
            made = Block(features, self.groups, self.dtype, name=f"{name}_{level}")
            return made(x, time, weights)

        x = layers.Conv(self.width, 3, name="first")(x)
        skips = []
        deepest = len(self.multipliers) - 1
        for level in range(deepest + 1):
            x = block("encoder", level, x, level)
            if level < deepest:
                skips.append(x)
                x = layers.avg_pool_2x(x)
        for level in reversed(range(deepest)):
            skip = skips[level]
            x = layers.upsample_2x(x, skip.shape[1:-1])
            x = block("decoder", level, jnp.concatenate([x, skip], -1), level)
        x = nn.silu(layers.GroupNorm(self.groups, name="last_norm")(x))
        rank = len(spatial)
        kernel = (*(3,) * rank, x.shape[-1], self.num_channels)
        y = layers.conv(x, self.param("last_kernel", nn.initializers.zeros, kernel))
        y = y + self.param("last_bias", nn.initializers.zeros, (self.num_channels,)).astype(y.dtype)
        y = y.astype(jnp.promote_types(jnp.float32, self.dtype))
        return y[(slice(None), *(slice(0, n) for n in spatial))]
