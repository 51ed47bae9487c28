"""Encoder and decoder of the conditional autoencoder; the decoder alone also draws from noise."""

import math
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from fewshotseg.models import layers, search_space

MOST_LOG_VARIANCE = 10.0


def _features(module) -> list[int]:
    return [min(module.width * 2**i, module.max_width) for i in range(module.num_levels)]


def _halved(x):
    """Half the resolution, rounded up."""
    return layers.avg_pool_2x(layers.pad_to(x, [n + n % 2 for n in x.shape[1:-1]]))


class Encoder(nn.Module):
    """Masks and images to the mean and the logarithm of the variance of latents.

    Attributes:
      latent_size: L.
      num_levels: how often the resolution is halved.
      width: channels before the first halving; doubled at each level.
      max_width: upper limit of the channels.
      groups: of the group normalisation.
      dtype: of the computation; parameters and outputs are float32.
    """

    latent_size: int = 32
    num_levels: int = 4
    width: int = 16
    max_width: int = 64
    groups: int = 8
    dtype: jnp.dtype = jnp.float32

    @property
    def mixing_shapes(self) -> dict[str, tuple[int, int]]:
        """Shape of the mixing weights: levels, candidates."""
        return {"encoder": (self.num_levels, len(search_space.SAME_SIZES))}

    @nn.compact
    def __call__(
        self, masks: jax.Array, images: jax.Array, mixing: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        """Mean and log variance, `[B, L]` each, the latter within +-10.

        Args:
          masks: `[B, *spatial, K]`, one-hot foreground; the size is that of the first call.
          images: `[B, *spatial, C]` in [-1, 1].
          mixing: weights `[num_levels, 3]` under 'encoder'; without, kernel size 3 alone.
        """
        x = jnp.concatenate([2.0 * masks - 1.0, images], -1).astype(self.dtype)
        for level, features in enumerate(_features(self)):
            weights = search_space.row(mixing.get("encoder"), level)
            x = search_space.SameCell(features, name=f"cell_{level}")(x, weights)
            x = nn.silu(layers.GroupNorm(self.groups, name=f"norm_{level}")(x))
            x = _halved(x)
        x = x.reshape(x.shape[0], -1)
        x = nn.Dense(2 * self.latent_size, dtype=self.dtype, name="latents")(x)
        mean, spread = jnp.split(x.astype(jnp.promote_types(jnp.float32, self.dtype)), 2, -1)
        return mean, MOST_LOG_VARIANCE * jnp.tanh(spread / MOST_LOG_VARIANCE)


class Decoder(nn.Module):
    """Latents, and masks at every resolution, to as many channels as wanted.

    Attributes:
      image_size: one size per spatial dimension.
      num_outputs: channels.
      latent_size: L.
      num_levels: how often the resolution is doubled.
      width: channels at full resolution; doubled at each level.
      max_width: upper limit of the channels.
      groups: of the group normalisation.
      dtype: of the computation; parameters and outputs are float32.
    """

    image_size: tuple[int, ...]
    num_outputs: int = 3
    latent_size: int = 32
    num_levels: int = 4
    width: int = 16
    max_width: int = 64
    groups: int = 8
    dtype: jnp.dtype = jnp.float32

    @property
    def mixing_shapes(self) -> dict[str, tuple[int, int]]:
        """Shape of the mixing weights: levels, candidates."""
        return {"decoder": (self.num_levels, len(search_space.SAME_SIZES))}

    @nn.compact
    def __call__(
        self, masks: jax.Array | None, latents: jax.Array, mixing: Mapping[str, jax.Array]
    ) -> jax.Array:
        """`[B, *image_size, num_outputs]`, any real numbers.

        Args:
          masks: `[B, *image_size, K]`, one-hot foreground, or None: from latents alone.
          latents: `[B, L]`.
          mixing: weights `[num_levels, 3]` under 'decoder', the first row being that of full
            resolution; without, kernel size 3 alone.
        """
        beside = [] if masks is None else [2.0 * masks.astype(self.dtype) - 1.0]
        for _ in range(self.num_levels - 1):
            beside += [_halved(beside[-1])] if beside else []
        sizes = [tuple(-(-n // 2**i) for n in self.image_size) for i in range(self.num_levels + 1)]
        features = _features(self)
        grid = sizes[-1]
        coarse = nn.Dense(math.prod(grid) * features[-1], dtype=self.dtype, name="grid")
        x = coarse(latents.astype(self.dtype)).reshape(-1, *grid, features[-1])
        for level in reversed(range(self.num_levels)):
            x = layers.upsample_2x(x, sizes[level])
            x = jnp.concatenate([x, *beside[level : level + 1]], -1)
            weights = search_space.row(mixing.get("decoder"), level)
            x = search_space.SameCell(features[level], name=f"cell_{level}")(x, weights)
            x = nn.silu(layers.GroupNorm(self.groups, name=f"norm_{level}")(x))
        x = layers.Conv(self.num_outputs, 3, name="last")(x)
        return x.astype(jnp.promote_types(jnp.float32, self.dtype))
