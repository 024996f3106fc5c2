"""Causal 1-D convolutions for codecs (SoundStream, arXiv 2107.03312, III-A).

Arrays are channels-last and kernels `[width, in, out]`, the layout XLA runs fastest on CPUs and
TPUs alike. Both strided forms fold the stride into the channels and then run at stride 1: the
same sums as a strided or transposed convolution, but forward and backward are dense
convolutions without holes, which no backend is slow at.

Shape legend: B batch, T time, C channels, S stride, K kernel width, I in, O out.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

_DIMENSIONS = ("NWC", "WIO", "NWC")


def causal_conv(x_BTC: jax.Array, kernel_KIO: jax.Array, dilation: int = 1) -> jax.Array:
    """Convolves at stride 1; output `t` reads inputs `t - (K - 1) * dilation` to `t`."""
    reach = (kernel_KIO.shape[0] - 1) * dilation
    return lax.conv_general_dilated(
        x_BTC, kernel_KIO, (1,), [(reach, 0)], rhs_dilation=(dilation,),
        dimension_numbers=_DIMENSIONS,
    )  # fmt: skip


def causal_strided_conv(x_BTC: jax.Array, kernel_KIO: jax.Array, stride: int) -> jax.Array:
    """Convolves and keeps every `stride`-th frame.

    Args:
      x_BTC: the length T a multiple of `stride`.
      kernel_KIO: K a multiple of `stride`.
      stride: output frame `t` reads inputs up to `(t + 1) * stride - 1`, the last of its own hop.

    Returns:
      `[B, T // stride, O]`.
    """
    width, num_in, num_out = kernel_KIO.shape
    batch, length, _ = x_BTC.shape
    folded_x = x_BTC.reshape(batch, length // stride, stride * num_in)
    folded_kernel = kernel_KIO.reshape(width // stride, stride * num_in, num_out)
    return causal_conv(folded_x, folded_kernel)


def causal_transposed_conv(x_BTC: jax.Array, kernel_KIO: jax.Array, stride: int) -> jax.Array:
    """Spreads each input over K outputs, `stride` apart; the tail past the input is cut.

    Args:
      x_BTC: inputs.
      kernel_KIO: K a multiple of `stride`; input `j` adds `x_j @ kernel[k]` to output
        `j * stride + k`.
      stride: outputs a frame. Outputs of frame `t` read inputs up to `t` only.

    Returns:
      `[B, T * stride, O]`.
    """
    width, num_in, num_out = kernel_KIO.shape
    batch, length, _ = x_BTC.shape
    kernel = kernel_KIO.reshape(width // stride, stride, num_in, num_out)
    # A convolution reads its oldest input at tap 0, a transposed one sends it to the last tap.
    kernel = kernel[::-1].transpose(0, 2, 1, 3).reshape(width // stride, num_in, stride * num_out)
    return causal_conv(x_BTC, kernel).reshape(batch, length * stride, num_out)


def filterbank_init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Initial kernel `[K, I, O]` of windowed cosines and sines, evenly spaced in frequency.

    For a layer between a waveform (the side of one channel) and many channels at a lower rate:
    one sine leaves it in few channels, and a quiet band next to a loud one stays quiet, which
    random filters take thousands of steps to learn. Every filter has norm 1, shuffled by `key`.

    Raises:
      ValueError: neither side has one channel.
    """
    width, num_in, num_out = shape
    if 1 not in (num_in, num_out):
        raise ValueError(f"filterbank_init makes kernels of a waveform, not of shape {shape}.")
    num_filters = num_in * num_out
    band_F = (jnp.arange(num_filters) // 2 + 0.5) / ((num_filters + 1) // 2)
    quadrature_F = 0.5 * jnp.pi * (jnp.arange(num_filters) % 2)
    time_K1 = jnp.arange(width)[:, None] + 0.5
    window_K1 = jnp.sin(jnp.pi * time_K1 / width) ** 2
    filters_KF = window_K1 * jnp.cos(jnp.pi * band_F * time_K1 + quadrature_F)
    filters_KF = filters_KF / jnp.linalg.norm(filters_KF, axis=0)
    return jax.random.permutation(key, filters_KF, axis=1).reshape(shape).astype(dtype)


class CausalConv(nn.Module):
    """Causal convolution with bias, plain, dilated or strided.

    Attributes:
      features: output channels.
      kernel_size: taps; a multiple of `stride` when `stride` > 1.
      stride: input frames an output frame.
      dilation: distance of the taps; only with stride 1.
      kernel_init: of the kernel `[K, I, O]`.
      dtype: type to compute in; parameters stay float32.
    """

    features: int
    kernel_size: int
    stride: int = 1
    dilation: int = 1
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BTC: jax.Array) -> jax.Array:
        shape = (self.kernel_size, x_BTC.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x_BTC, kernel, bias = (a.astype(self.dtype) for a in (x_BTC, kernel, bias))
        if self.stride == 1:
            return causal_conv(x_BTC, kernel, self.dilation) + bias
        return causal_strided_conv(x_BTC, kernel, self.stride) + bias


class CausalTransposedConv(nn.Module):
    """Causal transposed convolution with bias: `stride` output frames an input frame.

    Attributes:
      features: output channels.
      kernel_size: taps, a multiple of `stride`.
      stride: output frames an input frame.
      kernel_init: of the kernel `[K, I, O]`; None keeps the variance, given that an output sums
        K / stride taps and not K.
      dtype: type to compute in; parameters stay float32.
    """

    features: int
    kernel_size: int
    stride: int
    kernel_init: nn.initializers.Initializer | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BTC: jax.Array) -> jax.Array:
        shape = (self.kernel_size, x_BTC.shape[-1], self.features)
        init = self.kernel_init or nn.initializers.variance_scaling(
            float(self.stride), "fan_in", "truncated_normal"
        )
        kernel = self.param("kernel", init, shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x_BTC, kernel, bias = (a.astype(self.dtype) for a in (x_BTC, kernel, bias))
        return causal_transposed_conv(x_BTC, kernel, self.stride) + bias
