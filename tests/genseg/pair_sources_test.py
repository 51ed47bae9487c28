"""Pairs by hand, where they come from, and the way of the validation loss through them to theta."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from scipy import stats

from fewshotseg import hypergradient
from fewshotseg.data import augment, batches
from fewshotseg.genseg import gan, harmonizer, levels, pair_sources, segmenter
from fewshotseg.genseg.pair_sources import NO_CASE, PAIR_SOURCES, Pairs, Tools
from fewshotseg.methods import GENERATED

FIELDS = {
    "cutmix": {"largest_share": 0.5},
    "colour_transfer": {"strength": 1.0},
}
FREE = ("augmented", "copy_paste", "cutmix", "colour_transfer")  # of a generator
HARD = 0.05  # pixels; such a feather leaves no trace in float32


def _draw(state, theta, one_hot, keys, code=None):
    """The toy of a generator: the mask, a number of the example's own, and the code."""
    number = jax.random.uniform(keys[0]) + (0.0 if code is None else code.sum(-1))
    number = jnp.broadcast_to(number, len(one_hot)).reshape(-1, *(1,) * (one_hot.ndim - 1))
    return 0.5 * one_hot.sum(-1, keepdims=True) + 0.1 * number


def _refine(state, theta, images, one_hot, keys):
    return images + 0.1 * one_hot.sum(-1, keepdims=True)


def _sample(state, theta, keys):
    """Image and mask of nothing but the key."""
    images = jax.vmap(lambda key: jax.random.uniform(key, (9, 9, 1)))(keys)
    return images, (images[..., 0] > 0.5).astype(jnp.uint8)


def _make(name, batch, width=HARD, keys=None, **fields):
    tools = Tools(_draw, _refine, lambda theta: {"blend_width": width}, 3)
    make = PAIR_SOURCES[name].create(tools, **{**FIELDS.get(name, {}), **fields})
    keys = (
        jax.random.split(jax.random.key(0), len(batch["synthetic_mask"])) if keys is None else keys
    )
    return make(None, {}, batch, keys)


def _batch(shape, number=3, seed=0, channels=2):
    """Random images, and hosts and donors with an object of class 1 and one of class 2."""
    numbers = np.random.default_rng(seed)
    images = numbers.uniform(-1, 1, (2, number, *shape, channels)).astype(np.float32)
    masks = numbers.choice(3, (2, number, *shape), p=(0.8, 0.1, 0.1)).astype(np.uint8)
    names = "synthetic", "donor"
    return {
        **{f"{n}_image": jnp.asarray(x) for n, x in zip(names, images, strict=True)},
        **{f"{n}_mask": jnp.asarray(x) for n, x in zip(names, masks, strict=True)},
        "synthetic_case": jnp.arange(number, dtype=jnp.int32),
        "donor_case": jnp.arange(number, dtype=jnp.int32) + 10,
    }


# --- By hand -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(8, 8), (7, 5), (3, 5, 4)], ids=str)
def test_what_is_pasted_is_the_donor_and_all_else_the_host(shape):
    batch = _batch(shape)
    batch["donor_mask"] = batch["donor_mask"].at[1].set(0)
    images, masks, provenance = _make("copy_paste", batch)
    inside = np.asarray(batch["donor_mask"]) > 0
    assert inside[[0, 2]].any((0, *range(1, inside.ndim))) and not inside[1].any()
    for found, kind in ((images, "image"), (masks, "mask")):
        host, donor = np.asarray(batch[f"synthetic_{kind}"]), np.asarray(batch[f"donor_{kind}"])
        np.testing.assert_allclose(found[inside], donor[inside], atol=1e-6)
        np.testing.assert_array_equal(found[~inside], host[~inside])
    assert provenance.tolist() == [[0, 10], [1, 11], [2, 12]]
    assert masks.dtype == batch["synthetic_mask"].dtype


def test_the_feather_of_a_straight_edge_is_the_normal_distribution():
    inside = np.zeros((1, 40, 5), bool)
    inside[:, 20:] = True
    for width in (1.0, 2.0):
        found = pair_sources.feather(jnp.asarray(inside), width, jnp.float32)[0]
        expected = stats.norm.cdf((np.arange(40) - 19.5) / width)
        np.testing.assert_allclose(found, np.tile(expected[:, None], 5), atol=9e-3)
        np.testing.assert_allclose(found[19] + found[20], 1.0, atol=1e-6)
    everything = pair_sources.feather(jnp.ones((1, 6, 7), bool), 3.0, jnp.float32)
    np.testing.assert_allclose(everything, 1.0, atol=1e-6)  # no dark margin


