"""Optimizers and learning-rate schedules."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

SCHEDULES = ("constant", "cosine", "transformer")
DECAYED = ("kernel", "embedding")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with warm-up, a schedule and gradient clipping.

    Attributes:
      learning_rate: at the peak.
      warmup_steps: linear, from zero.
      total_steps: where a cosine ends.
      schedule: "constant", "cosine" (to `final_fraction` of the peak) or "transformer" (inverse
        square root of the step after the warm-up).
      final_fraction: what is left of the peak at the end of a cosine.
      b1, b2, eps: Adam's.
      weight_decay: decoupled, on kernels and embeddings only: biases and scales are left alone.
      clip_norm: global norm that gradients are clipped to; 0 leaves them.
    """

    learning_rate: float = 3e-4
    warmup_steps: int = 1_000
    total_steps: int = 100_000
    schedule: str = "cosine"
    final_fraction: float = 0.02
    b1: float = 0.9
    b2: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0

    def __post_init__(self):
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

    def make(self) -> optax.GradientTransformation:
        """The optax transformation."""

        def kernels(params):
            # By name: a stack of layers makes matrices of its scales and biases too.
            return jax.tree.map_with_path(lambda path, _: path[-1].key in DECAYED, params)

        adam = optax.adamw(
            self.rate,
            b1=self.b1,
            b2=self.b2,
            eps=self.eps,
            weight_decay=self.weight_decay,
            mask=kernels,
        )
        if not self.clip_norm:
            return adam
        return optax.chain(optax.clip_by_global_norm(self.clip_norm), adam)
