"""How SoundStorm is trained: masked codes of one level, from the codes around them (section 3.2).

Shapes: B batch, S sequence, T frames, Q levels, K codes.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from musiclm.losses import masked
from musiclm.models import soundstorm
from musiclm.models.soundstorm import SoundStorm, SoundStormConfig
from musiclm.training import health, optim
from musiclm.training.state import TrainState


@flax.struct.dataclass
class Masks:
    """What is hidden from the model, and what it is asked for.

    Attributes:
      level_B: int32, the level that is asked for.
      asked_BT: bool, at which frames.
      masked_BTQ: bool, all codes that are hidden.
    """

    level_B: jax.Array
    asked_BT: jax.Array
    masked_BTQ: jax.Array


def sample_masks(key: jax.Array, level_B: jax.Array, num_frames: int, num_levels: int) -> Masks:
    """Draws what generation may look like on its way (SoundStorm, section 3.2).

    A row has a prompt of t frames, t ~ U{0 … T - 1}, all of whose codes are seen. Of the frames
    after it the level's own code is masked with the probability cos(u), u ~ U[0, π/2], and the
    codes of all finer levels are.

    Args:
      key: random key.
      level_B: int32, the level of every row.
      num_frames, num_levels: T and Q.
    """
    prompt_key, share_key, mask_key = jax.random.split(key, 3)
    rows = level_B.shape
    prompt_B = jax.random.randint(prompt_key, rows, 0, num_frames)
    share_B = jnp.cos(jax.random.uniform(share_key, rows, maxval=jnp.pi / 2))
    generated_BT = jnp.arange(num_frames) >= prompt_B[:, None]
    drawn_BT = jax.random.bernoulli(mask_key, share_B[:, None], generated_BT.shape)
    asked_BT = generated_BT & drawn_BT
    masked_BTQ = soundstorm.masked_codes(asked_BT, generated_BT, level_B, num_levels)
    return Masks(level_B=level_B, asked_BT=asked_BT, masked_BTQ=masked_BTQ)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoundStormTask:
    """SoundStorm on batches {"tokens": int32 [B, S]}, sequences of the config's layout.

    Attributes:
      config: the model.
      optimizer: and its schedule.
      condition_dropout: fraction of the rows whose whole prefix is replaced by the null
        identifier, for classifier-free guidance.
      health_after_step: the step from which the loss must be below that of guessing.
    """

    config: SoundStormConfig
    optimizer: optim.OptimizerConfig
    condition_dropout: float = 0.0
    health_after_step: int = 1_000

    def __post_init__(self):
        if not 0 <= self.condition_dropout < 1:
            raise ValueError(
                f"SoundStormTask.condition_dropout is {self.condition_dropout}: give 0 up to "
                "below 1"
            )

    @property
    def model(self) -> SoundStorm:
        """The module, which holds no arrays."""
        return SoundStorm(self.config)

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Sequences of the layout."""
        shape = (batch_size, self.config.layout.sequence_length)
        return {"tokens": jax.ShapeDtypeStruct(shape, jnp.int32)}

    def init(self, key: jax.Array, batch: Mapping[str, jax.Array]) -> TrainState:
        """A fresh state."""
        ids_BS = jnp.asarray(batch["tokens"])[:1]
        masks = self._masks(key, jnp.zeros(1, jnp.int32))
        variables = self.model.init(key, ids_BS, masks.masked_BTQ, masks.level_B)
        return TrainState.create(variables, self.optimizer.make())

    def step(
        self, state: TrainState, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """One update; every row is asked for a level of its own."""
        condition_key, level_key, mask_key, dropout_key = jax.random.split(key, 4)
        layout, ids_BS = self.config.layout, batch["tokens"]
        inputs_BS = ids_BS
        if self.condition_dropout:
            rate, rows = self.condition_dropout, ids_BS.shape[:1]
            inputs_BS = layout.drop_condition(
                ids_BS, jax.random.bernoulli(condition_key, rate, rows)
            )
        masks = self._masks(mask_key, self._levels(level_key, ids_BS))

        def loss_of(params):
            logits_BTK = self.model.apply(
                {"params": params},
                inputs_BS,
                masks.masked_BTQ,
                masks.level_B,
                deterministic=False,
                rngs={"dropout": dropout_key},
            )
            metrics = self._score(logits_BTK, ids_BS, masks)
            return metrics["loss"], metrics

        gradients, metrics = jax.grad(loss_of, has_aux=True)(state.params)
        metrics["gradient_norm"] = optax.tree.norm(gradients)
        metrics["learning_rate"] = jnp.asarray(self.optimizer.rate(state.step), jnp.float32)
        return state.apply_gradients(gradients, self.optimizer.make()), metrics

    def evaluate(
        self, state: TrainState, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> dict[str, jax.Array]:
        """Loss and accuracy of every level on every row, and their means over the levels."""
        layout, ids_BS = self.config.layout, batch["tokens"]

        def of_level(level):
            level_B = jnp.full(len(ids_BS), level)
            masks = self._masks(jax.random.fold_in(key, level), level_B)
            return self._score(self._logits(state, ids_BS, masks), ids_BS, masks)

        metrics_Q = jax.lax.map(of_level, jnp.arange(layout.target_levels, dtype=jnp.int32))
        metrics = {name: value_Q.mean() for name, value_Q in metrics_Q.items()}
        for level in range(layout.target_levels):
            for name, value_Q in metrics_Q.items():
                number = layout.target.first_level + level
                metrics[f"{name}_level_{number}"] = value_Q[level]
        return metrics

    def forward(
        self, state: TrainState, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> dict[str, jax.Array]:
        """The loss of a batch at one level a row, through the whole model."""
        masks = self._masks(key, self._levels(key, batch["tokens"]))
        return self._score(self._logits(state, batch["tokens"], masks), batch["tokens"], masks)

    def export(self, state: TrainState) -> tuple[SoundStormConfig, dict[str, Any]]:
        """The config and the variables that a bundle keeps."""
        return self.config, {"params": state.averaged}

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

    def _levels(self, key, ids_BS):
        levels = self.config.layout.target_levels
        return jax.random.randint(key, ids_BS.shape[:1], 0, levels)

    def _masks(self, key, level_B):
        target = self.config.layout.target
        return sample_masks(key, level_B, target.num_frames, target.num_levels)

    def _logits(self, state, ids_BS, masks):
        params = {"params": state.averaged}
        return self.model.apply(params, ids_BS, masks.masked_BTQ, masks.level_B)

    def _score(self, logits_BTK, ids_BS, masks) -> dict[str, jax.Array]:
        """Mean cross-entropy and accuracy over the codes that are asked for."""
        layout = self.config.layout
        codes_BTQ = layout.unflatten_target(ids_BS[:, layout.prefix_length :])
        codes_BT = jnp.take_along_axis(codes_BTQ, masks.level_B[:, None, None], axis=2)[..., 0]
        hits_BT = (logits_BTK.argmax(-1) == codes_BT).astype(jnp.float32)
        return {
            "loss": masked.prediction_loss(logits_BTK, codes_BT, masks.asked_BT),
            "accuracy": masked.masked_mean(hits_BT, masks.asked_BT),
        }
