"""Bidirectional Transformer encoder layers, shared by the text tower and the spectrogram tower.

Shapes: B batch, L positions, D model width, H heads, K head width.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm import sharding


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Size of a stack of encoder layers; the defaults are those of BERT-base and ViT-base.

    Attributes:
      num_layers: Depth of the stack.
      model_dim: Width D; a multiple of `num_heads`.
      num_heads: Attention heads.
      ffn_dim: Hidden width of the feed-forward half.
      dropout_rate: Applied to attention weights and to both residual branches, in training only.
      norm_first: True normalises the input of each half (ViT, AST) and the stack's output;
        False normalises each residual sum (BERT).
      norm_epsilon: Added to the variance in LayerNorm.
      init_deviation: Of initial kernels and embeddings. BERT's 0.02 suits widths near 768; a narrow
        stack hardly hears its inputs with it and learns late: give it about 1 / √model_dim.
      dtype: Compute type, "float32" or "bfloat16"; parameters and softmax stay float32.
    """

    num_layers: int = 12
    model_dim: int = 768
    num_heads: int = 12
    ffn_dim: int = 3072
    dropout_rate: float = 0.1
    norm_first: bool = False
    norm_epsilon: float = 1e-6
    init_deviation: float = 0.02
    dtype: str = "float32"

    def __post_init__(self):
        for field in ("num_layers", "model_dim", "num_heads", "ffn_dim"):
            if getattr(self, field) < 1:
                raise ValueError(
                    f"EncoderConfig.{field} is {getattr(self, field)}; set it to 1 or more."
                )
        if self.model_dim % self.num_heads:
            raise ValueError(
                f"EncoderConfig.model_dim is {self.model_dim}, not a multiple of num_heads "
                f"({self.num_heads}); change one of the two."
            )
        if self.init_deviation <= 0.0:
            raise ValueError(
                f"EncoderConfig.init_deviation is {self.init_deviation}; set it above 0."
            )
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(
                f'EncoderConfig.dtype is {self.dtype!r}; set it to "float32" or "bfloat16".'
            )
        if not 0.0 <= self.dropout_rate < 1.0:
            raise ValueError(
                f"EncoderConfig.dropout_rate is {self.dropout_rate}; set it within [0, 1)."
            )


class Encoder(nn.Module):
    """A stack of identical layers, scanned: parameters carry a leading layer axis."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x_BLD: jax.Array, mask_BL: jax.Array, *, train: bool) -> jax.Array:
        """Encodes a padded batch.

        Args:
          x_BLD: Embedded inputs, float.
          mask_BL: Boolean, False where a position is padding; no position attends to those.
          train: Whether dropout is active (needs the "dropout" rng).

        Returns:
          Float array [B, L, D]; values at padding positions mean nothing.
        """
        config = self.config
        stack = nn.scan(
            EncoderLayer,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast, nn.broadcast),
            length=config.num_layers,
        )
        x_BLD = x_BLD.astype(config.dtype)
        x_BLD, _ = stack(config, name="layers")(x_BLD, mask_BL, train)
        if config.norm_first:
            x_BLD = _layer_norm(config, "norm")(x_BLD)
        return x_BLD


class EncoderLayer(nn.Module):
    """Self-attention, then a GELU feed-forward net, each with a residual connection."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x_BLD: jax.Array, mask_BL: jax.Array, train: bool):
        """Applies the layer; the `(carry, None)` result is what `nn.scan` asks for."""
        config = self.config
        x_BLD = sharding.constrain(x_BLD, sharding.ROWS)
        attention = SelfAttention(config, name="attention")
        attention_norm = _layer_norm(config, "attention_norm")
        ffn = FeedForward(config, name="ffn")
        ffn_norm = _layer_norm(config, "ffn_norm")
        drop = nn.Dropout(config.dropout_rate, deterministic=not train)
        if config.norm_first:
            x_BLD = x_BLD + drop(attention(attention_norm(x_BLD), mask_BL, train))
            x_BLD = x_BLD + drop(ffn(ffn_norm(x_BLD)))
        else:
            x_BLD = attention_norm(x_BLD + drop(attention(x_BLD, mask_BL, train)))
            x_BLD = ffn_norm(x_BLD + drop(ffn(x_BLD)))
        return x_BLD, None


class SelfAttention(nn.Module):
    """Multi-head attention of every position to every position that is no padding."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x_BLD: jax.Array, mask_BL: jax.Array, train: bool) -> jax.Array:
        config = self.config
        head_dim = config.model_dim // config.num_heads
        heads = (*x_BLD.shape[:-1], config.num_heads, head_dim)
        query_BLHK = _dense(config, config.model_dim, "query")(x_BLD).reshape(heads)
        key_BLHK = _dense(config, config.model_dim, "key")(x_BLD).reshape(heads)
        value_BLHK = _dense(config, config.model_dim, "value")(x_BLD).reshape(heads)
        scores_BHLL = jnp.einsum(
            "bqhk,bshk->bhqs", query_BLHK, key_BLHK, preferred_element_type=jnp.float32
        )
        scores_BHLL /= head_dim**0.5
        # A finite bias: a row of nothing but padding stays finite instead of turning into NaN.
        scores_BHLL = jnp.where(mask_BL[:, None, None, :], scores_BHLL, -1e9)
        weights_BHLL = jax.nn.softmax(scores_BHLL).astype(config.dtype)
        weights_BHLL = nn.Dropout(config.dropout_rate, deterministic=not train)(weights_BHLL)
        mixed_BLHK = jnp.einsum("bhqs,bshk->bqhk", weights_BHLL, value_BLHK)
        return _dense(config, config.model_dim, "out")(mixed_BLHK.reshape(x_BLD.shape))


class FeedForward(nn.Module):
    """Dense, GELU, Dense."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        hidden = _dense(self.config, self.config.ffn_dim, "up")(x_BLD)
        hidden = jax.nn.gelu(hidden, approximate=False)
        return _dense(self.config, self.config.model_dim, "down")(hidden)


def _dense(config: EncoderConfig, features: int, name: str) -> nn.Dense:
    init = nn.initializers.normal(config.init_deviation)
    return nn.Dense(features, kernel_init=init, dtype=config.dtype, name=name)


def _layer_norm(config: EncoderConfig, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=config.norm_epsilon, dtype=config.dtype, name=name)
