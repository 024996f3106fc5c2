"""SoundStream: waveform to residual codes and back (arXiv 2107.03312; MusicLM 3.1).

    waveform ─ encoder ─ latents (FiLM: denoise?) ─ RVQ ─ decoder ─ waveform

Every layer is causal, so frame t of the codes reads no sample past its hop, and a prefix of the
codes decodes to a prefix of the waveform.

Shape legend: B batch, T samples or frames, C channels, D latent dimension, Q levels.
"""

import dataclasses
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn

from musiclm.nn import conv, quantization

_SOFTPLUS_ONE = math.log(math.e - 1)  # softplus of it is 1
# Where a codec is of bands, its activations start as the signal's: at a tenth of it, ELU is
# nearly the identity.
_BAND_SCALE = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoundStreamConfig:
    """Sizes of the codec. Defaults: MusicLM's, 24 kHz, 50 Hz, 12 x 1024 codes, 6 kbps.

    Attributes:
      sample_rate: Hz.
      encoder_channels: C of the encoder, the width of its first layer.
      decoder_channels: C of the decoder, the width before its last layer.
      strides: of the encoder's blocks, first to last; the decoder runs them backwards.
      stem_stride: samples that the first layer takes in, and the last puts out, at a time. 1 in
        the paper; more makes a codec of many narrow bands that costs a CPU far less, since most
        of the work is at the sample rate. Such a codec starts as a lapped transform, see
        `conv.lapped_init`, hears `stem_stride` samples ahead, and its last layer is gated.
      latent_dim: D.
      dilations: one residual unit each, in every block.
      kernel_size: taps of the first, the last and the dilated convolutions.
      num_codebooks: levels Q.
      codebook_size: entries a level.
      denoise: whether a FiLM layer lets the caller ask for denoised codes.
      dtype: of the convolutions' arithmetic, "float32" or "bfloat16".
    """

    sample_rate: int = 24_000
    encoder_channels: int = 32
    decoder_channels: int = 32
    strides: tuple[int, ...] = (3, 4, 5, 8)
    stem_stride: int = 1
    latent_dim: int = 256
    dilations: tuple[int, ...] = (1, 3, 9)
    kernel_size: int = 7
    num_codebooks: int = 12
    codebook_size: int = 1024
    denoise: bool = False
    dtype: str = "float32"

    def __post_init__(self):
        for field in (
            "sample_rate", "encoder_channels", "decoder_channels", "stem_stride", "latent_dim",
            "kernel_size", "num_codebooks",
        ):  # fmt: skip
            if getattr(self, field) < 1:
                raise ValueError(
                    f"SoundStreamConfig.{field}={getattr(self, field)}: set 1 or more."
                )
        for field in ("encoder_channels", "decoder_channels"):
            if getattr(self, field) % 2:
                raise ValueError(
                    f"SoundStreamConfig.{field}={getattr(self, field)}: residual units halve it, "
                    "set an even number."
                )
        if self.codebook_size < 2:
            raise ValueError(
                f"SoundStreamConfig.codebook_size={self.codebook_size}: set 2 or more."
            )
        for field in ("strides", "dilations"):
            values = getattr(self, field)
            if not values or min(values) < 1:
                raise ValueError(
                    f"SoundStreamConfig.{field}={values}: give at least one number, each 1 or more."
                )
        if self.sample_rate % self.hop_length:
            raise ValueError(
                f"SoundStreamConfig.strides={self.strides} make a hop of {self.hop_length}, "
                f"which does not divide sample_rate={self.sample_rate}: choose strides whose "
                "product (with stem_stride) gives a whole number of frames a second."
            )

    @property
    def hop_length(self) -> int:
        """Samples a frame."""
        return self.stem_stride * math.prod(self.strides)

    @property
    def lookahead(self) -> int:
        """Samples past its own end that a frame hears."""
        return self.stem_stride if self.stem_stride > 1 else 0

    @property
    def frame_rate(self) -> int:
        """Frames a second."""
        return self.sample_rate // self.hop_length


