"""From configuration to networks: explicit dictionaries, one entry per choice."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from fewshotseg import errors
from fewshotseg.models import patchgan as discriminator
from fewshotseg.models import pix2pix as generator
from fewshotseg.models import unet

SEGMENTERS = {"unet": unet.UNet}
GENERATORS = {"unet": generator.Generator}
DISCRIMINATORS = {"patchgan": discriminator.Discriminator}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float64": jnp.float64}


def _create(
    kind: str, choices: Mapping[str, type], config: Mapping[str, Any], **fixed
) -> nn.Module:
    fields = dict(config)
    name = fields.pop("name")
    if name not in choices:
        raise errors.InputError(f"{kind}.name is {name!r}: use one of {sorted(choices)}.")
    dtype = fields.pop("dtype", "float32")
    if dtype not in DTYPES:
        raise errors.InputError(f"{kind}.dtype is {dtype!r}: use one of {sorted(DTYPES)}.")
    try:
        return choices[name](**fields, **fixed, dtype=DTYPES[dtype])
    except TypeError as error:
        raise errors.InputError(f"{kind}={name}: {error}.") from error


def num_outputs(num_classes: int) -> int:
    """Logits per pixel: one for a single foreground class, else one per class."""
    return 1 if num_classes == 2 else num_classes


def create_segmenter(config: Mapping[str, Any], num_outputs: int) -> nn.Module:
    """Segmenter of `config.name`; the other fields of `config` are its attributes."""
    return _create("segmenter", SEGMENTERS, config, num_outputs=num_outputs)


def create_generator(config: Mapping[str, Any], num_channels: int) -> nn.Module:
    """Generator of `config.name` for images with `num_channels` channels."""
    return _create("generator", GENERATORS, config, num_channels=num_channels)


def create_discriminator(config: Mapping[str, Any]) -> nn.Module:
    """Discriminator of `config.name`."""
    return _create("discriminator", DISCRIMINATORS, config)
