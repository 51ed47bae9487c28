"""Every segmenter in two and three dimensions, of one and of three classes: built, an outer step taken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from configs import default, demo
from fewshotseg import hypergradient
from fewshotseg.models import factory
from fewshotseg.training import build_pairs, build_parts, estimators, stages

SIZES = {2: (96, 80), 3: (24, 32, 20)}
FLAT = ("efficient_unet",)  # of pictures alone
COMBINATIONS = [
    (name, axes, classes)
    for name in factory.SEGMENTERS
    for axes in SIZES
    for classes in (1, 3)
    if axes == 2 or name not in FLAT
]


def make_config(name, arg=""):
    config = default.get_config(f"{arg}segmenter={name},method=mixture_learned")
    config.segmenter.efficient_unet.weights = ""  # those of ImageNet may not be installed
    config.optim.name = "sgd"  # Adam's own operations are most of what is compiled
    config.pairs.sources = ("augmented", "colour_transfer")
    return config


@pytest.mark.parametrize(("name", "axes", "classes"), COMBINATIONS)
def test_it_builds_at_its_own_widths(name, axes, classes):
    config = make_config(name)
    spec = factory.Spec(classes + 1, SIZES[axes], 3 if axes == 2 else 1)
    network = build_parts.create_networks(config, spec)["segmenter"]
    params = jax.eval_shape(network.init, jax.random.key(0))
    logits = jax.eval_shape(network.apply, params, spec.array(spec.channels), None)
    assert logits.shape == (1, *SIZES[axes], 1 if classes == 1 else 4)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves((params, logits)))


def make_batch(size, channels, classes, number=2):
    """What a mixture is trained on; pixels to ignore among them."""
    numbers = np.random.default_rng(0)
    batch = {"key": jax.random.split(jax.random.key(0), number), "case": jnp.arange(number)}
    for kind in ("", "synthetic_", "donor_"):
        batch[f"{kind}image"] = jnp.asarray(
            numbers.uniform(-1, 1, (number, *size, channels)), jnp.float32
        )
        mask = numbers.integers(0, classes + 1, (number, *size)).astype(np.uint8)
        mask[:, :2] = 255
        batch[f"{kind}mask"] = jnp.asarray(mask)
        batch[f"{kind}case"] = jnp.arange(number)
    return batch


# What is of pictures alone is trained through, with fewer blocks, in `efficient_unet_test.py`.
STEPS = [combination for combination in COMBINATIONS if combination[0] not in FLAT]


def make_step(name, axes, classes, estimator="unrolled", compile=None):
    """An estimate of a mixture's derivative at the smallest widths, and all that it is given."""
    config = make_config(name, "runlocal,")
    config.segmenter.unet.num_levels, config.segmenter.swin_unet.depths = 1, (1, 1)
    config.segmenter.swin_unet.window, config.segmenter.deeplab.dropout_rate = 2, 0.0
    config.outer.estimator, config.outer.loop = estimator, "host" if compile else "scan"
    size, channels = (9, 10, 8)[:axes], {2: 3, 3: 1}[axes]
    spec = factory.Spec(classes + 1, size, channels)
    method = build_pairs.resolve_method(config, "mixture_learned")
    parts = build_parts.create_parts(config, spec, method, "train", axis_name=None)
    moving = stages.moving_players(parts, method)
    step = stages.create_inner_step(parts, moving)
    estimate = build_parts.create_estimate(
        config,
        parts,
        method,
        step,
        axis_name=None,
        compile=compile or (lambda function, **options: function),
    )
    state = {"segmenter": stages.init_segmenter(parts, 0)}
    batch = make_batch(size, channels, classes, number=4)
    outer = {"image": batch["image"], "mask": batch["mask"], "weight": jnp.ones(4)}
    inner = jax.tree.map(lambda x: x[None], batch)
    problem = parts.theta, state, inner, outer, jax.random.split(jax.random.key(1), 1)
    memory = estimators.start(
        estimator, build_parts.outer_fields(config, estimator), parts.theta, state
    )
    return estimate, (*problem, memory) if memory else problem


@pytest.mark.parametrize(("name", "axes", "classes"), STEPS)
def test_an_outer_step(name, axes, classes):
    """The loss is finite, every weight moves, the mixture has a derivative."""
    estimate, problem = make_step(name, axes, classes, compile=tiny.jit)
    found = estimate(*problem)
    assert isinstance(found, hypergradient.Hypergradient)
    assert np.isfinite(found.loss) and found.loss > 0
    slopes = np.asarray(found.grad["mixture"])
    assert np.isfinite(slopes).all() and np.abs(slopes).max() > 0
    before, after = (
        jax.tree.leaves(s["segmenter"].params) for s in (problem[1], found.inner_state)
    )
    assert np.mean([np.any(a != b) for a, b in zip(after, before, strict=True)]) > 0.9


@pytest.mark.parametrize("name", ["deeplab", "swin_unet"])
def test_other_estimators_go_through_it(name):
    """Traced: forwards, and a derivative of a gradient; the others ask for no more than these two."""
    for estimator in ("forward_mode", "identity"):
        estimate, problem = make_step(name, 2, 1, estimator)
        found = jax.eval_shape(estimate, *problem)
        assert found.loss.shape == () and found.grad["mixture"].shape == (2,)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), found.inner_state) == jax.tree.map(
            lambda x: (x.shape, x.dtype), problem[1]
        )


@pytest.mark.parametrize("axes", SIZES)
@pytest.mark.parametrize("family", build_pairs.FAMILIES)
def test_every_generator_family_knows_three_classes(family, axes):
    """An inner step of all players, traced: masks are given to generators as one-hot channels."""
    config = demo.get_config(f"runlocal,family={family},method=end2end")
    config.segmenter.unet.num_levels = config.discriminator.patchgan.num_levels = 1
    config.generator.pix2pix.num_levels = 2
    size, channels = (8,) * axes, {2: 3, 3: 1}[axes]
    spec = factory.Spec(4, size, channels, ("encoder", "decoder"))
    method = build_pairs.resolve_method(config, "end2end")
    parts = build_parts.create_parts(config, spec, method, "train", axis_name=None)
    step = stages.create_inner_step(parts, stages.moving_players(parts, method))

    def take(batch):
        players = stages.init_family(parts, 0)
        players["segmenter"] = stages.init_segmenter(parts, 0)
        return step(players, parts.theta, batch, None)[1]

    metrics = jax.eval_shape(take, make_batch(size, channels, 3))
    assert metrics["segmenter/synthetic_loss"].shape == ()