@flax.struct.dataclass
class SoundStreamOutput:
    """What a training step needs of a forward pass.

    Attributes:
      waveform_BT: the reconstruction.
      latents_BTD: encoder output.
      quantized: codes, residuals, commitment.
    """

    waveform_BT: jax.Array
    latents_BTD: jax.Array
    quantized: quantization.Quantized


class SoundStream(nn.Module):
    """The codec. Variables: "params" and "codebooks".

    Attributes:
      config: sizes.
    """

    config: SoundStreamConfig

    def setup(self):
        config = self.config
        self.encoder = Encoder(config)
        self.quantizer = quantization.ResidualVectorQuantizer(
            config.num_codebooks, config.codebook_size, config.latent_dim
        )
        self.decoder = Decoder(config)
        if config.denoise:
            self.film = DenoiseFilm(config.latent_dim)

    def __call__(
        self, waveform_BT: jax.Array, *, num_levels_B: jax.Array | None = None,
        quantize: bool | jax.Array = True, denoise_B: jax.Array | None = None,
    ) -> SoundStreamOutput:  # fmt: skip
        """Reconstructs a waveform through the bottleneck.

        Args:
          waveform_BT: float32; T a multiple of `hop_length`.
          num_levels_B: levels in use, per example (quantizer dropout); all when None.
          quantize: False passes the encoder's output to the decoder as it is. May be traced.
          denoise_B: bool; which examples to denoise, with `config.denoise` only.
        """
        latents_BTD = self.latents(waveform_BT, denoise_B)
        quantized = self.quantizer(latents_BTD, num_levels_B)
        decoder_input_BTD = jnp.where(quantize, quantized.values_BTD, latents_BTD)
        return SoundStreamOutput(
            waveform_BT=self.decoder(decoder_input_BTD),
            latents_BTD=latents_BTD,
            quantized=quantized,
        )

    def latents(self, waveform_BT: jax.Array, denoise_B: jax.Array | None = None) -> jax.Array:
        """Encoder output `[B, T // hop_length, D]` before quantisation."""
        latents_BTD = self.encoder(waveform_BT)
        if self.config.denoise:
            if denoise_B is None:
                denoise_B = jnp.zeros(waveform_BT.shape[0], bool)
            latents_BTD = self.film(latents_BTD, denoise_B)
        elif denoise_B is not None:
            raise ValueError("This SoundStream was built with SoundStreamConfig.denoise=False.")
        return latents_BTD

    def encode(self, waveform_BT: jax.Array, denoise_B: jax.Array | None = None) -> jax.Array:
        """Codes of a waveform.

        Args:
          waveform_BT: float32 at `config.sample_rate`; zeros fill up the last frame.
          denoise_B: bool; which examples to denoise, with `config.denoise` only.

        Returns:
          `[B, ceil(T / hop_length), Q]` int32.
        """
        tail = -waveform_BT.shape[1] % self.config.hop_length
        padded_BT = jnp.pad(waveform_BT, ((0, 0), (0, tail)))
        return self.quantizer.encode(self.latents(padded_BT, denoise_B))

    def decode(self, codes_BTQ: jax.Array) -> jax.Array:
        """Waveform `[B, T * hop_length]` of codes of the first one to Q levels."""
        return self.decoder(self.quantizer.decode(codes_BTQ))


def _start(config: SoundStreamConfig):
    """How both halves start: initialisers of the outermost layer and of the others, and scale."""
    if config.stem_stride > 1:
        return conv.lapped_init, conv.identity_init, _BAND_SCALE
    return conv.isometric_init, conv.isometric_init, 1.0


