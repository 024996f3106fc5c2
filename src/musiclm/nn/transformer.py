"""A decoder-only Transformer: pre-norm blocks, all in one `nn.scan`.

Shapes: B batch, T tokens, M model dimension, F feed-forward dimension, S most distances, H heads.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from musiclm import sharding
from musiclm.nn import attention, dense, flash_attention

NORM_EPSILON = 1e-6
ATTENTIONS = ("blocks", "flash")


# What recomputation may leave alone: nothing, or the results of products with weights, which are
# most of the work, and not the scores of attention, which are most of the memory.
_PRODUCTS = jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    # No larger than its inputs: the scores stay inside.
    jax.checkpoint_policies.save_only_these_names(flash_attention.KEPT),
)
KEPT = {"nothing": None, "products": _PRODUCTS}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes of a decoder; the defaults are one stage of MusicLM (section 4.1), 430 M parameters.

    Attributes:
      num_layers: blocks.
      model_dim: width of the residual stream.
      num_heads, head_dim: of attention; their product may differ from `model_dim`.
      mlp_dim: width inside the feed-forward.
      gated: GELU-gated feed-forward (three matrices, T5 1.1), or plain with ReLU (two, T5). 430 M
        parameters take `gated` with `head_dim` 64, or plain with 128.
      num_buckets, max_distance: of the relative positions.
      rotary: also turns queries and keys by their positions. A bias prefers the same distances
        whatever is played; so the distance may follow from the tokens, as that of the last beat
        does. Not in the paper.
      bias_slopes: one a head: how fast its bias starts to fall with the distance from
        `bias_centre` (ALiBi's idea, as a start); () starts flat, as T5 does. Adam moves a bias by
        no more than the learning rate a step, so a head that must find its neighbours needs
        thousands of steps from a flat start.
      bias_centre: the distance that is preferred at the start. The code of the same level in the
        frame before is one less than the levels away from what predicts the next code.
      dropout: rate, in training.
      attention: who computes it, but for decoding: XLA in "blocks" of queries, on any chip, or
        "flash", faster, in bfloat16 on NVIDIA's GPUs alone.
      query_block: queries that attention in blocks takes at a time.
      remat: computes a block's activations again in the backward pass instead of keeping them;
        scores and the inside of the feed-forward's nonlinearity always are.
      remat_keeps: what it keeps all the same: "nothing", or the "products" with weights and what
        flash attention makes.
      scan_unroll: blocks in a turn of the loop over blocks. All of them in one, what a block keeps
        for the backward pass need not be copied to and from arrays of all blocks: a GPU, where that
        is a fifth of a step, is faster, and compilation takes longer. XLA may then merge what
        `remat` computes again with the forward pass, which takes the memory it was to save.
      dtype: of the computation, "float32" or "bfloat16"; parameters and softmax are float32.
    """

    num_layers: int = 24
    model_dim: int = 1024
    num_heads: int = 16
    head_dim: int = 64
    mlp_dim: int = 4096
    gated: bool = True
    num_buckets: int = 32
    max_distance: int = 128
    rotary: bool = False
    bias_slopes: tuple[float, ...] = ()
    bias_centre: int = 0
    dropout: float = 0.1
    attention: str = "blocks"
    query_block: int = 256
    remat: bool = True
    remat_keeps: str = "nothing"
    scan_unroll: int = 1
    dtype: str = "float32"

    def __post_init__(self):
        positive = (
            "num_layers",
            "model_dim",
            "num_heads",
            "head_dim",
            "mlp_dim",
            "num_buckets",
            "query_block",
            "scan_unroll",
        )
        for name in positive:
            if getattr(self, name) < 1:
                raise ValueError(
                    f"TransformerConfig.{name} is {getattr(self, name)}: give 1 or more"
                )
        if self.max_distance <= self.num_buckets // 2 or self.num_buckets < 2:
            raise ValueError(
                f"TransformerConfig.max_distance is {self.max_distance} with {self.num_buckets} "
                "buckets: give at least 2 buckets and a distance beyond half of them"
            )
        if self.rotary and self.head_dim % 2:
            raise ValueError(
                f"TransformerConfig.head_dim is {self.head_dim}: give an even number for rotary "
                "positions, which turn pairs"
            )
        if self.bias_slopes and len(self.bias_slopes) != self.num_heads:
            raise ValueError(
                f"TransformerConfig.bias_slopes has {len(self.bias_slopes)} numbers for "
                f"{self.num_heads} heads: give one a head, or none"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"TransformerConfig.dropout is {self.dropout}: give 0 up to below 1")
        if self.remat_keeps not in KEPT:
            raise ValueError(
                f"TransformerConfig.remat_keeps is {self.remat_keeps!r}: give one of {tuple(KEPT)}"
            )
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(
                f'TransformerConfig.dtype is {self.dtype!r}: give "float32" or "bfloat16"'
            )
        if self.attention not in ATTENTIONS:
            raise ValueError(
                f"TransformerConfig.attention is {self.attention!r}: give one of {ATTENTIONS}"
            )
        if self.attention == "flash" and self.dtype != "bfloat16":
            raise ValueError(
                f'TransformerConfig.dtype is {self.dtype!r}: give "bfloat16" for attention "flash"'
            )


