"""SoundStorm (Borsos et al. 2023): all acoustic levels of a window in parallel, by a conformer.

A frame is one vector: the sum of those of its codes, of what the condition has at its moment, and
of what holds for the clip as a whole. Codes that are not known yet are masked. From the frames come
scores of the masked codes of one level, the coarsest that lacks any.

Shapes: B batch, S sequence, T frames, Q levels, K codes a level, M model dimension, N tokens or
features.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from musiclm import sharding
from musiclm.models import token_lm
from musiclm.nn import conformer


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoundStormConfig:
    """A conformer over the frames of a window.

    Attributes:
      layout: of the sequences; the target's frames are the conformer's, the prefix is what they are
        conditioned on.
      conformer: sizes of the blocks; its dropout and type also hold before the first of them.
    """

    layout: token_lm.Layout
    conformer: conformer.ConformerConfig


class SoundStorm(nn.Module):
    """Scores of one level's codes, given those that are not masked."""

    config: SoundStormConfig

    @nn.compact
    def __call__(
        self,
        ids_BS: jax.Array,
        masked_BTQ: jax.Array,
        level_B: jax.Array,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        """Scores the codes of every frame at a row's level.

        Args:
          ids_BS: whole sequences of the layout, int32. Codes that are masked are not looked at.
          masked_BTQ: bool, which codes of the target; see `masked_codes`.
          level_B: int32, which of the target's levels is scored.
          deterministic: no dropout; otherwise needs the rng "dropout".

        Returns:
          f32 [B, T, K].

        Raises:
          ValueError: the sequences are not as long as the layout's.
        """
        cfg, layout = self.config, self.config.layout
        if ids_BS.shape[1] != layout.sequence_length:
            raise ValueError(
                f"sequences of {ids_BS.shape[1]} tokens in the {layout.stage} stage: give "
                f"{layout.sequence_length}, as its layout makes them"
            )
        model_dim, dtype = cfg.conformer.model_dim, cfg.conformer.dtype
        # Behind the layout's identifiers, one for what is masked of each level.
        mask_Q = layout.vocab_size + np.arange(layout.target_levels)
        embed = nn.Embed(
            layout.vocab_size + layout.target_levels,
            model_dim,
            embedding_init=nn.initializers.normal(0.02),
            dtype=dtype,
            name="tokens",
        )
        target_BTQ = ids_BS[:, layout.prefix_length :].reshape(masked_BTQ.shape)
        x_BTM = embed(jnp.where(masked_BTQ, mask_Q, target_BTQ)).sum(2)
        x_BTM += embed(ids_BS[:, clip_tokens(layout)]).sum(1, keepdims=True)
        x_BTM += embed(ids_BS[:, frame_tokens(layout)]).sum(2)
        x_BTM = nn.Dropout(cfg.conformer.dropout, deterministic=deterministic)(x_BTM)
        x_BTM = conformer.ConformerStack(cfg.conformer, name="frames")(
            x_BTM, deterministic=deterministic
        )
        # The paper has "a dense layer" a level; with a second one the base comes to its 350 M.
        up = LevelDense(model_dim, layout.target_levels, dtype, name="up")
        down = LevelDense(layout.target_codebook_size, layout.target_levels, "float32", name="down")
        return down(nn.swish(up(x_BTM, level_B)), level_B)


class LevelDense(nn.Module):
    """A matrix for each level, of which every row takes that of its own: [B, T, M] to [B, T, N]."""

    features: int
    num_levels: int
    dtype: str

    @nn.compact
    def __call__(self, x_BTM: jax.Array, level_B: jax.Array) -> jax.Array:
        init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", batch_axis=0)
        kernel_QMN = self.param(
            "kernel", init, (self.num_levels, x_BTM.shape[-1], self.features)
        ).astype(self.dtype)
        kernel_BMN = sharding.constrain(kernel_QMN[level_B], sharding.ROWS)
        return jnp.einsum("btm,bmn->btn", x_BTM.astype(self.dtype), kernel_BMN)


def masked_codes(
    masked_BT: jax.Array, generated_BT: jax.Array, level_B: jax.Array, num_levels: int
) -> jax.Array:
    """Which codes are hidden while a level is made (SoundStorm, section 3.2).

    Args:
      masked_BT: bool, frames whose code of the level is not known.
      generated_BT: bool, frames after the prompt, of which all finer codes are unknown.
      level_B: int32, the level.
      num_levels: Q.

    Returns:
      bool [B, T, Q].
    """
    levels_Q, level_B11 = np.arange(num_levels), level_B[:, None, None]
    finer_BTQ = generated_BT[:, :, None] & (levels_Q > level_B11)
    return finer_BTQ | (masked_BT[:, :, None] & (levels_Q == level_B11))


def clip_tokens(layout: token_lm.Layout) -> np.ndarray:
    """Positions of the prefix that hold for the clip as a whole, int [N]."""
    return np.flatnonzero(layout.times[: layout.prefix_length] == 0)


def frame_tokens(layout: token_lm.Layout) -> np.ndarray:
    """Positions of the prefix that sound together with each frame of the target, int [T, N]."""
    return layout.aligned[layout.prefix_length - 1 : -1 : layout.target_levels]
