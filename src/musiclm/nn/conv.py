"""Convolutions of SoundStream (arXiv 2107.03312): causal ones for the codec, others for its judges.

Arrays are channels-last and kernels `[width, in, out]`, the layout XLA runs fastest on CPUs and
TPUs alike. All strided forms fold the stride into the channels and then run at stride 1: the
same sums as a strided or transposed convolution, but forward and backward are dense
convolutions without holes, which no backend is slow at.

A signal may come in pieces: a causal layer that is given its `past`, the `reach` frames before the
piece, goes on where the last piece ended. Zeros are the past of a start.

Shape legend: B batch, T time, X one or two axes to convolve over, C channels, S stride, K kernel
width, or widths, G groups, I in (of a group), O out, P past.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

_DIMENSIONS = ("NWC", "WIO", "NWC")
_DIMENSIONS_2D = ("NHWC", "HWIO", "NHWC")


def _conv(x_BXC, kernel_KIO, padding, groups):
    dimensions = (_DIMENSIONS, _DIMENSIONS_2D)[len(padding) - 1]
    return lax.conv_general_dilated(
        x_BXC, kernel_KIO, (1,) * len(padding), padding,
        dimension_numbers=dimensions, feature_group_count=groups,
    )  # fmt: skip


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv(
    x_BXC: jax.Array, kernel_KIO: jax.Array, padding: tuple[tuple[int, int], ...], groups: int = 1
) -> jax.Array:
    """Convolves at stride 1, with gradients of our own on a CPU.

    XLA's own are slow there: of kernels in groups by 3 to 50 times, and of everything within a
    `cond` or a `scan`, where it leaves their axes in an order that its convolutions don't know.

    Args:
      x_BXC: inputs, one or two axes X.
      kernel_KIO: I times `groups` are C.
      padding: zeros before and after, of each axis; at most K - 1.
      groups: channels in and out that belong together.
    """
    return _conv(x_BXC, kernel_KIO, padding, groups)


def _conv_forward(x_BXC, kernel_KIO, padding, groups):
    return conv(x_BXC, kernel_KIO, padding, groups), (x_BXC, kernel_KIO)


def _conv_backward(padding, groups, inputs, dy_BXO):
    def by_xla(inputs, dy_BXO):
        return jax.vjp(lambda x, kernel: _conv(x, kernel, padding, groups), *inputs)[1](dy_BXO)

    return lax.platform_dependent(
        inputs, dy_BXO, default=by_xla,
        cpu=lambda inputs, dy_BXO: (
            _input_gradient(inputs[1], dy_BXO, padding, groups),
            _kernel_gradient(inputs[0], dy_BXO, inputs[1].shape, padding, groups),
        ),
    )  # fmt: skip


conv.defvjp(_conv_forward, _conv_backward)


def _input_gradient(kernel_KIO, dy_BXO, padding, groups):
    """A convolution with the kernel back to front, from what it gave to what it took."""
    *widths, num_in, num_out = kernel_KIO.shape
    back_KIGO = jnp.flip(kernel_KIO, range(len(widths)))
    back_KIGO = back_KIGO.reshape(*widths, num_in, groups, num_out // groups)
    back_KOGI = back_KIGO.swapaxes(-1, -3)
    back = back_KOGI.reshape(*widths, num_out // groups, groups * num_in)
    rest = ((k - 1 - low, k - 1 - high) for k, (low, high) in zip(widths, padding, strict=True))
    return conv(dy_BXO, back, tuple(rest), groups)


def _kernel_gradient(x_BXC, dy_BXO, shape, padding, groups):
    """Tap by tap a product of what it read and what it was asked for."""
    *widths, num_in, num_out = shape
    x_BXC = jnp.pad(x_BXC, ((0, 0), *padding, (0, 0)))
    dy_NGO = dy_BXO.reshape(-1, groups, num_out // groups)
    taps = []
    for tap in itertools.product(*map(range, widths)):
        read = tuple(slice(k, k + size) for k, size in zip(tap, dy_BXO.shape[1:-1], strict=True))
        x_NGI = x_BXC[:, *read].reshape(-1, groups, num_in)
        taps.append(jnp.einsum("ngi,ngo->igo", x_NGI, dy_NGO))
    return jnp.stack(taps).reshape(shape)


def strided_conv(
    x_BXC: jax.Array, kernel_KIO: jax.Array, strides: Sequence[int], padding: str = "SAME",
    groups: int = 1,
) -> jax.Array:  # fmt: skip
    """Convolves and keeps every so-many-th output, as XLA's and Flax's convolutions do.

    Args:
      x_BXC: inputs, one or two axes X.
      kernel_KIO: I times `groups` are C.
      strides: of each axis.
      padding: "SAME" or "VALID".
      groups: channels in and out that belong together.
    """
    sizes, widths = x_BXC.shape[1:-1], kernel_KIO.shape[:-2]
    pads = lax.padtype_to_pads(sizes, widths, strides, padding)
    x_BXGI = x_BXC.reshape(*x_BXC.shape[:-1], groups, -1)
    kernel_KOI = kernel_KIO.swapaxes(-1, -2)
    rest = []
    for axis, (size, width, stride, (low, high)) in enumerate(
        zip(sizes, widths, strides, pads, strict=True)
    ):
        outputs, taps = (low + size + high - width) // stride + 1, -(-width // stride)
        # As many zeros as make up whole strides; the others are left to the convolution.
        before, frames = low // stride, -(-(low % stride + size) // stride)
        frames = min(frames, outputs - 1 + taps - before)
        x_BXGI = _fold(x_BXGI, axis + 1, stride, low % stride, frames)
        kernel_KOI = _fold(kernel_KOI, axis, stride, 0, taps)
        rest.append((before, outputs - 1 + taps - before - frames))
    x_BXC = x_BXGI.reshape(*x_BXGI.shape[:-2], -1)
    return conv(x_BXC, kernel_KOI.swapaxes(-1, -2), tuple(rest), groups)


def _fold(array, axis, stride, low, count):
    """Makes so many strides of an axis, after so many zeros, and puts each into the last axis."""
    padding = [(0, 0, 0)] * array.ndim
    padding[axis] = (low, count * stride - array.shape[axis] - low, 0)
    array = lax.pad(array, jnp.zeros((), array.dtype), padding)
    array = array.reshape(*array.shape[:axis], count, stride, *array.shape[axis + 1 :])
    array = jnp.moveaxis(array, axis + 1, -2)
    return array.reshape(*array.shape[:-2], -1)


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


class Conv(nn.Module):
    """`strided_conv` with bias; parameters as of Flax's `Conv`.

    Attributes:
      features: output channels.
      kernel_size: taps of each axis.
      strides: of each axis; 1 when None.
      padding: "SAME" or "VALID".
      groups: channels in and out that belong together.
    """

    features: int
    kernel_size: Sequence[int]
    strides: Sequence[int] | None = None
    padding: str = "SAME"
    groups: int = 1

    @nn.compact
    def __call__(self, x_BXC: jax.Array) -> jax.Array:
        shape = (*self.kernel_size, x_BXC.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        strides = self.strides or (1,) * len(self.kernel_size)
        return strided_conv(x_BXC, kernel, strides, self.padding, self.groups) + bias
