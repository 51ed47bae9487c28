"""The fast layers equal the stock ones; cells equal the sum of their candidates; networks' shapes."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from fewshotseg.genseg import outer_variables
from fewshotseg.models import depthwise, layers, unet
from fewshotseg.models import patchgan as discriminator
from fewshotseg.models import pix2pix as generator


@pytest.fixture(autouse=True, scope="module")
def _float64():
    with tiny.float64():
        yield


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def stock_transpose(x, kernel):
    rank, m = kernel.ndim - 2, kernel.shape[0] // 2
    spatial = "DHW"[-rank:]
    numbers = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
    pads = [(m, m)] * rank
    return jax.lax.conv_transpose(x, kernel, (2,) * rank, pads, dimension_numbers=numbers)


@pytest.mark.parametrize(("rank", "size"), list(itertools.product((2, 3), (2, 4, 6, 8))))
def test_transposed_convolution_equals_the_dilated_one(rank, size):
    x, kernel = normal(0, 2, *(5, 6, 3)[:rank], 3), normal(1, *(size,) * rank, 3, 4)
    fast = layers.conv_transpose_2x(x, kernel)
    np.testing.assert_allclose(fast, stock_transpose(x, kernel), atol=1e-12)


def test_transposed_convolution_has_the_same_derivative():
    x, kernel, w = normal(0, 1, 4, 4, 2), normal(1, 8, 8, 2, 2), normal(2, 1, 8, 8, 2)
    fast = jax.grad(lambda x, k: (layers.conv_transpose_2x(x, k) * w).sum(), (0, 1))(x, kernel)
    stock = jax.grad(lambda x, k: (stock_transpose(x, k) * w).sum(), (0, 1))(x, kernel)
    for a, b in zip(fast, stock, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-11)


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("padding", ["SAME", 0, 1])
@pytest.mark.parametrize(("size", "stride"), [(1, 1), (3, 1), (3, 2), (4, 2), (4, 1)])
def test_a_convolution_equals_the_stock_one_with_its_derivatives(size, stride, padding, rank):
    x, kernel = normal(0, 2, *(5, 6, 7)[:rank], 3), normal(1, *(size,) * rank, 3, 2)
    pads = padding if padding == "SAME" else [(padding, padding)] * rank

    def stock(x, kernel):
        spatial = "DHW"[-rank:]
        numbers = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
        return jax.lax.conv_general_dilated(
            x, kernel, (stride,) * rank, pads, dimension_numbers=numbers
        )

    y, pull = jax.vjp(lambda x, k: layers.conv(x, k, stride, padding), x, kernel)
    wanted, pull_stock = jax.vjp(stock, x, kernel)
    np.testing.assert_allclose(y, wanted, atol=1e-12)
    for a, b in zip(pull(normal(2, *y.shape)), pull_stock(normal(2, *y.shape)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-11)


DEPTHWISE = [
    ((2, 7, 8), 3, 1),
    ((2, 7, 8), 3, 2),
    ((1, 9, 6), 5, 2),
    ((1, 2, 2), 5, 1),
    ((1, 5, 4, 6), 3, 2),
]


@pytest.mark.parametrize(("shape", "size", "stride"), DEPTHWISE)
def test_depthwise_convolution_equals_the_grouped_one(shape, size, stride):
    x, kernel = normal(0, *shape, 3), normal(1, *(size,) * (len(shape) - 1), 1, 3)

    def grouped(x, kernel):
        return layers.conv(x, kernel, stride, groups=3)

    fast, back = jax.vjp(lambda *p: depthwise.by_taps(*p, stride), x, kernel)
    stock, stock_back = jax.vjp(grouped, x, kernel)
    np.testing.assert_allclose(fast, stock, atol=1e-12)
    w = normal(2, *stock.shape)
    for a, b in zip(back(w), stock_back(w), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-11)
    np.testing.assert_array_equal(depthwise.depthwise_conv(x, kernel, stride), fast)  # on CPUs


def test_depthwise_convolution_has_a_second_derivative():
    """Forward over reverse, through ReLU6, against central differences of the gradient."""
    point = {"x": 3 * normal(0, 1, 5, 4, 2), "kernel": normal(1, 3, 3, 1, 2)}

    def function(p):
        y = nn.relu6(depthwise.by_taps(p["x"], p["kernel"], 2))
        return jnp.sin(depthwise.by_taps(y, p["kernel"])).sum()

    gradient, direction = jax.jit(jax.grad(function)), tiny.random_direction(point, 5)
    direction = jax.tree.map(jnp.asarray, direction)
    along = jax.jvp(jax.grad(function), (point,), (direction,))[1]
    right, left = (gradient(tiny.along(point, direction, h)) for h in (1e-6, -1e-6))
    differences = jax.tree.map(lambda a, b: (a - b) / 2e-6, right, left)
    assert tiny.norm(along) > 1 and tiny.distance(along, differences) < 1e-7
    slope = tiny.derivative(function, point, direction, 1e-6)
    assert slope == pytest.approx(tiny.dot(gradient(point), direction), rel=1e-7)


@pytest.mark.parametrize("sizes", [(6, 4), (5, 4), (5, 3)])
def test_upsampling_repeats_pixels(sizes):
    x = normal(0, 2, 3, 2, 2)
    rows, columns = np.arange(sizes[0]) // 2, np.arange(sizes[1]) // 2
    wanted = np.asarray(x)[:, rows][:, :, columns]
    np.testing.assert_array_equal(layers.upsample_2x(x, sizes), wanted)


@pytest.mark.parametrize("shape", [(2, 5, 6, 8), (1, 3, 4, 2, 8)])
@pytest.mark.parametrize("groups", [1, 4, 8])
def test_group_norm_equals_flax(shape, groups):
    x, scale, bias = normal(0, *shape) * 3 + 1, normal(1, 8), normal(2, 8)
    stock = nn.GroupNorm(groups, epsilon=1e-5, dtype=jnp.float64)
    wanted = stock.apply({"params": {"scale": scale, "bias": bias}}, x)
    np.testing.assert_allclose(layers.group_norm(x, scale, bias, groups), wanted, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 6, 5, 3), (1, 4, 7, 6, 2)])
def test_pools_equal_flax(shape):
    x, window = normal(0, *shape), (2,) * (len(shape) - 2)
    np.testing.assert_array_equal(layers.max_pool_2x(x), nn.max_pool(x, window, window))
    np.testing.assert_allclose(layers.avg_pool_2x(x), nn.avg_pool(x, window, window), atol=1e-12)


def test_dropout_does_not_depend_on_the_neighbours():
    x, keys = jnp.ones((4, 3, 3, 2)), jax.random.split(jax.random.key(0), 4)
    whole = layers.dropout(x, 0.5, keys)
    np.testing.assert_array_equal(whole[2:], layers.dropout(x[2:], 0.5, keys[2:]))
    assert set(np.unique(whole)) == {0.0, 2.0}


def test_discretized_generator_uses_the_strongest_candidate_alone():
    network = generator.Generator(num_channels=1, num_levels=2, width=2, max_width=4, groups=1)
    masks = (normal(0, 1, 8, 8, 1) > 0).astype(jnp.float32)
    logits = {side: normal(i, 2, 3) for i, side in enumerate(("encoder", "decoder"))}
    soft = jax.tree.map(jax.nn.softmax, logits)
    params = layers.init_params(network, jax.random.key(1), masks, soft, None)
    hard = outer_variables.discretize({"architecture": logits})["architecture"]
    hard = jax.tree.map(jax.nn.softmax, hard)
    for side in soft:
        np.testing.assert_array_equal(hard[side].argmax(-1), soft[side].argmax(-1))
        np.testing.assert_array_equal(np.sort(hard[side]), [[0, 0, 1]] * 2)
    steep = jax.tree.map(lambda x: jax.nn.softmax(1e4 * (x == x.max(-1, keepdims=True))), logits)
    draw = tiny.jit(lambda mixing: network.apply({"params": params}, masks, mixing, None))
    chosen = draw(hard)
    np.testing.assert_allclose(chosen, draw(steep), atol=1e-6)
    assert np.abs(chosen - draw(soft)).max() > 1e-4


def test_init_draws_what_the_modules_would():
    network, x = unet.UNet(width=16, num_levels=2), jnp.zeros((1, 16, 16, 3))
    ours = layers.init_params(network, jax.random.key(0), x)
    theirs = nn.meta.unbox(tiny.jit(network.init)(jax.random.key(0), x)["params"])
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a.std(), b.std(), rtol=0.2 if a.size > 400 else 1.0, atol=1e-3)
        np.testing.assert_allclose(a.mean(), b.mean(), atol=0.3)


class _Foreign(nn.Module):
    """A module of somebody else's, around a layer of ours."""

    @nn.compact
    def __call__(self, x):
        x = layers.Conv(4)(x)
        position = self.param("position", nn.initializers.normal(0.02), x.shape[1:])
        scale = self.param("layer_scale", nn.initializers.constant(1e-6), (4,))
        return nn.Dense(3, kernel_init=nn.initializers.uniform(0.5))(x + position) * scale[:3]


