"""Conformer blocks and a scanned stack of them (Gulati et al. 2020), not causal.

Two choices where papers differ:
- Relative positions are rotary: no parameters, the same in every block of a scan, and no limit
  on the length.
- LayerNorm stands where the first conformer had BatchNorm, after the depthwise convolution.
  Batch statistics tie an utterance to its batch: they differ between hosts, shift between
  training and a batch of one, take in masked frames, and are mutable state inside a scan.

Shapes: B batch, T frames, D model width, N heads, H head width, W kernel taps, L blocks.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from musiclm import sharding
from musiclm.nn import attention, transformer

# Residual branches start at zero: a deep stack starts as a short one, and learns from the first
# step where one of noisy blocks waits for thousands.
_ZEROS = nn.initializers.zeros


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConformerConfig:
    """A stack of conformer blocks.

    Attributes:
      num_blocks: blocks, one after the other.
      model_dim: width of the residual stream.
      num_heads: attention heads; model_dim / num_heads must be an even number.
      ffn_dim: hidden width of the two feed-forward halves.
      conv_kernel: taps of the depthwise convolution, odd.
      dropout: rate after each of the four modules of a block, and within the FFN.
      remat: recompute a block's activations in the backward pass instead of keeping them.
      remat_keeps: what it keeps all the same: "nothing", or the "products" with weights.
      dtype: of the computation ("float32" or "bfloat16"); parameters are float32.
    """

    num_blocks: int
    model_dim: int
    num_heads: int
    ffn_dim: int
    conv_kernel: int = 5
    dropout: float = 0.0
    remat: bool = False
    remat_keeps: str = "nothing"
    dtype: str = "float32"

    def __post_init__(self):
        for field in ("num_blocks", "model_dim", "num_heads", "ffn_dim"):
            if getattr(self, field) < 1:
                raise ValueError(f"ConformerConfig.{field} {getattr(self, field)}: give 1 or more")
        if self.model_dim % (2 * self.num_heads):
            raise ValueError(
                f"ConformerConfig.model_dim {self.model_dim} over num_heads {self.num_heads} must "
                "be an even number (rotary positions turn pairs): change one of the two"
            )
        if self.conv_kernel < 1 or self.conv_kernel % 2 == 0:
            raise ValueError(
                f"ConformerConfig.conv_kernel {self.conv_kernel} must be odd and positive, so that "
                "a frame sees as far ahead as back"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"ConformerConfig.dropout {self.dropout} must lie in [0, 1)")
        if self.remat_keeps not in transformer.KEPT:
            raise ValueError(
                f"ConformerConfig.remat_keeps {self.remat_keeps!r}: give one of "
                f"{tuple(transformer.KEPT)}"
            )
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f'ConformerConfig.dtype "{self.dtype}": give "float32" or "bfloat16"')


class ConformerStack(nn.Module):
    """`num_blocks` conformer blocks under one scan: parameters are stacked on a first axis L."""

    config: ConformerConfig

    @nn.compact
    def __call__(self, x_BTD: jax.Array, *, deterministic: bool) -> jax.Array:
        """Runs all blocks.

        Args:
          x_BTD: [B, T, model_dim].
          deterministic: no dropout; else the "dropout" random stream is read.

        Returns:
          [B, T, model_dim], normalised by the last block's LayerNorm.
        """
        cfg = self.config
        # A scan already keeps XLA from merging the recomputation with the first pass.
        keeps = transformer.KEPT[cfg.remat_keeps]
        remat = functools.partial(nn.remat, prevent_cse=False, policy=keeps)
        block = remat(ConformerBlock) if cfg.remat else ConformerBlock
        scanned = nn.scan(
            lambda block, x_BTD, _: (block(x_BTD), None),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            length=cfg.num_blocks,
        )
        blocks = block(cfg, deterministic=deterministic, name="blocks")
        return scanned(blocks, x_BTD.astype(cfg.dtype), None)[0]

    def first(self, x_BTD: jax.Array, num_blocks: int) -> jax.Array:
        """Output of block number `num_blocks` (0: the input), without running those above it."""
        if not 0 <= num_blocks <= self.config.num_blocks:
            raise ValueError(
                f"layer {num_blocks} of a stack of {self.config.num_blocks} blocks: give 0 to "
                f"{self.config.num_blocks}"
            )
        stacked = self.variables["params"]["blocks"]
        block = ConformerBlock(self.config, deterministic=True, parent=None)
        return jax.lax.scan(
            lambda x_BTD, params: (block.apply({"params": params}, x_BTD), None),
            x_BTD.astype(self.config.dtype),
            jax.tree.map(lambda stacked_L: stacked_L[:num_blocks], stacked),
        )[0]


class ConformerBlock(nn.Module):
    """Half an FFN, self-attention, convolution, half an FFN, each residual; then LayerNorm."""

    config: ConformerConfig
    deterministic: bool

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """[B, T, D] to [B, T, D]."""
        module = {"config": self.config, "deterministic": self.deterministic}
        x_BTD = sharding.constrain(x_BTD, sharding.ROWS)
        x_BTD = x_BTD + 0.5 * FeedForward(**module, name="ffn_in")(x_BTD)
        x_BTD = x_BTD + SelfAttention(**module, name="attention")(x_BTD)
        x_BTD = x_BTD + ConvModule(**module, name="conv")(x_BTD)
        x_BTD = x_BTD + 0.5 * FeedForward(**module, name="ffn_out")(x_BTD)
        return nn.LayerNorm(dtype=self.config.dtype, name="norm")(x_BTD)


class FeedForward(nn.Module):
    """LayerNorm, Dense to ffn_dim, Swish, Dense back."""

    config: ConformerConfig
    deterministic: bool

    @nn.compact
    def __call__(self, x_BTD):
        cfg = self.config
        dropout = nn.Dropout(cfg.dropout, deterministic=self.deterministic)
        x_BTD = nn.LayerNorm(dtype=cfg.dtype, name="norm")(x_BTD)
        x_BTF = nn.swish(nn.Dense(cfg.ffn_dim, dtype=cfg.dtype, name="up")(x_BTD))
        return dropout(
            nn.Dense(cfg.model_dim, kernel_init=_ZEROS, dtype=cfg.dtype, name="down")(
                dropout(x_BTF)
            )
        )


class SelfAttention(nn.Module):
    """Every frame attends to every frame, with rotary relative positions."""

    config: ConformerConfig
    deterministic: bool

    @nn.compact
    def __call__(self, x_BTD):
        cfg = self.config
        dense = functools.partial(nn.Dense, cfg.model_dim, dtype=cfg.dtype)
        heads = (*x_BTD.shape[:2], cfg.num_heads, cfg.model_dim // cfg.num_heads)
        x_BTD = nn.LayerNorm(dtype=cfg.dtype, name="norm")(x_BTD)
        positions_T1 = np.arange(x_BTD.shape[1])[:, None]
        query_BTNH = attention.rotary(dense(name="query")(x_BTD).reshape(heads), positions_T1)
        key_BTNH = attention.rotary(dense(name="key")(x_BTD).reshape(heads), positions_T1)
        value_BTNH = dense(name="value")(x_BTD).reshape(heads)
        mixed_BTNH = jax.nn.dot_product_attention(query_BTNH, key_BTNH, value_BTNH)
        out_BTD = dense(kernel_init=_ZEROS, name="out")(mixed_BTNH.reshape(x_BTD.shape))
        return nn.Dropout(cfg.dropout, deterministic=self.deterministic)(out_BTD)


class ConvModule(nn.Module):
    """LayerNorm, gated Dense, depthwise convolution, LayerNorm, Swish, Dense."""

    config: ConformerConfig
    deterministic: bool

    @nn.compact
    def __call__(self, x_BTD):
        cfg = self.config
        x_BTD = nn.LayerNorm(dtype=cfg.dtype, name="norm")(x_BTD)
        x_BTD = nn.glu(nn.Dense(2 * cfg.model_dim, dtype=cfg.dtype, name="gate")(x_BTD))
        x_BTD = DepthwiseConv(cfg.conv_kernel, cfg.dtype, name="depthwise")(x_BTD)
        x_BTD = nn.swish(nn.LayerNorm(dtype=cfg.dtype, name="conv_norm")(x_BTD))
        x_BTD = nn.Dense(cfg.model_dim, kernel_init=_ZEROS, dtype=cfg.dtype, name="out")(x_BTD)
        return nn.Dropout(cfg.dropout, deterministic=self.deterministic)(x_BTD)


class DepthwiseConv(nn.Module):
    """One short filter a channel, zero-padded to keep the length.

    Written as a sum of shifted products, which XLA fuses into one pass; its grouped convolution
    with a group a channel is an order of magnitude slower on the CPU, gradients above all.
    """

    kernel_size: int
    dtype: str

    @nn.compact
    def __call__(self, x_BTD):
        dim = x_BTD.shape[-1]
        init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=0)
        kernel_WD = self.param("kernel", init, (self.kernel_size, dim)).astype(self.dtype)
        bias_D = self.param("bias", nn.initializers.zeros, (dim,)).astype(self.dtype)
        reach = self.kernel_size // 2
        padded_BTD = jnp.pad(x_BTD, ((0, 0), (reach, reach), (0, 0)))
        length = x_BTD.shape[1]
        taps = (padded_BTD[:, w : w + length] * kernel_WD[w] for w in range(self.kernel_size))
        return sum(taps) + bias_D