def test_a_wide_feather_mixes_both_images_by_their_shares():
    batch = _batch((8, 8))
    images = _make("copy_paste", batch, width=1.5).images
    share = pair_sources.feather(batch["donor_mask"] > 0, 1.5, jnp.float32)[..., None]
    expected = share * batch["donor_image"] + (1 - share) * batch["synthetic_image"]
    np.testing.assert_allclose(images, expected, atol=1e-6)
    assert 0 < share.min() and share.max() < 1


@pytest.mark.parametrize("shape", [(20, 20), (21, 13), (9, 8, 7)], ids=str)
def test_a_box_of_the_donor_in_the_host(shape):
    batch = _batch(shape, number=60)
    batch["donor_image"] = batch["donor_image"] + 10  # to tell them apart
    images, masks, _ = _make("cutmix", batch)
    inside = np.asarray(images[..., 0] > 5)
    for found, kind in ((images, "image"), (masks, "mask")):
        host, donor = np.asarray(batch[f"synthetic_{kind}"]), np.asarray(batch[f"donor_{kind}"])
        np.testing.assert_array_equal(found[inside], donor[inside])
        np.testing.assert_array_equal(found[~inside], host[~inside])
    for one in inside:
        found = np.nonzero(one)
        box = [slice(x.min(), x.max() + 1) for x in found] if found[0].size else []
        assert not box or one[tuple(box)].all()
    share = inside.mean(tuple(range(1, inside.ndim)))
    assert share.max() < 0.6 and share.mean() == pytest.approx(0.25, abs=0.06)
    assert inside.any(0).mean() > 0.95  # anywhere


def test_colours_are_those_of_the_donor():
    batch = _batch((6, 7))
    for name in ("synthetic_image", "donor_image"):
        batch[name] = 0.2 * batch[name] + 0.1  # away from the ends, where it is clipped
    images, masks, provenance = _make("colour_transfer", batch)
    for statistic in (np.mean, np.std):
        expected = statistic(np.asarray(batch["donor_image"]), axis=(1, 2))
        np.testing.assert_allclose(statistic(np.asarray(images), axis=(1, 2)), expected, atol=2e-3)
    np.testing.assert_array_equal(masks, batch["synthetic_mask"])
    assert provenance.tolist() == [[0, 10], [1, 11], [2, 12]]
    same = _make("colour_transfer", batch, strength=0.0).images
    np.testing.assert_allclose(same, batch["synthetic_image"], atol=1e-6)
    flat = {**batch, "synthetic_image": jnp.zeros_like(batch["donor_image"])}
    assert np.isfinite(_make("colour_transfer", flat).images).all()
    loud = {**batch, "donor_image": 8 * batch["donor_image"]}
    assert np.abs(_make("colour_transfer", loud).images).max() == 1.0


def test_a_generator_draws_for_the_masks_and_an_augmented_pair_is_itself():
    batch = _batch((5, 4))
    drawn = _make("generator", batch)
    number = drawn.images[0, 0, 0, 0] - 0.5 * (batch["synthetic_mask"][0, 0, 0] > 0)
    expected = 0.5 * (batch["synthetic_mask"] > 0) + number
    np.testing.assert_allclose(drawn.images[..., 0], expected, atol=1e-6)
    kept = _make("augmented", batch)
    np.testing.assert_array_equal(kept.images, batch["synthetic_image"])
    for pairs in (drawn, kept):
        np.testing.assert_array_equal(pairs.masks, batch["synthetic_mask"])
        assert pairs.provenance.tolist() == [[0], [1], [2]]


