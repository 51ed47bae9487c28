"""DeepLabV3: its count, its layers against XLA's own, its weights' names, the convention of torchvision."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
import tiny

from fewshotseg import errors
from fewshotseg.models import deeplab, dilated, factory, resnet, weights

TINY = {"width": 4, "depths": (1, 1, 1, 2), "head_width": 8, "atrous": (29, 57, 86)}


def test_it_has_the_parameters_of_torchvision():
    params, logits = networks.shapes_of(deeplab.DeepLab(21), 2, 97, 65, 3)
    assert networks.count(params) == 39_638_869 and logits.shape == (2, 97, 65, 21)
    assert networks.count(params["encoder"]) == 23_508_032  # ResNet-50 without its classifier
    grey, _ = networks.shapes_of(deeplab.DeepLab(1), 1, 64, 64, 1)
    assert networks.count(grey) == 39_638_869 - 20 * 257


def test_all_taps_of_the_pyramid_meet_the_picture_at_our_sizes():
    """Dilations for 513 pixels at 96: their outer taps would see padding alone."""
    net = deeplab.DeepLab(1, width=4, depths=(1, 1, 1, 1), head_width=8)
    x = jax.random.uniform(jax.random.key(0), (1, 96, 96, 3), minval=-1)
    network = factory.network(net, x, None)
    params = network.init(jax.random.key(1))
    grads = tiny.jit(jax.grad(lambda p: (network.apply(p, x, None) ** 2).sum()))(params)["head"]
    for i in (1, 2, 3):
        assert (np.abs(grads[f"pyramid_{i}"]["kernel"]).sum((2, 3)) > 0).all()


@pytest.mark.parametrize("shape", [(1, 33, 30, 1), (1, 1, 5, 3), (1, 9, 10, 7, 1)])
def test_logits_have_the_size_of_the_image(shape):
    _, logits = networks.shapes_of(deeplab.DeepLab(3, **TINY), *shape)
    assert logits.shape == (*shape[:-1], 3) and logits.dtype == jnp.float32


@pytest.mark.parametrize(
    ("shape", "dilation"),
    [((2, 7, 10, 3), 1), ((2, 7, 10, 3), 4), ((2, 7, 10, 3), 36), ((1, 5, 4, 6, 2), 2)],
)
def test_taps_are_the_dilated_convolution(shape, dilation):
    """With its derivatives, against XLA's convolution, also where all taps but one meet padding."""
    numbers, rank = np.random.default_rng(0), len(shape) - 2
    with tiny.float64():
        x = jnp.asarray(numbers.normal(size=shape))
        kernel = jnp.asarray(numbers.normal(size=(*(3,) * rank, shape[-1], 4)))

        def stock(x, kernel):
            spatial = "DHW"[-rank:]
            return jax.lax.conv_general_dilated(
                x, kernel, (1,) * rank, [(dilation, dilation)] * rank, rhs_dilation=(dilation,) * rank,
                dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
            )  # fmt: skip

        def ours(x, kernel):
            return dilated.by_taps(x, kernel, dilation)

        cotangent = jnp.asarray(numbers.normal(size=(*shape[:-1], 4)))

        def with_derivatives(function):
            value, back = jax.vjp(function, x, kernel)
            return value, *back(cotangent)

        found, wanted = (tiny.jit(lambda f=f: with_derivatives(f))() for f in (ours, stock))
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12)


def test_the_share_of_taps_inside_by_hand():
    assert dilated.share_inside((4,), (3,), 1) == pytest.approx(
        10 / 12
    )  # the outer two miss one each
    assert dilated.share_inside((12, 12), (3, 3), 36) == pytest.approx(
        1 / 9
    )  # the middle one alone
    x = jnp.asarray(np.random.default_rng(6).normal(size=(1, 16, 15, 2)), jnp.float32)
    kernel = jnp.asarray(np.random.default_rng(7).normal(size=(3, 3, 2, 2)), jnp.float32)
    # Most of it is inside: one convolution.
    assert dilated.share_inside((16, 15), (3, 3), 2) > dilated.MOST_INSIDE
    for dilation in (1, 2):
        found = dilated.dilated_conv(x, kernel, dilation)
        np.testing.assert_allclose(found, dilated.by_taps(x, kernel, dilation), atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 8, 7, 2), (2, 1, 5, 1), (1, 4, 5, 3, 1)])
def test_the_pool_is_that_of_windows(shape):
    x = jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)
    rank = len(shape) - 2
    wanted = jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, *(3,) * rank, 1), (1, *(2,) * rank, 1),
        [(0, 0), *[(1, 1)] * rank, (0, 0)],
    )  # fmt: skip
    np.testing.assert_array_equal(resnet.max_pool_3s2(x), wanted)


