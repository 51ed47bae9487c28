"""The searchable cell of the generator: three convolutions, mixed by architecture weights.

A cell maps `x` to `sum_i w_i conv_i(x)` with candidates of kernel size 4, 6, 8, stride 2 and padding 1,
2, 3, and w the softmax of the architecture weights (GenSeg, Zhang et al., Nature Communications 2025;
the relaxation is that of DARTS, Liu et al., 2019). The candidates are linear and centred on the same
pixels, so the sum is itself one convolution whose kernel is the weighted sum of the zero-padded candidate
kernels. That is how it is computed: exact, differentiable in w, and a third of the activations. The same
holds for the transposed convolutions of the decoder, and for the cells that keep the resolution (kernel
size 3, 5, 7, stride 1), of which the diffusion model and the autoencoder are built.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fewshotseg.models import layers

KERNEL_SIZES = (4, 6, 8)
SAME_SIZES = (3, 5, 7)  # of the cells that keep the resolution


def merge_kernels(kernels: list[jax.Array], weights: jax.Array) -> jax.Array:
    """One kernel of the largest size that does what the weighted sum of candidates does.

    Args:
      kernels: one per candidate, `[*k, C, C_out]` with k of `KERNEL_SIZES` or of `SAME_SIZES`.
      weights: `[3]`, mixing weights.
    """
    largest = max(kernel.shape[0] for kernel in kernels)

    def padded(kernel):
        rank = kernel.ndim - 2
        margin = (largest - kernel.shape[0]) // 2
        return jnp.pad(kernel, [(margin, margin)] * rank + [(0, 0), (0, 0)])

    return sum(w * padded(k) for w, k in zip(weights, kernels, strict=True))


class Cell(nn.Module):
    """Halves (`transposed=False`) or doubles the resolution with a mixture of candidates.

    Attributes:
      features: number of output channels.
      transposed: doubles the resolution instead of halving it.
    """

    features: int
    transposed: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, weights: jax.Array | None) -> jax.Array:
        """Args: x `[B, *n, C]`; weights `[3]` mixing weights, or None: kernel size 4 alone.

        Spatial sizes must be even when halving.
        """
        rank = x.ndim - 2
        sizes = KERNEL_SIZES if weights is not None else KERNEL_SIZES[:1]
        kernels = [
            self.param(
                f"kernel_{k}", layers.kernel_init, (*(k,) * rank, x.shape[-1], self.features)
            )
            for k in sizes
        ]
        kernel = kernels[0] if weights is None else merge_kernels(kernels, weights)
        if self.transposed:
            y = layers.conv_transpose_2x(x, kernel)
        else:
            y = layers.conv(x, kernel, stride=2, padding=kernel.shape[0] // 2 - 1)
        return y + self.param("bias", nn.initializers.zeros, (self.features,)).astype(y.dtype)


class SameCell(nn.Module):
    """Keeps the resolution, with a mixture of convolutions of kernel size 3, 5 and 7.

    Attributes:
      features: number of output channels.
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array, weights: jax.Array | None) -> jax.Array:
        """Args: x `[B, *n, C]`; weights `[3]` mixing weights, or None: kernel size 3 alone."""
        sizes = SAME_SIZES if weights is not None else SAME_SIZES[:1]
        rank = x.ndim - 2
        kernels = [
            self.param(
                f"kernel_{k}", layers.kernel_init, (*(k,) * rank, x.shape[-1], self.features)
            )
            for k in sizes
        ]
        y = layers.conv(x, kernels[0] if weights is None else merge_kernels(kernels, weights))
        return y + self.param("bias", nn.initializers.zeros, (self.features,)).astype(y.dtype)


def row(mixing: jax.Array | None, index: int) -> jax.Array | None:
    """The weights of one cell of a side; None where that side is not searched."""
    return None if mixing is None else mixing[index]
