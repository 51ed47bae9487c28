"""DeepLabV3 on ResNet-50 (Chen et al., "Rethinking atrous convolution", 2017), as torchvision has it."""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fewshotseg import errors
from fewshotseg.models import dilated, layers, pretrained, resnet, weights
from fewshotseg.models.pretrained import TRAINED
from fewshotseg.types import Params

ATROUS = (12, 24, 36)  # dilations at an eighth of the resolution
ATROUS_SIZE = 513  # pixels, of the crops that these are for


class DeepLab(nn.Module):
    """Image to class logits, a pure function of parameters and input.

    With 21 classes and three channels 39,638,869 parameters, as torchvision's `deeplabv3_resnet50`
    without its auxiliary classifier.

    Attributes:
      num_outputs: K, channels of the logits.
      weights: at the start: '' (drawn), or a file of tensors under torchvision's names, of `resnet50` or of
        `deeplabv3_resnet50`; of pictures alone.
      trained: 'finetune', or 'frozen': the encoder stays as it is.
      encoder_rate: learning rate of an encoder that did not start from scratch, relative to the rest.
      width: channels of the stem.
      depths: bottlenecks of the encoder's four stages.
      head_width: channels of the head.
      atrous: dilations of the spatial pyramid for pictures of `ATROUS_SIZE` pixels; of smaller ones in
        proportion, for else their outer taps would meet nothing but padding.
      dropout_rate: before the last convolutions, in training.
      dtype: of the computation; parameters and logits are float32.
    """

    num_outputs: int = 1
    weights: str = ""
    trained: str = TRAINED[0]
    encoder_rate: float = 0.3
    width: int = 64
    depths: tuple[int, ...] = resnet.DEPTHS
    head_width: int = 256
    atrous: tuple[int, ...] = ATROUS
    dropout_rate: float = 0.5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """Logits `[B, *spatial, K]` of images `[B, *spatial, C]` in [-1, 1], any size.

        Raises:
          InputError: `depths` are not of four stages, or volumes with weights of pictures.
        """
        if len(self.depths) != len(resnet.STAGES):
            raise errors.InputError(
                f"segmenter.deeplab.depths is {self.depths}: give {len(resnet.STAGES)} numbers, one for "
                "every stage of the encoder."
            )
        if self.weights and images.ndim != 4:
            raise errors.InputError(
                f"segmenter.deeplab.weights is {self.weights!r}, of a network for pictures: use '' for "
                "volumes."
            )
        x = images.astype(self.dtype)
        if images.ndim == 4:  # grey pictures are colour with equal channels
            x = jnp.broadcast_to(x, (*x.shape[:-1], 3))
        encoder = pretrained.encoder_of(resnet.ResNet, self.trained)
        x = encoder(self.depths, self.width, name="encoder")(x)
        share = min(images.shape[1:-1]) / ATROUS_SIZE
        dilations = tuple(max(1, round(share * dilation)) for dilation in self.atrous)
        x = _Head(self.head_width, dilations, self.dropout_rate, name="head")(x, keys)
        logits = layers.Conv(self.num_outputs, kernel_size=1, name="logits")(x)
        logits = logits.astype(jnp.promote_types(jnp.float32, self.dtype))
        shape = (logits.shape[0], *images.shape[1:-1], self.num_outputs)
        return jax.image.resize(logits, shape, "linear")

    @nn.nowrap
    def given(self) -> dict:
        """The parts of the parameters that are read, not drawn; see `factory.network`.

        Raises:
          InputError: the file cannot be read, or holds another network.
        """
        if not self.weights:
            return {}
        tensors = weights.read(self.weights)
        return from_torchvision(tensors, self.num_outputs, self.depths, self.width, self.head_width)

    @nn.nowrap
    def rates(self) -> dict[str, float]:
        """Learning rates of parts of the parameters, relative to that of the others."""
        return pretrained.rates(self.trained, self.encoder_rate, self.weights)

    @nn.nowrap
    def notice(self) -> str:
        """What people should know of the weights it starts with."""
        return pretrained.notice(self.weights)


