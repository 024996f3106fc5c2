"""SoundStream's discriminators (arXiv 2107.03312, III-D): three on waveforms, one on the STFT.

Each returns logits over time and the outputs of its inner layers, which the feature loss
compares.

Shape legend: B batch, T samples or frames, C channels, F frequency bins.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from musiclm import audio
from musiclm.nn import conv

Judgement = tuple[jax.Array, list[jax.Array]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """Sizes of the discriminators; defaults are the paper's.

    Attributes:
      wave_scales: one waveform discriminator each, on the waveform downsampled so many times;
        powers of two. Empty for none.
      wave_channels: width of their first layer; each of the grouped layers has four times more.
      wave_max_channels: bound on that.
      wave_group_size: input channels a group of the grouped layers.
      stft_window: samples; a power of two.
      stft_hop: samples.
      stft_channels: width of the STFT discriminator's first layer.
      stft_widths: multiples of it, one residual unit each; strides alternate (1, 2) and (2, 2)
        over (time, frequency). Empty for no STFT discriminator.
    """

    wave_scales: tuple[int, ...] = (1, 2, 4)
    wave_channels: int = 16
    wave_max_channels: int = 1024
    wave_group_size: int = 4
    stft_window: int = 1024
    stft_hop: int = 256
    stft_channels: int = 32
    stft_widths: tuple[int, ...] = (2, 4, 4, 8, 8, 16)

    def __post_init__(self):
        if not self.wave_scales and not self.stft_widths:
            raise ValueError(
                "DiscriminatorConfig.wave_scales and stft_widths are both empty: give one of them, "
                "or train without adversarial losses (SoundStreamTask.discriminator_start_step)."
            )
        for scale in self.wave_scales:
            if scale < 1 or scale & (scale - 1):
                raise ValueError(
                    f"DiscriminatorConfig.wave_scales={self.wave_scales}: use powers of two."
                )
        for field in ("wave_channels", "wave_max_channels"):
            if getattr(self, field) < 1 or getattr(self, field) % self.wave_group_size:
                raise ValueError(
                    f"DiscriminatorConfig.{field}={getattr(self, field)} must be a multiple of "
                    f"wave_group_size={self.wave_group_size}: change one of the two."
                )
        if self.stft_window // 2 < 2 ** len(self.stft_widths):
            raise ValueError(
                f"DiscriminatorConfig.stft_window={self.stft_window} leaves no bins after "
                f"{len(self.stft_widths)} halvings: enlarge it or shorten stft_widths."
            )


class Discriminators(nn.Module):
    """All discriminators: a list with the judgement of each."""

    config: DiscriminatorConfig

    @nn.compact
    def __call__(self, waveform_BT: jax.Array) -> list[Judgement]:
        judgements = []
        for scale in self.config.wave_scales:
            x_BTC = waveform_BT[..., None]
            for _ in range(scale.bit_length() - 1):
                x_BTC = nn.avg_pool(x_BTC, (4,), (2,), [(1, 1)])
            judgements.append(WaveDiscriminator(self.config, name=f"wave_{scale}")(x_BTC))
        if self.config.stft_widths:
            judgements.append(StftDiscriminator(self.config, name="stft")(waveform_BT))
        return judgements


class WaveDiscriminator(nn.Module):
    """MelGAN's: plain, four grouped strided, two plain convolutions."""

    config: DiscriminatorConfig

    @nn.compact
    def __call__(self, x_BTC: jax.Array) -> Judgement:
        config = self.config
        width = config.wave_channels
        features = [nn.leaky_relu(conv.Conv(width, (15,), name="first")(x_BTC), 0.2)]
        for layer in range(4):
            groups = width // config.wave_group_size
            width = min(4 * width, config.wave_max_channels)
            h = conv.Conv(
                width, (41,), (4,), groups=groups, name=f"grouped_{layer}"
            )(features[-1])  # fmt: skip
            features.append(nn.leaky_relu(h, 0.2))
        features.append(nn.leaky_relu(conv.Conv(width, (5,), name="plain")(features[-1]), 0.2))
        logits_BT = conv.Conv(1, (3,), name="logits")(features[-1])[..., 0]
        return logits_BT, features


class StftDiscriminator(nn.Module):
    """Residual 2-D convolutions over the real and imaginary parts of the STFT."""

    config: DiscriminatorConfig

    @nn.compact
    def __call__(self, waveform_BT: jax.Array) -> Judgement:
        config = self.config
        spectrum_BTF = audio.stft(waveform_BT, config.stft_window, config.stft_hop)
        # Without the Nyquist bin every stride of 2 divides the frequencies.
        spectrum_BTF = spectrum_BTF[..., :-1] / config.stft_window**0.5
        x_BTFC = jnp.stack([spectrum_BTF.real, spectrum_BTF.imag], axis=-1)
        features = [nn.elu(conv.Conv(config.stft_channels, (7, 7), name="first")(x_BTFC))]
        for unit, multiple in enumerate(config.stft_widths):
            strides = (2, 2) if unit % 2 else (1, 2)
            features.append(
                StftUnit(multiple * config.stft_channels, strides, name=f"unit_{unit}")(
                    features[-1]
                )
            )
        num_bins = features[-1].shape[2]
        head = conv.Conv(1, (1, num_bins), padding="VALID", name="logits")
        return head(features[-1])[:, :, 0, 0], features


class StftUnit(nn.Module):
    """3x3 convolution, then a strided one, plus a strided 1x1 shortcut."""

    features: int
    strides: tuple[int, int]

    @nn.compact
    def __call__(self, x_BTFC: jax.Array) -> jax.Array:
        kernel = (self.strides[0] + 2, self.strides[1] + 2)
        h = nn.elu(conv.Conv(x_BTFC.shape[-1], (3, 3), name="plain")(x_BTFC))
        h = conv.Conv(self.features, kernel, self.strides, name="strided")(h)
        kept_BTFC = x_BTFC[:, :: self.strides[0], :: self.strides[1]]
        shortcut = conv.Conv(self.features, (1, 1), name="shortcut")(kept_BTFC)
        return nn.elu(h + shortcut)
