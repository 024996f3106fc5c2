"""Causal 1-D convolutions for codecs (SoundStream, arXiv 2107.03312, III-A).

Arrays are channels-last and kernels `[width, in, out]`, the layout XLA runs fastest on CPUs and
TPUs alike. Both strided forms fold the stride into the channels and then run at stride 1: the
same sums as a strided or transposed convolution, but forward and backward are dense
convolutions without holes, which no backend is slow at.

A signal may come in pieces: a layer that is given its `past`, the `reach` frames before the
piece, goes on where the last piece ended. Zeros are the past of a start.

Shape legend: B batch, T time, C channels, S stride, K kernel width, I in, O out, P past.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

_DIMENSIONS = ("NWC", "WIO", "NWC")


def causal_conv(
    x_BTC: jax.Array, kernel_KIO: jax.Array, dilation: int = 1, past_BPC: jax.Array | None = None
) -> jax.Array:
    """Convolves at stride 1; output `t` reads inputs `t - (K - 1) * dilation` to `t`.

    Args:
      x_BTC: inputs.
      kernel_KIO: taps, the oldest first.
      dilation: distance of the taps.
      past_BPC: the `(K - 1) * dilation` inputs before; zeros when None.
    """
    reach = (kernel_KIO.shape[0] - 1) * dilation
    if past_BPC is not None:
        x_BTC, reach = jnp.concatenate([past_BPC.astype(x_BTC.dtype), x_BTC], axis=1), 0
    return lax.conv_general_dilated(
        x_BTC, kernel_KIO, (1,), [(reach, 0)], rhs_dilation=(dilation,),
        dimension_numbers=_DIMENSIONS,
    )  # fmt: skip


def causal_strided_conv(
    x_BTC: jax.Array, kernel_KIO: jax.Array, stride: int, past_BPC: jax.Array | None = None
) -> jax.Array:
    """Convolves and keeps every `stride`-th frame.

    Args:
      x_BTC: the length T a multiple of `stride`.
      kernel_KIO: K a multiple of `stride`.
      stride: output frame `t` reads inputs up to `(t + 1) * stride - 1`, the last of its own hop.
      past_BPC: the `K - stride` inputs before; zeros when None.

    Returns:
      `[B, T // stride, O]`.
    """
    width, num_in, num_out = kernel_KIO.shape

    def folded(a_BTC):
        return a_BTC.reshape(len(a_BTC), a_BTC.shape[1] // stride, stride * num_in)

    kernel = kernel_KIO.reshape(width // stride, stride * num_in, num_out)
    past = None if past_BPC is None else folded(past_BPC)
    return causal_conv(folded(x_BTC), kernel, past_BPC=past)


def causal_transposed_conv(
    x_BTC: jax.Array, kernel_KIO: jax.Array, stride: int, past_BPC: jax.Array | None = None
) -> jax.Array:
    """Spreads each input over K outputs, `stride` apart; the tail past the input is cut.

    Args:
      x_BTC: inputs.
      kernel_KIO: K a multiple of `stride`; input `j` adds `x_j @ kernel[k]` to output
        `j * stride + k`.
      stride: outputs a frame. Outputs of frame `t` read inputs up to `t` only.
      past_BPC: the `K // stride - 1` inputs before; zeros when None.

    Returns:
      `[B, T * stride, O]`.
    """
    width, num_in, num_out = kernel_KIO.shape
    batch, length, _ = x_BTC.shape
    kernel = kernel_KIO.reshape(width // stride, stride, num_in, num_out)
    # A convolution reads its oldest input at tap 0, a transposed one sends it to the last tap.
    kernel = kernel[::-1].transpose(0, 2, 1, 3).reshape(width // stride, num_in, stride * num_out)
    y_BTC = causal_conv(x_BTC, kernel, past_BPC=past_BPC)
    return y_BTC.reshape(batch, length * stride, num_out)


def isometric_init(stride: int, *, transposed: bool = False) -> nn.initializers.Initializer:
    """Initial kernels `[K, I, O]` that keep lengths: an orthogonal matrix on the newest taps.

    A strided layer maps each hop, S·I numbers, to O; a transposed one maps I numbers to a hop. The
    other taps start at zero and are learned. With residual branches that start at zero, and
    activations near zero, where ELU is the identity, a codec starts out as a projection and its
    transpose: it learns in hundreds of steps what variance-preserving noise needs thousands for.
    """
    orthogonal = nn.initializers.orthogonal()

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        width, num_in, num_out = shape
        kernel_KIO = jnp.zeros(shape, dtype)
        if transposed:
            hop_ISO = orthogonal(key, (num_in, stride * num_out), dtype).reshape(
                num_in, stride, num_out
            )
            return kernel_KIO.at[:stride].set(hop_ISO.swapaxes(0, 1))
        hop_SIO = orthogonal(key, (stride * num_in, num_out), dtype).reshape(
            stride, num_in, num_out
        )
        return kernel_KIO.at[width - stride :].set(hop_SIO)

    return init


class CausalConv(nn.Module):
    """Causal convolution with bias, plain, dilated or strided.

    Attributes:
      features: output channels.
      kernel_size: taps; a multiple of `stride` when `stride` > 1.
      stride: input frames an output frame.
      dilation: distance of the taps; only with stride 1.
      kernel_init: of the kernel `[K, I, O]`; `isometric_init` when None.
      dtype: type to compute in; parameters stay float32.
    """

    features: int
    kernel_size: int
    stride: int = 1
    dilation: int = 1
    kernel_init: nn.initializers.Initializer | None = None
    dtype: Any = jnp.float32

    @property
    def reach(self) -> int:
        """Inputs before a piece that its outputs read."""
        return (self.kernel_size - self.stride) * self.dilation

    @nn.compact
    def __call__(self, x_BTC: jax.Array, past_BPC: jax.Array | None = None) -> jax.Array:
        shape = (self.kernel_size, x_BTC.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init or isometric_init(self.stride), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x_BTC, kernel, bias = (a.astype(self.dtype) for a in (x_BTC, kernel, bias))
        if self.stride == 1:
            return causal_conv(x_BTC, kernel, self.dilation, past_BPC) + bias
        return causal_strided_conv(x_BTC, kernel, self.stride, past_BPC) + bias


class CausalTransposedConv(nn.Module):
    """Causal transposed convolution with bias: `stride` output frames an input frame.

    Attributes:
      features: output channels.
      kernel_size: taps, a multiple of `stride`.
      stride: output frames an input frame.
      dtype: type to compute in; parameters stay float32.
    """

    features: int
    kernel_size: int
    stride: int
    dtype: Any = jnp.float32

    @property
    def reach(self) -> int:
        """Inputs before a piece that its outputs read."""
        return self.kernel_size // self.stride - 1

    @nn.compact
    def __call__(self, x_BTC: jax.Array, past_BPC: jax.Array | None = None) -> jax.Array:
        shape = (self.kernel_size, x_BTC.shape[-1], self.features)
        kernel = self.param("kernel", isometric_init(self.stride, transposed=True), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x_BTC, kernel, bias = (a.astype(self.dtype) for a in (x_BTC, kernel, bias))
        return causal_transposed_conv(x_BTC, kernel, self.stride, past_BPC) + bias
