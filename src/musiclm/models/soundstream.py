"""SoundStream: waveform to residual codes and back (arXiv 2107.03312; MusicLM 3.1).

    waveform ─ encoder ─ latents (FiLM: denoise?) ─ RVQ ─ decoder ─ waveform

Every layer is causal: a codec of samples reads none past a frame's hop, and decodes a prefix of the
codes to a prefix of the waveform; `decode_piece` decodes a stream of any length.

With a `SpectrumConfig`, encoder and decoder work on the magnitudes of short-time spectra in place
of samples, each with a linear path beside its convolutions, and the decoder's phases are found by
Griffin and Lim's algorithm. Such a codec is quick on a CPU, spends no bits on phases, and can start
as the principal components of its corpus (`training.principal`). Its windows are centred on the
hops, and reach beyond both ends of them.

Shape legend: B batch, T samples or frames, C channels, D latent dimension, Q levels, N spectra,
F frequency bins, P past.
"""

import dataclasses
import functools
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn

from musiclm import audio
from musiclm.nn import conv, quantization

# The frames that a layer's next outputs still read, by the layer's name.
Past = dict[str, jax.Array]


@flax.struct.dataclass
class SynthesisState:
    """Where a stream of spectra stands; zeros at its start.

    Attributes:
      magnitude_BNF: of the last spectra: a window whose sound is settled, and what lies ahead.
      waveform_BT: their sound; what lies ahead may still change.
      pieces: how many came before.
    """

    magnitude_BNF: jax.Array
    waveform_BT: jax.Array
    pieces: jax.Array


