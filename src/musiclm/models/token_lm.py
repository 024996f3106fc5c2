"""One stage of MusicLM: a decoder-only Transformer over token sequences (sections 3.2 and 4.1).

Shapes: B batch, S sequence, P prefix, T target frames, Q target levels, K codes a level, M model
dimension.
"""

import dataclasses
from typing import Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from musiclm.nn import transformer


class Layout(Protocol):
    """What the model knows of its sequences; `tokens.layout.StageLayout` says what each means."""

    stage: str

    @property
    def vocab_size(self) -> int: ...
    @property
    def prefix_length(self) -> int: ...
    @property
    def sequence_length(self) -> int: ...
    @property
    def target_levels(self) -> int: ...
    @property
    def target_codebook_size(self) -> int: ...
    @property
    def target_offset(self) -> int: ...
    @property
    def times(self) -> np.ndarray: ...
    @property
    def aligned(self) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenLMConfig:
    """A stage's model.

    Attributes:
      layout: of its sequences.
      transformer: sizes.
      time_embedding: adds to every token a learned vector of its moment in the window, which
        tokens of the same moment share across segments. Relative positions alone can't say which
        semantic token belongs to an acoustic frame, since the distance between the two grows
        along the sequence; a small model learns that alignment much sooner when told. Not in the
        paper.
      aligned_prefix: adds to the input before every token of the target a projection of what the
        prefix has at that token's moment. A small model learns to copy long before it learns to
        look there, and plays on without regard to its condition until then. The projection starts
        at zero: at once in full, it drowns what is to be copied. Not in the paper.
      tied_embedding: scores a code by the vector that it has as an input. Acoustic codes often
        repeat those of the frame before, and a small model learns to copy much sooner so. Not in
        the paper.
    """

    layout: Layout
    transformer: transformer.TransformerConfig
    time_embedding: bool = False
    aligned_prefix: bool = False
    tied_embedding: bool = False


class TokenLM(nn.Module):
    """Next-token logits over the target of a sequence."""

    config: TokenLMConfig

    @nn.compact
    def __call__(self, ids_BS: jax.Array, *, deterministic: bool = True) -> jax.Array:
        """Scores every token of the target, given those before it.

        Args:
          ids_BS: whole sequences of the layout, int32. The last token is not looked at.
          deterministic: no dropout; otherwise needs the rng "dropout".

        Returns:
          f32 [B, T, Q, K]; a level's logits are over that level's codes alone.

        Raises:
          ValueError: the sequences are not as long as the layout's.
        """
        cfg, layout = self.config, self.config.layout
        if ids_BS.shape[1] != layout.sequence_length:
            raise ValueError(
                f"sequences of {ids_BS.shape[1]} tokens in the {layout.stage} stage: give "
                f"{layout.sequence_length}, as its layout makes them"
            )
        model_dim, dtype = cfg.transformer.model_dim, cfg.transformer.dtype
        embed = nn.Embed(
            layout.vocab_size,
            model_dim,
            embedding_init=nn.initializers.normal(0.02),
            dtype=dtype,
            name="tokens",
        )
        x_BSM = embed(ids_BS[:, :-1])
        if cfg.time_embedding:
            times_S = layout.times
            table = nn.Embed(
                int(times_S.max()) + 1,
                model_dim,
                embedding_init=nn.initializers.normal(0.02),
                dtype=dtype,
                name="times",
            )
            x_BSM += table(times_S[:-1])
        if cfg.aligned_prefix:
            project = nn.Dense(
                model_dim,
                use_bias=False,
                kernel_init=nn.initializers.zeros_init(),
                dtype=dtype,
                name="aligned",
            )
            x_BSM += project(aligned_vectors(embed.embedding, ids_BS, layout.aligned[:-1]))
        x_BSM = nn.Dropout(cfg.transformer.dropout, deterministic=deterministic)(x_BSM)
        x_BSM = transformer.Transformer(cfg.transformer, name="decoder")(
            x_BSM, deterministic=deterministic
        )
        # The last token of the prefix predicts the first of the target.
        targets_BNM = x_BSM[:, layout.prefix_length - 1 :]
        targets_BTQM = targets_BNM.reshape(ids_BS.shape[0], -1, layout.target_levels, model_dim)
        if cfg.tied_embedding:
            return level_logits(targets_BTQM, tied_kernel(layout, embed.embedding))
        return LevelHeads(layout.target_codebook_size, name="head")(targets_BTQM)


class LevelHeads(nn.Module):
    """One linear head a level: [B, T, Q, M] to [B, T, Q, K] in f32."""

    codebook_size: int

    @nn.compact
    def __call__(self, x_BTQM: jax.Array) -> jax.Array:
        shape = (*x_BTQM.shape[2:], self.codebook_size)
        kernel_QMK = self.param("kernel", nn.initializers.normal(0.02), shape)
        return level_logits(x_BTQM, kernel_QMK)


def aligned_vectors(embedding_VM: jax.Array, ids_BS: jax.Array, aligned_SN: jax.Array) -> jax.Array:
    """The sum [B, …, M] of the vectors of the tokens at the positions [..., N]; -1 adds nothing."""
    ids_BSN = ids_BS[:, jnp.maximum(aligned_SN, 0)]
    present_SN1 = (aligned_SN >= 0)[..., None]
    return jnp.sum(embedding_VM[ids_BSN] * present_SN1, axis=-2)


def level_logits(x_BTQM: jax.Array, kernel_QMK: jax.Array) -> jax.Array:
    """Each level by its own matrix: f32 [B, T, Q, K]."""
    return jnp.einsum("btqm,qmk->btqk", x_BTQM.astype(jnp.float32), kernel_QMK)


def tied_kernel(layout: Layout, embedding_VM: jax.Array) -> jax.Array:
    """The matrices [Q, M, K] of `TokenLMConfig.tied_embedding`: the input vectors of each level."""
    target_NM = embedding_VM[layout.target_offset :]
    target_QKM = target_NM.reshape(layout.target_levels, layout.target_codebook_size, -1)
    return target_QKM.swapaxes(1, 2)
