"""Optimizers, learning-rate schedules, averages of weights."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from musiclm import sharding

ALGORITHMS = ("adamw", "adafactor", "muon")
SCHEDULES = ("constant", "cosine", "transformer")
DECAYED = ("kernel", "embedding")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, Adafactor or Muon with warm-up, a schedule and gradient clipping.

    Attributes:
      algorithm: one of three.
        "adamw".
        "adafactor" keeps second moments by rows and columns and no first ones, which saves two
        thirds of the bytes. Its learning rate is relative to the size of the weights (T5: 1e-2);
        `b1`, `b2` and `eps` are not used.
        "muon" makes the momentum of each kernel orthogonal (Jordan 2024) and scales it to the size
        of AdamW's updates (Liu et al., arXiv 2502.16982), so that AdamW's learning rates serve. All
        else goes by Adam with Nesterov's momentum.
      muon_rms: root mean square of Muon's updates, relative to the learning rate.
      learning_rate: at the peak.
      warmup_steps: linear, from zero.
      total_steps: where a cosine ends.
      schedule: "constant", "cosine" (to `final_fraction` of the peak) or "transformer" (inverse
        square root of the step after the warm-up).
      final_fraction: what is left of the peak at the end of a cosine.
      b1, b2, eps: Adam's.
      weight_decay: decoupled, on kernels and embeddings only: biases and scales are left alone.
      clip_norm: global norm that gradients are clipped to; 0 leaves them.
      ema_decay: of a moving average of the weights, which evaluation and the finished model take;
        0 keeps none.
    """

    algorithm: str = "adamw"
    learning_rate: float = 3e-4
    warmup_steps: int = 1_000
    total_steps: int = 100_000
    schedule: str = "cosine"
    final_fraction: float = 0.02
    b1: float = 0.9
    b2: float = 0.99
    eps: float = 1e-8
    muon_rms: float = 0.2
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    ema_decay: float = 0.0

    def __post_init__(self):
        if self.algorithm not in ALGORITHMS:
            raise ValueError(
                f"OptimizerConfig.algorithm is {self.algorithm!r}: choose one of {ALGORITHMS}"
            )
        if self.muon_rms <= 0:
            raise ValueError(f"OptimizerConfig.muon_rms is {self.muon_rms}: give a positive number")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"OptimizerConfig.ema_decay is {self.ema_decay}: give 0 up to below 1")
        if self.schedule not in SCHEDULES:
            raise ValueError(
                f"OptimizerConfig.schedule is {self.schedule!r}: choose one of {SCHEDULES}"
            )
        if self.learning_rate <= 0:
            raise ValueError(
                f"OptimizerConfig.learning_rate is {self.learning_rate}: give a positive number"
            )
        if not 0 <= self.warmup_steps < self.total_steps:
            raise ValueError(
                f"OptimizerConfig.warmup_steps is {self.warmup_steps} of {self.total_steps} steps: "
                "give 0 or more, and fewer than total_steps"
            )

    def rate(self, step):
        """The learning rate at a step (a number or a traced scalar)."""
        warmup = jnp.minimum(1.0, step / self.warmup_steps) if self.warmup_steps else 1.0
        after = jnp.maximum(0.0, step - self.warmup_steps)
        if self.schedule == "constant":
            decay = 1.0
        elif self.schedule == "cosine":
            progress = jnp.minimum(1.0, after / (self.total_steps - self.warmup_steps))
            cosine = 0.5 * (1 + jnp.cos(jnp.pi * progress))
            decay = self.final_fraction + (1 - self.final_fraction) * cosine
        else:
            start = max(1, self.warmup_steps)
            decay = jnp.sqrt(start / (start + after))
        return self.learning_rate * warmup * decay

    def make(self, *last: optax.GradientTransformation) -> optax.GradientTransformation:
        """The optax transformation; `last` come after the algorithm, on its updates."""
        algorithms = {"adamw": self._adamw, "adafactor": self._adafactor, "muon": self._muon}
        return optax.chain(
            optax.clip_by_global_norm(self.clip_norm) if self.clip_norm else optax.identity(),
            algorithms[self.algorithm](),
            *last,
            average_weights(self.ema_decay) if self.ema_decay else optax.identity(),
        )

    def _adamw(self) -> optax.GradientTransformation:
        return optax.adamw(
            self.rate,
            b1=self.b1,
            b2=self.b2,
            eps=self.eps,
            weight_decay=self.weight_decay,
            mask=_decayed,
        )

    def _adafactor(self) -> optax.GradientTransformation:
        # optax.adafactor would decay weights without regard to the learning rate.
        return optax.chain(
            optax.scale_by_factored_rms(),
            optax.clip_by_block_rms(1.0),
            optax.scale_by_param_block_rms(),
            optax.add_decayed_weights(self.weight_decay, mask=_decayed),
            optax.scale_by_learning_rate(self.rate),
        )

    def _muon(self) -> optax.GradientTransformation:
        # Its own decay of what goes by Adam would know no mask.
        return optax.chain(
            optax.contrib.muon(
                1.0,
                eps=self.eps,
                adam_b1=self.b1,
                adam_b2=self.b2,
                consistent_rms=self.muon_rms,
                muon_weight_dimension_numbers=_matrices,
            ),
            optax.add_decayed_weights(-self.weight_decay, mask=_decayed),
            optax.scale_by_learning_rate(self.rate, flip_sign=False),
        )


def _matrices(params):
    # Axes before the last two, of layers or of a convolution's taps, number matrices.
    def matrix(path, value):
        if path[-1].key != "kernel" or value.ndim < 2:
            return None
        return optax.contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)

    return jax.tree.map_with_path(matrix, params)


def _decayed(params):
    # By name: a stack of layers makes matrices of its scales and biases too, and relative
    # positions have a table of biases.
    def decays(path, _):
        return path[-1].key in DECAYED and "relative_bias" not in sharding.path_name(path)

    return jax.tree.map_with_path(decays, params)


class Average(NamedTuple):
    """State of `average_weights`: the average, a tree like the weights."""

    average: Any


def average_weights(decay: float) -> optax.GradientTransformation:
    """Keeps a moving average of the weights beside an optimizer: put it last in its chain."""

    def init(params):
        return Average(params)

    def update(updates, state, params):
        after = optax.apply_updates(params, updates)
        return updates, Average(optax.incremental_update(after, state.average, 1 - decay))

    return optax.GradientTransformation(init, update)


def averaged(params: Any, opt_state: optax.OptState) -> Any:
    """The average of the weights if the optimizer keeps one, else the weights."""
    return optax.tree.get(opt_state, "average", params)