class _Head(nn.Module):
    """Atrous spatial pyramid pooling, and the convolutions after it."""

    width: int
    atrous: tuple[int, ...]
    dropout_rate: float

    @nn.compact
    def __call__(self, x, keys):
        def conv(x, kernel_size, dilation, name):
            if kernel_size == 1:
                x = layers.Conv(self.width, 1, use_bias=False, name=name)(x)
            else:
                x = dilated.DilatedConv(self.width, dilation, name=name)(x)
            return nn.relu(resnet.Norm(name=f"{name}_norm")(x))

        spatial = tuple(range(1, x.ndim - 1))
        found = [conv(x, 1, 1, "pyramid_0")]
        found += [conv(x, 3, d, f"pyramid_{i}") for i, d in enumerate(self.atrous, start=1)]
        pooled = conv(x.mean(spatial, keepdims=True), 1, 1, "pooled")
        found.append(jnp.broadcast_to(pooled, (*x.shape[:-1], self.width)))
        x = conv(jnp.concatenate(found, -1), 1, 1, "join")
        if keys is not None and self.dropout_rate:
            x = layers.dropout(x, self.dropout_rate, keys)
        return conv(x, 3, 1, "last")


def from_torchvision(
    tensors: Mapping[str, np.ndarray],
    num_outputs: int,
    depths: tuple[int, ...] = resnet.DEPTHS,
    width: int = 64,
    head_width: int = 256,
) -> dict[str, Params]:
    """Parts of the parameters, of tensors under torchvision's names.

    Args:
      tensors: of `resnet50` ('encoder' alone is made of them) or `deeplabv3_resnet50` ('encoder', 'head',
        and 'logits' if there are as many classes).
      num_outputs: K.
      depths: of the encoder.
      width: likewise.
      head_width: see `DeepLab`.

    Raises:
      InputError: a tensor is missing, has another shape, or belongs nowhere.
    """
    kernels, norms = resnet.table(depths, width)
    if "conv1.weight" in tensors:
        wanted, counters = resnet.names_of(kernels, norms)
        found = weights.take(tensors, wanted, (*counters, *resnet.HEAD))
        return {"encoder": resnet.params_of(found, kernels, norms)}
    kernels, norms = (
        {k: (f"backbone.{n}", s) for k, (n, s) in t.items()} for t in (kernels, norms)
    )
    head_kernels, head_norms = _head_table(32 * width, head_width)
    wanted, counters = resnet.names_of(kernels | head_kernels, norms | head_norms)
    last = tensors.get("classifier.4.bias", np.zeros(0)).shape
    if fits := last == (num_outputs,):
        wanted |= {"classifier.4.weight": (num_outputs, head_width, 1, 1)}
        wanted |= {"classifier.4.bias": (num_outputs,)}
    other = ("classifier.4.weight", "classifier.4.bias", *_AUXILIARY)
    found = weights.take(tensors, wanted, (*counters, *other))
    params = {
        "encoder": resnet.params_of(found, kernels, norms),
        "head": resnet.params_of(found, head_kernels, head_norms),
    }
    if fits:
        kernel = jnp.asarray(found["classifier.4.weight"].transpose(2, 3, 1, 0))
        params["logits"] = {"kernel": kernel, "bias": jnp.asarray(found["classifier.4.bias"])}
    return params


_AUXILIARY = (
    "aux_classifier.0.weight", "aux_classifier.4.weight", "aux_classifier.4.bias",
    *(f"aux_classifier.1.{part}" for part in (*weights.NORM_PARTS, "num_batches_tracked")),
)  # fmt: skip


def _head_table(features, width):
    """As `resnet.table`, of the head."""
    pyramid = "classifier.0.convs"
    kernels = {
        "pyramid_0": (f"{pyramid}.0.0", (width, features, 1, 1)),
        **{f"pyramid_{i}": (f"{pyramid}.{i}.0", (width, features, 3, 3)) for i in (1, 2, 3)},
        "pooled": (f"{pyramid}.4.1", (width, features, 1, 1)),
        "join": ("classifier.0.project.0", (width, 5 * width, 1, 1)),
        "last": ("classifier.1", (width, width, 3, 3)),
    }
    norms = {
        **{f"pyramid_{i}_norm": (f"{pyramid}.{i}.1", width) for i in range(4)},
        "pooled_norm": (f"{pyramid}.4.2", width),
        "join_norm": ("classifier.0.project.1", width),
        "last_norm": ("classifier.2", width),
    }
    return kernels, norms
