"""SpecAugment: random bands of frequency and spans of time are blanked in training.

Shapes: B batch, T frames, F frequency bins, N masks.
"""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpecAugmentConfig:
    """How much of a spectrogram is blanked. Zero masks or zero width switch an axis off.

    Attributes:
      num_frequency_masks: Bands an example.
      max_frequency_width: Widest band, in bins; widths are uniform over 0..this.
      num_time_masks: Spans an example.
      max_time_width: Longest span, in frames; widths are uniform over 0..this.
    """

    num_frequency_masks: int = 2
    max_frequency_width: int = 8
    num_time_masks: int = 2
    max_time_width: int = 50

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 0:
                raise ValueError(
                    f"SpecAugmentConfig.{field.name} is {getattr(self, field.name)}; "
                    "set it to 0 (off) or more."
                )


def spec_augment(key: jax.Array, spec_BTF: jax.Array, config: SpecAugmentConfig) -> jax.Array:
    """Blanks random bands and spans with zero, the mean of a standardised spectrogram.

    Args:
      key: Random key.
      spec_BTF: Spectrograms with mean about zero.
      config: Numbers and widths of the masks.

    Returns:
      Array of the same shape and dtype; every example has masks of its own.
    """
    time_key, frequency_key = jax.random.split(key)
    batch, frames, bins = spec_BTF.shape
    hidden_BT = _spans(time_key, batch, frames, config.num_time_masks, config.max_time_width)
    hidden_BF = _spans(
        frequency_key, batch, bins, config.num_frequency_masks, config.max_frequency_width
    )
    return jnp.where(hidden_BT[:, :, None] | hidden_BF[:, None, :], 0.0, spec_BTF)


def _spans(key: jax.Array, batch: int, length: int, num_masks: int, max_width: int) -> jax.Array:
    """Boolean [batch, length], True inside any of `num_masks` random spans."""
    width_key, start_key = jax.random.split(key)
    shape = (batch, num_masks, 1)
    width_BN1 = jax.random.randint(width_key, shape, 0, min(max_width, length) + 1)
    start_BN1 = jax.random.randint(start_key, shape, 0, length - width_BN1 + 1)
    position = jnp.arange(length)
    return ((position >= start_BN1) & (position < start_BN1 + width_BN1)).any(axis=1)