def test_every_module_keeps_its_own_initialisers():
    x = jnp.zeros((1, 16, 16, 3))
    ours = layers.init_params(_Foreign(), jax.random.key(3), x)
    theirs = nn.meta.unbox(_Foreign().init(jax.random.key(3), x)["params"])
    for name in ("position", "layer_scale", "Dense_0"):
        jax.tree.map(np.testing.assert_array_equal, ours[name], theirs[name])
    assert ours["position"].std() == pytest.approx(0.02, rel=0.1)
    assert ours["Conv_0"]["kernel"].std() == pytest.approx((2 / 27) ** 0.5, rel=0.3)


def count(params):
    return sum(x.size for x in jax.tree.leaves(params))


@pytest.mark.parametrize("shape", [(1, 33, 30, 3), (1, 9, 12, 10, 1)])
def test_unet_keeps_any_size(shape):
    network = unet.UNet(num_outputs=2, width=2, num_levels=2)
    x = jnp.zeros(shape)
    params = layers.init_params(network, jax.random.key(0), x)
    assert tiny.jit(network.apply)({"params": params}, x).shape == (*shape[:-1], 2)


def test_unet_has_the_parameters_counted_by_hand():
    # One level, width 2, one channel in, one out: 3x3 kernels without bias, norms with 2 per channel.
    down, bottom, up = 9 * (1 * 2 + 2 * 2), 9 * (2 * 4 + 4 * 4), 9 * (4 * 2 + 2 * 2)
    norms, resize, logits = 2 * (2 + 2 + 4 + 4 + 2 + 2), 4 * 4 * 2 + 2, 2 + 1
    x = jnp.zeros((1, 4, 4, 1))
    params = layers.init_params(unet.UNet(width=2, num_levels=1), jax.random.key(0), x)
    assert count(params) == down + bottom + up + norms + resize + logits


