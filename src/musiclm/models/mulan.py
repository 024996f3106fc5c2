"""MuLan: one embedding space for music and the words about it (arXiv 2208.12415).

Shapes: B batch, T samples, N frames, F mel bins, W windows, L word pieces, D embedding.
"""

import dataclasses

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from musiclm.audio import (
    ChromagramConfig,
    MelConfig,
    TempogramConfig,
    chromagram,
    log_mel,
    tempogram,
)
from musiclm.models.ast import Ast, AstConfig
from musiclm.models.bert import Bert, BertConfig
from musiclm.models.resnet import ResNet, ResNetConfig
from musiclm.nn.spec_augment import SpecAugmentConfig, spec_augment


@dataclasses.dataclass(frozen=True, kw_only=True)
class MuLanConfig:
    """Both towers; the defaults are the paper's ResNet-50 and BERT-base.

    Attributes:
      resnet: Convolutional audio tower; exactly one of `resnet` and `ast` is given.
      ast: Transformer audio tower.
      bert: Text tower.
      mel: Front end of the audio tower. Each window's log-mel is standardised by its own mean and
        deviation, so that loudness does not matter.
      tempogram: Adds to the tower's features those of a layer over the tempogram of the log-mel. A
        small tower with 8,000 clips does not learn to hear tempo otherwise; None, as in the paper,
        leaves it to the tower.
      chromagram: Likewise, so that it hears keys: no mel band is as narrow as a low semitone.
      chromagram_alone: Share of the rows in training whose embedding is made of the chromagram
        alone. Nearly all captions of a batch are told apart without their keys; so both towers
        take them up sooner.
      chromagram_dropped: Share of the rows that go without it, and must be told apart by the rest.
      spec_augment: Blanking of the spectrogram, in training only.
      embedding_dim: Width D of the shared space.
      window_seconds: What one audio embedding covers.
      window_stride_seconds: Step between the windows of longer audio.
      initial_temperature: τ at the start.
      min_temperature: τ stays above it. The paper's loss has no lower bound as τ goes to zero once
        every pair is told apart, so a floor must end that descent.
    """

    resnet: ResNetConfig | None = ResNetConfig()
    ast: AstConfig | None = None
    bert: BertConfig = BertConfig()
    mel: MelConfig = MelConfig(num_mels=64, f_min=60.0, f_max=7_800.0)
    tempogram: TempogramConfig | None = None
    chromagram: ChromagramConfig | None = None
    chromagram_alone: float = 0.0
    chromagram_dropped: float = 0.0
    spec_augment: SpecAugmentConfig = SpecAugmentConfig()
    embedding_dim: int = 128
    window_seconds: float = 10.0
    window_stride_seconds: float = 1.0
    initial_temperature: float = 0.1
    min_temperature: float = 0.01

    def __post_init__(self):
        if (self.resnet is None) == (self.ast is None):
            raise ValueError(
                f"MuLanConfig.resnet is {self.resnet} and ast is {self.ast}; give one of the two "
                "and None for the other."
            )
        if self.ast is not None and self.ast.num_mels != self.mel.num_mels:
            raise ValueError(
                f"MuLanConfig.ast.num_mels is {self.ast.num_mels}, mel.num_mels is "
                f"{self.mel.num_mels}; make them equal."
            )
        if self.ast is not None and self.ast.max_frames * self.mel.hop_size < self.window_samples:
            raise ValueError(
                f"MuLanConfig.ast.max_frames is {self.ast.max_frames}, a window of "
                f"{self.window_seconds} s has {self.window_samples // self.mel.hop_size}; raise it."
            )
        if self.tempogram is not None:
            frames = self.window_samples // self.mel.hop_size
            if self.mel.num_mels % self.tempogram.num_bands or self.tempogram.num_lags >= frames:
                raise ValueError(
                    f"MuLanConfig.tempogram is {self.tempogram} of {self.mel.num_mels} mel bands "
                    f"and {frames} frames; num_bands must divide the bands, and num_lags stay "
                    "below the frames."
                )
        if self.chromagram is not None:
            low, high = self.chromagram.f_min, self.chromagram.f_max
            if not 0.0 < low < high <= self.sample_rate / 2 or self.chromagram.num_parts < 1:
                raise ValueError(
                    f"MuLanConfig.chromagram is {self.chromagram} at {self.sample_rate} Hz; set "
                    "0 < f_min < f_max, at most half the sample rate, and num_parts to 1 or more."
                )
        alone, dropped = self.chromagram_alone, self.chromagram_dropped
        if min(alone, dropped) < 0.0 or not alone + dropped < 1.0:
            raise ValueError(
                f"MuLanConfig.chromagram_alone is {alone}, chromagram_dropped is {dropped}; set "
                "both to 0 or more, and below 1 together."
            )
        if not 0.0 < self.window_stride_seconds <= self.window_seconds:
            raise ValueError(
                f"MuLanConfig.window_stride_seconds is {self.window_stride_seconds}; set it above "
                f"0 and at most window_seconds ({self.window_seconds})."
            )
        if not 0.0 < self.min_temperature < self.initial_temperature < 1.0:
            raise ValueError(
                f"MuLanConfig.initial_temperature is {self.initial_temperature}; set it between "
                f"min_temperature ({self.min_temperature}, above 0) and 1."
            )
        if self.embedding_dim < 2:
            raise ValueError(f"MuLanConfig.embedding_dim is {self.embedding_dim}; set 2 or more.")

    @property
    def sample_rate(self) -> int:
        """Rate of the waveforms, in Hz."""
        return self.mel.sample_rate

    @property
    def window_samples(self) -> int:
        """Samples in one window."""
        return round(self.window_seconds * self.sample_rate)

    @property
    def stride_samples(self) -> int:
        """Samples from the start of a window to that of the next."""
        return round(self.window_stride_seconds * self.sample_rate)