def test_a_composite_is_what_is_pasted_and_refined_and_an_appearance_that_of_the_donor():
    batch = _batch((5, 4))
    pasted, refined = _make("copy_paste", batch), _make("composite", batch)
    inside = (pasted.masks > 0)[..., None]
    np.testing.assert_allclose(refined.images, pasted.images + 0.1 * inside, atol=1e-6)
    for found, expected in zip(refined[1:], pasted[1:], strict=True):
        np.testing.assert_array_equal(found, expected)
    drawn, alone = _make("appearance", batch), _make("generator", batch)
    donor = np.asarray(batch["donor_image"])
    code = (0.5 * (donor.mean((1, 2)) + 1) + donor.std((1, 2))).sum(-1)
    difference = np.asarray(drawn.images - alone.images)
    expected = np.broadcast_to(0.1 * code[:, None, None, None], difference.shape)
    np.testing.assert_allclose(difference, expected, atol=1e-3)
    assert drawn.provenance.tolist() == [[0, 10], [1, 11], [2, 12]]


def test_examples_take_turns_among_the_sources_on_any_number_of_devices():
    def source(number, cases):
        def make(state, theta, batch, keys):
            images = batch["synthetic_image"] + 100 * number
            provenance = jnp.stack([batch["synthetic_case"]] * cases, -1)
            return Pairs(images, batch["synthetic_mask"], provenance)

        return make

    sources = {"a": source(1, 1), "b": source(2, 2)}
    batch = _batch((2, 3), number=8)
    keys = jax.random.split(jax.random.key(0), 8)
    whole = pair_sources.make_pairs(sources, None, {}, batch, keys)
    numbers = np.round((whole.images - batch["synthetic_image"])[:, 0, 0, 0]).astype(int)
    assert numbers.tolist() == [100, 200] * 4
    np.testing.assert_array_equal(whole.masks, batch["synthetic_mask"])
    assert whole.provenance.tolist() == [[i, i if i % 2 else NO_CASE] for i in range(8)]
    halves = [
        pair_sources.make_pairs(
            sources, None, {}, {k: v[i : i + 4] for k, v in batch.items()}, keys[i : i + 4]
        )
        for i in (0, 4)
    ]
    jax.tree.map(lambda w, *h: np.testing.assert_array_equal(np.concatenate(h), w), whole, *halves)


# --- From cases to pairs -------------------------------------------------------------------------------

GEOMETRY = augment.Geometry(rotate=5.0, shear=0.0, translate=0.02, scale=0.05)


@functools.cache
def _pairs_of(names):
    """(image and mask of cases, key) -> batch and pairs, compiled."""
    tools = Tools(_draw, _refine, lambda theta: {"blend_width": 1.0}, 2, _sample)
    sources = pair_sources.create(names, tools, FIELDS)

    def pairs(data, key):
        batch = batches.draw_batch(
            data,
            key,
            batch_size=16,
            num_synthetic=16,
            geometry=None,
            mask_geometry=GEOMETRY,
            num_classes=2,
            synthetic_images=pair_sources.looks_at(names, "images"),
            donor_geometry=GEOMETRY if pair_sources.looks_at(names, "donors") else None,
        )
        return batch, pair_sources.make_pairs(sources, None, {}, batch, batch["key"])

    return tiny.jit(pairs)


def _cases(number=5, size=9):
    numbers = np.random.default_rng(3)
    masks = np.zeros((number, size, size), np.uint8)
    masks[:, 3:6, 3:6] = 1
    images = numbers.uniform(-1, 1, (number, size, size, 1)).astype(np.float32)
    return {"image": jnp.asarray(images), "mask": jnp.asarray(masks)}


@pytest.mark.parametrize("turn", [0, 1])
def test_a_pair_changes_with_the_cases_of_its_provenance_and_with_no_others(turn):
    names = (*FREE, *GENERATED)
    data, key = _cases(), jax.random.key(turn)
    _, before = _pairs_of(names)(data, key)
    in_any = 0
    for case in range(5):
        changed = {
            "image": data["image"].at[case].multiply(-0.7),
            "mask": data["mask"].at[case, 1:4, 4:8].set(1),
        }
        _, after = _pairs_of(names)(changed, key)
        np.testing.assert_array_equal(after.provenance, before.provenance)
        named = (np.asarray(before.provenance) == case).any(1)
        moved = np.zeros(16, bool)
        for x, y in ((before.images, after.images), (before.masks, after.masks)):
            moved |= (np.asarray(x) != np.asarray(y)).reshape(16, -1).any(1)
        # The box of CutMix may hide one of its two cases, or leave it out.
        sure = np.arange(16) % 8 != names.index("cutmix")
        np.testing.assert_array_equal(moved[sure], named[sure])
        assert not (moved & ~named).any()
        in_any += named.sum()
    assert in_any == 2 * (
        5 * 2 + 2 * 1
    )  # two cases of five sources, one of two, none of one; twice each


