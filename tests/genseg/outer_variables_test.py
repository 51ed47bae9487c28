"""Starts, bounds, and what theta holds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewshotseg.genseg import outer_variables
from fewshotseg.genseg.outer_variables import OUTER_VARIABLES, OuterVariable

SETTINGS = {
    "architecture": {"encoder": (200, 3), "decoder": (200, 3)},
    "synthetic_weight": 0.75,
    "mixture": ("augmented", "cutmix", "generator"),
    "blend_width": 1.5,
    "residual_gain": 0.5,
    "colour_gain": 3,
    "colour_shift": 3,
    "object_scale": 2.0,
}
LOWEST = {"colour_shift": -0.5}
HIGHEST = {"blend_width": 6.0, "colour_gain": 2.0, "object_scale": 2.0}


def test_theta_holds_what_moves_and_the_rest_stays_as_it_started():
    both, use_both = outer_variables.create(SETTINGS, tuple(SETTINGS), jax.random.key(0))
    some, use = outer_variables.create(SETTINGS, ("synthetic_weight",), jax.random.key(0))
    none, use_none = outer_variables.create(SETTINGS, (), jax.random.key(0))
    assert both.keys() == SETTINGS.keys() and some.keys() == {"synthetic_weight"} and none == {}
    expected = use_both(both)
    for found in (use(some), use_none({})):
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    moved = use({"synthetic_weight": jnp.float32(1.0)})
    assert moved["synthetic_weight"] == pytest.approx(1.5 / (1 + np.exp(-1.0)), rel=1e-6)
    jax.tree.map(np.testing.assert_array_equal, moved["architecture"], expected["architecture"])


def test_architecture_starts_near_a_uniform_mixture():
    theta, use = outer_variables.create(SETTINGS, ("architecture",), jax.random.key(0))
    logits = theta["architecture"]
    assert logits.keys() == {"encoder", "decoder"}
    for alpha in logits.values():
        assert alpha.shape == (200, 3)
        assert alpha.std() == pytest.approx(1e-3, rel=0.1)
        assert abs(alpha.mean()) < 2e-4
    assert np.abs(logits["encoder"] - logits["decoder"]).min() > 0
    for mixing in use(theta)["architecture"].values():
        np.testing.assert_allclose(mixing, 1 / 3, atol=2e-3)
        np.testing.assert_allclose(mixing.sum(-1), 1.0, rtol=1e-6)


def test_mixing_weights_by_hand():
    alpha = jnp.log(jnp.array([[1.0, 2.0, 5.0], [3.0, 3.0, 3.0]]))
    weights = OUTER_VARIABLES["architecture"].use({"decoder": alpha}, {})["decoder"]
    np.testing.assert_allclose(weights, [[1 / 8, 2 / 8, 5 / 8], [1 / 3] * 3], rtol=1e-6)


def test_nothing_is_searched_where_no_side_is():
    theta, use = outer_variables.create({"architecture": {}}, ("architecture",), jax.random.key(0))
    assert theta == {"architecture": {}} and use(theta) == {"architecture": {}}


@pytest.mark.parametrize("name", OUTER_VARIABLES)
def test_no_value_of_theta_is_used_beyond_its_bound(name):
    theta, use = outer_variables.create(SETTINGS, (name,), jax.random.key(0))
    for factor in (-1e6, 1e6):
        far = jax.tree.map(lambda x, f=factor: x + f * jnp.arange(x.size).reshape(x.shape), theta)
        for leaf in jax.tree.leaves(use(far)[name]):
            assert np.isfinite(leaf).all()
            assert np.min(leaf) >= LOWEST.get(name, 0.0) and np.max(leaf) <= HIGHEST.get(name, 1.5)


def test_what_can_be_left_out_starts_as_no_change():
    theta, use = outer_variables.create(
        SETTINGS,
        ("blend_width", "colour_gain", "colour_shift", "object_scale"),
        jax.random.key(0),
    )
    assert use(theta)["object_scale"] == 1.0
    assert use({**theta, "object_scale": jnp.float32(99.0)})["object_scale"] == 2.0
    assert use({**theta, "object_scale": jnp.float32(-99.0)})["object_scale"] == 0.5
    assert use(theta)["blend_width"] == 1.5
    np.testing.assert_array_equal(use(theta)["colour_gain"], [1.0] * 3)
    np.testing.assert_array_equal(use(theta)["colour_shift"], [0.0] * 3)


def test_the_mixture_starts_equal_and_loses_no_source():
    theta, use = outer_variables.create(SETTINGS, ("mixture",), jax.random.key(0))
    np.testing.assert_allclose(use(theta)["mixture"], [1 / 3] * 3, rtol=1e-6)
    far = use({"mixture": jnp.array([1e9, 0.0, -1e9])})["mixture"]
    np.testing.assert_allclose(
        far, np.exp([4.0, 0.0, -4.0]) / np.exp([4.0, 0.0, -4.0]).sum(), rtol=1e-5
    )
    one = OUTER_VARIABLES["mixture"].use(jnp.zeros(1), ("generator",))
    np.testing.assert_array_equal(one, [1.0])


def test_a_new_outer_variable_is_one_row(monkeypatch):
    row = OuterVariable(lambda key, limit: jnp.float32(0.0), lambda x, limit: limit * jnp.tanh(x))
    monkeypatch.setitem(OUTER_VARIABLES, "noise", row)
    theta, use = outer_variables.create({**SETTINGS, "noise": 0.3}, ("noise",), jax.random.key(0))
    assert theta.keys() == {"noise"} and use(theta).keys() == {*SETTINGS, "noise"}
    assert use({"noise": jnp.float32(9.0)})["noise"] == pytest.approx(0.3)
