"""Adversarial losses of codecs, and the balancing of their gradients.

Shape legend: B batch, T samples or frames.
"""

from collections.abc import Mapping, Sequence

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax


def _mean(values: Sequence[jax.Array]) -> jax.Array:
    return sum(values) / len(values)


def discriminator_hinge(
    real_logits: Sequence[jax.Array], fake_logits: Sequence[jax.Array]
) -> jax.Array:
    """Hinge loss of the discriminators (arXiv 2107.03312, eq. 2), a mean over them.

    Args:
      real_logits: one array of logits over time for each discriminator.
      fake_logits: the same for reconstructions.

    Returns:
      A scalar: 2 when they cannot tell, 0 when they always can.
    """
    return _mean(
        [
            jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake))
            for real, fake in zip(real_logits, fake_logits, strict=True)
        ]
    )


def generator_hinge(fake_logits: Sequence[jax.Array]) -> jax.Array:
    """mean max(0, 1 - D(reconstruction)) over the discriminators (eq. 3), a scalar."""
    return _mean([jnp.mean(jax.nn.relu(1 - fake)) for fake in fake_logits])


def feature_matching(
    real_features: Sequence[Sequence[jax.Array]], fake_features: Sequence[Sequence[jax.Array]]
) -> jax.Array:
    """Mean absolute gap of the discriminators' inner layers (eq. 4), a scalar.

    Args:
      real_features: for each discriminator, its layers' outputs. They carry no gradient.
      fake_features: the same for reconstructions.
    """
    return _mean(
        [
            jnp.mean(jnp.abs(lax.stop_gradient(real) - fake))
            for reals, fakes in zip(real_features, fake_features, strict=True)
            for real, fake in zip(reals, fakes, strict=True)
        ]
    )


@flax.struct.dataclass
class BalancerState:
    """Moving average of each loss's gradient norm.

    Attributes:
      norms: name to sum of decayed norms.
      weights: name to sum of the decays, which undoes the start at zero.
    """

    norms: dict[str, jax.Array]
    weights: dict[str, jax.Array]

    @classmethod
    def create(cls, names: Sequence[str]) -> "BalancerState":
        """The state before any gradient."""
        zeros = {name: jnp.zeros(()) for name in names}
        return cls(norms=zeros, weights=dict(zeros))


def balance_gradients(
    gradients: Mapping[str, jax.Array], weights: Mapping[str, float | jax.Array],
    state: BalancerState, *, decay: float = 0.999,
) -> tuple[jax.Array, BalancerState]:  # fmt: skip
    """Sums gradients with respect to a waveform so that weights mean shares, whatever the scales.

    Each gradient is divided by the moving average of its norm (over the whole batch) and
    multiplied by its weight's share of the weights (EnCodec, arXiv 2210.13438, 3.4).

    Args:
      gradients: name to gradient `[B, T]`.
      weights: name to weight ≥ 0; a weight of 0 turns a loss off and leaves its average alone.
      state: the moving averages.
      decay: of them.

    Returns:
      The sum `[B, T]`, its norm about 1 or less, and the new state.
    """
    total = sum(weights[name] for name in gradients)
    balanced = 0.0
    norms, seen = {}, {}
    for name, gradient in gradients.items():
        active = jnp.asarray(weights[name]) > 0
        norm = jnp.sqrt(jnp.sum(gradient**2))
        norms[name] = jnp.where(
            active, decay * state.norms[name] + (1 - decay) * norm, state.norms[name]
        )
        seen[name] = jnp.where(active, decay * state.weights[name] + 1 - decay, state.weights[name])
        average = norms[name] / jnp.maximum(seen[name], 1e-12)
        share = weights[name] / jnp.maximum(total, 1e-12)
        balanced += jnp.where(active, share / jnp.maximum(average, 1e-12), 0.0) * gradient
    return balanced, BalancerState(norms=norms, weights=seen)