@flax.struct.dataclass
class DecoderState:
    """Where a stream of codes stands; see `SoundStream.decode_piece`."""

    past: Past
    synthesis: SynthesisState | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpectrumConfig:
    """What a codec of magnitudes codes. Not in the paper.

    Attributes:
      window_size: Hann window, in samples; an even multiple of `hop_size`.
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

    @property
    def delay(self) -> int:
        """Samples by which `synthesise_piece` lags: no window over what it gives out is cut."""
        return self.window_size

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
        wanted_BNF = audio.with_phases(self.magnitudes(frames_BNF), spectrum_BNF)
        return audio.istft(wanted_BNF, self.window_size, self.hop_size)

    def synthesise_piece(
        self, frames_BNF: jax.Array, state: SynthesisState | None
    ) -> tuple[jax.Array, SynthesisState]:
        """`synthesise`, piece by piece.

        Phases are found for the new spectra and for the last ones of the piece before, which did
        not know what would follow. The samples that were given out stay as they are, and the search
        fits the rest to them under the windows over both. What little step is left where they meet
        is faded over a hop, from the sound that the piece before had found there.

        Args:
          frames_BNF: standardised log magnitudes.
          state: what the piece before returned; None at the start.

        Returns:
          `[B, N * hop_size]` samples, where the sound starts after `delay` samples; and the state.
        """
        batch, num_frames, num_bins = frames_BNF.shape
        if state is None:
            known = self.window_size + self.delay
            state = SynthesisState(
                magnitude_BNF=jnp.zeros((batch, known // self.hop_size, num_bins)),
                waveform_BT=jnp.zeros((batch, known)),
                pieces=jnp.zeros((), jnp.int32),
            )
        magnitude_BNF = jnp.concatenate([state.magnitude_BNF, self.magnitudes(frames_BNF)], axis=1)
        found_BNF = audio.stft(state.waveform_BT, self.window_size, self.hop_size)
        new_BNF = audio.random_phase(jax.random.key(state.pieces), frames_BNF.shape)
        waveform_BT = audio.griffin_lim(
            magnitude_BNF, self.window_size, self.hop_size, self.phase_iters,
            phase_BNF=jnp.concatenate([audio.unit_phase(found_BNF), new_BNF], axis=1),
            past_BT=state.waveform_BT[:, : self.window_size],
        )  # fmt: skip
        meet = slice(self.window_size, self.window_size + self.hop_size)
        ramp_T = (jnp.arange(self.hop_size) + 0.5) / self.hop_size
        step_BT = state.waveform_BT[:, meet] - waveform_BT[:, meet]
        waveform_BT = waveform_BT.at[:, meet].add((1 - ramp_T) * step_BT)
        settled = num_frames * self.hop_size
        state = SynthesisState(
            magnitude_BNF=magnitude_BNF[:, num_frames:],
            waveform_BT=waveform_BT[:, settled:],
            pieces=state.pieces + 1,
        )
        return waveform_BT[:, self.window_size :][:, :settled], state


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoundStreamConfig:
    """Sizes of the codec. Defaults: MusicLM's, 24 kHz, 50 Hz, 12 x 1024 codes, 6 kbps.

    Attributes:
      sample_rate: Hz.
      encoder_channels: C of the encoder, the width of its first layer.
      decoder_channels: C of the decoder, the width before its last layer.
      strides: of the encoder's blocks, first to last; the decoder runs them backwards.
      spectrum: None codes samples, as in the paper; otherwise magnitudes of spectra. Then `decode`
        finds phases for the whole clip, and `decode_piece` lags by `delay`.
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
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(
                f'SoundStreamConfig.dtype={self.dtype!r}: set "float32" or "bfloat16".'
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
    def delay(self) -> int:
        """Samples by which decoding in pieces lags behind the codes."""
        return self.spectrum.delay if self.spectrum else 0

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
        frames_BTC, _ = self.decoder(jnp.where(quantize, quantized.values_BTD, latents_BTD))
        spectrum = self.config.spectrum
        return SoundStreamOutput(
            waveform_BT=spectrum.synthesise_like(frames_BTC, waveform_BT)
            if spectrum
            else frames_BTC[..., 0],
            latents_BTD=latents_BTD,
            quantized=quantized,
        )

    def latents(self, waveform_BT: jax.Array, denoise_B: jax.Array | None = None) -> jax.Array:
        """Encoder output `[B, T // hop_length, D]` before quantisation.

        Raises:
          ValueError: `denoise_B` is given, and the codec was built without `denoise`.
        """
        spectrum = self.config.spectrum
        frames_BTC = spectrum.analyse(waveform_BT) if spectrum else waveform_BT[..., None]
        latents_BTD = self.encoder(frames_BTC)
        if self.config.denoise:
            if denoise_B is None:
                denoise_B = jnp.zeros(waveform_BT.shape[0], bool)
            latents_BTD = self.film(latents_BTD, denoise_B)
        elif denoise_B is not None:
            raise ValueError(
                "SoundStreamConfig.denoise is False, and denoise_B is given: leave it out, or take "
                "a codec that was trained to denoise"
            )
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
        frames_BTC, _ = self.decoder(self.quantizer.decode(codes_BTQ))
        spectrum = self.config.spectrum
        return spectrum.synthesise(frames_BTC) if spectrum else frames_BTC[..., 0]

    def decode_piece(
        self, codes_BTQ: jax.Array, state: DecoderState | None = None
    ) -> tuple[jax.Array, DecoderState]:
        """`decode`, piece by piece; memory and time don't depend on what came before.

        Args:
          codes_BTQ: the next frames, of the first one to Q levels.
          state: what the piece before returned; None at the start, or `decoder_state`.

        Returns:
          `[B, T * hop_length]` samples, which lag `config.delay` samples behind the codes, and the
          state. A codec of samples has no delay, and its pieces make what `decode` makes.
        """
        past, synthesis = (None, None) if state is None else (state.past, state.synthesis)
        frames_BTC, past = self.decoder(self.quantizer.decode(codes_BTQ), past)
        if self.config.spectrum:
            waveform_BT, synthesis = self.config.spectrum.synthesise_piece(frames_BTC, synthesis)
        else:
            waveform_BT = frames_BTC[..., 0]
        return waveform_BT, DecoderState(past, synthesis)


def decoder_state(config: SoundStreamConfig, batch_size: int) -> DecoderState:
    """The state at the start of a stream: silence."""
    codes_BTQ = jax.ShapeDtypeStruct((batch_size, 1, config.num_codebooks), jnp.int32)
    decode = functools.partial(SoundStream(config).init_with_output, method="decode_piece")
    (_, state), _ = jax.eval_shape(decode, jax.random.key(0), codes_BTQ)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state)


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
    def __call__(self, latents_BTD: jax.Array, past: Past | None = None) -> tuple[jax.Array, Past]:
        """Decodes a clip, or a piece of one.

        Args:
          latents_BTD: quantised latents.
          past: what the piece before returned; None at the start.

        Returns:
          The samples or spectra, and what the next piece must know.
        """
        config = self.config
        width = config.decoder_channels * 2 ** len(config.strides)
        heard = {}

        def run(layer, x_BTC):
            before_BPC = past[layer.name] if past else None
            heard[layer.name] = _last(layer.reach, x_BTC, before_BPC)
            return layer(x_BTC, before_BPC)

        x = run(
            conv.CausalConv(width, config.kernel_size, dtype=config.dtype, name="stem"), latents_BTD
        )
        for block, stride in enumerate(reversed(config.strides)):
            width //= 2
            up = conv.CausalTransposedConv(
                width, 2 * stride, stride=stride, dtype=config.dtype, name=f"up_{block}"
            )
            x = run(up, nn.elu(x))
            for unit, dilation in enumerate(config.dilations):
                name = f"unit_{block}_{unit}"
                x = run(ResidualUnit(config.kernel_size, dilation, config.dtype, name=name), x)
        features = config.spectrum.num_bins if config.spectrum else 1
        head = conv.CausalConv(
            features, config.kernel_size, kernel_init=_head_init(config), dtype=config.dtype,
            name="head",
        )  # fmt: skip
        x = run(head, nn.elu(x))
        if config.spectrum:
            hop = math.prod(config.strides)
            linear = conv.CausalTransposedConv(
                features, hop, stride=hop, dtype=config.dtype, name="linear"
            )
            x += run(linear, latents_BTD)
        return x.astype(jnp.float32), heard


