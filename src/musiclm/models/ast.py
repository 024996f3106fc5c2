"""Audio Spectrogram Transformer tower: a ViT over patches of a log-mel spectrogram.

Shapes: B batch, T frames, F mel bins, P patches, D model width.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm.nn.encoder import Encoder, EncoderConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class AstConfig:
    """Size of the tower; the defaults are the MuLan paper's (12 blocks of 768).

    Attributes:
      encoder: The Transformer; `norm_first` must be set, as in ViT.
      patch_size: (frames, bins) of one patch.
      patch_strides: (frames, bins) from one patch to the next; the same as `patch_size` unless
        patches overlap.
      max_frames: Frames that the learned time positions cover.
      num_mels: Bins of the input.
    """

    encoder: EncoderConfig = EncoderConfig(norm_first=True)
    patch_size: tuple[int, int] = (16, 16)
    patch_strides: tuple[int, int] = (16, 16)
    max_frames: int = 1000
    num_mels: int = 128

    def __post_init__(self):
        if not self.encoder.norm_first:
            raise ValueError("AstConfig.encoder.norm_first is False; set it to True, as in ViT.")
        if any(s > p for s, p in zip(self.patch_strides, self.patch_size, strict=True)):
            raise ValueError(
                f"AstConfig.patch_strides {self.patch_strides} leaves gaps between patches of "
                f"{self.patch_size}; make the strides no longer than the patch."
            )
        if self.num_mels < self.patch_size[1]:
            raise ValueError(
                f"AstConfig.num_mels is {self.num_mels}, under one patch of {self.patch_size[1]} "
                "bins; raise it or shrink patch_size."
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along (time, frequency) for `max_frames`; a partial patch counts."""
        return (
            -(-self.max_frames // self.patch_strides[0]),
            -(-self.num_mels // self.patch_strides[1]),
        )


class Ast(nn.Module):
    """Log-mel spectrogram to the class token's output."""

    config: AstConfig

    @nn.compact
    def __call__(self, spec_BTF: jax.Array, *, train: bool) -> jax.Array:
        """Returns features [B, D].

        Args:
          spec_BTF: At most `max_frames` frames of `num_mels` bins. The end is padded with zeros
            to a whole patch.
          train: Whether dropout is active (needs the "dropout" rng).

        Raises:
          ValueError: The spectrogram is longer than the learned positions.
        """
        config = self.config
        width = config.encoder.model_dim
        batch, frames, bins = spec_BTF.shape
        if frames > config.max_frames or bins != config.num_mels:
            raise ValueError(
                f"Ast got {frames} frames of {bins} bins; AstConfig allows max_frames "
                f"{config.max_frames} and num_mels {config.num_mels}. Crop or reconfigure."
            )
        x_BPD = nn.Conv(
            width,
            config.patch_size,
            config.patch_strides,
            padding="SAME",
            dtype=config.encoder.dtype,
            name="patches",
        )(spec_BTF[..., None])
        rows, columns = x_BPD.shape[1:3]
        init = nn.initializers.truncated_normal(config.encoder.init_deviation)
        positions = self.param("positions", init, (*config.grid, width))
        x_BPD = (x_BPD + positions[:rows, :columns]).reshape(batch, rows * columns, width)
        token = self.param("class_token", init, (width,))
        x_BPD = jnp.concatenate([jnp.broadcast_to(token, (batch, 1, width)), x_BPD], axis=1)
        x_BPD = nn.Dropout(config.encoder.dropout_rate, deterministic=not train)(x_BPD)
        everything = jnp.ones(x_BPD.shape[:2], bool)
        x_BPD = Encoder(config.encoder, name="encoder")(x_BPD, everything, train=train)
        return x_BPD[:, 0].astype(jnp.float32)
