"""Networks of the generator families that are no GANs: sizes, counts by hand, and their cells."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import paper
from fewshotseg.methods import METHODS
from fewshotseg.models import factory, generators, layers, patchgan, residual_unet, search_space
from fewshotseg.training import build_parts

TAPS = {2: 3**2 + 5**2 + 7**2, 3: 3**3 + 5**3 + 7**3}  # of a cell
SEARCHED = ("encoder", "decoder")


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("shape", [(2, 7, 6, 2), (1, 5, 4, 6, 2)])
def test_a_cell_that_keeps_the_resolution_is_the_weighted_sum_of_its_candidates(shape):
    x, rank = normal(0, *shape), len(shape) - 2
    cell, weights = search_space.SameCell(3), jnp.array([0.5, 0.2, 0.3])
    params = layers.init_params(cell, jax.random.key(0), x, weights)
    params["bias"] = normal(1, 3)
    numbers = "N" + "DHW"[-rank:] + "C", "DHW"[-rank:] + "IO", "N" + "DHW"[-rank:] + "C"
    outputs = [
        jax.lax.conv_general_dilated(
            x, params[f"kernel_{k}"], (1,) * rank, "SAME", dimension_numbers=numbers
        )
        for k in (3, 5, 7)
    ]
    expected = sum(w * y for w, y in zip(weights, outputs, strict=True)) + params["bias"]
    found = cell.apply({"params": params}, x, weights)
    np.testing.assert_allclose(found, expected, atol=2e-4)
    alone = {name: params[name] for name in ("kernel_3", "bias")}
    without = cell.apply({"params": alone}, x, None)
    np.testing.assert_allclose(without, outputs[0] + params["bias"], atol=1e-4)


def test_features_of_times_by_hand():
    found = residual_unet.time_features(jnp.array([0.0, 3.0]), 4)
    wanted = [[1, 1, 0, 0], [np.cos(3), np.cos(0.03), np.sin(3), np.sin(0.03)]]
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def _count(network):
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    return sum(x.size for x in jax.tree.leaves(shapes))


def _cell(inputs, outputs, taps=TAPS[2]):
    return taps * inputs * outputs + outputs


def _networks(family):
    config = paper.get_config(f"generator={family}")
    spec = build_parts.create_spec(config, 2)
    assert spec.image_size == (256, 256)
    return build_parts.create_networks(config, spec, METHODS["end2end"])


def test_pix2pix_has_the_parameters_counted_by_hand():
    """Of the paper: 8 levels, 64 to 512 channels; every cell has kernels of 16, 36 and 64 taps."""
    widths = [64, 128, 256, 512, 512, 512, 512, 512]
    taps = 16 + 36 + 64
    down = sum(_cell(i, o, taps) for i, o in zip([1, *widths], widths, strict=False))
    inputs = [512, *(2 * w for w in widths[-2::-1])]  # from the innermost level outwards
    up = sum(_cell(i, o, taps) for i, o in zip(inputs, [*widths[-2::-1], 3], strict=True))
    norms = 2 * sum(widths[1:-1]) + 2 * sum(widths[:-1])
    assert _count(_networks("gan")["generator"]) == down + up + norms


def test_the_denoiser_has_the_parameters_counted_by_hand():
    width, size = 32, 128

    def block(inputs, outputs):
        norms = 2 * inputs + 2 * outputs
        shortcut = inputs * outputs + outputs if inputs != outputs else 0
        time = 2 * (size * outputs + outputs)  # a scale and a shift
        return norms + _cell(inputs, outputs) + _cell(outputs, outputs) + time + shortcut

    time = width * size + size + size * size + size
    first, last = 9 * 4 * width + width, 2 * width + 9 * width * 3 + 3
    down = block(32, 32) + block(32, 64) + block(64, 64) + block(64, 128)
    up = block(128 + 64, 64) + block(64 + 64, 64) + block(64 + 32, 32)
    network = _networks("diffusion")["denoiser"]
    assert _count(network) == time + first + down + up + last
    assert network.mixing == {"encoder": (8, 3), "decoder": (6, 3)}


def test_the_autoencoder_has_the_parameters_counted_by_hand():
    """Six halvings from 256 to 4 pixels, 64 to 512 channels, 256 latents."""
    widths, latents = [64, 128, 256, 512, 512, 512], 256
    norms = 2 * sum(widths)
    encoder = sum(_cell(i, o) for i, o in zip([4, *widths], widths, strict=False)) + norms
    encoder += 4 * 4 * 512 * 2 * latents + 2 * latents
    networks = _networks("vae")
    assert _count(networks["vae_encoder"]) == encoder

    def decoder(masks, outputs):
        cells = sum(
            _cell(i + masks, o) for i, o in zip([512, *widths[:0:-1]], widths[::-1], strict=True)
        )
        grid = latents * 4 * 4 * 512 + 4 * 4 * 512
        return grid + cells + norms + 9 * 64 * outputs + outputs

    assert _count(networks["vae_decoder"]) == decoder(1, 3)
    assert _count(_networks("wgan")["pair_generator"]) == decoder(0, 3 + 2)


FIELDS = {"width": 4, "max_width": 8, "num_levels": 2, "latent_size": 3}
MAKERS = {
    "denoiser": (generators.create_denoiser, "residual_unet", {"width": 4, "multipliers": (1, 2)}),
    "vae_encoder": (generators.create_encoder, "convolutions", FIELDS),
    "vae_decoder": (generators.create_decoder, "convolutions", FIELDS),
    "pair_generator": (generators.create_pair_generator, "convolutions", FIELDS),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", [(9, 12), (6, 9, 7)])
@pytest.mark.parametrize("name", MAKERS)
def test_networks_keep_any_size_and_give_float32(name, size, dtype):
    make, row, fields = MAKERS[name]
    spec = factory.Spec(3, size, 2, SEARCHED)
    network = make(row, {**fields, "dtype": dtype}, spec)
    masks, images, latents = spec.array(2), spec.array(2), jax.ShapeDtypeStruct((1, 3), np.float32)
    mixing = {side: jax.ShapeDtypeStruct(s, np.float32) for side, s in network.mixing.items()}
    time = jax.ShapeDtypeStruct((1,), np.float32)
    inputs = {
        "denoiser": (images, masks, time),
        "vae_encoder": (masks, images),
        "vae_decoder": (masks, latents),
        "pair_generator": (latents,),
    }[name]
    params = jax.eval_shape(network.init, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    found = jax.tree.leaves(jax.eval_shape(network.apply, params, *inputs, mixing))
    wanted = {"vae_encoder": [(1, 3)] * 2, "pair_generator": [(1, *size, 2)] * 2}
    assert [x.shape for x in found] == wanted.get(name, [(1, *size, 2)])
    assert {x.dtype for x in found} == {np.dtype(np.float32)}


def test_a_denoiser_starts_at_zero_and_takes_the_mask_itself_as_an_image():
    make, row, fields = MAKERS["denoiser"]
    network = make(row, fields, factory.Spec(2, (8, 8), 3))
    assert network.mixing == {}
    params = network.init(jax.random.key(0))
    masks, times = jnp.ones((2, 8, 8, 1)), jnp.array([0.0, 999.0])
    np.testing.assert_array_equal(network.apply(params, masks, masks, times, {}), 0)
    params["last_kernel"] = normal(0, *params["last_kernel"].shape)
    out = network.apply(params, masks, masks, times, {})
    assert out.shape == (2, 8, 8, 3) and np.abs(out[0] - out[1]).max() > 1e-3  # the time counts


def test_several_scales_of_a_discriminator_see_halved_pairs():
    masks, images = normal(0, 2, 16, 16, 1), normal(1, 2, 16, 16, 3)
    two = patchgan.Discriminator(width=4, num_levels=1, num_scales=2)
    params = layers.init_params(two, jax.random.key(0), masks, images)
    first, second = two.apply({"params": params}, masks, images)
    one = patchgan.Discriminator(width=4, num_levels=1)
    of_first = {name: p for name, p in params.items() if not name.startswith("scale_1")}
    np.testing.assert_array_equal(first, one.apply({"params": of_first}, masks, images))
    halved = [x.reshape(2, 8, 2, 8, 2, -1).mean((2, 4)) for x in (masks, images)]
    of_second = {n[8:]: p for n, p in params.items() if n.startswith("scale_1")}
    alone, features = one.apply({"params": of_second}, *halved, True)
    np.testing.assert_allclose(second, alone, atol=1e-5)
    assert [f.shape for f in features] == [(2, 4, 4, 4), (2, 3, 3, 8)]
