"""Layers that are exact and fast on every backend, for any number of spatial dimensions.

All arrays are channels last, `[B, *spatial, C]`. The stock forms of these operations (transposed
convolution by dilating the input, pooling by a window reduction, group normalisation by a grouped
reshape) fall off XLA's fast path on CPUs, up to 14 times slower; each function here is an exact
rewriting of one, and its test compares the two.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Normal(nn.meta.AxisMetadata):
    """A kernel of normal numbers, marked so that `init_params` can draw it with all others."""

    value: Any
    deviation: float = flax.struct.field(pytree_node=False, default=1.0)

    def unbox(self):
        return self.value

    def replace_boxed(self, value):
        return self.replace(value=value)

    def add_axis(self, index, params):
        return self

    def remove_axis(self, index, params):
        return self


def kernel_init(key, shape, dtype=jnp.float32) -> Normal:
    """He-normal (He et al., 2015) for kernels `[*k, C, C_out]`."""
    return normal_init((2.0 / math.prod(shape[:-1])) ** 0.5)(key, shape, dtype)


def normal_init(deviation: float):
    """An initialiser of normal numbers."""

    def init(key, shape, dtype=jnp.float32):
        return Normal(deviation * jax.random.normal(key, shape, dtype), deviation)

    return init


def init_params(module: nn.Module, key: jax.Array, *inputs) -> dict:
    """Parameters of a module, each by its own initialiser; call it inside `jax.jit`.

    Only that the kernels of this package's layers are drawn all at once: compiling one draw for each of a
    network's kernels takes XLA half a minute on a CPU. (Their own draws are then dead code.)

    Args:
      module: of this package or any other.
      key: another one gives other parameters.
      *inputs: what the module is called with; only shapes and types matter.

    Returns:
      The 'params' collection.
    """
    params = module.init(key, *inputs)["params"]

    def is_kernel(leaf):
        return isinstance(leaf, Normal)

    leaves, structure = jax.tree.flatten(params, is_leaf=is_kernel)
    total = sum(leaf.value.size for leaf in leaves if is_kernel(leaf))
    numbers, start = jax.random.normal(key, (total,)), 0
    for i, leaf in enumerate(leaves):
        if is_kernel(leaf):
            shape, size = leaf.value.shape, leaf.value.size
            part = jax.lax.dynamic_slice_in_dim(numbers, start, size).reshape(shape)
            leaves[i] = part * leaf.deviation
            start += size
    params = nn.meta.unbox(jax.tree.unflatten(structure, leaves))
    # Strong types, as a step returns them: given weak ones first, it would be compiled twice.
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), params)


def conv(
    x: jax.Array,
    kernel: jax.Array,
    stride: int = 1,
    padding: int | str = "SAME",
    groups: int = 1,
) -> jax.Array:
    """Convolution (cross-correlation) of `x [B, *spatial, C]` with `kernel [*k, C / groups, C_out]`.

    In three dimensions without groups, as one of slices: see `_conv_of_slices`. Of single pixels, on CPUs,
    as a matrix product: with its derivatives, 0.1 to 0.7 of the time of XLA's convolution there.
    """
    rank = kernel.ndim - 2
    if kernel.shape[:rank] == (1,) * rank and (stride, groups) == (1, 1) and padding in ("SAME", 0):
        if jax.default_backend() == "cpu":
            y = x.reshape(-1, x.shape[-1]) @ kernel.reshape(kernel.shape[-2:]).astype(x.dtype)
            return y.reshape(*x.shape[:-1], kernel.shape[-1])
    spatial = "DHW"[-rank:]
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(
            x.shape[1:-1], kernel.shape[:rank], (stride,) * rank, padding
        )
    else:
        padding = [(padding, padding)] * rank
    if rank == 3 and groups == 1:
        return _conv_of_slices(x, kernel, stride, padding)
    numbers = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
    return jax.lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        (stride,) * rank,
        padding,
        dimension_numbers=numbers,
        feature_group_count=groups,
    )


def _conv_of_slices(x, kernel, stride, padding):
    """A convolution of volumes as one of their slices, whose channels hold those of the slices beside them.

    XLA's convolutions of volumes take 4 to 5 times as long on CPUs, with their derivatives.
    """
    taps, channels = kernel.shape[0], x.shape[-1]
    x = jnp.pad(x, [(0, 0), padding[0], (0, 0), (0, 0), (0, 0)])
    depth = (x.shape[1] - taps) // stride + 1
    end = (depth - 1) * stride + 1
    beside = [jax.lax.slice_in_dim(x, i, i + end, stride, axis=1) for i in range(taps)]
    slices = jnp.concatenate(beside, -1).reshape(-1, *x.shape[2:4], taps * channels)
    flat = jnp.moveaxis(kernel, 0, 2).reshape(*kernel.shape[1:3], taps * channels, -1)
    y = jax.lax.conv_general_dilated(
        slices,
        flat.astype(x.dtype),
        (stride,) * 2,
        padding[1:],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y.reshape(x.shape[0], depth, *y.shape[1:])


def upsample_2x(x: jax.Array, sizes: Sequence[int]) -> jax.Array:
    """Nearest neighbours of `x [B, *n, C]` at twice the size, cut to `sizes`, at most 2n."""
    for axis, size in enumerate(sizes, 1):
        x = jax.lax.slice_in_dim(jnp.repeat(x, 2, axis), 0, size, axis=axis)
    return x


def depth_to_space_2x(x: jax.Array, rank: int) -> jax.Array:
    """`[B, *n, 2**rank * C]` to `[B, *2n, C]`; the channels hold the phases in row-major order."""
    batch, *sizes, channels = x.shape
    channels //= 2**rank
    x = x.reshape(batch, *sizes, *(2,) * rank, channels)
    order = [axis for i in range(rank) for axis in (1 + i, 1 + rank + i)]
    x = x.transpose(0, *order, 2 * rank + 1)
    return x.reshape(batch, *(2 * n for n in sizes), channels)


def conv_transpose_2x(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Transposed convolution that doubles every spatial size, as one stride-1 convolution.

    Each of the `2**rank` output phases sees only every second tap of the kernel along each axis.
    The taps of all phases are gathered into one kernel of half the size with `2**rank * C_out`
    outputs, applied to the undilated input, and the phases are then interleaved.

    Args:
      x: `[B, *n, C]`.
      kernel: `[*(2m,), C, C_out]` with even size `2m` in every dimension, in the convention of
        `jax.lax.conv_transpose(..., transpose_kernel=False)`: spatially flipped against PyTorch.

    Returns:
      `[B, *2n, C_out]`, equal to `jax.lax.conv_transpose(x, kernel, strides=2, padding=(m, m))`
      (PyTorch: stride 2, padding m - 1).
    """
    rank = kernel.ndim - 2
    m = kernel.shape[0] // 2
    c_in, c_out = kernel.shape[-2:]
    # [q0, a0, q1, a1, ..., C, C_out]: q the tap in the window of phase a.
    taps = kernel.reshape(*itertools.chain.from_iterable([(m, 2)] * rank), c_in, c_out)
    for axis in range(0, 2 * rank, 2):
        taps = _align_windows(taps, axis)
    windows, phases = range(0, 2 * rank, 2), range(1, 2 * rank, 2)
    taps = taps.transpose(*windows, 2 * rank, *phases, 2 * rank + 1)
    sizes = taps.shape[:rank]
    y = conv(x, taps.reshape(*sizes, c_in, 2**rank * c_out), padding=sizes[0] // 2)
    return depth_to_space_2x(y, rank)


def _align_windows(taps, axis):
    """Puts the windows of both phases into one of odd size, centred on the same input pixel.

    For odd m they coincide, and the kernel stores the second phase first. For even m, that of phase 1
    begins one pixel later: each gets a zero on the other's side. (A kernel of even size would do
    without the zeros, but falls off the fast path of CPUs, where it is 10 times slower.)
    """
    first, second = (jax.lax.index_in_dim(taps, a, axis + 1) for a in (0, 1))
    if taps.shape[axis] % 2:
        return jnp.concatenate([second, first], axis + 1)
    pads = [(0, 0)] * taps.ndim
    pads[axis] = (0, 1)
    first = jnp.pad(first, pads)
    pads[axis] = (1, 0)
    return jnp.concatenate([first, jnp.pad(second, pads)], axis + 1)


def max_pool_2x(x: jax.Array) -> jax.Array:
    """Maximum over windows of 2 per spatial dimension, stride 2; an odd last row is dropped."""
    return _pool_2x(x, jnp.maximum)


def avg_pool_2x(x: jax.Array) -> jax.Array:
    """Mean over windows of 2 per spatial dimension, stride 2; an odd last row is dropped."""
    return _pool_2x(x, lambda a, b: 0.5 * (a + b))


def _pool_2x(x, combine):
    for axis in range(1, x.ndim - 1):
        even = x.shape[axis] // 2 * 2
        first = jax.lax.slice_in_dim(x, 0, even, 2, axis)
        x = combine(first, jax.lax.slice_in_dim(x, 1, even, 2, axis))
    return x


def group_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, groups: int, epsilon: float = 1e-5
) -> jax.Array:
    """Group normalisation (Wu and He, 2018) with sums taken per channel before they are grouped.

    Args:
      x: `[B, *spatial, C]`; statistics are float32 whatever its type.
      scale: `[C]`.
      bias: `[C]`.
      groups: divides C; `groups=C` is instance normalisation.
      epsilon: added to the variance.
    """
    spatial = tuple(range(1, x.ndim - 1))
    channels = x.shape[-1]

    def group_mean(t):  # [B, 1.., C] -> the mean of each group, repeated for its channels
        t = t.reshape(t.shape[0], groups, channels // groups).mean(-1)
        t = jnp.repeat(t, channels // groups, axis=1)
        return t.reshape(t.shape[0], *(1,) * len(spatial), channels)

    y = x.astype(jnp.float32) if x.dtype in (jnp.bfloat16, jnp.float16) else x
    y = y - group_mean(y.mean(spatial))
    variance = group_mean((y * y).mean(spatial))
    y = y * (jax.lax.rsqrt(variance + epsilon) * scale) + bias
    return y.astype(x.dtype)


def pad_to(x: jax.Array, sizes: Sequence[int]) -> jax.Array:
    """Repeats the last row of each spatial dimension up to `sizes`."""
    pads = [(0, size - n) for n, size in zip(x.shape[1:-1], sizes, strict=True)]
    return jnp.pad(x, [(0, 0), *pads, (0, 0)], mode="edge") if any(p for _, p in pads) else x


def dropout(x: jax.Array, rate: float, keys: jax.Array) -> jax.Array:
    """Dropout with one key per example, so that it does not depend on how a batch is sharded.

    Args:
      x: `[B, *spatial, C]`.
      rate: probability of dropping, in [0, 1).
      keys: `[B]` typed PRNG keys.
    """
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1.0 - rate), 0)


