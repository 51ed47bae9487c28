"""Convolution with a dilated kernel of odd size, exact and fast on every backend."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp

from fewshotseg.models import layers


def dilated_conv(x: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
    """Convolution of `x [B, *spatial, C]` with the taps of `kernel [*k, C, C_out]` so far apart, 'SAME'.

    XLA's dilated convolution is slow on CPUs with its derivatives, so there it is a sum over the taps;
    accelerators keep it.
    """
    if jax.default_backend() == "cpu" and dilation > 1:
        return by_taps(x, kernel, dilation)
    rank = kernel.ndim - 2
    spatial = "DHW"[-rank:]
    return jax.lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        (1,) * rank,
        [(dilation * (k // 2),) * 2 for k in kernel.shape[:rank]],
        rhs_dilation=(dilation,) * rank,
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
    )


def by_taps(x: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
    """`dilated_conv` as a sum of matrix products, one for each tap, of the part of `x` that it meets.

    A tap that meets nothing but padding, as most do where the dilation exceeds the size, costs nothing.
    """
    *sizes, channels, features = kernel.shape
    spatial = x.shape[1:-1]
    weights = kernel.astype(x.dtype).reshape(-1, channels, features)
    total = jnp.zeros((*x.shape[:-1], features), x.dtype)
    for tap, weight in zip(itertools.product(*map(range, sizes)), weights, strict=True):
        steps = [dilation * (t - k // 2) for t, k in zip(tap, sizes, strict=True)]
        if any(abs(step) >= n for step, n in zip(steps, spatial, strict=True)):
            continue
        start = [max(step, 0) for step in steps]
        end = [n + min(step, 0) for step, n in zip(steps, spatial, strict=True)]
        part = jax.lax.slice(x, (0, *start, 0), (x.shape[0], *end, channels))
        pads = [(max(-step, 0), max(step, 0)) for step in steps]
        total = total + jnp.pad(part @ weight, [(0, 0), *pads, (0, 0)])
    return total


class DilatedConv(nn.Module):
    """`dilated_conv` with a kernel of 3, without a bias."""

    features: int
    dilation: int = 1

    @nn.compact
    def __call__(self, x):
        shape = (*(3,) * (x.ndim - 2), x.shape[-1], self.features)
        return dilated_conv(x, self.param("kernel", layers.kernel_init, shape), self.dilation)
