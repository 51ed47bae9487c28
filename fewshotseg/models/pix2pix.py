"""Mask-to-image generator: a pix2pix U-Net (Isola et al., 2017) with searchable cells (GenSeg)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fewshotseg.models import layers, search_space


def max_levels(image_size: int, num_levels: int) -> int:
    """Number of halvings that keep at least one pixel, at most `num_levels`."""
    return min(num_levels, max(1, image_size.bit_length() - 1))


class Generator(nn.Module):
    """One-hot masks to images in [-1, 1].

    Attributes:
      num_channels: C, channels of the images.
      num_levels: how often the resolution is halved; 8 at 256 pixels in pix2pix.
      width: channels after the first halving; doubled at each level.
      max_width: upper limit of the channels.
      groups: of the group normalisation.
      dropout_rate: in the decoder levels of the largest width, but the innermost.
      dtype: of the computation; parameters and images are float32.
    """

    num_channels: int = 3
    num_levels: int = 6
    width: int = 64
    max_width: int = 512
    groups: int = 8
    dropout_rate: float = 0.5
    dtype: jnp.dtype = jnp.float32

    @property
    def mixing_shape(self) -> tuple[int, int]:
        """Shape of the mixing weights of one side: levels, candidates."""
        return self.num_levels, len(search_space.KERNEL_SIZES)

    @nn.compact
    def __call__(self, masks: jax.Array, mixing: dict, keys: jax.Array | None) -> jax.Array:
        """Draws one image per mask.

        Args:
          masks: `[B, *spatial, K]` one-hot foreground masks in [0, 1].
          mixing: weights `[num_levels, 3]` of the candidates, rows of sum 1, under 'encoder' and/or
            'decoder'; a side that is missing is not searched and uses kernel size 4.
          keys: `[B]` keys for dropout; None switches it off.

        Returns:
          `[B, *spatial, C]` in [-1, 1].
        """
        spatial = masks.shape[1:-1]
        multiple = 2**self.num_levels
        padded = [-(-n // multiple) * multiple for n in spatial]
        x = layers.pad_to(2.0 * masks.astype(self.dtype) - 1.0, padded)
        encoder, decoder = mixing.get("encoder"), mixing.get("decoder")
        features = [min(self.width * 2**i, self.max_width) for i in range(self.num_levels)]
        innermost = self.num_levels - 1

        skips = []
        for level in range(self.num_levels):
            if level > 0:
                skips.append(x)
                x = nn.leaky_relu(x, 0.2)
            weights = None if encoder is None else encoder[level]
            x = search_space.Cell(features[level], name=f"down_{level}")(x, weights)
            if 0 < level < innermost:
                x = layers.GroupNorm(self.groups, name=f"down_{level}_norm")(x)
        for level in reversed(range(self.num_levels)):
            out = features[level - 1] if level > 0 else self.num_channels
            weights = None if decoder is None else decoder[level]
            cell = search_space.Cell(out, transposed=True, name=f"up_{level}")
            x = cell(nn.relu(x), weights)
            if level > 0:
                x = layers.GroupNorm(self.groups, name=f"up_{level}_norm")(x)
                if keys is not None and 0 < level < innermost and out == self.max_width:
                    level_keys = jax.vmap(lambda key, n=level: jax.random.fold_in(key, n))(keys)
                    x = layers.dropout(x, self.dropout_rate, level_keys)
                x = jnp.concatenate([skips[level - 1], x], axis=-1)
        images = jnp.tanh(x.astype(jnp.promote_types(jnp.float32, self.dtype)))
        return images[(slice(None), *(slice(0, n) for n in spatial))]
