"""From fields to draws: which field strengthens what, and which key draws which step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from configs import demo
from fewshotseg.errors import InputError
from fewshotseg.methods import METHODS, Method
from fewshotseg.training import build_data, build_pairs, build_parts, config_check, stages


def test_networks_and_data_of_a_canvas_that_is_no_square():
    config = demo.get_config("runlocal")
    config.data.image_size = (16, 32)
    data = build_data.create_data(config)
    assert data.train["image"].shape == (6, 16, 32, 3)
    image, mask, logits, drawn = tiny.output_shapes(config, data.num_classes)
    assert drawn == image == (1, 16, 32, 3) and logits == mask == (1, 16, 32, 1)


def test_fields_and_steps_reach_the_draws():
    config = demo.get_config("runlocal")
    for kind in ("real", "mask"):
        for strength in config.augment[kind]:
            if strength != "flip_axes":
                config.augment[kind][strength] = 0.0
    config.augment.mask.flip = 1.0
    mask = jnp.zeros((6, 8, 8), jnp.uint8).at[:, :3, :2].set(1)
    data = {"image": jnp.arange(6.0)[:, None, None, None] * jnp.ones((6, 8, 8, 1)), "mask": mask}
    draw, draw_outer = build_parts.create_draws(
        config, 2, METHODS["joint"], 6, axis_name=None, compile=jax.jit
    )
    keys = jnp.stack([stages.step_key(config.seed, "train", step) for step in range(3)])
    batches = draw(data, keys)
    np.testing.assert_array_equal(batches["mask"], jnp.stack([mask] * 3))
    np.testing.assert_array_equal(batches["synthetic_mask"], jnp.stack([mask[:, :, ::-1]] * 3))
    cases = np.round(batches["image"][:, :, 4, 4, 0]).astype(int)
    assert (np.sort(cases) == np.arange(6)).all()
    assert len({tuple(row) for row in cases.tolist()}) == 3  # another batch at every step
    outer = [draw_outer(data, key)["image"][:, 0, 0, 0].tolist() for key in keys]
    assert any(row != outer[0] for row in outer[1:])


def _draw(config, data, method, drawn, size=4):
    """A batch; `drawn` has those of the same program, which is compiled once."""
    draw, _ = build_parts.create_draws(config, 2, method, size, axis_name=None, compile=lambda f: f)
    args = data, stages.step_key(0, "train", 3)[None]
    program = str(jax.make_jaxpr(draw)(*args))
    if program not in drawn:
        drawn[program] = jax.jit(draw)(*args)
    return drawn[program]


def test_methods_see_equal_images_and_the_plain_one_sees_them_as_they_are():
    config = demo.get_config("runlocal")
    numbers = np.random.default_rng(0)
    image = numbers.uniform(-1, 1, (10, 8, 8, 1)).astype(np.float32)
    data = {"image": jnp.asarray(image), "mask": jnp.asarray(image[..., 0] > 0, jnp.uint8)}
    compiled = {}
    for name in METHODS:
        method = build_pairs.resolve_method(config, name)
        batch = _draw(config, data, method, compiled)
        drawn = batch["synthetic_mask"].shape[1] if method.sources else 0
        seen = batch["image"].shape[1] + drawn
        assert seen == (4 if name == "real_only_half" else 8), name
        assert ("synthetic_image" in batch) == (len(method.sources) > 0 and not method.draws)
        originals = [np.abs(image - x).max((1, 2, 3)).min() == 0 for x in batch["image"][0]]
        assert all(originals) == name.endswith("_plain"), name
    half, drawing = (_draw(config, data, METHODS[n], compiled) for n in ("real_only_half", "joint"))
    assert len(compiled) < len(METHODS)
    np.testing.assert_array_equal(half["image"], drawing["image"])  # the same real pairs
    np.testing.assert_array_equal(half["mask"], drawing["mask"])


def test_every_method_of_a_seed_starts_with_the_same_segmenter():
    config = demo.get_config("runlocal")
    spec = build_parts.create_spec(config, 2)
    starts = [
        stages.init_segmenter(build_parts.create_parts(config, spec, method, "train"), seed).params
        for method in (METHODS["real_plain"], METHODS["end2end"])
        for seed in (0, 1)
    ]
    jax.tree.map(np.testing.assert_array_equal, starts[0], starts[2])
    kernels = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(s)]) for s in starts[:2]]
    assert np.abs(kernels[0] - kernels[1]).max() > 0.1  # another seed, another start


def test_schedules_end_with_their_stage():
    """The generator's goes on anew where pre-training ended; theta's counts outer steps."""
    config = demo.get_config("runlocal")
    config.gan_optim.schedule = config.outer_optim.schedule = "cosine"
    config.gan_optim.name = config.outer_optim.name = "sgd"
    config.gan_optim.learning_rate = config.outer_optim.learning_rate = 1.0
    config.pretrain.num_steps, config.train.num_steps = 30, 20
    config.outer.every, config.outer.start = 5, 3  # outer steps at 5, 10, 15
    parts = build_parts.create_parts(
        config, build_parts.create_spec(config, 2), METHODS["end2end"], "train"
    )

    def rates(optimizer, first, number):
        one = jnp.float32(1.0)
        state = optimizer.init(one)
        found = []
        for _ in range(first + number):
            update, state = optimizer.update(one, state, one)
            found.append(-float(update))
        return found[first:]

    cosine = lambda n: 0.5 * (1 + np.cos(np.pi * np.arange(n) / n))  # noqa: E731
    for player in ("generator", "discriminator"):
        found = rates(parts.players[player].optimizer, 30, 20)
        np.testing.assert_allclose(found, cosine(20), atol=1e-6)
    assert build_parts.outer_loop(config).num_outer_steps(20) == 3
    np.testing.assert_allclose(rates(parts.outer_optimizer, 0, 3), cosine(3), atol=1e-6)


def test_a_new_generator_family_is_one_file_and_one_row(monkeypatch):
    """A family that colours the mask: one player, one network, trained and drawn."""
    row = build_pairs.FamilyRow(tiny.paint_family, {"painter": tiny.create_painter})
    monkeypatch.setitem(build_pairs.FAMILIES, "paint", row)
    config = demo.get_config("runlocal")
    with config.unlocked():
        config.family.name = "paint"
        config.painter = {"name": "linear"}
    spec = build_parts.create_spec(config, 2)
    parts = build_parts.create_parts(config, spec, METHODS["joint"], "train", axis_name=None)
    players = stages.init_family(parts, 0)
    assert players.keys() == {"painter"}
    assert stages.moving_players(parts, METHODS["joint"]) == ("painter", "segmenter")
    numbers = np.random.default_rng(1)
    batch = {
        "image": jnp.asarray(numbers.uniform(-1, 1, (2, 32, 32, 3)), jnp.float32),
        "mask": jnp.asarray(numbers.random((2, 32, 32)) < 0.5, jnp.uint8),
        "key": jax.random.split(jax.random.key(0), 2),
    }
    step = stages.create_inner_step(parts, ("painter",))
    state, metrics = step(players, parts.theta, batch, None)
    assert state["painter"].steps == 1 and metrics["painter/loss"] > 0


def test_a_harmonizer_starts_as_copy_paste():
    from fewshotseg.genseg import pair_sources

    config = demo.get_config("runlocal,family=harmonizer,method=end2end+mixture")
    config.outer.variables = ("architecture", "blend_width", "residual_gain", "mixture")
    config.pairs.sources = ("copy_paste", "generator")
    config_check.check_config(config)
    spec = build_parts.create_spec(config, 2)
    method = build_pairs.resolve_method(config, "end2end")
    assert method.sources == ("composite",) and method.draws
    mixture = build_pairs.resolve_method(config, "mixture")
    assert mixture.sources == ("copy_paste", "composite") and mixture.draws
    parts = build_parts.create_parts(config, spec, method, "train", axis_name=None)
    assert parts.theta.keys() == {"architecture", "blend_width", "residual_gain"}
    players = stages.init_family(parts, 0)
    numbers = np.random.default_rng(0)
    image = jnp.asarray(numbers.uniform(-1, 1, (4, 32, 32, 3)), jnp.float32)
    data = {"image": image, "mask": jnp.asarray(image[..., 0] > 0.5, jnp.uint8)}
    batch = jax.tree.map(lambda x: x[0], _draw(config, data, method, {}, size=2))
    (make,) = parts.sources.values()
    images, masks, _ = make(players, parts.theta, batch, batch["key"])
    pasted, pasted_masks = pair_sources.paste(batch, config.pairs.blend_width)
    np.testing.assert_allclose(images, pasted, atol=1e-6)
    np.testing.assert_array_equal(masks, pasted_masks)
    with pytest.raises(InputError, match="pairs.sources .*'composite' is not made by .*'gan'"):
        config.family.name, config.pairs.sources = "gan", ("copy_paste", "composite")
        config_check.check_config(config)


def test_a_new_source_of_pairs_is_one_function_and_one_row(monkeypatch):
    """A source of negatives: with a field, an outer variable of its own, and a part of the mixture."""
    from fewshotseg.genseg import outer_variables, pair_sources

    def negative(tools, *, offset):
        def make(state, theta, batch, keys):
            images = tools.use(theta)["depth"] * -batch["synthetic_image"] + offset
            return pair_sources.Pairs(
                images, batch["synthetic_mask"], batch["synthetic_case"][:, None]
            )

        return make

    row = pair_sources.PairSource(negative, variables=("depth",))
    monkeypatch.setitem(pair_sources.PAIR_SOURCES, "negative", row)
    depth = outer_variables.OuterVariable(
        lambda key, most: jnp.float32(0.0), lambda x, most: most * jax.nn.sigmoid(x)
    )
    monkeypatch.setitem(outer_variables.OUTER_VARIABLES, "depth", depth)
    config = demo.get_config("runlocal,method=mixture_learned")
    with config.unlocked():
        config.pairs.sources = ("augmented", "negative")
        config.pairs.depth = 2.0
        config.pairs.negative = {"offset": 0.25}
        config.outer.variables = ("depth", "mixture", "architecture")
    method = build_pairs.resolve_method(config, "mixture_learned")
    parts = build_parts.create_parts(config, build_parts.create_spec(config, 2), method, "train")
    assert parts.theta.keys() == {"depth", "mixture"} and list(parts.sources) == [
        "augmented", "negative",
    ]  # fmt: skip
    numbers = np.random.default_rng(0)
    image = jnp.asarray(numbers.uniform(-1, 1, (6, 32, 32, 3)), jnp.float32)
    data = {"image": image, "mask": jnp.asarray(image[..., 0] > 0, jnp.uint8)}
    batch = jax.tree.map(lambda x: x[0], _draw(config, data, method, {}))
    assert "donor_image" not in batch
    pairs = pair_sources.make_pairs(parts.sources, {}, parts.theta, batch, batch["key"])
    image = batch["synthetic_image"]
    np.testing.assert_array_equal(pairs.images[::2], image[::2])
    np.testing.assert_allclose(pairs.images[1::2], 0.25 - image[1::2], rtol=1e-6)


def test_a_new_segmenter_is_one_class_and_one_row(monkeypatch):
    import flax.linen as nn

    from fewshotseg.models import factory

    class OnePixel(nn.Module):
        num_outputs: int
        bias: float
        dtype: jnp.dtype

        @nn.compact
        def __call__(self, images, keys):
            start = nn.initializers.constant(self.bias)
            return nn.Dense(self.num_outputs, bias_init=start)(images)

    monkeypatch.setitem(factory.SEGMENTERS, "one_pixel", OnePixel)
    config = demo.get_config("runlocal,segmenter=one_pixel")
    with config.unlocked():
        config.segmenter.one_pixel = {"bias": -2.0}
    parts = build_parts.create_parts(config, build_parts.create_spec(config, 2), Method(), "train")
    params = stages.init_segmenter(parts, 0).params
    assert params["Dense_0"]["bias"] == -2.0  # its own initialiser
    logits = parts.networks["segmenter"].apply(params, jnp.zeros((1, 4, 4, 3)), None)
    np.testing.assert_array_equal(logits, np.full((1, 4, 4, 1), -2.0))
