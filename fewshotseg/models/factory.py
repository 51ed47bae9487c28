"""From names and fields to networks. A network: one file, and one row in a table here."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from fewshotseg import errors
from fewshotseg.models import (
    deeplab,
    efficient_unet,
    layers,
    patchgan,
    pix2pix,
    swin_unet,
    unet,
)
from fewshotseg.types import Params, PRNGKey

SEGMENTERS = {
    "unet": unet.UNet,
    "efficient_unet": efficient_unet.EfficientUNet,
    "deeplab": deeplab.DeepLab,
    "swin_unet": swin_unet.SwinUnet,
}
GENERATORS = {"pix2pix": pix2pix.Generator}
DISCRIMINATORS = {"patchgan": patchgan.Discriminator}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float64": jnp.float64}


class Network(NamedTuple):
    """A network as pure functions.

    Attributes:
      init: `key -> params`.
      apply: `(params, *inputs) -> outputs`.
      mixing: shapes `(cells, candidates)` of the mixing weights it takes, by side; empty where nothing
        is searched.
      rates: learning rates of parts of the parameters, by the first part of their names, relative to that
        of the optimiser, '' for all others; 0: they never move.
      given: the parts of the parameters that `init` reads and does not draw, by the same names.
      notice: what people should know of these.
      encode: `(params, images) -> features`, a tuple of arrays `[B, ...]` that `apply` takes in place of
        the images; None where no part that comes first is frozen.
    """

    init: Callable[[PRNGKey], Params]
    apply: Callable
    mixing: Mapping[str, tuple[int, int]] = MappingProxyType({})
    rates: Mapping[str, float] = MappingProxyType({})
    given: Callable[[], Mapping[str, Params]] = dict
    notice: str = ""
    encode: Callable | None = None


def network(module: nn.Module, *inputs) -> Network:
    """A Linen module as a `Network`, with its own initialisers.

    Args:
      module: without mutable collections. It may have methods `given`, `rates`, `notice` and `encode`, for
        the attributes of `Network` that are called so; `encode` is that of the part 'encoder'.
      *inputs: `jax.ShapeDtypeStruct`s or arrays like those it will be called with.
    """

    given = getattr(module, "given", dict)

    @functools.partial(jax.jit, static_argnums=1)
    def draw(key, left_out):
        examples = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), inputs)
        params = layers.init_params(module, key, *examples)
        return {name: part for name, part in params.items() if name not in left_out}

    def init(key):
        read = given()
        return {**draw(key, tuple(read)), **read}

    rates = module.rates() if hasattr(module, "rates") else {}
    return Network(
        init,
        lambda params, *args: module.apply({"params": params}, *args),
        rates=rates,
        given=given,
        notice=module.notice() if hasattr(module, "notice") else "",
        encode=getattr(module, "encode", None) if rates.get("encoder") == 0 else None,
    )


def without_frozen(net: Network, params: Params) -> Network:
    """A network whose parameters are those that move alone; parts with a rate of 0 stay as in `params`.

    A training that carries a tangent of every parameter should not carry those of a frozen encoder.
    """
    frozen = {name: params[name] for name, rate in net.rates.items() if rate == 0}
    rates = {name: rate for name, rate in net.rates.items() if name not in frozen}

    def init(key):
        return {name: part for name, part in net.init(key).items() if name not in frozen}

    def apply(params, *inputs):
        return net.apply({**params, **frozen}, *inputs)

    def encode(params, images):
        return net.encode({**params, **frozen}, images)

    return net._replace(
        init=init, apply=apply, rates=rates, given=dict, encode=encode if net.encode else None
    )


def create_module(
    kind: str, table: Mapping[str, type], name: str, fields: Mapping[str, Any], **fixed
) -> nn.Module:
    """The module in row `name` of a table, with `fields` as its attributes.

    Args:
      kind: 'segmenter', 'generator' or 'discriminator', for messages.
      table: of this module.
      name: of the row.
      fields: attributes; `dtype` as a string.
      **fixed: further attributes, which the data decide.

    Raises:
      InputError: no such row, or no such attribute.
    """
    if name not in table:
        raise errors.InputError(f"{kind}.name is {name!r}: use one of {', '.join(table)}.")
    fields = dict(fields)
    dtype = fields.pop("dtype", "float32")
    if dtype not in DTYPES:
        raise errors.InputError(
            f"{kind}.{name}.dtype is {dtype!r}: use one of {', '.join(DTYPES)}."
        )
    try:
        return table[name](**fields, **fixed, dtype=DTYPES[dtype])
    except TypeError as error:
        raise errors.InputError(f"{kind}.{name}: {error}.") from error


def num_outputs(num_classes: int) -> int:
    """Logits per pixel: one for a single foreground class, else one per class."""
    return 1 if num_classes == 2 else num_classes


@dataclasses.dataclass(frozen=True)
class Spec:
    """What the data and the search decide about every network.

    Attributes:
      num_classes: background included.
      image_size: one size per spatial dimension.
      channels: of the images.
      searched: sides of the generator with searchable cells, of 'encoder' and 'decoder'.
    """

    num_classes: int
    image_size: tuple[int, ...]
    channels: int
    searched: tuple[str, ...] = ()

    def array(self, channels: int) -> jax.ShapeDtypeStruct:
        """One example of this size, `[1, *image_size, channels]`."""
        return jax.ShapeDtypeStruct((1, *self.image_size, channels), jnp.float32)


def create_segmenter(name: str, fields: Mapping[str, Any], spec: Spec) -> Network:
    """Segmenter: `apply(params, images [B, *spatial, C], keys [B] or None) -> logits [B, *spatial, K]`."""
    outputs = num_outputs(spec.num_classes)
    module = create_module("segmenter", SEGMENTERS, name, fields, num_outputs=outputs)
    return network(module, spec.array(spec.channels), None)


def create_generator(
    name: str, fields: Mapping[str, Any], spec: Spec, more_inputs: int = 0
) -> Network:
    """Generator: `apply(params, one_hot_masks, mixing, keys [B] or None) -> images [B, *spatial, C]`.

    `fields['num_levels']` is lowered to what the image size allows; `more_inputs` is the number of channels
    that come with the masks.
    """
    num_levels = pix2pix.max_levels(min(spec.image_size), fields["num_levels"])
    fields = {**fields, "num_levels": num_levels}
    module = create_module("generator", GENERATORS, name, fields, num_channels=spec.channels)
    weights = jax.ShapeDtypeStruct(module.mixing_shape, jnp.float32)
    inputs = (
        spec.array(spec.num_classes - 1 + more_inputs),
        dict.fromkeys(spec.searched, weights),
        None,
    )
    mixing = dict.fromkeys(spec.searched, module.mixing_shape)
    return network(module, *inputs)._replace(mixing=mixing)


def create_appearance_generator(name: str, fields: Mapping[str, Any], spec: Spec) -> Network:
    """Generator that takes planes of mean and deviation of every channel of an image with its masks."""
    return create_generator(name, fields, spec, more_inputs=2 * spec.channels)


def create_harmonizer(name: str, fields: Mapping[str, Any], spec: Spec) -> Network:
    """Generator that takes images in [0, 1] with their masks; at its start it gives zeros."""
    made = create_generator(name, fields, spec, more_inputs=spec.channels)

    def init(key):
        params = made.init(key)
        return {**params, "up_0": jax.tree.map(jnp.zeros_like, params["up_0"])}

    return made._replace(init=init)


def create_discriminator(name: str, fields: Mapping[str, Any], spec: Spec) -> Network:
    """Discriminator: `apply(params, one_hot_masks, images) -> logits [B, *patches, 1]`."""
    module = create_module("discriminator", DISCRIMINATORS, name, fields)
    return network(module, spec.array(spec.num_classes - 1), spec.array(spec.channels))
