"""Trains a stage: next-token prediction of the target codes (MusicLM, section 3.2)."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from musiclm import errors
from musiclm.models.token_lm import TokenLM, TokenLMConfig
from musiclm.training import health, optim
from musiclm.training.state import TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenLMTask:
    """The semantic, coarse or fine stage, by the layout in its config.

    Batches are {"tokens": int32 [B, S]}, sequences of the config's layout.

    Attributes:
      config: the model.
      optimizer: the algorithm and its schedule.
      condition_dropout: fraction of the rows whose whole prefix is replaced by the null
        identifier, for classifier-free guidance.
      microbatch_size: rows of the global batch that are taken at once, one part after another, for
        a part's memory; a divisor of the batch, and a multiple of the devices that rows lie over.
        None takes all.
      health_after_step: the step from which the loss must be below that of guessing.
    """

    config: TokenLMConfig
    optimizer: optim.OptimizerConfig
    condition_dropout: float = 0.0
    microbatch_size: int | None = None
    health_after_step: int = 1_000

    def __post_init__(self):
        if not 0 <= self.condition_dropout < 1:
            raise ValueError(
                f"TokenLMTask.condition_dropout is {self.condition_dropout}: give 0 up to below 1"
            )

    @property
    def model(self) -> TokenLM:
        """The module, which holds no arrays."""
        return TokenLM(self.config)

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Sequences of the layout.

        Raises:
          UserError: microbatches do not divide the batch.
        """
        size = self.microbatch_size
        if size is not None and (size < 1 or batch_size % size):
            raise errors.UserError(
                f"TokenLMTask.microbatch_size is {size} of {batch_size} rows: give a divisor"
            )
        shape = (batch_size, self.config.layout.sequence_length)
        return {"tokens": jax.ShapeDtypeStruct(shape, jnp.int32)}

    def init(self, key: jax.Array, batch: Mapping[str, jax.Array]) -> TrainState:
        """A fresh state."""
        ids_BS = jnp.asarray(batch["tokens"])
        return TrainState.create(self.model.init(key, ids_BS[:1]), self.optimizer.make())

    def step(
        self, state: TrainState, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """One update."""
        condition_key, dropout_key = jax.random.split(key)
        layout = self.config.layout
        ids_BS = batch["tokens"]
        if self.condition_dropout:
            dropped_B = jax.random.bernoulli(
                condition_key, self.condition_dropout, ids_BS.shape[:1]
            )
            inputs_BS = layout.drop_condition(ids_BS, dropped_B)
        else:
            inputs_BS = ids_BS

        def loss_of(params, inputs_BS, ids_BS, rows_B):
            rngs = {"dropout": jax.random.fold_in(dropout_key, rows_B[0])}  # each part its own
            logits_BTQK = self.model.apply(
                {"params": params}, inputs_BS, deterministic=False, rngs=rngs
            )
            return self._score(logits_BTQK, ids_BS)

        gradients_of = optax.microbatching.microbatch(
            jax.grad(loss_of, has_aux=True),
            argnums=(1, 2, 3),
            microbatch_size=self.microbatch_size,
            accumulator=optax.microbatching.AccumulationType.MEAN,
        )
        rows_B = jnp.arange(len(ids_BS))
        gradients, metrics = gradients_of(state.params, inputs_BS, ids_BS, rows_B)
        metrics["gradient_norm"] = optax.tree.norm(gradients)
        metrics["learning_rate"] = jnp.asarray(self.optimizer.rate(state.step), jnp.float32)
        return state.apply_gradients(gradients, self.optimizer.make()), metrics

    def evaluate(
        self, state: TrainState, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> dict[str, jax.Array]:
        """Loss and accuracy, overall and by level, with the condition and without dropout."""
        del key
        ids_BS = batch["tokens"]
        return self._score(self.model.apply({"params": state.averaged}, ids_BS), ids_BS)[1]

    def forward(
        self, state: TrainState, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> dict[str, jax.Array]:
        """The losses of a batch, through the whole model."""
        # A kernel in Triton hides its products from who counts them.
        return dataclasses.replace(self, config=self._portable_config).evaluate(state, batch, key)

    def export(self, state: TrainState) -> tuple[TokenLMConfig, dict[str, Any]]:
        """The config and the variables that a bundle keeps."""
        return self._portable_config, {"params": state.averaged}

    def health(self) -> tuple[health.HealthCheck, ...]:
        """The loss must come below that of guessing, ln K."""
        guessing = math.log(self.config.layout.target_codebook_size)
        return (
            health.HealthCheck(
                metric="loss",
                breached=lambda loss: loss > 0.98 * guessing,
                bound=f"guessing among the codes gives {guessing:.3f}",
                advice="Nothing is learned: check the tokens (are they constant or shuffled?), or "
                "raise learning_rate",
                after_step=self.health_after_step,
            ),
        )

    @property
    def _portable_config(self) -> TokenLMConfig:
        """The same model for any machine."""
        sizes = dataclasses.replace(self.config.transformer, attention="blocks", scan_unroll=1)
        return dataclasses.replace(self.config, transformer=sizes)

    def _score(self, logits_BTQK, ids_BS) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Mean cross-entropy over the target's tokens, and the metrics."""
        layout = self.config.layout
        codes_BTQ = layout.unflatten_target(ids_BS[:, layout.prefix_length :])
        losses_BTQ = optax.softmax_cross_entropy_with_integer_labels(logits_BTQK, codes_BTQ)
        hits_BTQ = (logits_BTQK.argmax(-1) == codes_BTQ).astype(jnp.float32)
        loss = losses_BTQ.mean()
        metrics = {"loss": loss, "accuracy": hits_BTQ.mean()}
        if layout.target_levels > 1:
            for level in range(layout.target_levels):
                name = layout.target.first_level + level
                metrics[f"loss_level_{name}"] = losses_BTQ[:, :, level].mean()
                metrics[f"accuracy_level_{name}"] = hits_BTQ[:, :, level].mean()
        return loss, metrics
