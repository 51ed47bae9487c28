"""ResNet-50 as an encoder at an eighth of the resolution (He et al., 2016; dilated as in DeepLab)."""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fewshotseg.models import dilated, layers, weights
from fewshotseg.types import Params

DEPTHS = (3, 4, 6, 3)  # of ResNet-50
EPSILON = 1e-5  # of its batch normalisation
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the channels of ImageNet
CHANNELS_PER_GROUP, MOST_GROUPS = 4, 32
STAGES = (
    (1, 1, 1),
    (2, 1, 1),
    (1, 1, 2),
    (1, 2, 4),
)  # stride, dilation of the first block, of the others


class Norm(nn.Module):
    """Group normalisation; or, of parameters that were trained with batch normalisation, its fixed affine.

    Both have a scale and a shift per channel, which are trained as any weights are. Batch statistics
    are none of a pure function, and of a few images they are noise; without any normalisation, a network
    that starts from drawn weights does not train. The parameters say which it is: those of
    `weights.fold_norm` have a 'shift'.
    """

    @nn.compact
    def __call__(self, x):
        if self.has_variable("params", "shift"):
            scale, shift = (self.get_variable("params", name) for name in ("scale", "shift"))
            return x * scale.astype(x.dtype) + shift.astype(x.dtype)
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        most = min(MOST_GROUPS, max(1, channels // CHANNELS_PER_GROUP))
        groups = max(g for g in range(1, most + 1) if channels % g == 0)
        return layers.group_norm(x, scale, bias, groups)


class ResNet(nn.Module):
    """Features at an eighth of the resolution.

    Attributes:
      depths: bottlenecks of the four stages.
      width: channels of the stem; features have 32 times as many.
    """

    depths: tuple[int, ...] = DEPTHS
    width: int = 64

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """`[B, *ceil(spatial / 8), 32 * width]` of images `[B, *spatial, C]` in [-1, 1].

        Three channels are normalised as those of ImageNet.
        """
        x = imagenet_normalised(images)
        x = layers.Conv(self.width, 7, 2, padding=3, use_bias=False, name="stem")(x)
        x = max_pool_3s2(nn.relu(Norm(name="stem_norm")(x)))
        for i, (depth, (stride, first, others)) in enumerate(zip(self.depths, STAGES, strict=True)):
            for j in range(depth):
                strides, dilation = (stride, first) if j == 0 else (1, others)
                x = _bottleneck(x, self.width * 2**i, strides, dilation, j == 0, f"stage_{i}_{j}")
        return x


def _bottleneck(x, width, stride, dilation, projects, name):
    y = layers.Conv(width, 1, use_bias=False, name=f"{name}_conv_0")(x)
    y = nn.relu(Norm(name=f"{name}_norm_0")(y))
    if stride == 1:
        y = dilated.DilatedConv(width, dilation, name=f"{name}_conv_1")(y)
    else:
        y = layers.Conv(width, 3, stride, padding=1, use_bias=False, name=f"{name}_conv_1")(y)
    y = nn.relu(Norm(name=f"{name}_norm_1")(y))
    y = layers.Conv(4 * width, 1, use_bias=False, name=f"{name}_conv_2")(y)
    y = Norm(name=f"{name}_norm_2")(y)
    if projects:
        x = layers.Conv(4 * width, 1, stride, padding=0, use_bias=False, name=f"{name}_project")(x)
        x = Norm(name=f"{name}_project_norm")(x)
    return nn.relu(x + y)


def imagenet_normalised(images: jax.Array) -> jax.Array:
    """Colour images in [-1, 1] as torchvision and timm give them to networks; others as they are."""
    if images.shape[-1] != len(MEAN):
        return images
    mean, deviation = (jnp.asarray(values, images.dtype) for values in (MEAN, DEVIATION))
    return (0.5 * (images + 1.0) - mean) / deviation


def max_pool_3s2(x: jax.Array) -> jax.Array:
    """Maximum over windows of 3 per spatial dimension, stride 2, padding 1, as slices of each axis."""
    for axis in range(1, x.ndim - 1):
        out = (x.shape[axis] + 1) // 2
        pads = [(0, 0)] * x.ndim
        pads[axis] = (1, 2)
        wide = jnp.pad(x, pads, constant_values=-jnp.inf)
        first, second, third = (
            jax.lax.slice_in_dim(wide, i, i + 2 * out - 1, 2, axis) for i in range(3)
        )
        x = jnp.maximum(jnp.maximum(first, second), third)
    return x


# --- The weights of torchvision ------------------------------------------------------------------------

HEAD = ("fc.weight", "fc.bias")  # of the classifier, which an encoder has no use for


def blocks(depths: tuple[int, ...] = DEPTHS, width: int = 64):
    """`(ours, theirs, channels in, width, whether it projects)` of every bottleneck."""
    features = width
    for i, depth in enumerate(depths):
        for j in range(depth):
            yield f"stage_{i}_{j}", f"layer{i + 1}.{j}", features, width * 2**i, j == 0
            features = 4 * width * 2**i


def table(depths: tuple[int, ...] = DEPTHS, width: int = 64):
    """Ours -> (theirs, shape in PyTorch) of convolutions, and ours -> (theirs, channels) of norms."""
    kernels, norms = {"stem": ("conv1", (width, 3, 7, 7))}, {"stem_norm": ("bn1", width)}
    for ours, theirs, features, inner, projects in blocks(depths, width):
        shapes = (inner, features, 1, 1), (inner, inner, 3, 3), (4 * inner, inner, 1, 1)
        for k, shape in enumerate(shapes):
            kernels[f"{ours}_conv_{k}"] = f"{theirs}.conv{k + 1}", shape
            norms[f"{ours}_norm_{k}"] = f"{theirs}.bn{k + 1}", shape[0]
        if projects:
            kernels[f"{ours}_project"] = f"{theirs}.downsample.0", (4 * inner, features, 1, 1)
            norms[f"{ours}_project_norm"] = f"{theirs}.downsample.1", 4 * inner
    return kernels, norms


def names_of(kernels: Mapping, norms: Mapping) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """Name -> shape of all tensors of such tables, and the names of the counters that come with them."""
    wanted = {f"{theirs}.weight": shape for theirs, shape in kernels.values()}
    for theirs, channels in norms.values():
        wanted |= {f"{theirs}.{part}": (channels,) for part in weights.NORM_PARTS}
    return wanted, [f"{theirs}.num_batches_tracked" for theirs, _ in norms.values()]


def params_of(found: Mapping[str, np.ndarray], kernels: Mapping, norms: Mapping) -> Params:
    """Parameters of such tables, batch normalisation folded into a scale and a shift."""
    params = {
        ours: {"kernel": jnp.asarray(found[f"{theirs}.weight"].transpose(2, 3, 1, 0))}
        for ours, (theirs, _) in kernels.items()
    }
    folded = {
        ours: weights.fold_norm(found, theirs, EPSILON) for ours, (theirs, _) in norms.items()
    }
    return params | folded
