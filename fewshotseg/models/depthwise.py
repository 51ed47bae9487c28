"""Depthwise convolution, exact and fast on every backend."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fewshotseg.models import layers


def depthwise_conv(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Convolution of every channel of `x [B, *spatial, C]` by itself, 'SAME', `kernel [*k, 1, C]`.

    On CPUs, XLA's grouped convolution takes nine times as long as a sum over the taps of the kernel
    (forward and gradient, x [8, 48, 48, 96], 5x5); accelerators keep it.
    """
    if jax.default_backend() == "cpu":
        return by_taps(x, kernel, stride)
    return layers.conv(x, kernel, stride, groups=x.shape[-1])


def by_taps(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """`depthwise_conv` as a sum of shifted inputs. None of them is kept for the derivative."""
    *sizes, _, channels = kernel.shape
    out = [-(-n // stride) for n in x.shape[1:-1]]
    spans = [(n - 1) * stride + 1 for n in out]
    lacking = [max(s - 1 + k - n, 0) for s, k, n in zip(spans, sizes, x.shape[1:-1], strict=True)]
    # As TensorFlow's and XLA's 'SAME': an odd row more goes to the end.
    pads = [(0, 0), *[(p // 2, p - p // 2) for p in lacking], (0, 0)]
    x = jnp.pad(x, pads)
    strides = (1, *[stride] * len(sizes), 1)

    @jax.checkpoint  # of all its inputs: JAX 0.7 loses what it would close over
    def add(total, x, start, weight):
        part = jax.lax.dynamic_slice(x, (0, *start, 0), (x.shape[0], *spans, channels))
        # Not by indexing, of which JAX 0.7 makes a gather.
        return total + jax.lax.slice(part, (0,) * part.ndim, part.shape, strides) * weight

    starts = list(jnp.indices(sizes).reshape(len(sizes), -1))
    taps = starts, kernel.reshape(-1, channels).astype(x.dtype)
    zeros = jnp.zeros((x.shape[0], *out, channels), x.dtype)
    return jax.lax.scan(lambda total, tap: (add(total, x, *tap), None), zeros, taps)[0]


class DepthwiseConv(nn.Module):
    """`depthwise_conv` with parameters, without a bias."""

    kernel_size: int = 3
    stride: int = 1

    @nn.compact
    def __call__(self, x):
        shape = (*(self.kernel_size,) * (x.ndim - 2), 1, x.shape[-1])
        return depthwise_conv(x, self.param("kernel", layers.kernel_init, shape), self.stride)