@pytest.mark.parametrize("number", [1, 2, 5])
def test_a_donor_is_another_case_wherever_there_is_one(number):
    seen = set()
    for turn in range(4):
        batch, _ = _pairs_of(FREE[:2])(_cases(number), jax.random.key(turn))
        hosts, donors = np.asarray(batch["synthetic_case"]), np.asarray(batch["donor_case"])
        assert (hosts == donors).all() == (number == 1) and (number == 1 or (hosts != donors).all())
        assert donors.min() >= 0 and donors.max() < number
        seen |= set(zip(hosts.tolist(), donors.tolist(), strict=True))
    assert number == 1 or len(seen) > 0.8 * number * (number - 1)


def test_what_is_drawn_beside_changes_no_other_draw():
    alone, _ = _pairs_of(("generator",))(_cases(), jax.random.key(7))
    beside, _ = _pairs_of((*FREE, *GENERATED))(_cases(), jax.random.key(7))
    assert {*beside} - {*alone} == {"synthetic_image", "donor_image", "donor_mask", "donor_case"}
    for name in {*alone} - {"key"}:
        np.testing.assert_array_equal(alone[name], beside[name])
    np.testing.assert_array_equal(*(jax.random.key_data(b["key"]) for b in (alone, beside)))
    for kind in ("image", "mask"):  # no augmentation: the cases themselves
        np.testing.assert_array_equal(alone[kind], _cases()[kind][alone["case"]])


# --- To the validation loss and back -------------------------------------------------------------------

MOVING = ("mixture", "blend_width", "colour_shift", "colour_gain", "object_scale")


def _add_pairs(batches, numbers):
    shape = batches["mask"].shape
    for name in ("synthetic", "donor"):
        batches[f"{name}_image"] = jnp.asarray(numbers.uniform(-1, 1, (*shape, 1)))
        batches[f"{name}_mask"] = jnp.asarray(numbers.random(shape) < 0.4, np.uint8)
        batches[f"{name}_case"] = jnp.zeros(shape[:2], np.int32)


@functools.cache
def _problem(sources, synthetic_weight=1.0):
    """A toy segmenter in float64 on pairs of several sources: its estimate through two steps, and theta."""
    method = tiny.make_toy_method(
        learning_rate=0.1,
        optimizer="adam",
        sources=sources,
        fields=FIELDS,
        synthetic_weight=synthetic_weight,
    )
    _, inner, inner_batches, outer_batch, keys = tiny.make_toy_problem(method, 2, batch_size=4)
    inner = {"segmenter": inner["segmenter"]}
    numbers = np.random.default_rng(5)
    _add_pairs(inner_batches, numbers)
    theta = {
        "mixture": jnp.asarray(numbers.standard_normal(len(sources))),
        "blend_width": jnp.asarray(0.3),
        "colour_shift": jnp.asarray([0.2]),
        "colour_gain": jnp.asarray([-0.3]),
        "object_scale": jnp.asarray(1.2),
    }
    step = method.inner_step(moving=("segmenter",))
    estimate = tiny.jit(hypergradient.unrolled(step, method.outer_loss()))
    return lambda theta: estimate(theta, inner, inner_batches, outer_batch, keys), theta


def test_every_variable_of_the_pairs_against_central_differences():
    with tiny.float64():
        estimate, theta = _problem(FREE)
        grad = estimate(theta).grad
        for name in MOVING:
            direction = jax.tree.map(jnp.zeros_like, theta)
            direction[name] = tiny.random_direction(theta[name], 1)
            expected = tiny.derivative(lambda t: estimate(t).loss, theta, direction, step=1e-4)
            assert abs(expected) > 1e-6, name
            assert tiny.dot(grad, direction) == pytest.approx(expected, rel=1e-6), name


