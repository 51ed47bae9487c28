"""What the tests of several segmenters ask of them."""

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from fewshotseg.models import factory


def count(tree):
    """Numbers in a pytree of arrays or shapes."""
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))


def shapes_of(module, *shape):
    """Of parameters and logits, for images of a shape; nothing is compiled."""
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    network = factory.network(module, images, None)
    params = jax.eval_shape(network.init, jax.random.key(0))
    return params, jax.eval_shape(network.apply, params, images, None)


def assert_bfloat16_is_close(module, share):
    """Weights and logits stay float32, and the logits move by less than a share of their spread."""
    images = jnp.asarray(np.random.default_rng(2).uniform(-1, 1, (2, 16, 16, 3)), jnp.float32)
    fine = factory.network(module, images, None)
    coarse = factory.network(module.clone(dtype=jnp.bfloat16), images, None)
    params = fine.init(jax.random.key(0))
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    found, wanted = (tiny.jit(n.apply)(params, images, None) for n in (coarse, fine))
    assert found.dtype == jnp.float32 and not np.array_equal(found, wanted)
    assert np.sqrt(np.mean((found - wanted) ** 2)) < share * np.std(wanted)
