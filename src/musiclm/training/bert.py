"""How BERT is trained: hidden word pieces from those around them (arXiv 1810.04805, section 3.1).

Shapes: B batch, L word pieces, P places that are predicted, K vocabulary.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from musiclm.losses import masked
from musiclm.models.bert import BertConfig, MaskedLanguageModel
from musiclm.tokens.wordpiece import SPECIAL
from musiclm.training import health, optim
from musiclm.training.state import TrainState

Batch = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertTask:
    """Masked language modelling, from batches {"text_ids": int32 [B, L]}.

    What is predicted, and what stands in its place, is drawn by `masked.sample_pieces`.

    Attributes:
      config: the encoder.
      optimizer: the paper has Adam, a linear schedule, peak 1e-4, 10 k warm-up steps.
      predicted_share: how many of the pieces are to be predicted. Paper: 0.15.
      health_after_step: from here on a loss that owes nothing to the other pieces stops the run.
    """

    config: BertConfig
    optimizer: optim.OptimizerConfig
    predicted_share: float = 0.15
    health_after_step: int = 2_000

    def __post_init__(self):
        if not 0.0 < self.predicted_share < 1.0:
            raise ValueError(
                f"BertTask.predicted_share is {self.predicted_share}: set it between 0 and 1"
            )

    @property
    def model(self) -> MaskedLanguageModel:
        """The module; it holds no arrays."""
        return MaskedLanguageModel(self.config)

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Word pieces of texts."""
        shape = (batch_size, self.config.max_length)
        return {"text_ids": jax.ShapeDtypeStruct(shape, jnp.int32)}

    def init(self, key: jax.Array, batch: Batch) -> TrainState:
        """A fresh state; of the batch only the shape is read."""
        text_ids_BL = batch["text_ids"][:1]
        hidden_BL = jnp.zeros_like(text_ids_BL, bool)
        places_BP = jnp.zeros((1, 1), jnp.int32)
        variables = self.model.init(key, text_ids_BL, hidden_BL, places_BP, train=False)
        return TrainState.create(variables, self.optimizer.make())

    def step(
        self, state: TrainState, batch: Batch, key: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """One update on a batch."""

        def loss(params):
            metrics = self._metrics(params, batch, key, train=True)
            return metrics["loss"], metrics

        gradients, metrics = jax.grad(loss, has_aux=True)(state.params)
        metrics["gradient_norm"] = optax.tree.norm(gradients)
        metrics["learning_rate"] = self.optimizer.rate(state.step)
        return state.apply_gradients(gradients, self.optimizer.make()), metrics

    def evaluate(self, state: TrainState, batch: Batch, key: jax.Array) -> dict[str, jax.Array]:
        """The same metrics without dropout, on places drawn from the key."""
        return self._metrics(state.averaged, batch, key, train=False)

    def forward(self, state: TrainState, batch: Batch, key: jax.Array) -> dict[str, jax.Array]:
        """The losses of a batch, through the whole model."""
        return self.evaluate(state, batch, key)

    def export(self, state: TrainState) -> tuple[BertConfig, dict[str, Any]]:
        """The encoder without what predicts pieces; its pooler is not trained, and not there."""
        return self.config, {"params": state.averaged["bert"]}

    def health(self) -> tuple[health.HealthCheck, ...]:
        """Pieces have to be learned from those around them, not from how often there are such."""
        return (
            health.HealthCheck(
                metric="nats_learned",
                breached=lambda value: value < 0.2,
                bound="the loss is that of who knows how often there is a piece, and no text",
                advice="Lower learning_rate, lengthen warmup_steps, or raise "
                "EncoderConfig.init_deviation if the model is narrow.",
                after_step=self.health_after_step,
            ),
        )

    def _metrics(self, params, batch: Batch, key: jax.Array, *, train: bool):
        sample_key, dropout_key = jax.random.split(key)
        text_ids_BL, num_pieces = batch["text_ids"], self.config.vocab_size
        shown_BL, hidden_BL, places_BP, predicted_BP = masked.sample_pieces(
            sample_key,
            text_ids_BL,
            share=self.predicted_share,
            num_special=len(SPECIAL),
            num_pieces=num_pieces,
        )
        logits_BPK = self.model.apply(
            {"params": params},
            shown_BL,
            hidden_BL,
            places_BP,
            train=train,
            rngs={"dropout": dropout_key},
        )
        ids_BP = jnp.take_along_axis(text_ids_BL, places_BP, axis=1)
        loss = masked.prediction_loss(logits_BPK, ids_BP, predicted_BP)
        counts_K = masked.count_pieces(text_ids_BL, len(SPECIAL), num_pieces)
        total = jnp.maximum(counts_K.sum(), 1)
        # The loss of one who knows how often each piece is to be predicted, and no text: the
        # entropy of their shares, which few counts make too small (Miller & Madow's correction).
        unread = jnp.log(masked.perplexity(counts_K / total))
        unread += jnp.maximum((counts_K > 0).sum() - 1, 0) / (2 * total)
        hits_BP = logits_BPK.argmax(-1) == ids_BP
        return {
            "loss": loss,
            "nats_learned": unread - loss,
            "accuracy": masked.masked_mean(hits_BP.astype(jnp.float32), predicted_BP),
        }