class Transformer(nn.Module):
    """Blocks and a last norm; the parameters of all blocks are stacked along a first axis."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_BTM: jax.Array, *, deterministic: bool) -> jax.Array:
        """[B, T, M] to [B, T, M], causally; needs the rng "dropout" unless `deterministic`."""
        cfg = self.config
        num_tokens = x_BTM.shape[1]
        if cfg.attention == "flash":
            # At the end, where no other token sees what is added.
            more = -num_tokens % flash_attention.TILE
            x_BTM = jnp.pad(x_BTM, ((0, 0), (0, more), (0, 0)))
        bias_HS = attention.RelativeBias(
            cfg.num_heads,
            cfg.num_buckets,
            cfg.max_distance,
            cfg.bias_slopes,
            cfg.bias_centre,
            name="relative_bias",
        )(x_BTM.shape[1])
        keeps = KEPT[cfg.remat_keeps]
        block = nn.remat(Block, prevent_cse=False, policy=keeps) if cfg.remat else Block
        layers = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=nn.broadcast,
            length=cfg.num_layers,
            # Nothing is gained in drawing weights, and 24 times as much to compile.
            unroll=1 if self.is_initializing() else cfg.scan_unroll,
        )(cfg, deterministic, name="layers")
        x_BTM, _ = layers(x_BTM.astype(cfg.dtype), bias_HS)
        return RMSNorm(name="final_norm")(x_BTM[:, :num_tokens])


class Block(nn.Module):
    """Attention and feed-forward, each with a norm before and a residual around."""

    config: TransformerConfig
    deterministic: bool

    @nn.compact
    def __call__(self, x_BTM: jax.Array, bias_HS: jax.Array) -> tuple[jax.Array, None]:
        cfg = self.config
        x_BTM = sharding.constrain(x_BTM, sharding.ROWS)
        drop = nn.Dropout(cfg.dropout, deterministic=self.deterministic)
        h_BTM = RMSNorm(name="attention_norm")(x_BTM)
        x_BTM = x_BTM + drop(SelfAttention(cfg, name="attention")(h_BTM, bias_HS))
        h_BTM = RMSNorm(name="mlp_norm")(x_BTM)
        x_BTM = x_BTM + drop(FeedForward(cfg, name="mlp")(h_BTM))
        return x_BTM, None


class SelfAttention(nn.Module):
    """Causal attention over several heads; no biases on the projections."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_BTM: jax.Array, bias_HS: jax.Array) -> jax.Array:
        cfg = self.config
        query, key, value = (
            attention.split_heads(
                _dense(cfg, cfg.num_heads * cfg.head_dim, name)(x_BTM), cfg.num_heads
            )
            for name in ("query", "key", "value")
        )
        if cfg.rotary:
            positions_T = np.arange(x_BTM.shape[1])
            query, key = (attention.rotary(x, positions_T) for x in (query, key))
        if cfg.attention == "flash":
            mixed_BHTD = attention.fused_attention(query, key, value, bias_HS, cfg.max_distance)
        else:
            mixed_BHTD = attention.causal_attention(query, key, value, bias_HS, cfg.query_block)
        mixed_BTM = attention.join_heads(mixed_BHTD)
        return _dense(cfg, cfg.model_dim, "out", residual=True)(mixed_BTM)


class FeedForward(nn.Module):
    """Gated or plain, by the config."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_BTM: jax.Array) -> jax.Array:
        cfg = self.config
        up_BTF = _dense(cfg, cfg.mlp_dim, "up")(x_BTM)
        gate_BTF = _dense(cfg, cfg.mlp_dim, "gate")(x_BTM) if cfg.gated else None
        # The derivatives, kept, are more to write and to read than to compute again.
        inner_BTF = jax.checkpoint(activate, prevent_cse=False)(up_BTF, gate_BTF)
        return _dense(cfg, cfg.model_dim, "down", residual=True)(inner_BTF)


def activate(up: jax.Array, gate: jax.Array | None) -> jax.Array:
    """What stands between the matrices of a feed-forward: GELU(gate) · up, or ReLU(up)."""
    return nn.relu(up) if gate is None else nn.gelu(gate) * up


class RMSNorm(nn.Module):
    """Divides by the root mean square and scales; statistics in float32."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        return rms_norm(x, scale)


def rms_norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    """`RMSNorm` as a function; keeps the dtype."""
    x32 = x.astype(jnp.float32)
    variance = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
    return (x32 * jax.lax.rsqrt(variance + NORM_EPSILON) * scale).astype(x.dtype)


def _dense(cfg: TransformerConfig, features: int, name: str, *, residual: bool = False) -> nn.Dense:
    # What is added to the residual stream starts small, so that depth does not make it grow.
    variance = 1.0 / (2 * cfg.num_layers) if residual else 1.0
    init = nn.initializers.variance_scaling(variance, "fan_in", "truncated_normal")
    return nn.Dense(
        features,
        use_bias=False,
        dtype=cfg.dtype,
        kernel_init=init,
        dot_general=_project_rows,
        name=name,
    )


def _project_rows(x_BTM: jax.Array, kernel_MF: jax.Array, *_, **__) -> jax.Array:
    # `jax.lax.dot_general` for `nn.Dense`, on all rows at once. Of two axes that the gradient of
    # the kernel sums over, XLA:CPU makes one by copying all activations into another order first.
    rows_NF = dense.project(x_BTM.reshape(-1, x_BTM.shape[-1]), kernel_MF)
    return rows_NF.reshape(*x_BTM.shape[:-1], -1)