@pytest.mark.parametrize("shape", [(2, 10, 13, 1), (1, 6, 8, 7, 2)])
def test_generator_draws_images_of_any_size(shape):
    network = generator.Generator(num_channels=3, num_levels=2, width=2, max_width=4)
    soft = {"encoder": normal(0, 2, 3)}  # the decoder is not searched: kernel size 4 alone
    masks = jnp.ones(shape)
    keys = jax.random.split(jax.random.key(0), shape[0])
    params = layers.init_params(network, jax.random.key(1), masks, soft, None)
    images = tiny.jit(network.apply)({"params": params}, masks, soft, keys)
    assert images.shape == (*shape[:-1], 3) and np.abs(images).max() <= 1
    assert set(params["up_0"]) == {"kernel_4", "bias"} and "kernel_8" in params["down_0"]


def test_discriminator_gives_a_map_of_patches():
    network = discriminator.Discriminator(width=2, num_levels=3)
    mask, image = jnp.zeros((1, 256, 256, 1)), jnp.zeros((1, 256, 256, 3))
    shape = jax.eval_shape(lambda: network.init_with_output(jax.random.key(0), mask, image)[0])
    assert shape.shape == (1, 30, 30, 1)  # as in pix2pix, for patches of 70 pixels


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_parameters_and_logits_stay_float32(dtype):
    network, x = unet.UNet(width=2, num_levels=1, dtype=dtype), jnp.zeros((1, 4, 4, 1))
    params = nn.meta.unbox(jax.eval_shape(network.init, jax.random.key(0), x)["params"])
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} <= {
        np.dtype("float32"),
        np.dtype("float64"),
    }
    logits = jax.eval_shape(lambda p: network.apply({"params": p}, x), params)
    assert logits.dtype == jnp.float32


def test_weights_have_strong_types():
    """A step returns strong types: given weak ones first, it would be compiled twice."""
    image = jnp.zeros((1, 16, 16, 1))
    params = jax.eval_shape(
        lambda key: layers.init_params(unet.UNet(width=4, num_levels=1), key, image),
        jax.random.key(0),
    )
    assert not [leaf for leaf in jax.tree.leaves(params) if leaf.weak_type]
