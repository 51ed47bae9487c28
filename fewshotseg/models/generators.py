"""From names and fields to the networks of the generator families that are no GANs."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fewshotseg.models import autoencoder, residual_unet
from fewshotseg.models.factory import Network, Spec, create_module, network

DENOISERS = {"residual_unet": residual_unet.ResidualUNet}
ENCODERS = {"convolutions": autoencoder.Encoder}
DECODERS = {"convolutions": autoencoder.Decoder}


def create_denoiser(name: str, fields: Mapping[str, Any], spec: Spec) -> Network:
    """`apply(params, noisy, one_hot_masks, times [B], mixing) -> [B, *spatial, C]`.

    Noisy images are `[B, *spatial, C]`, or `[B, *spatial, 1]` where all channels are the same.
    """
    fields = {**fields, "multipliers": tuple(fields["multipliers"])}
    module = create_module("denoiser", DENOISERS, name, fields, num_channels=spec.channels)
    times = jax.ShapeDtypeStruct((1,), jnp.float32)
    made = _searched(module, spec, spec.array(spec.channels), _masks(spec), times)

    def apply(params, noisy, *inputs):
        noisy = jnp.broadcast_to(noisy, (*noisy.shape[:-1], spec.channels))
        return made.apply(params, noisy, *inputs)

    return made._replace(apply=apply)


def create_encoder(name: str, fields: Mapping[str, Any], spec: Spec) -> Network:
    """`apply(params, one_hot_masks, images, mixing) -> mean, log variance`, `[B, L]` each."""
    module = create_module("vae_encoder", ENCODERS, name, fields)
    return _searched(module, spec, _masks(spec), spec.array(spec.channels))


def create_decoder(name: str, fields: Mapping[str, Any], spec: Spec) -> Network:
    """`apply(params, one_hot_masks, latents [B, L], mixing) -> images [B, *spatial, C]` in [-1, 1]."""
    fixed = {"image_size": spec.image_size, "num_outputs": spec.channels}
    module = create_module("vae_decoder", DECODERS, name, fields, **fixed)
    made = _searched(module, spec, _masks(spec), _latents(module))
    return made._replace(apply=lambda params, *inputs: jnp.tanh(made.apply(params, *inputs)))


def create_pair_generator(name: str, fields: Mapping[str, Any], spec: Spec) -> Network:
    """`apply(params, latents [B, L], mixing) -> images, masks`.

    Images `[B, *spatial, C]` are in [-1, 1], masks `[B, *spatial, K]` are probabilities of the foreground
    classes, background left out.
    """
    fixed = {"image_size": spec.image_size, "num_outputs": spec.channels + spec.num_classes}
    module = create_module("pair_generator", DECODERS, name, fields, **fixed)
    made = _searched(module, spec, None, _latents(module))

    def apply(params, latents, mixing):
        outputs = made.apply(params, None, latents, mixing)
        images, logits = outputs[..., : spec.channels], outputs[..., spec.channels :]
        return jnp.tanh(images), jax.nn.softmax(logits)[..., 1:]

    return made._replace(apply=apply)


def _masks(spec: Spec) -> jax.ShapeDtypeStruct:
    return spec.array(spec.num_classes - 1)


def _latents(module) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, module.latent_size), jnp.float32)


def _searched(module: nn.Module, spec: Spec, *inputs) -> Network:
    """A network whose last input is the mixing weights of the sides that are searched."""
    mixing = {side: s for side, s in module.mixing_shapes.items() if side in spec.searched}
    weights = {side: jax.ShapeDtypeStruct(s, jnp.float32) for side, s in mixing.items()}
    return network(module, *inputs, weights)._replace(mixing=mixing)