class Encoder(nn.Module):
    """Waveform `[B, T]` to latents `[B, T // hop_length, D]` (III-A)."""

    config: SoundStreamConfig

    @nn.compact
    def __call__(self, waveform_BT: jax.Array) -> jax.Array:
        config = self.config
        edge_init, init, scale = _start(config)
        width = config.encoder_channels
        ahead_BT = jnp.pad(waveform_BT[:, config.lookahead :], ((0, 0), (0, config.lookahead)))
        x = conv.CausalConv(
            width, config.kernel_size * config.stem_stride, stride=config.stem_stride,
            kernel_init=edge_init(config.stem_stride), dtype=config.dtype, name="stem",
        )(scale * ahead_BT[..., None])  # fmt: skip
        for block, stride in enumerate(config.strides):
            for unit, dilation in enumerate(config.dilations):
                x = ResidualUnit(
                    config.kernel_size, dilation, config.dtype, name=f"unit_{block}_{unit}"
                )(x)
            width *= 2
            x = conv.CausalConv(
                width, 2 * stride, stride=stride, kernel_init=init(stride), dtype=config.dtype,
                name=f"down_{block}",
            )(nn.elu(x))  # fmt: skip
        x = conv.CausalConv(
            config.latent_dim, 3, kernel_init=init(1), dtype=config.dtype, name="head"
        )(nn.elu(x))
        return x.astype(jnp.float32) / scale


class Decoder(nn.Module):
    """Latents `[B, T, D]` to waveform `[B, T * hop_length]`, the encoder's mirror (III-B)."""

    config: SoundStreamConfig

    @nn.compact
    def __call__(self, latents_BTD: jax.Array) -> jax.Array:
        config = self.config
        edge_init, init, scale = _start(config)
        width = config.decoder_channels * 2 ** len(config.strides)
        x = conv.CausalConv(
            width, config.kernel_size, kernel_init=init(1), dtype=config.dtype, name="stem"
        )(scale * latents_BTD)
        for block, stride in enumerate(reversed(config.strides)):
            width //= 2
            x = conv.CausalTransposedConv(
                width, 2 * stride, stride=stride, kernel_init=init(stride, transposed=True),
                dtype=config.dtype, name=f"up_{block}",
            )(nn.elu(x))  # fmt: skip
            for unit, dilation in enumerate(config.dilations):
                x = ResidualUnit(
                    config.kernel_size, dilation, config.dtype, name=f"unit_{block}_{unit}"
                )(x)
        x = nn.elu(x)
        if config.stem_stride > 1:
            # A band that should be silent can be: sums over many channels leave noise in it.
            gate = conv.CausalConv(
                width, config.kernel_size, kernel_init=nn.initializers.zeros, dtype=config.dtype,
                name="gate",
            )(x)  # fmt: skip
            x = x * nn.softplus(gate + _SOFTPLUS_ONE)
        head_init = edge_init(config.stem_stride, transposed=True)
        x = conv.CausalTransposedConv(
            1, config.kernel_size * config.stem_stride, stride=config.stem_stride,
            kernel_init=lambda *args: head_init(*args) / scale, dtype=config.dtype, name="head",
        )(x)  # fmt: skip
        return x[..., 0].astype(jnp.float32)


class ResidualUnit(nn.Module):
    """x + conv1(dilated conv7(x)), through half the width: Table I's sizes need the bottleneck."""

    kernel_size: int
    dilation: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BTC: jax.Array) -> jax.Array:
        width = x_BTC.shape[-1]
        h = conv.CausalConv(
            width // 2, self.kernel_size, dilation=self.dilation,
            kernel_init=nn.initializers.lecun_normal(), dtype=self.dtype, name="dilated",
        )(nn.elu(x_BTC))  # fmt: skip
        return x_BTC + conv.CausalConv(
            width, 1, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="out"
        )(nn.elu(h))


class DenoiseFilm(nn.Module):
    """Scales and shifts latents by the answer to "denoise?" (III-F).

    Both start as identity; the layer is all that the flag can change.
    """

    features: int

    @nn.compact
    def __call__(self, x_BTD: jax.Array, denoise_B: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (2, self.features))
        shift = self.param("shift", nn.initializers.zeros, (2, self.features))
        row_B = denoise_B.astype(jnp.int32)
        return x_BTD * scale[row_B][:, None] + shift[row_B][:, None]
