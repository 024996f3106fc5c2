"""BERT: word pieces to one vector, or to the pieces that are hidden (arXiv 1810.04805).

Shapes: B batch, L word pieces, D model width, K vocabulary, P places.
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

    def setup(self):
        config, encoder = self.config, self.config.encoder
        init = nn.initializers.normal(encoder.init_deviation)
        width, dtype = encoder.model_dim, encoder.dtype
        self.pieces = nn.Embed(config.vocab_size, width, embedding_init=init, dtype=dtype)
        self.positions = self.param("positions", init, (config.max_length, width))
        self.norm = nn.LayerNorm(epsilon=encoder.norm_epsilon, dtype=dtype)
        self.dropout = nn.Dropout(encoder.dropout_rate)
        self.encoder = Encoder(encoder)
        if config.pooling == "first":
            self.pooler = nn.Dense(width, kernel_init=init)

    def __call__(self, text_ids_BL: jax.Array, *, train: bool) -> jax.Array:
        """Returns features [B, D], float32; see `BertConfig.pooling`.

        Args:
          text_ids_BL: int32, [CLS] first, 0 after the end.
          train: Whether dropout is active (needs the "dropout" rng).

        Raises:
          ValueError: More positions than `max_length`.
        """
        mask_BL = text_ids_BL != PAD_ID
        x_BLD = self.encode(self.pieces(text_ids_BL), mask_BL, train=train).astype(jnp.float32)
        if self.config.pooling == "mean":
            return x_BLD.mean(axis=1, where=mask_BL[..., None])
        return jnp.tanh(self.pooler(x_BLD[:, 0]))

    def encode(self, pieces_BLD: jax.Array, mask_BL: jax.Array, *, train: bool) -> jax.Array:
        """Returns the encoder's outputs [B, L, D], of `encoder.dtype`.

        Args:
          pieces_BLD: Embedded word pieces, of the same type.
          mask_BL: bool, True where there are some.
          train: Whether dropout is active (needs the "dropout" rng).

        Raises:
          ValueError: More positions than `max_length`.
        """
        length, longest = pieces_BLD.shape[1], self.config.max_length
        if length > longest:
            raise ValueError(
                f"Bert got {length} positions, BertConfig.max_length is {longest}; "
                "encode with that length or raise it."
            )
        x_BLD = self.norm(pieces_BLD + self.positions[:length].astype(pieces_BLD.dtype))
        x_BLD = self.dropout(x_BLD, deterministic=not train)
        return self.encoder(x_BLD, mask_BL, train=train)


class MaskedLanguageModel(nn.Module):
    """BERT in training: it predicts the pieces that are hidden from it (section 3.1)."""

    config: BertConfig

    def setup(self):
        config, encoder = self.config, self.config.encoder
        init = nn.initializers.normal(encoder.init_deviation)
        self.bert = Bert(config)
        # What stands for a hidden piece; BERT's [MASK], which no text holds, needs no id.
        self.hidden = self.param("hidden", init, (encoder.model_dim,))
        self.transform = nn.Dense(encoder.model_dim, kernel_init=init)
        self.norm = nn.LayerNorm(epsilon=encoder.norm_epsilon)
        self.bias = self.param("bias", nn.initializers.zeros, (config.vocab_size,))

    def __call__(
        self, text_ids_BL: jax.Array, hidden_BL: jax.Array, places_BP: jax.Array, *, train: bool
    ) -> jax.Array:
        """Logits [B, P, K], float32, of the pieces at some places.

        Args:
          text_ids_BL: int32, see `Bert`.
          hidden_BL: bool, the places whose pieces are not shown.
          places_BP: int32, the places whose pieces are wanted.
          train: Whether dropout is active (needs the "dropout" rng).

        Raises:
          ValueError: More positions than `max_length`.
        """
        pieces_BLD = self.bert.pieces(text_ids_BL)
        hidden_D = self.hidden.astype(pieces_BLD.dtype)
        shown_BLD = jnp.where(hidden_BL[..., None], hidden_D, pieces_BLD)
        x_BLD = self.bert.encode(shown_BLD, text_ids_BL != PAD_ID, train=train)
        x_BPD = jnp.take_along_axis(x_BLD, places_BP[..., None], axis=1).astype(jnp.float32)
        x_BPD = self.norm(nn.gelu(self.transform(x_BPD), approximate=False))
        # The same table reads pieces and writes them.
        return x_BPD @ self.bert.pieces.embedding.T + self.bias