@functools.cache
def _family_problem(source, inputs):
    """All players of a family of toys, through two steps."""

    def create_family(networks, optimizer, use, weight):
        if source == "composite":
            return harmonizer.family(networks, optimizer, use, residual_weight=weight)
        return gan.family(networks, optimizer, use, l1_weight=weight, appearance=True)

    method = tiny.make_toy_method(learning_rate=0.1, sources=(source,), create_family=create_family)
    theta, inner, inner_batches, outer_batch, keys = tiny.make_toy_problem(method, 2)
    numbers = np.random.default_rng(5)
    shapes = {"in": np.zeros((inputs, 2)), "bias": np.zeros(2), "out": np.zeros((2, 1))}
    generator = levels.init_player(tiny.draw_like(shapes, numbers), method.players["generator"])
    inner = {**inner, "generator": generator}
    _add_pairs(inner_batches, numbers)
    if source == "composite":
        theta |= {"blend_width": jnp.asarray(0.3), "residual_gain": jnp.asarray(-0.2)}
    estimate = tiny.jit(hypergradient.unrolled(method.inner_step(), method.outer_loss()))
    return lambda theta: estimate(theta, inner, inner_batches, outer_batch, keys), theta


@pytest.mark.parametrize(("source", "inputs"), [("composite", 2), ("appearance", 3)])
def test_families_of_composites_and_appearances_against_central_differences(source, inputs):
    with tiny.float64():
        estimate, theta = _family_problem(source, inputs)
        grad = estimate(theta).grad
        for name in theta:
            direction = jax.tree.map(jnp.zeros_like, theta)
            direction[name] = tiny.random_direction(theta[name], 1)
            expected = tiny.derivative(lambda t: estimate(t).loss, theta, direction, step=3e-4)
            assert abs(expected) > 1e-7, name
            assert tiny.dot(grad, direction) == pytest.approx(expected, rel=1e-5), name


def test_nothing_reaches_theta_where_the_synthetic_pairs_weigh_nothing():
    with tiny.float64():
        estimate, theta = _problem(FREE, synthetic_weight=0.0)
        for leaf in jax.tree.leaves(estimate(theta).grad):
            np.testing.assert_array_equal(leaf, 0.0)


def test_the_width_of_a_feather_does_not_matter_where_nothing_is_pasted():
    with tiny.float64():
        estimate, theta = _problem(("augmented", "colour_transfer"))
        grad = estimate(theta).grad
        assert grad["blend_width"] == 0.0 and grad["colour_shift"] != 0.0
    assert "blend_width" not in pair_sources.variables(("augmented", "colour_transfer"))
    assert "blend_width" in pair_sources.variables(("copy_paste",))
    assert pair_sources.variables(()) == frozenset()


def test_the_loss_is_the_weighted_sum_over_the_sources():
    """(real + gamma sum_s w_s synthetic_s) / (1 + gamma), and its derivative in w."""
    numbers = np.random.default_rng(0)
    images = jnp.asarray(numbers.uniform(-1, 1, (6, 4, 4, 1)), jnp.float32)
    masks = jnp.asarray(numbers.random((6, 4, 4)) < 0.5, jnp.uint8)
    player = segmenter.player(
        lambda params, x, keys: params * x, None, None, sources={"a": None, "b": None}
    )

    def alone(i):
        data = {"images": images[i], "masks": masks[i], "keys": None}
        return float(player.loss(2.0, {}, data)[0])

    outer = {
        "synthetic": images[2:], "weight": jnp.float32(0.5), "mixture": jnp.array([0.9, 0.1]),
    }  # fmt: skip
    data = {"images": images[:2], "masks": masks, "keys": None}
    (loss, metrics), grad = jax.value_and_grad(
        lambda outer: player.loss(2.0, outer, data), has_aux=True
    )(outer)
    real, a, b = alone(slice(0, 2)), alone(slice(2, 6, 2)), alone(slice(3, 6, 2))
    assert loss == pytest.approx((real + 0.5 * (0.9 * a + 0.1 * b)) / 1.5, rel=1e-5)
    assert metrics["segmenter/a_loss"] == pytest.approx(a, rel=1e-5)
    assert metrics["segmenter/synthetic_loss"] == pytest.approx(0.9 * a + 0.1 * b, rel=1e-5)
    np.testing.assert_allclose(grad["mixture"], [a / 3, b / 3], rtol=1e-5)