def _last(count: int, x_BTC: jax.Array, past_BPC: jax.Array | None) -> jax.Array:
    """The newest frames of a signal that came in pieces; zeros stand before its start."""
    if past_BPC is None:
        past_BPC = jnp.zeros((x_BTC.shape[0], count, x_BTC.shape[-1]), x_BTC.dtype)
    return jnp.concatenate([past_BPC, x_BTC], axis=1)[:, x_BTC.shape[1] :]


def _head_init(config: SoundStreamConfig) -> nn.initializers.Initializer:
    """Of the last convolution: beside a linear path it starts at zero, as in residual units."""
    return nn.initializers.zeros if config.spectrum else conv.isometric_init(1)


class ResidualUnit(nn.Module):
    """x + conv1(dilated conv7(x)), through half the width: Table I's sizes need the bottleneck."""

    kernel_size: int
    dilation: int
    dtype: Any = jnp.float32

    @property
    def reach(self) -> int:
        """Inputs before a piece that its outputs read."""
        return (self.kernel_size - 1) * self.dilation

    @nn.compact
    def __call__(self, x_BTC: jax.Array, past_BPC: jax.Array | None = None) -> jax.Array:
        width = x_BTC.shape[-1]
        h = conv.CausalConv(
            width // 2, self.kernel_size, dilation=self.dilation,
            kernel_init=nn.initializers.lecun_normal(), dtype=self.dtype, name="dilated",
        )(nn.elu(x_BTC), None if past_BPC is None else nn.elu(past_BPC))  # fmt: skip
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
