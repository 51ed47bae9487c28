r"""A generator family: diffusion along a Brownian bridge from mask to image (BBDM, Li et al., CVPR 2023).

At time t of 0 .. T - 1, T = 1000, between the image x and the mask y, seen as a grey image,

    x_t = (1 - m_t) x + m_t y + sqrt(d_t) noise,    m_t linear from 0.001 to 0.999,   d_t = 2 (m_t - m_t^2)

A network learns x_t - x = m_t (y - x) + sqrt(d_t) noise, by the L1 distance. It draws from y backwards, by
a few steps at which the other times are left out, as DDIM does (Song et al., ICLR 2021): the bridge's
own distribution at every time it stops at, whatever `eta` is.
"""

import functools
from collections.abc import Callable, Mapping

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from fewshotseg.genseg import levels, losses
from fewshotseg.genseg.gan import TRAINING_NOISE

NUM_TIMES = 1000  # T
SHARES = np.linspace(0.001, 0.999, NUM_TIMES)  # m
VARIANCES = 2.0 * (SHARES - SHARES**2)  # d


def stops(num_steps: int) -> np.ndarray:
    """The times at which a drawing in `num_steps` steps asks the network, from T - 1 down to 0."""
    return np.rint(np.linspace(NUM_TIMES - 1, 0, num_steps)).astype(int)


def coefficients(now: int, then: int, eta: float) -> tuple[float, float, float]:
    """Of the step from one time to an earlier one.

    `x_then = (1 - m) x + m y + keep (x_now - its mean) + spread noise`, m being `SHARES[then]`.

    Args:
      now: a time.
      then: an earlier one.
      eta: share of the noise of the bridge itself: 0 adds none, 1 all.

    Returns:
      m, keep and spread; `keep^2 d_now + spread^2 = d_then`.
    """
    ratio = (1.0 - SHARES[now]) / (1.0 - SHARES[then])
    between = VARIANCES[now] - VARIANCES[then] * ratio**2
    variance = eta**2 * between * VARIANCES[then] / VARIANCES[now]
    keep = np.sqrt((VARIANCES[then] - variance) / VARIANCES[now])
    return float(SHARES[then]), float(keep), float(np.sqrt(variance))


def as_images(masks: jax.Array) -> jax.Array:
    """One-hot foreground `[B, *spatial, K]` as grey images `[B, *spatial, 1]`: -1 to 1 by class."""
    levels_of_grey = jnp.arange(1, masks.shape[-1] + 1, dtype=masks.dtype) / masks.shape[-1]
    return 2.0 * (masks * levels_of_grey).sum(-1, keepdims=True) - 1.0


def family(
    networks: Mapping[str, Callable],
    optimizer: optax.GradientTransformation,
    use: Callable,
    *,
    num_classes: int = 2,
    num_steps: int = 4,
    picture_steps: int = 20,
    eta: float = 1.0,
) -> levels.Family:
    """One player, which learns to go back from any time of the bridge to the image.

    Args:
      networks: 'denoiser', `(params, noisy [B, *spatial, C or 1], one_hot_masks, times [B], mixing) ->
        x_t - x [B, *spatial, C]`.
      optimizer: of its weights.
      use: theta -> the outer variables in use; 'architecture' are its mixing weights.
      num_classes: background included.
      num_steps: at least 2, of a drawing that the segmenter is trained on, and that is differentiated.
        Each is recomputed where it is differentiated: memory hardly grows with their number.
      picture_steps: of a drawing without keys, which adds no noise: `eta` is 0.
      eta: see `coefficients`.
    """
    denoise = networks["denoiser"]

    def found_image(params, theta, x, masks, time):
        """The network's estimate of the image."""
        times = jnp.full(masks.shape[0], time, masks.dtype)
        return x - denoise(params, x, masks, times, use(theta)["architecture"])

    def go_back(params, theta, x, masks, noise, step):
        """From one time to an earlier one; `step` is a row of `_steps`."""
        now, share_now, share, keep, spread = step
        start = as_images(masks)
        image = found_image(params, theta, x, masks, now)
        rest = x - (1.0 - share_now) * image - share_now * start
        x = (1.0 - share) * image + share * start + keep * rest
        return x if noise is None else x + spread * _normal(noise, image)

    def draw(params, theta, masks, keys):
        if keys is None:
            x = draw_picture(params, theta, masks)
        else:
            x = as_images(masks)
            for i, step in enumerate(_steps(num_steps, eta)):
                back = jax.checkpoint(functools.partial(go_back, step=step))
                x = back(params, theta, x, masks, _fold(keys, i))
        return jnp.clip(jax.checkpoint(found_image)(params, theta, x, masks, 0.0), -1.0, 1.0)

    def draw_picture(params, theta, masks):
        """All steps by one program: there are many, and nobody differentiates them."""
        first, *others = _steps(picture_steps, 0.0)
        x = go_back(params, theta, as_images(masks), masks, None, first)
        steps = jnp.asarray(others, x.dtype).reshape(len(others), len(first))
        return jax.lax.scan(
            lambda x, step: (go_back(params, theta, x, masks, None, step), None), x, steps
        )[0]

    def inputs(state, theta, batch):
        masks = losses.one_hot_foreground(batch["mask"], num_classes)
        keys = levels.example_keys(batch, TRAINING_NOISE)
        return {"theta": theta}, {"masks": masks, "real": batch["image"], "keys": keys}

    def loss(params, outer, data):
        real, masks = data["real"], data["masks"].astype(data["real"].dtype)
        k_time, k_noise = jax.vmap(jax.random.split, out_axes=1)(data["keys"])
        times = jax.vmap(lambda k: jax.random.randint(k, (), 0, NUM_TIMES))(k_time)
        shape = (-1, *(1,) * (real.ndim - 1))
        share, variance = (
            jnp.asarray(x, real.dtype)[times].reshape(shape) for x in (SHARES, VARIANCES)
        )
        noise = _normal(k_noise, real)
        wanted = share * (as_images(masks) - real) + jnp.sqrt(variance) * noise
        mixing = use(outer["theta"])["architecture"]
        found = denoise(params, real + wanted, masks, times.astype(real.dtype), mixing)
        chex.assert_equal_shape((found, wanted))
        value = losses.l1_loss(found, wanted).mean()
        return value, {"generator/loss": value}

    return levels.Family(
        players={"denoiser": levels.Player(loss, inputs, optimizer)},
        draw=lambda state, theta, masks, keys: draw(state["denoiser"].params, theta, masks, keys),
    )


def _steps(number: int, eta: float) -> list[tuple[float, ...]]:
    """Of a drawing: time, share there, and the `coefficients` of going on from there to the next one."""
    times = stops(number).tolist()
    return [
        (float(now), float(SHARES[now]), *coefficients(now, then, eta))
        for now, then in zip(times[:-1], times[1:], strict=True)
    ]


def _fold(keys, number):
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def _normal(keys, like):
    return jax.vmap(lambda key: jax.random.normal(key, like.shape[1:], like.dtype))(keys)
