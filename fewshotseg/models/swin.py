"""Swin Transformer blocks (Liu et al., ICCV 2021), for any size and number of spatial dimensions."""

import itertools
import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fewshotseg.models import layers

HEAD_WIDTH = 32  # channels of a head of attention
MLP_RATIO = 4
DEVIATION = 0.02  # of drawn weights
FAR = -1e9  # added to the logits of what may not be attended to


class Linear(nn.Module):
    """`x @ kernel + bias`, with the normal initialiser of transformers."""

    features: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, x):
        init = layers.normal_init(DEVIATION)
        y = x @ self.param("kernel", init, (x.shape[-1], self.features)).astype(x.dtype)
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,)).astype(y.dtype)
        return y


class LayerNorm(nn.Module):
    """Over the channels (Ba et al., 2016); statistics are float32 in half precision."""

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        y = x.astype(jnp.promote_types(jnp.float32, x.dtype))
        y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + 1e-5)
        return (y * scale + bias).astype(x.dtype)


class Block(nn.Module):
    """Attention within windows and a perceptron, each with a residual.

    Attributes:
      heads: of the attention.
      window: tokens along each side.
      shifts: whether the windows are those between the windows of the block before.
    """

    heads: int
    window: int = 7
    shifts: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, *n, C]` to the same shape. Windows that reach beyond the tokens see only these."""
        x = x + self._attention(LayerNorm(name="norm1")(x))
        y = Linear(MLP_RATIO * x.shape[-1], name="fc1")(LayerNorm(name="norm2")(x))
        return x + Linear(x.shape[-1], name="fc2")(nn.gelu(y, approximate=False))

    def _attention(self, x):
        batch, *sizes, channels = x.shape
        windows = [min(self.window, n) for n in sizes]
        shift = [
            w // 2 if self.shifts and n > w else 0 for n, w in zip(sizes, windows, strict=True)
        ]
        x = jnp.pad(
            x, [(0, 0), *((0, -n % w) for n, w in zip(sizes, windows, strict=True)), (0, 0)]
        )
        padded = x.shape[1:-1]
        x = split(_roll(x, [-s for s in shift]), windows)  # [B, windows, tokens, C]
        qkv = Linear(3 * channels, name="qkv")(x)
        qkv = qkv.reshape(*x.shape[:3], 3, self.heads, channels // self.heads)
        query, key, value = (qkv[:, :, :, i] for i in range(3))
        query = query * (channels // self.heads) ** -0.5
        logits = jnp.einsum("bwnhd,bwmhd->bwhnm", query, key)
        table = self.param(
            "relative_bias",
            layers.normal_init(DEVIATION),
            ((2 * self.window - 1) ** len(sizes), self.heads),
        )
        places = relative_places(windows, self.window)
        logits = logits.astype(table.dtype) + table[places].transpose(2, 0, 1)
        allowed = may_attend(sizes, windows, shift)
        if not allowed.all():
            logits = logits + np.where(allowed, 0.0, FAR).astype(table.dtype)[:, None]
        weights = jax.nn.softmax(logits).astype(value.dtype)
        x = jnp.einsum("bwhnm,bwmhd->bwnhd", weights, value).reshape(x.shape)
        x = _roll(join(Linear(channels, name="proj")(x), padded, windows), shift)
        return jax.lax.slice(x, (0,) * x.ndim, (batch, *sizes, channels))


def split(x: jax.Array, windows: Sequence[int]) -> jax.Array:
    """`[B, *n, C]` to `[B, number of windows, tokens of one, C]`; n are multiples of `windows`."""
    rank = len(windows)
    parts = [m for n, w in zip(x.shape[1:-1], windows, strict=True) for m in (n // w, w)]
    x = x.reshape(x.shape[0], *parts, x.shape[-1])
    x = x.transpose(0, *range(1, 2 * rank, 2), *range(2, 2 * rank + 1, 2), 2 * rank + 1)
    return x.reshape(x.shape[0], -1, math.prod(windows), x.shape[-1])


def join(x: jax.Array, sizes: Sequence[int], windows: Sequence[int]) -> jax.Array:
    """The inverse of `split`, for tokens `[B, *sizes, C]`."""
    rank = len(windows)
    numbers = [n // w for n, w in zip(sizes, windows, strict=True)]
    x = x.reshape(x.shape[0], *numbers, *windows, x.shape[-1])
    x = x.transpose(0, *(a for i in range(rank) for a in (1 + i, 1 + rank + i)), 2 * rank + 1)
    return x.reshape(x.shape[0], *sizes, x.shape[-1])


def _roll(x, steps):
    axes = [axis for axis, step in enumerate(steps, start=1) if step]
    return jnp.roll(x, [step for step in steps if step], axes) if axes else x


def relative_places(windows: Sequence[int], largest: int) -> np.ndarray:
    """Row of the table of biases for every pair of tokens of a window, `[tokens, tokens]`.

    The table is that of windows of `largest` a side, `(2 largest - 1) ** rank` rows; a smaller window
    looks at its middle.
    """
    grid = np.stack(np.meshgrid(*map(np.arange, windows), indexing="ij"), -1).reshape(
        -1, len(windows)
    )
    steps = grid[:, None] - grid[None] + largest - 1
    return (steps * (2 * largest - 1) ** np.arange(len(windows))[::-1]).sum(-1)


def may_attend(sizes: Sequence[int], windows: Sequence[int], shift: Sequence[int]) -> np.ndarray:
    """Bool `[number of windows, tokens, tokens]`: which tokens see which.

    After the shift, a window may hold tokens from two ends of the image, which do not see each other;
    and filling, which no token sees.
    """
    kinds = []
    for n, w, s in zip(sizes, windows, shift, strict=True):
        places = np.arange(n + -n % w) + s
        wrapped = places >= len(places)
        kinds.append(2 * wrapped + (places % len(places) >= n))
    total = sum(
        kind.reshape(-1, *(1,) * (len(sizes) - 1 - axis)) * 4**axis
        for axis, kind in enumerate(kinds)
    )
    of_window = np.asarray(split(np.asarray(total)[None, ..., None], windows))[0, :, :, 0]
    return of_window[:, :, None] == of_window[:, None, :]


class Encoder(nn.Module):
    """Tokens of every stage, the resolution halved from one to the next.

    Attributes:
      depths: blocks of each stage.
      width: channels of the first, doubled from one to the next.
      window: see `Block`.
      patch: pixels along the side of a token of the first stage.
    """

    depths: tuple[int, ...] = (2, 2, 2, 2)
    width: int = 96
    window: int = 7
    patch: int = 4

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, ...]:
        """What each stage is given, `[B, *n_i, 2^i width]`, and, last, what the last one returns.

        Of images `[B, *spatial, C]` whose sizes are multiples of `patch`.
        """
        x = layers.Conv(self.width, self.patch, self.patch, padding=0, name="patches")(images)
        x = LayerNorm(name="patches_norm")(x)
        given = []
        for i, depth in enumerate(self.depths):
            if i:
                x = _merge(x, f"merge_{i}")
            given.append(x)
            x = stage(x, depth, self.window, f"stage_{i}")
        return (*given, LayerNorm(name="norm")(x))


def stage(x: jax.Array, depth: int, window: int, name: str) -> jax.Array:
    """Blocks, every second one with shifted windows; called inside of a compact module."""
    heads = num_heads(x.shape[-1])
    for j in range(depth):
        x = Block(heads, window, bool(j % 2), name=f"{name}_{j}")(x)
    return x


def num_heads(channels: int) -> int:
    """Of attention: as many as have `HEAD_WIDTH` channels, or fewer that share them evenly."""
    return max(h for h in range(1, max(1, channels // HEAD_WIDTH) + 1) if channels % h == 0)


def _merge(x, name):
    """Neighbouring tokens as one of twice the channels; an odd last one is repeated."""
    x = layers.pad_to(x, [n + n % 2 for n in x.shape[1:-1]])
    rank = x.ndim - 2
    # As in PyTorch, the first axis is the fastest among the neighbours.
    parts = [
        jax.lax.slice(x, (0, *reversed(phases), 0), x.shape, (1, *(2,) * rank, 1))
        for phases in itertools.product((0, 1), repeat=rank)
    ]
    x = LayerNorm(name=f"{name}_norm")(jnp.concatenate(parts, -1))
    return Linear(2 * (x.shape[-1] // 2**rank), use_bias=False, name=name)(x)
