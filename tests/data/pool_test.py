"""Pools of masks-and-keys: drawn by weight, and the same pair for the same number."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewshotseg.data import augment, batches


def _pool(weights, seed=0, num_cases=5):
    return batches.Pool(jax.random.key(seed), batches.logits_of(np.array(weights)), num_cases)


def test_numbers_of_a_pool_are_drawn_by_their_weights():
    pool = _pool([[0, 1, 3, 0], [2, 0, 0, 0]])
    drawn = np.asarray(batches.draw_numbers(pool, jax.random.key(1), 4000))
    first, second = drawn[0::2], drawn[1::2]
    assert (second == 0).all() and set(first.tolist()) == {1, 2}
    assert (first == 2).mean() == pytest.approx(0.75, abs=0.03)


def test_a_number_is_the_same_pair_whatever_else_is_drawn():
    numbers = np.random.default_rng(0)
    data = {
        "image": jnp.asarray(numbers.uniform(-1, 1, (7, 8, 8, 1)), jnp.float32),
        "mask": jnp.asarray(numbers.random((7, 8, 8)) < 0.4, jnp.uint8),
    }
    strength = augment.Geometry()
    fields = dict(num_classes=2, synthetic_images=True, donor_geometry=strength)
    pool = _pool([[0.0] * 6 + [1.0] + [0.0] * 3])

    @functools.partial(jax.jit, static_argnums=0)
    def make(seed):
        chosen = pool if seed == 0 else _pool([[1.0]], seed)
        return batches.pool_examples(data, chosen, jnp.arange(10), geometry=strength, **fields)

    some = make(0)
    assert set(np.unique(some["synthetic_case"]).tolist()) <= set(range(5))  # not the two others
    assert (some["synthetic_case"] != some["donor_case"]).all()
    draw = functools.partial(
        batches.draw_batch, data, batch_size=4, num_synthetic=4, geometry=None,
        mask_geometry=strength, pool=pool, **fields,
    )  # fmt: skip
    for seed in range(2):
        batch = jax.jit(draw)(jax.random.key(seed))
        for name, value in some.items():
            if name == "synthetic_key":
                found, value = jax.random.key_data(batch[name]), jax.random.key_data(value)
            else:
                found = batch[name]
            expected = np.stack([value[6]] * 4)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6, err_msg=name)
    other = make(1)
    assert (np.asarray(other["synthetic_mask"]) != some["synthetic_mask"]).any()
