"""Multi-scale mel losses, and the log-mel distance that judges a reconstruction.

Shape legend: B batch, T samples, N frames, M mel bands.
"""

import dataclasses

import jax
import jax.numpy as jnp

from musiclm import audio

_WINDOW_SIZES = (64, 128, 256, 512, 1024, 2048)


def _mel_BNM(waveform_BT: jax.Array, sample_rate: int, window_size: int, num_mels: int):
    """Mel magnitudes with hop window / 4; a sine of amplitude 1 peaks near window / 4."""
    return audio.mel_magnitude(
        waveform_BT,
        audio.MelConfig(
            sample_rate=sample_rate, num_mels=num_mels, window_size=window_size,
            hop_size=window_size // 4,
        ),
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameSpectralLoss:
    """SoundStream's reconstruction loss (arXiv 2107.03312, eq. 5).

    The mean over frames of Σ_s ‖S - Ŝ‖₁ + √(s/2) ‖log S - log Ŝ‖₂, with norms over the bands of a
    frame.

    Attributes:
      window_sizes: s, in samples; hop s / 4.
      num_mels: bands.
      floor: added before the logarithm, relative to the peak of a full-scale sine.
    """

    window_sizes: tuple[int, ...] = _WINDOW_SIZES
    num_mels: int = 64
    floor: float = 3e-5

    def __call__(self, target_BT: jax.Array, waveform_BT: jax.Array, sample_rate: int) -> jax.Array:
        """The loss, a scalar."""
        total = 0.0
        for size in self.window_sizes:
            target = _mel_BNM(target_BT, sample_rate, size, self.num_mels)
            mel = _mel_BNM(waveform_BT, sample_rate, size, self.num_mels)
            floor = self.floor * size / 4
            log_gap = jnp.log(target + floor) - jnp.log(mel + floor)
            # The small term keeps the gradient of the norm finite where both are equal.
            norm_BN = jnp.sqrt(jnp.sum(log_gap**2, axis=-1) + 1e-8)
            total += jnp.mean(jnp.sum(jnp.abs(target - mel), axis=-1))
            total += (size / 2) ** 0.5 * jnp.mean(norm_BN)
        return total


@dataclasses.dataclass(frozen=True, kw_only=True)
class BandSpectralLoss:
    """Mean absolute gap of log magnitudes, plus that of magnitudes, averaged over the scales.

    Every band of every frame weighs the same, loud or quiet, as in `log_mel_distance_db`. On
    music with silences and decaying notes that distance falls much faster than under
    `FrameSpectralLoss`, whose norm listens to the worst bands of a frame.

    Attributes:
      window_sizes: in samples; hop a quarter of the window.
      num_mels: bands, one number a window or one for all.
      linear_weight: of the gap of magnitudes, in which a full-scale sine is 1.
      floor: added before the logarithm, relative to the peak of a full-scale sine.
    """

    window_sizes: tuple[int, ...] = _WINDOW_SIZES
    num_mels: int | tuple[int, ...] = 64
    linear_weight: float = 1.0
    floor: float = 3e-5

    def __post_init__(self):
        if isinstance(self.num_mels, tuple) and len(self.num_mels) != len(self.window_sizes):
            raise ValueError(
                f"BandSpectralLoss.num_mels={self.num_mels} has {len(self.num_mels)} numbers for "
                f"{len(self.window_sizes)} window_sizes: give one for each, or a single number."
            )

    def __call__(self, target_BT: jax.Array, waveform_BT: jax.Array, sample_rate: int) -> jax.Array:
        """The loss, a scalar."""
        num_mels = self.num_mels
        if isinstance(num_mels, int):
            num_mels = (num_mels,) * len(self.window_sizes)
        total = 0.0
        for size, bands in zip(self.window_sizes, num_mels, strict=True):
            target = _mel_BNM(target_BT, sample_rate, size, bands) * (4 / size)
            mel = _mel_BNM(waveform_BT, sample_rate, size, bands) * (4 / size)
            log_gap = jnp.abs(jnp.log(target + self.floor) - jnp.log(mel + self.floor))
            total += jnp.mean(log_gap) + self.linear_weight * jnp.mean(jnp.abs(target - mel))
        return total / len(self.window_sizes)


def log_mel_distance_db(
    target_BT: jax.Array, waveform_BT: jax.Array, sample_rate: int
) -> jax.Array:
    """Mean absolute difference of log-mel spectrograms in dB, over 80 bands.

    Window 1024, hop 256. Magnitudes become dB (20 log10), floored 80 dB below the greatest of the
    target clip: what is silent in the target may be anything below that floor.

    Args:
      target_BT: the original.
      waveform_BT: the reconstruction, of the same length.
      sample_rate: Hz.

    Returns:
      `[B]` float32, dB.
    """
    config = audio.MelConfig(sample_rate=sample_rate, num_mels=80, window_size=1024, hop_size=256)
    target_BNM = audio.mel_magnitude(target_BT, config)
    mel_BNM = audio.mel_magnitude(waveform_BT, config)
    floor_B = 1e-4 * jnp.max(target_BNM, axis=(1, 2), keepdims=True)
    gap_BNM = jnp.log10(jnp.maximum(target_BNM, floor_B)) - jnp.log10(jnp.maximum(mel_BNM, floor_B))
    return 20 * jnp.mean(jnp.abs(gap_BNM), axis=(1, 2))


def si_sdr_db(target_BT: jax.Array, waveform_BT: jax.Array) -> jax.Array:
    """Scale-invariant signal-to-distortion ratio in dB, `[B]`."""
    dot_B1 = jnp.sum(target_BT * waveform_BT, axis=-1, keepdims=True)
    power_B1 = jnp.sum(target_BT**2, axis=-1, keepdims=True)
    projected_BT = dot_B1 / (power_B1 + 1e-8) * target_BT
    signal_B = jnp.sum(projected_BT**2, axis=-1)
    noise_B = jnp.sum((waveform_BT - projected_BT) ** 2, axis=-1)
    return 10 * (jnp.log10(signal_B + 1e-8) - jnp.log10(noise_B + 1e-8))
