"""From fields to draws: which field strengthens what, and which key draws which step."""

import jax
import jax.numpy as jnp
import numpy as np

from configs import demo
from fewshotseg.training import build, build_data


def test_networks_and_data_of_a_canvas_that_is_no_square():
    config = demo.get_config("runlocal")
    config.data.image_size = (16, 32)
    data = build_data.create_data(config)
    assert data.train["image"].shape == (6, 16, 32, 3)
    networks = build.create_networks(config, data.num_classes)
    image, mask = jnp.zeros((1, 16, 32, 3)), jnp.zeros((1, 16, 32, 1))
    logits, _ = jax.eval_shape(
        lambda: networks["segmenter"].init_with_output(jax.random.key(0), image)
    )
    assert logits.shape == (1, 16, 32, 1)
    theta = build.init_theta(config, networks["generator"].num_levels)
    drawn, _ = jax.eval_shape(
        lambda: networks["generator"].init_with_output(
            jax.random.key(0), mask, theta["architecture"], None
        )
    )
    assert drawn.shape == image.shape


def test_fields_and_steps_reach_the_draws():
    config = demo.get_config("runlocal")
    for kind in ("real", "mask"):
        for strength in config.augment[kind]:
            if strength != "flip_axes":
                config.augment[kind][strength] = 0.0
    config.augment.mask.flip = 1.0
    mask = jnp.zeros((6, 8, 8), jnp.uint8).at[:, :3, :2].set(1)
    data = {"image": jnp.arange(6.0)[:, None, None, None] * jnp.ones((6, 8, 8, 1)), "mask": mask}
    draw, draw_outer = build.create_draws(config, 2, 6, axis_name=None, compile=jax.jit)
    keys = jnp.stack([build.step_key(config, "train", step) for step in range(3)])
    batches = draw(data, keys)
    np.testing.assert_array_equal(batches["mask"], jnp.stack([mask] * 3))
    np.testing.assert_array_equal(batches["synthetic_mask"], jnp.stack([mask[:, :, ::-1]] * 3))
    cases = np.round(batches["image"][:, :, 4, 4, 0]).astype(int)
    assert (np.sort(cases) == np.arange(6)).all()
    assert len({tuple(row) for row in cases.tolist()}) == 3  # another batch at every step
    outer = [draw_outer(data, key)["image"][:, 0, 0, 0].tolist() for key in keys]
    assert any(row != outer[0] for row in outer[1:])