def test_bfloat16_is_close_to_float32():
    networks.assert_bfloat16_is_close(deeplab.DeepLab(2, **TINY), share=0.15)


def test_dropout_is_of_the_keys_alone():
    images = jnp.asarray(np.random.default_rng(3).uniform(-1, 1, (2, 16, 16, 3)), jnp.float32)
    network = factory.network(deeplab.DeepLab(1, **TINY), images, None)
    params, keys = network.init(jax.random.key(0)), jax.random.split(jax.random.key(1), 2)
    apply = tiny.jit(network.apply)
    plain, dropped = apply(params, images, None), apply(params, images, keys)
    assert not np.allclose(plain, dropped)
    swapped = apply(params, images[::-1], keys[::-1])  # whatever stands beside it in the batch
    np.testing.assert_allclose(dropped, swapped[::-1], atol=1e-5)


# --- Weights -------------------------------------------------------------------------------------


def torchvision_names(whole, classes=21, width=64, depths=(3, 4, 6, 3), head=256):
    """Names and shapes of torchvision 0.29, written out by its rules and not by the tables."""
    found = {}

    def conv(name, out, features, size):
        found[f"{name}.weight"] = (out, features, size, size)

    def norm(name, channels):
        for part in ("weight", "bias", "running_mean", "running_var"):
            found[f"{name}.{part}"] = (channels,)
        found[f"{name}.num_batches_tracked"] = ()

    start = "backbone." if whole else ""
    conv(f"{start}conv1", width, 3, 7)
    norm(f"{start}bn1", width)
    features = width
    for layer, depth in enumerate(depths, start=1):
        planes = width * 2 ** (layer - 1)
        for block in range(depth):
            name = f"{start}layer{layer}.{block}"
            for i, (out, inner, size) in enumerate(
                ((planes, features, 1), (planes, planes, 3), (4 * planes, planes, 1)), start=1
            ):
                conv(f"{name}.conv{i}", out, inner, size)
                norm(f"{name}.bn{i}", out)
            if block == 0:
                conv(f"{name}.downsample.0", 4 * planes, features, 1)
                norm(f"{name}.downsample.1", 4 * planes)
            features = 4 * planes
    if not whole:
        return found | {"fc.weight": (1000, features), "fc.bias": (1000,)}
    for i, size in enumerate((1, 3, 3, 3)):
        conv(f"classifier.0.convs.{i}.0", head, features, size)
        norm(f"classifier.0.convs.{i}.1", head)
    conv("classifier.0.convs.4.1", head, features, 1)
    norm("classifier.0.convs.4.2", head)
    conv("classifier.0.project.0", head, 5 * head, 1)
    norm("classifier.0.project.1", head)
    conv("classifier.1", head, head, 3)
    norm("classifier.2", head)
    conv("classifier.4", classes, head, 1)
    found["classifier.4.bias"] = (classes,)
    conv("aux_classifier.0", features // 8, features // 2, 3)
    norm("aux_classifier.1", features // 8)
    conv("aux_classifier.4", classes, features // 8, 1)
    return found | {"aux_classifier.4.bias": (classes,)}


def draw(shapes, seed=0):
    numbers = np.random.default_rng(seed)
    return {
        name: np.float32(1.0) * np.asarray(numbers.uniform(0.5, 1.5, shape), np.float32)
        for name, shape in shapes.items()
    }


SMALL = {"width": 4, "depths": (1, 1, 1, 2), "head": 8}


@pytest.mark.parametrize("whole", [False, True])
def test_names_of_torchvision_fill_every_parameter(whole):
    """None is left over, every shape fits, and the whole of ResNet-50's and DeepLabV3's sizes too."""
    names = torchvision_names(whole)
    given = deeplab.from_torchvision(
        {name: np.broadcast_to(np.float32(1.0), shape) for name, shape in names.items()}, 21
    )
    params, _ = networks.shapes_of(deeplab.DeepLab(21), 1, 32, 32, 3)
    for part in ("encoder", "head", "logits") if whole else ("encoder",):
        ours, theirs = networks.count(params[part]), networks.count(given[part])
        assert ours == theirs, part
    assert given.keys() == ({"encoder", "head", "logits"} if whole else {"encoder"})


def test_weights_of_another_number_of_classes_leave_the_logits_to_be_drawn():
    tensors = draw(torchvision_names(True, classes=21, **SMALL))
    sizes = SMALL["depths"], SMALL["width"], SMALL["head"]
    assert deeplab.from_torchvision(tensors, 3, *sizes).keys() == {"encoder", "head"}
    for name in ("backbone.layer4.1.bn3.running_var", "classifier.0.project.0.weight"):
        with pytest.raises(errors.InputError, match=f"'{name}' is missing"):
            deeplab.from_torchvision({k: v for k, v in tensors.items() if k != name}, 3, *sizes)
    with pytest.raises(errors.InputError, match="'extra' belongs nowhere"):
        deeplab.from_torchvision({**tensors, "extra": np.zeros(1)}, 3, *sizes)


def forward_by_the_book(t, image, depths):
    """PyTorch's network in evaluation mode, by XLA's own operations in the layout of PyTorch."""

    def conv(x, name, stride=1, padding=0, dilation=1):
        y = jax.lax.conv_general_dilated(
            x,
            t[f"{name}.weight"],
            (stride,) * 2,
            [(padding, padding)] * 2,
            rhs_dilation=(dilation,) * 2,
        )
        return y + t[f"{name}.bias"][:, None, None] if f"{name}.bias" in t else y

    def norm(x, name):
        weight, bias, mean, variance = (
            t[f"{name}.{part}"][:, None, None]
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / jnp.sqrt(variance + 1e-5) * weight + bias

    mean, deviation = (
        jnp.array(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    x = ((image.transpose(0, 3, 1, 2) + 1) / 2 - mean) / deviation
    x = jax.nn.relu(norm(conv(x, "backbone.conv1", 2, 3), "backbone.bn1"))
    x = jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, 1, 3, 3), (1, 1, 2, 2), [(0, 0), (0, 0), (1, 1), (1, 1)]
    )
    rules = {1: (1, 1, 1), 2: (2, 1, 1), 3: (1, 1, 2), 4: (1, 2, 4)}
    for layer, depth in enumerate(depths, start=1):
        stride, first, others = rules[layer]
        for block in range(depth):
            name, d = f"backbone.layer{layer}.{block}", others if block else first
            y = jax.nn.relu(norm(conv(x, f"{name}.conv1"), f"{name}.bn1"))
            y = norm(conv(y, f"{name}.conv2", 1 if block else stride, d, d), f"{name}.bn2")
            y = norm(conv(jax.nn.relu(y), f"{name}.conv3"), f"{name}.bn3")
            if block == 0:
                x = norm(conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
            x = jax.nn.relu(x + y)
    parts = []
    for i, d in enumerate((0, 1, 2, 3)):
        name = f"classifier.0.convs.{i}"
        parts.append(jax.nn.relu(norm(conv(x, f"{name}.0", 1, d, max(d, 1)), f"{name}.1")))
    pooled = conv(x.mean((2, 3), keepdims=True), "classifier.0.convs.4.1")
    pooled = jax.nn.relu(norm(pooled, "classifier.0.convs.4.2"))
    parts.append(jnp.broadcast_to(pooled, parts[0].shape))
    x = conv(jnp.concatenate(parts, 1), "classifier.0.project.0")
    x = jax.nn.relu(norm(x, "classifier.0.project.1"))
    x = jax.nn.relu(norm(conv(x, "classifier.1", 1, 1), "classifier.2"))
    return conv(x, "classifier.4")


def test_a_file_of_torchvision_computes_what_torchvision_does(tmp_path):
    tensors = draw(torchvision_names(True, classes=2, **SMALL))
    path = tmp_path / "deeplabv3.npz"
    np.savez(
        path,
        **{k: v - 1 if k.endswith("weight") and v.ndim == 4 else v for k, v in tensors.items()},
    )
    tensors = weights.read(path)
    images = jnp.asarray(np.random.default_rng(4).uniform(-1, 1, (1, 21, 18, 3)), jnp.float32)
    module = deeplab.DeepLab(2, weights=str(path), **TINY)
    network = factory.network(module, images, None)
    params = network.init(jax.random.key(0))
    assert module.rates() == {"encoder": 0.3} and "terms" in network.notice
    small = tiny.jit(lambda t, x: forward_by_the_book(t, x, SMALL["depths"]))(tensors, images)
    small = small.transpose(0, 2, 3, 1)
    wanted = jax.image.resize(small, (1, 21, 18, 2), "linear")
    found = tiny.jit(network.apply)(params, images, None)
    np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=2e-4 * float(np.abs(wanted).max()))
    frozen = module.clone(trained="frozen")
    slopes = tiny.jit(jax.grad(lambda p: (frozen.apply({"params": p}, images) ** 2).sum()))(params)
    assert frozen.rates() == {"encoder": 0.0} and not any(
        map(np.any, jax.tree.leaves(slopes["encoder"]))
    )
    assert all(map(np.any, jax.tree.leaves(slopes["logits"])))
    with pytest.raises(errors.InputError, match="of a network for pictures: use '' for volumes"):
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 8, 8, 8, 1)))
