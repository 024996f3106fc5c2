"""SoundStream: waveform to residual codes and back (arXiv 2107.03312; MusicLM 3.1).

    waveform ─ encoder ─ latents (FiLM: denoise?) ─ RVQ ─ decoder ─ waveform

Every layer is causal, so frame t of the codes reads no sample past its hop, and a prefix of the
codes decodes to a prefix of the waveform.

With a `SpectrumConfig`, encoder and decoder work on the magnitudes of short-time spectra in place
of samples, each with a linear path beside its convolutions, and the decoder's phases are found by
Griffin and Lim's algorithm. Such a codec is quick on a CPU, spends no bits on phases, and can start
as the principal components of its corpus (`training.principal`).

Shape legend: B batch, T samples or frames, C channels, D latent dimension, Q levels, N spectra,
F frequency bins.
"""

import dataclasses
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn

from musiclm import audio
from musiclm.nn import conv, quantization


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpectrumConfig:
    """What a codec of magnitudes codes. Not in the paper.

    Attributes:
      window_size: Hann window, in samples; a multiple of `hop_size`.
      hop_size: samples between spectra.
      phase_iters: of `audio.griffin_lim`, which finds the decoder's phases.
      floor: added to the magnitudes before the logarithm, where a full-scale sine is 1.
      log_mean, log_deviation: of the logarithms, which the codec sees standardised; those of
        music whose peaks are at full scale.
    """

    window_size: int = 960
    hop_size: int = 160
    phase_iters: int = 32
    floor: float = 1e-5
    log_mean: float = -8.0
    log_deviation: float = 2.0

    def __post_init__(self):
        if self.hop_size < 1 or self.window_size % (2 * self.hop_size):
            raise ValueError(
                f"SpectrumConfig.window_size={self.window_size} is no even multiple of "
                f"hop_size={self.hop_size}: spectra must overlap, set 4 or 6 times the hop."
            )
        if self.phase_iters < 1:
            raise ValueError(f"SpectrumConfig.phase_iters={self.phase_iters}: set 1 or more.")

    @property
    def num_bins(self) -> int:
        """Magnitudes a spectrum, F."""
        return self.window_size // 2 + 1

    def analyse(self, waveform_BT: jax.Array) -> jax.Array:
        """Standardised log magnitudes `[B, T // hop_size, F]`."""
        spectrum_BNF = audio.stft(waveform_BT, self.window_size, self.hop_size)
        log_BNF = jnp.log(jnp.abs(spectrum_BNF) * (4 / self.window_size) + self.floor)
        return (log_BNF - self.log_mean) / self.log_deviation

    def magnitudes(self, frames_BNF: jax.Array) -> jax.Array:
        """The inverse of `analyse`, up to phases; nothing is louder than a full-scale sine."""
        log_BNF = jnp.minimum(frames_BNF * self.log_deviation + self.log_mean, 0.0)
        magnitude_BNF = jnp.maximum(jnp.exp(log_BNF) - self.floor, 0.0)
        return magnitude_BNF * (self.window_size / 4)

    def synthesise(self, frames_BNF: jax.Array) -> jax.Array:
        """Waveform `[B, N * hop_size]` of standardised log magnitudes."""
        return audio.griffin_lim(
            self.magnitudes(frames_BNF), self.window_size, self.hop_size, self.phase_iters
        )

    def synthesise_like(self, frames_BNF: jax.Array, waveform_BT: jax.Array) -> jax.Array:
        """The same with the phases of a waveform: quick, and differentiable in the magnitudes."""
        spectrum_BNF = audio.stft(waveform_BT, self.window_size, self.hop_size)
        phase_BNF = spectrum_BNF / (jnp.abs(spectrum_BNF) + 1e-12)
        return audio.istft(self.magnitudes(frames_BNF) * phase_BNF, self.window_size, self.hop_size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoundStreamConfig:
    """Sizes of the codec. Defaults: MusicLM's, 24 kHz, 50 Hz, 12 x 1024 codes, 6 kbps.

    Attributes:
      sample_rate: Hz.
      encoder_channels: C of the encoder, the width of its first layer.
      decoder_channels: C of the decoder, the width before its last layer.
      strides: of the encoder's blocks, first to last; the decoder runs them backwards.
      spectrum: None codes samples, as in the paper; otherwise magnitudes of spectra. Then nothing
        is decoded causally, since phases are found for the whole clip.
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
    spectrum: SpectrumConfig | None = None
    latent_dim: int = 256
    dilations: tuple[int, ...] = (1, 3, 9)
    kernel_size: int = 7
    num_codebooks: int = 12
    codebook_size: int = 1024
    denoise: bool = False
    dtype: str = "float32"

    def __post_init__(self):
        for field in (
            "sample_rate", "encoder_channels", "decoder_channels", "latent_dim", "kernel_size",
            "num_codebooks",
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
                "product (times spectrum.hop_size) gives a whole number of frames a second."
            )

    @property
    def hop_length(self) -> int:
        """Samples a frame."""
        return (self.spectrum.hop_size if self.spectrum else 1) * math.prod(self.strides)

    @property
    def lookahead(self) -> int:
        """Samples past its own end that a frame hears."""
        spectrum = self.spectrum
        return (spectrum.window_size - spectrum.hop_size) // 2 if spectrum else 0

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

        A codec of magnitudes takes the phases of `waveform_BT` here, for training; `decode` is what
        finds them.

        Args:
          waveform_BT: float32; T a multiple of `hop_length`.
          num_levels_B: levels in use, per example (quantizer dropout); all when None.
          quantize: False passes the encoder's output to the decoder as it is. May be traced.
          denoise_B: bool; which examples to denoise, with `config.denoise` only.
        """
        latents_BTD = self.latents(waveform_BT, denoise_B)
        quantized = self.quantizer(latents_BTD, num_levels_B)
        frames_BTC = self.decoder(jnp.where(quantize, quantized.values_BTD, latents_BTD))
        spectrum = self.config.spectrum
        return SoundStreamOutput(
            waveform_BT=spectrum.synthesise_like(frames_BTC, waveform_BT)
            if spectrum
            else frames_BTC[..., 0],
            latents_BTD=latents_BTD,
            quantized=quantized,
        )

    def latents(self, waveform_BT: jax.Array, denoise_B: jax.Array | None = None) -> jax.Array:
        """Encoder output `[B, T // hop_length, D]` before quantisation."""
        spectrum = self.config.spectrum
        frames_BTC = spectrum.analyse(waveform_BT) if spectrum else waveform_BT[..., None]
        latents_BTD = self.encoder(frames_BTC)
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
        frames_BTC = self.decoder(self.quantizer.decode(codes_BTQ))
        spectrum = self.config.spectrum
        return spectrum.synthesise(frames_BTC) if spectrum else frames_BTC[..., 0]


class Encoder(nn.Module):
    """Samples `[B, T, 1]`, or spectra, to latents `[B, T // prod(strides), D]` (III-A)."""

    config: SoundStreamConfig

    @nn.compact
    def __call__(self, frames_BTC: jax.Array) -> jax.Array:
        config = self.config
        width = config.encoder_channels
        x = conv.CausalConv(width, config.kernel_size, dtype=config.dtype, name="stem")(frames_BTC)
        for block, stride in enumerate(config.strides):
            for unit, dilation in enumerate(config.dilations):
                x = ResidualUnit(
                    config.kernel_size, dilation, config.dtype, name=f"unit_{block}_{unit}"
                )(x)
            width *= 2
            x = conv.CausalConv(
                width, 2 * stride, stride=stride, dtype=config.dtype, name=f"down_{block}"
            )(nn.elu(x))
        x = conv.CausalConv(
            config.latent_dim, 3, kernel_init=_head_init(config), dtype=config.dtype, name="head"
        )(nn.elu(x))
        if config.spectrum:
            hop = math.prod(config.strides)
            x += conv.CausalConv(
                config.latent_dim, hop, stride=hop, dtype=config.dtype, name="linear"
            )(frames_BTC)
        return x.astype(jnp.float32)


class Decoder(nn.Module):
    """Latents `[B, T, D]` to samples or spectra `[B, T * prod(strides), C]`, the encoder's mirror.

    III-B.
    """

    config: SoundStreamConfig

    @nn.compact
    def __call__(self, latents_BTD: jax.Array) -> jax.Array:
        config = self.config
        width = config.decoder_channels * 2 ** len(config.strides)
        x = conv.CausalConv(width, config.kernel_size, dtype=config.dtype, name="stem")(latents_BTD)
        for block, stride in enumerate(reversed(config.strides)):
            width //= 2
            x = conv.CausalTransposedConv(
                width, 2 * stride, stride=stride, dtype=config.dtype, name=f"up_{block}"
            )(nn.elu(x))
            for unit, dilation in enumerate(config.dilations):
                x = ResidualUnit(
                    config.kernel_size, dilation, config.dtype, name=f"unit_{block}_{unit}"
                )(x)
        features = config.spectrum.num_bins if config.spectrum else 1
        x = conv.CausalConv(
            features, config.kernel_size, kernel_init=_head_init(config), dtype=config.dtype,
            name="head",
        )(nn.elu(x))  # fmt: skip
        if config.spectrum:
            hop = math.prod(config.strides)
            x += conv.CausalTransposedConv(
                features, hop, stride=hop, dtype=config.dtype, name="linear"
            )(latents_BTD)
        return x.astype(jnp.float32)


def _head_init(config: SoundStreamConfig) -> nn.initializers.Initializer:
    """Of the last convolution: beside a linear path it starts at zero, as in residual units."""
    return nn.initializers.zeros if config.spectrum else conv.isometric_init(1)


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
