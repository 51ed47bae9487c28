"""Swin-Unet (Cao et al., 2021): a U-Net whose encoder and decoder are Swin Transformers."""

import re
from collections.abc import Mapping

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from fewshotseg import errors
from fewshotseg.models import layers, pretrained, resnet, swin, weights
from fewshotseg.models.pretrained import TRAINED
from fewshotseg.types import Params


class SwinUnet(nn.Module):
    """Image to class logits, a pure function of parameters and input.

    With 9 classes and three channels 27,168,900 parameters, as the authors' `SwinTransformerSys`; without
    its stochastic depth.

    Attributes:
      num_outputs: K, channels of the logits.
      weights: at the start: '' (drawn), or a file of tensors under the names of timm's and the authors'
        Swin-T (of the encoder, and of the decoder's blocks), or of Swin-Unet; of pictures alone.
      trained: 'finetune', or 'frozen': the encoder stays as it is.
      encoder_rate: learning rate of an encoder that did not start from scratch, relative to the rest.
      width: channels of the first stage.
      depths: blocks of the encoder's stages, mirrored by the decoder.
      window: tokens along the side of a window.
      dtype: of the computation; parameters and logits are float32.
    """

    num_outputs: int = 1
    weights: str = ""
    trained: str = TRAINED[0]
    encoder_rate: float = 0.3
    width: int = 96
    depths: tuple[int, ...] = (2, 2, 2, 2)
    window: int = 7
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """Logits `[B, *spatial, K]` of images `[B, *spatial, C]` in [-1, 1], any size.

        `keys` `[B]` are for networks with dropout; this one has none.

        Raises:
          InputError: volumes with weights of pictures.
        """
        del keys
        if self.weights and images.ndim != 4:
            raise errors.InputError(
                f"segmenter.swin_unet.weights is {self.weights!r}, of a network for pictures: use '' for "
                "volumes."
            )
        x, patch = images.astype(self.dtype), swin.Encoder.patch
        if images.ndim == 4:  # grey pictures are colour with equal channels
            x = resnet.imagenet_normalised(jnp.broadcast_to(x, (*x.shape[:-1], 3)))
        x = layers.pad_to(x, [n + -n % patch for n in x.shape[1:-1]])
        encoder = pretrained.encoder_of(swin.Encoder, self.trained)
        *skips, x = encoder(self.depths, self.width, self.window, name="encoder")(x)
        skips.pop()
        for i in range(1, len(self.depths)):
            skip = skips.pop()
            x = _expand(x, 2, x.shape[-1] // 2, f"expand_{i}")
            x = jnp.concatenate([_cut(x, skip.shape[1:-1]), skip], -1)
            x = swin.Linear(skip.shape[-1], name=f"join_{i}")(x)
            x = swin.stage(x, self.depths[-1 - i], self.window, f"up_{i}")
        x = _expand(swin.LayerNorm(name="norm")(x), patch, self.width, "expand_last")
        logits = swin.Linear(self.num_outputs, use_bias=False, name="logits")(x)
        return _cut(logits.astype(jnp.promote_types(jnp.float32, self.dtype)), images.shape[1:-1])

    @nn.nowrap
    def given(self) -> dict:
        """The parts of the parameters that are read, not drawn; see `factory.network`.

        Raises:
          InputError: the file cannot be read, or holds another network.
        """
        if not self.weights:
            return {}
        tensors = weights.read(self.weights)
        shape = self.num_outputs, self.depths, self.width, self.window
        return from_pytorch(tensors, *shape)

    @nn.nowrap
    def rates(self) -> dict[str, float]:
        """Learning rates of parts of the parameters, relative to that of the others."""
        return pretrained.rates(self.trained, self.encoder_rate, self.weights)

    @nn.nowrap
    def notice(self) -> str:
        """What people should know of the weights it starts with."""
        return pretrained.notice(self.weights)


def _expand(x, factor, features, name):
    """Every token as `factor` along each side, of `features` channels."""
    rank = x.ndim - 2
    x = swin.Linear(factor**rank * features, use_bias=False, name=name)(x)
    batch, *sizes, _ = x.shape
    x = x.reshape(batch, *sizes, *(factor,) * rank, features)
    order = [axis for i in range(rank) for axis in (1 + i, 1 + rank + i)]
    x = x.transpose(0, *order, 2 * rank + 1)
    x = x.reshape(batch, *(factor * n for n in sizes), features)
    return swin.LayerNorm(name=f"{name}_norm")(x)


def _cut(x, sizes):
    return jax.lax.slice(x, (0,) * x.ndim, (x.shape[0], *sizes, x.shape[-1]))


# --- The weights of others ---------------------------------------------------------------------------

_BUFFERS = r"layers(_up)?\.\d+\.blocks\.\d+\.(attn\.relative_position_index|attn_mask)"
_CLASSIFIER = r"head\.(fc\.)?(weight|bias)"


def from_pytorch(
    tensors: Mapping[str, np.ndarray],
    num_outputs: int,
    depths: tuple[int, ...] = (2, 2, 2, 2),
    width: int = 96,
    window: int = 7,
) -> dict[str, Params]:
    """Parts of the parameters, of tensors under the names of timm and of the authors.

    Args:
      tensors: of a Swin Transformer, of whose stages the first blocks are taken, and which the decoder's
        blocks start with, too, as in the authors' code; or of a Swin-Unet ('logits' if there are as many
        classes).
      num_outputs: K.
      depths: see `SwinUnet`.
      width: likewise.
      window: likewise.

    Raises:
      InputError: a tensor is missing, has another shape, or belongs nowhere.
    """
    whole = "up.expand.weight" in tensors
    # timm has the merging of tokens at the begin of a stage, the authors at the end of the one before.
    late = f"layers.{len(depths) - 1}.downsample.reduction.weight" in tensors
    table = _encoder_table(depths, width, window, late)
    if whole:
        table |= _decoder_table(depths, width, window)
    if fits := whole and tensors.get("output.weight", np.zeros(0)).shape[:1] == (num_outputs,):
        table["logits/kernel"] = "output.weight", (num_outputs, width, 1, 1)
    deeper = "|".join(
        rf"layers\.{i}\.blocks\.(?!({_below(n)})\.)\d+\..+" for i, n in enumerate(depths)
    )
    ignored = [n for n in tensors if re.fullmatch(f"{_BUFFERS}|{_CLASSIFIER}|{deeper}", n)]
    ignored += ["output.weight"] * (whole and not fits)
    found = weights.take(tensors, dict(table.values()), ignored)
    flat = {ours: _array(ours, found[theirs]) for ours, (theirs, _) in table.items()}
    params = flax.traverse_util.unflatten_dict(flat, sep="/")
    if not whole:
        for i in range(1, len(depths)):
            for j in range(depths[-1 - i]):
                params[f"up_{i}_{j}"] = params["encoder"][f"stage_{len(depths) - 1 - i}_{j}"]
    return params


def _below(number):
    return "|".join(map(str, range(number)))


def _array(ours, values):
    """A tensor as ours: kernels have their outputs last."""
    if ours.endswith("kernel"):
        axes = (2, 3, 1, 0) if values.ndim == 4 else (1, 0)
        values = values.transpose(axes)
    return jnp.asarray(values[0, 0] if ours == "logits/kernel" else values)


def _encoder_table(depths, width, window, late):
    """Ours -> (theirs, the shape in PyTorch)."""
    table = {
        "encoder/patches/kernel": ("patch_embed.proj.weight", (width, 3, 4, 4)),
        "encoder/patches/bias": ("patch_embed.proj.bias", (width,)),
        **_norm("encoder/patches_norm", "patch_embed.norm", width),
        **_norm("encoder/norm", "norm", width * 2 ** (len(depths) - 1)),
    }
    for i, depth in enumerate(depths):
        channels = width * 2**i
        for j in range(depth):
            table |= _block(f"encoder/stage_{i}_{j}", f"layers.{i}.blocks.{j}", channels, window)
        if i:
            theirs = f"layers.{i if late else i - 1}.downsample"
            table |= _norm(f"encoder/merge_{i}_norm", f"{theirs}.norm", 2 * channels)
            shape = channels, 2 * channels
            table[f"encoder/merge_{i}/kernel"] = f"{theirs}.reduction.weight", shape
    return table


def _decoder_table(depths, width, window):
    """Likewise, without the logits."""
    last = len(depths) - 1
    table = _norm("norm", "norm_up", width) | _norm("expand_last_norm", "up.norm", width)
    table["expand_last/kernel"] = "up.expand.weight", (16 * width, width)
    for i in range(1, len(depths)):
        channels = width * 2 ** (last - i)
        theirs = "layers_up.0" if i == 1 else f"layers_up.{i - 1}.upsample"
        table[f"expand_{i}/kernel"] = f"{theirs}.expand.weight", (4 * channels, 2 * channels)
        table |= _norm(f"expand_{i}_norm", f"{theirs}.norm", channels)
        table |= _linear(f"join_{i}", f"concat_back_dim.{i}", 2 * channels, channels)
        for j in range(depths[last - i]):
            table |= _block(f"up_{i}_{j}", f"layers_up.{i}.blocks.{j}", channels, window)
    return table


def _block(ours, theirs, channels, window):
    heads, inner = swin.num_heads(channels), swin.MLP_RATIO * channels
    bias = f"{theirs}.attn.relative_position_bias_table", ((2 * window - 1) ** 2, heads)
    return {
        f"{ours}/relative_bias": bias,
        **_norm(f"{ours}/norm1", f"{theirs}.norm1", channels),
        **_norm(f"{ours}/norm2", f"{theirs}.norm2", channels),
        **_linear(f"{ours}/qkv", f"{theirs}.attn.qkv", channels, 3 * channels),
        **_linear(f"{ours}/proj", f"{theirs}.attn.proj", channels, channels),
        **_linear(f"{ours}/fc1", f"{theirs}.mlp.fc1", channels, inner),
        **_linear(f"{ours}/fc2", f"{theirs}.mlp.fc2", inner, channels),
    }


def _norm(ours, theirs, channels):
    return {
        f"{ours}/scale": (f"{theirs}.weight", (channels,)),
        f"{ours}/bias": (f"{theirs}.bias", (channels,)),
    }


def _linear(ours, theirs, features, out):
    return {
        f"{ours}/kernel": (f"{theirs}.weight", (out, features)),
        f"{ours}/bias": (f"{theirs}.bias", (out,)),
    }