@flax.struct.dataclass
class MuLanOutput:
    """What the loss needs.

    Attributes:
      audio_BD: Unit vectors of the waveforms, float32.
      text_BD: Unit vectors of the texts, float32.
      temperature: τ, a scalar between `min_temperature` and 1.
    """

    audio_BD: jax.Array
    text_BD: jax.Array
    temperature: jax.Array


class MuLan(nn.Module):
    """The two towers and their temperature."""

    config: MuLanConfig

    def setup(self):
        config = self.config
        if config.resnet is not None:
            self.audio_tower = ResNet(config.resnet)
        else:
            self.audio_tower = Ast(config.ast)
        if config.tempogram is not None:
            self.rhythm = nn.Dense(config.embedding_dim)
        if config.chromagram is not None:
            self.harmony = nn.Dense(config.embedding_dim)
        self.text_tower = Bert(config.bert)
        self.audio_projection = nn.Dense(config.embedding_dim)
        self.text_projection = nn.Dense(config.embedding_dim)
        self.temperature_logit = self.param("temperature_logit", self._initial_logit)

    def __call__(
        self, waveform_BT: jax.Array, text_ids_BL: jax.Array, *, train: bool
    ) -> MuLanOutput:
        """Embeds a batch of pairs.

        Args:
          waveform_BT: Float32 windows of `window_samples` samples.
          text_ids_BL: int32 word pieces, see `Bert`.
          train: Whether dropout and SpecAugment are active; they need the rngs "dropout" and
            "spec_augment".
        """
        return MuLanOutput(
            audio_BD=self.embed_audio(waveform_BT, train=train),
            text_BD=self.embed_text(text_ids_BL, train=train),
            temperature=self.temperature(),
        )

    def embed_audio(self, waveform_BT: jax.Array, *, train: bool = False) -> jax.Array:
        """Unit vectors [B, D] of windows of exactly `window_samples` samples.

        Raises:
          ValueError: The waveforms are longer or shorter.
        """
        config = self.config
        if waveform_BT.shape[-1] != config.window_samples:
            raise ValueError(
                f"embed_audio got {waveform_BT.shape[-1]} samples, one window has "
                f"{config.window_samples}: use MuLanTokenizer.embed_audio for other lengths"
            )
        spec_BNF = standardise(log_mel(waveform_BT, config.mel))
        rhythm = []
        if config.tempogram is not None:
            rhythm.append(nn.relu(self.rhythm(tempogram(spec_BNF, config.tempogram))))
        if train:
            spec_BNF = spec_augment(self.make_rng("spec_augment"), spec_BNF, config.spec_augment)
        if config.resnet is not None:
            features = self.audio_tower(spec_BNF)
        else:
            features = self.audio_tower(spec_BNF, train=train)
        heard = [features, *rhythm]
        if config.chromagram is not None:
            chroma_BC = chromagram(waveform_BT, config.mel, config.chromagram)
            harmony_BD = nn.relu(self.harmony(chroma_BC))
            if train:
                draw_B1 = jax.random.uniform(self.make_rng("dropout"), (len(features), 1))
                alone_B1 = draw_B1 < config.chromagram_alone
                dropped_B1 = draw_B1 >= 1.0 - config.chromagram_dropped
                heard = [jnp.where(alone_B1, 0.0, part) for part in heard]
                harmony_BD = jnp.where(dropped_B1, 0.0, harmony_BD)
            heard.append(harmony_BD)
        return unit(self.audio_projection(jnp.concatenate(heard, axis=-1)))

    def embed_text(self, text_ids_BL: jax.Array, *, train: bool = False) -> jax.Array:
        """Unit vectors [B, D] of word pieces; columns of padding change nothing."""
        return unit(self.text_projection(self.text_tower(text_ids_BL, train=train)))

    def embed_windows(self, waveform_BT: jax.Array) -> jax.Array:
        """Unit vectors [B, W, D] of the windows that start every `window_stride_seconds`.

        The waveforms hold a window or more; what is left after the last whole one is not heard.
        """
        window = self.config.window_samples
        starts = range(0, waveform_BT.shape[1] - window + 1, self.config.stride_samples)
        windows_BWT = jnp.stack([waveform_BT[:, s : s + window] for s in starts], axis=1)
        embeddings = self.embed_audio(windows_BWT.reshape(-1, window))
        return embeddings.reshape(len(waveform_BT), len(starts), -1)

    def temperature(self) -> jax.Array:
        """τ, a scalar: a sigmoid keeps it between `min_temperature` and 1."""
        lowest = self.config.min_temperature
        return lowest + (1.0 - lowest) * jax.nn.sigmoid(self.temperature_logit)

    def _initial_logit(self, key: jax.Array) -> jax.Array:
        del key
        config = self.config
        share = (config.initial_temperature - config.min_temperature) / (1 - config.min_temperature)
        return jnp.log(jnp.float32(share / (1.0 - share)))


def standardise(spec_BNF: jax.Array) -> jax.Array:
    """Subtracts each spectrogram's mean and divides by its deviation; silence becomes zero."""
    spec_BNF = spec_BNF - spec_BNF.mean(axis=(1, 2), keepdims=True)
    deviation_B11 = jnp.sqrt(jnp.mean(spec_BNF**2, axis=(1, 2), keepdims=True))
    return spec_BNF / (deviation_B11 + 1e-3)


def unit(x: jax.Array) -> jax.Array:
    """Vectors of length one along the last axis, float32; zero stays zero and NaN-free."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-12)
