"""BERT text encoder: word pieces to one vector.

Shapes: B batch, L word pieces, D model width.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm.nn.encoder import Encoder, EncoderConfig

PAD_ID = 0
POOLINGS = ("first", "mean")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertConfig:
    """Size of the encoder; the defaults are BERT-base-uncased.

    Attributes:
      encoder: The Transformer; `norm_first` must be off, as in BERT.
      vocab_size: Word pieces, the padding id 0 included.
      max_length: Positions, [CLS] and [SEP] included.
      pooling: What stands for the text: "first", a layer and tanh over the output of [CLS], as in
        BERT; or "mean", the mean of all outputs. [CLS] hears only what attention brings it, in
        the mean every word is heard from the first step on: a small tower that starts from
        nothing learns more of them. See `gin/models/mulan/mini.gin`.
    """

    encoder: EncoderConfig = EncoderConfig(norm_epsilon=1e-12)
    vocab_size: int = 30_522
    max_length: int = 512
    pooling: str = "first"

    def __post_init__(self):
        if self.encoder.norm_first:
            raise ValueError("BertConfig.encoder.norm_first is True; set it to False, as in BERT.")
        if self.vocab_size < 2:
            raise ValueError(f"BertConfig.vocab_size is {self.vocab_size}; set it to 2 or more.")
        if self.max_length < 3:
            raise ValueError(
                f"BertConfig.max_length is {self.max_length}; [CLS], [SEP] and one piece need 3."
            )
        if self.pooling not in POOLINGS:
            raise ValueError(
                f"BertConfig.pooling is {self.pooling!r}; set it to one of {', '.join(POOLINGS)}."
            )


class Bert(nn.Module):
    """Word pieces to one feature vector."""

    config: BertConfig

    @nn.compact
    def __call__(self, text_ids_BL: jax.Array, *, train: bool) -> jax.Array:
        """Returns features [B, D], float32; see `BertConfig.pooling`.

        Args:
          text_ids_BL: int32, [CLS] first, 0 after the end.
          train: Whether dropout is active (needs the "dropout" rng).

        Raises:
          ValueError: More positions than `max_length`.
        """
        config = self.config
        width, length = config.encoder.model_dim, text_ids_BL.shape[1]
        if length > config.max_length:
            raise ValueError(
                f"Bert got {length} positions, BertConfig.max_length is {config.max_length}; "
                "encode with that length or raise it."
            )
        init = nn.initializers.normal(config.encoder.init_deviation)
        dtype = config.encoder.dtype
        pieces = nn.Embed(config.vocab_size, width, embedding_init=init, dtype=dtype, name="pieces")
        positions = self.param("positions", init, (config.max_length, width))
        x_BLD = pieces(text_ids_BL) + positions[:length].astype(dtype)
        x_BLD = nn.LayerNorm(epsilon=config.encoder.norm_epsilon, dtype=dtype, name="norm")(x_BLD)
        x_BLD = nn.Dropout(config.encoder.dropout_rate, deterministic=not train)(x_BLD)
        mask_BL = text_ids_BL != PAD_ID
        x_BLD = Encoder(config.encoder, name="encoder")(x_BLD, mask_BL, train=train)
        if config.pooling == "mean":
            return x_BLD.astype(jnp.float32).mean(axis=1, where=mask_BL[..., None])
        first_BD = x_BLD[:, 0].astype(jnp.float32)
        return jnp.tanh(nn.Dense(width, kernel_init=init, name="pooler")(first_BD))