class Conv(nn.Module):
    """Convolution with float32 parameters, computed in `dtype`.

    Attributes:
      features: number of output channels.
      kernel_size: one size for every spatial dimension.
      stride: likewise.
      padding: pixels on every side, or 'SAME'.
      use_bias: adds a bias per channel.
      dtype: of the computation.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    padding: int | str = "SAME"
    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        rank = x.ndim - 2
        shape = (*(self.kernel_size,) * rank, x.shape[-1], self.features)
        y = conv(x, self.param("kernel", kernel_init, shape), self.stride, self.padding)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y = y + bias.astype(y.dtype)
        return y


class ConvTranspose2x(nn.Module):
    """`conv_transpose_2x` with parameters; `kernel_size` must be even."""

    features: int
    kernel_size: int = 2

    @nn.compact
    def __call__(self, x):
        shape = (*(self.kernel_size,) * (x.ndim - 2), x.shape[-1], self.features)
        y = conv_transpose_2x(x, self.param("kernel", kernel_init, shape))
        return y + self.param("bias", nn.initializers.zeros, (self.features,)).astype(y.dtype)


class GroupNorm(nn.Module):
    """`group_norm` with parameters; uses the largest group count up to `groups` that divides C."""

    groups: int = 8

    @nn.compact
    def __call__(self, x):
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        groups = max(g for g in range(1, min(self.groups, channels) + 1) if channels % g == 0)
        return group_norm(x, scale, bias, groups)
