"""How w2v-BERT is trained: L = β L_contrastive + 0.1 L_diversity + L_MLM, one update a step.

Shapes: B batch, T samples, N frames, M distractors, K codes.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from musiclm.losses import masked
from musiclm.models.w2v_bert import W2vBert, W2vBertConfig, W2vBertOutput
from musiclm.training import health, optim
from musiclm.training.state import TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class W2vBertTask:
    """Masked prediction of learned codes, from batches {"waveform": f32 [B, T]}.

    Attributes:
      config: the model.
      optimizer: the paper has Adam, transformer schedule, peak 2e-3, 25 k warm-up steps.
      crop_seconds: length of the waveforms.
      mask_start_prob: probability that a frame starts a hidden span.
      mask_span: frames of a span.
      num_distractors: hidden frames of the same utterance that a target is told from.
      contrastive_temperature: κ.
      contrastive_weight: β, 1 in the paper; the loss of masked prediction weighs 1.
      diversity_weight: of the loss on unused codes.
      gumbel_start, gumbel_end: temperature τ of the quantizer at the first step and from
        `gumbel_steps` on; geometric between.
      gumbel_steps: how long τ falls.
      target_rate: learning rate of the feature encoder and the quantizer, relative to the rest.
        Their changes re-deal the codes that the rest must predict. 1 is the paper's, with its
        25 k steps of warm-up; a short run with a high rate never catches up unless it is small.
      health_after_step: first step at which the health gates hold.
    """

    config: W2vBertConfig
    optimizer: optim.OptimizerConfig
    crop_seconds: float = 4.0
    mask_start_prob: float = 0.065
    mask_span: int = 10
    num_distractors: int = 100
    contrastive_temperature: float = 0.1
    contrastive_weight: float = 1.0
    diversity_weight: float = 0.1
    gumbel_start: float = 2.0
    gumbel_end: float = 0.5
    gumbel_steps: int = 100_000
    target_rate: float = 1.0
    health_after_step: int = 2_000

    def __post_init__(self):
        if not 0.0 < self.mask_start_prob < 1.0:
            raise ValueError(
                f"W2vBertTask.mask_start_prob {self.mask_start_prob} must lie between 0 and 1"
            )
        for field in ("mask_span", "num_distractors", "gumbel_steps"):
            if getattr(self, field) < 1:
                raise ValueError(f"W2vBertTask.{field} {getattr(self, field)}: give 1 or more")
        if self.optimizer.ema_decay:
            raise ValueError(
                f"W2vBertTask.optimizer has ema_decay {self.optimizer.ema_decay}: give 0, the "
                "statistics of features are those of the weights as they are, not of their average"
            )
        if not self.contrastive_temperature > 0:
            raise ValueError(
                "W2vBertTask.contrastive_temperature "
                f"{self.contrastive_temperature} must be above 0"
            )
        for field in ("contrastive_weight", "diversity_weight"):
            if getattr(self, field) < 0:
                raise ValueError(f"W2vBertTask.{field} {getattr(self, field)} must not be negative")
        if not 0 <= self.target_rate <= 1:
            raise ValueError(f"W2vBertTask.target_rate {self.target_rate} must lie in [0, 1]")
        if not 0 < self.gumbel_end <= self.gumbel_start:
            raise ValueError(
                f"W2vBertTask.gumbel_end {self.gumbel_end} must be above 0 and not above "
                f"gumbel_start {self.gumbel_start}: the quantizer hardens as it learns"
            )

    @property
    def model(self) -> W2vBert:
        """The module; it holds no arrays."""
        return W2vBert(self.config)

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Crops of sound."""
        shape = (batch_size, round(self.crop_seconds * self.config.sample_rate))
        return {"waveform": jax.ShapeDtypeStruct(shape, jnp.float32)}

    def init(self, key: jax.Array, batch: Mapping[str, Any]) -> TrainState:
        """A fresh state; of the batch only the shape is read."""
        streams = dict(
            zip(("params", "mask", "gumbel", "dropout"), jax.random.split(key, 4), strict=True)
        )
        waveform_BT = batch["waveform"]
        mask_BN = self._mask(key, waveform_BT)
        variables = self.model.init(streams, waveform_BT, mask_BN, 1.0, deterministic=False)
        return TrainState.create(variables, self._updates())

    def step(
        self, state: TrainState, batch: Mapping[str, Any], key: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """One update on a batch."""

        def loss(params):
            variables = {"params": params, **state.model_state}
            metrics, model_state = self._losses(
                variables, state.step, batch, key, deterministic=False
            )
            return metrics["loss"], (metrics, model_state)

        gradients, (metrics, model_state) = jax.grad(loss, has_aux=True)(state.params)
        metrics["gradient_norm"] = optax.tree.norm(gradients)
        metrics["gumbel_temperature"] = self.gumbel_temperature(state.step)
        metrics["learning_rate"] = self.optimizer.rate(state.step)
        return state.apply_gradients(gradients, self._updates(), model_state), metrics

    def evaluate(
        self, state: TrainState, batch: Mapping[str, Any], key: jax.Array
    ) -> dict[str, jax.Array]:
        """The losses without dropout or Gumbel noise, on masks drawn from the key."""
        variables = {"params": state.averaged, **state.model_state}
        metrics, _ = self._losses(variables, state.step, batch, key, deterministic=True)
        return metrics

    def forward(
        self, state: TrainState, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> dict[str, jax.Array]:
        """The losses of a batch, through the whole model."""
        return self.evaluate(state, batch, key)

    def export(self, state: TrainState) -> tuple[W2vBertConfig, dict[str, Any]]:
        """What `features` needs: no heads, no quantizer, no block above the feature layer."""
        num_blocks, averaged = max(1, self.config.feature_layer), state.averaged
        params = {name: averaged[name] for name in ("encoder", "projection", "contrastive_half")}
        params["mlm_half"] = jax.tree.map(
            lambda stacked_L: stacked_L[:num_blocks], averaged["mlm_half"]
        )
        config = dataclasses.replace(self.config, mlm_blocks=num_blocks)
        return config, {"params": params, **state.model_state}

    def health(self) -> tuple[health.HealthCheck, ...]:
        """Gates for the two ways in which w2v-BERT fails."""
        chance = math.log(self.num_distractors + 1)
        fewest = max(2.0, 0.02 * self.config.codebook_size)
        collapsed = health.HealthCheck(
            metric="codebook_perplexity",
            breached=lambda value: value < fewest,
            bound=f"at least {fewest:.3g} of {self.config.codebook_size} codes",
            after_step=self.health_after_step,
            patience=5,
            advice="The codebook has collapsed, so the targets say nothing. Raise "
            "diversity_weight or gumbel_start, lower learning_rate or lengthen the warm-up",
        )
        guessing = health.HealthCheck(
            metric="contrastive_loss",
            breached=lambda value: value > 0.97 * chance,
            bound=f"chance is ln({self.num_distractors + 1}) = {chance:.3g}",
            after_step=self.health_after_step,
            patience=5,
            advice="The context predicts nothing: the codebook may have collapsed (see "
            "codebook_perplexity), the learning rate may be far too high or low, or the "
            "clips may be silent. Try a lower learning_rate, a longer warm-up, larger batches",
        )
        # What is not trained for may stay at chance.
        return (collapsed, guessing) if self.contrastive_weight else (collapsed,)

    def gumbel_temperature(self, step: jax.Array | int) -> jax.Array:
        """τ of the quantizer at a step."""
        progress = jnp.clip(step / self.gumbel_steps, 0.0, 1.0)
        return self.gumbel_start * (self.gumbel_end / self.gumbel_start) ** progress

    def _updates(self):
        def makes_targets(params):
            return {name: name in ("encoder", "quantizer") for name in params}

        # After Adam, which would undo a scaling of the gradients.
        slow = optax.masked(optax.scale(self.target_rate), makes_targets)
        return self.optimizer.make(slow)

    def _mask(self, key, waveform_BT):
        batch_size, num_samples = waveform_BT.shape
        return masked.sample_mask(
            key,
            batch_size,
            num_samples // self.config.hop_length,
            start_prob=self.mask_start_prob,
            span=self.mask_span,
        )

    def _losses(self, variables, step, batch, key, *, deterministic):
        """The metrics, and the model's other collections after the batch."""
        mask_key, distractor_key, *stream_keys = jax.random.split(key, 5)
        mask_BN = self._mask(mask_key, batch["waveform"])
        output: W2vBertOutput
        output, model_state = self.model.apply(
            variables,
            batch["waveform"],
            mask_BN,
            self.gumbel_temperature(step),
            deterministic=deterministic,
            rngs=dict(zip(("mask", "gumbel", "dropout"), stream_keys, strict=True)),
            mutable=["batch_stats"],
        )
        targets = output.targets
        contrastive = masked.contrastive_loss(
            output.context_BNC,
            targets.vectors_BNC,
            masked.sample_distractors(distractor_key, mask_BN, self.num_distractors),
            mask_BN,
            temperature=self.contrastive_temperature,
        )
        prediction = masked.prediction_loss(output.mlm_logits_BNK, targets.ids_BN, mask_BN)
        diversity = masked.diversity_loss(targets.probs_BNK)
        usage_K = jnp.bincount(targets.ids_BN.reshape(-1), length=self.config.codebook_size)
        hits_BN = output.mlm_logits_BNK.argmax(-1) == targets.ids_BN
        return {
            "loss": self.contrastive_weight * contrastive
            + self.diversity_weight * diversity
            + prediction,
            "contrastive_loss": contrastive,
            "prediction_loss": prediction,
            "diversity_loss": diversity,
            "prediction_accuracy": masked.masked_mean(hits_BN.astype(jnp.float32), mask_BN),
            "codebook_perplexity": masked.perplexity(usage_K / targets.ids_BN.size),
        }, model_state
