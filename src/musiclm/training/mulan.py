"""Training MuLan: one contrastive step.

Shapes: B batch, T samples, L word pieces, D embedding.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from musiclm import bundle, errors
from musiclm.losses import contrastive
from musiclm.models.bert import BertConfig
from musiclm.models.mulan import MuLan, MuLanConfig, MuLanOutput
from musiclm.training.health import HealthCheck
from musiclm.training.optim import OptimizerConfig
from musiclm.training.state import TrainState

Batch = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MuLanTask:
    """Audio and text towers on pairs.

    Batches hold "waveform", float32 [B, T] of one window each, and "text_ids", int32 [B, L].

    Attributes:
      config: The model.
      optimizer: Its optimizer.
      loss: "mulan" (the paper's) or "info_nce".
      start: A component file, without its suffix, of a BERT that `training.bert` has trained with
        the same vocabulary: the text tower starts from its weights, as the paper's does; None
        starts from random ones.
      gain_db: In training each waveform is made louder or softer by up to this much.
      health_after_step: From here on a loss that is still the untrained one stops the run.
    """

    config: MuLanConfig = MuLanConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    loss: str = "mulan"
    start: str | None = None
    gain_db: float = 6.0
    health_after_step: int = 2_000

    def __post_init__(self):
        if self.loss not in contrastive.LOSSES:
            raise ValueError(
                f"MuLanTask.loss is {self.loss!r}; choose one of {tuple(contrastive.LOSSES)}."
            )
        if self.gain_db < 0:
            raise ValueError(f"MuLanTask.gain_db is {self.gain_db}; set it to 0 or more.")

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Windows, and the word pieces of a caption of each.

        Raises:
          UserError: a batch of one, which has nothing to tell from another.
        """
        if batch_size < 2:
            raise errors.UserError(f"batch_size is {batch_size}: MuLan's loss needs 2 rows or more")
        config = self.config
        return {
            "waveform": jax.ShapeDtypeStruct((batch_size, config.window_samples), jnp.float32),
            "text_ids": jax.ShapeDtypeStruct((batch_size, config.bert.max_length), jnp.int32),
        }

    def init(self, key: jax.Array, batch: Batch) -> TrainState:
        """A fresh state, random even with `start`."""
        variables = MuLan(self.config).init(
            key, batch["waveform"][:1], batch["text_ids"][:1], train=False
        )
        return TrainState.create(variables, self.optimizer.make())

    def read_start(self) -> Mapping[str, Any]:
        """The weights of `start`; `{}` if there is none.

        Raises:
          BundleError: It is missing, no BERT, or one of another config.
        """
        if self.start is None:
            return {}
        bert = bundle.load_component(*os.path.split(self.start))
        if not isinstance(bert.config, BertConfig):
            raise bundle.BundleError(
                f"MuLanTask.start={self.start} is a {type(bert.config).__name__} and no "
                "BertConfig: give what training.bert has trained"
            )
        # It was trained without pooling: what stands for the text is learned here.
        trained = dataclasses.replace(bert.config, pooling=self.config.bert.pooling)
        if trained != self.config.bert:
            raise bundle.BundleError(
                f"MuLanTask.start={self.start} is {trained}, and MuLanConfig.bert is "
                f"{self.config.bert}: make them equal, or train the BERT anew"
            )
        return bert.variables["params"]

    def begin(self, state: TrainState, start: Mapping[str, Any]) -> TrainState:
        """The fresh state with the weights that were read, if there are some."""
        if not start:
            return state
        tower = {**state.params["text_tower"], **start}
        # Made anew, since an average of the weights starts from them.
        return TrainState.create(
            {"params": {**state.params, "text_tower": tower}}, self.optimizer.make()
        )

    def step(
        self, state: TrainState, batch: Batch, key: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """One update on the global batch: all its other pairs are negatives."""
        gain_key, dropout_key, spec_augment_key = jax.random.split(key, 3)
        decibels_B1 = jax.random.uniform(
            gain_key, (len(batch["waveform"]), 1), minval=-self.gain_db, maxval=self.gain_db
        )
        waveform_BT = batch["waveform"] * 10 ** (decibels_B1 / 20)
        rngs = {"dropout": dropout_key, "spec_augment": spec_augment_key}

        def objective(params):
            output = MuLan(self.config).apply(
                {"params": params}, waveform_BT, batch["text_ids"], train=True, rngs=rngs
            )
            return self._metrics(output)

        gradients, scalars = jax.grad(objective, has_aux=True)(state.params)
        scalars["gradient_norm"] = optax.tree.norm(gradients)
        scalars["learning_rate"] = self.optimizer.rate(state.step)
        return state.apply_gradients(gradients, self.optimizer.make()), scalars

    def evaluate(self, state: TrainState, batch: Batch, key: jax.Array) -> dict[str, jax.Array]:
        """The same metrics without augmentation and dropout; recall is within the batch."""
        del key
        output = MuLan(self.config).apply(
            {"params": state.averaged}, batch["waveform"], batch["text_ids"], train=False
        )
        _, scalars = self._metrics(output)
        return scalars

    def forward(
        self, state: TrainState, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> dict[str, jax.Array]:
        """The losses of a batch, through the whole model."""
        return self.evaluate(state, batch, key)

    def export(self, state: TrainState) -> tuple[MuLanConfig, dict[str, Any]]:
        """The config and the variables that a bundle keeps."""
        return self.config, {"params": state.averaged}

    def health(self) -> tuple[HealthCheck, ...]:
        """The loss has to leave its untrained value, and the embeddings one another."""
        return (
            HealthCheck(
                metric="nats_learned",
                breached=lambda value: value < 0.2,
                bound="the loss is still what it is while all pairs look alike: ln B with "
                "info_nce, ln 2(B - 1) with mulan",
                advice="Raise batch_size to 128 or more, lower learning_rate or lengthen "
                "warmup_steps, and check that waveform and text_ids of a row belong together.",
                after_step=self.health_after_step,
            ),
            HealthCheck(
                metric="mismatched_cosine",
                breached=lambda value: value > 0.95,
                bound="every text is next to every waveform",
                advice="The towers collapsed to a point: lower learning_rate, lengthen "
                "warmup_steps, and check that the captions of a batch differ.",
                after_step=self.health_after_step,
            ),
        )

    def _metrics(self, output: MuLanOutput) -> tuple[jax.Array, dict[str, jax.Array]]:
        loss = contrastive.LOSSES[self.loss](output.audio_BD, output.text_BD, output.temperature)
        cosines_BB = output.text_BD @ output.audio_BD.T
        batch = len(cosines_BB)
        matched_B = jnp.diagonal(cosines_BB)
        # Texts to audio: how many of a row beat the text's own waveform, itself counted by `>=`.
        rank_B = jnp.sum(cosines_BB >= matched_B[:, None], axis=1)
        return loss, {
            "loss": loss,
            "nats_learned": contrastive.untrained_value(self.loss, batch) - loss,
            "temperature": output.temperature,
            "recall_at_1": jnp.mean(rank_B <= 1),
            "recall_at_10": jnp.mean(rank_B <= 10),
            "matched_cosine": jnp.mean(matched_B),
            "mismatched_cosine": (jnp.sum(cosines_BB) - jnp.sum(matched_B)) / (batch**2 - batch),
        }
