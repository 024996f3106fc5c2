"""How a token is drawn from logits.

Shapes: B batch, K codes.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """Guidance, temperature, then the k likeliest codes, then the smallest set of probability p.

    Attributes:
      guidance: how far the condition moves the logits, as a multiple of how far it does by itself
        (classifier-free guidance, Ho & Salimans 2022); 1 is none. Takes twice the rows, and a
        model that was trained with `condition_dropout`.
      temperature: divides the logits; 0 takes the likeliest code.
      top_k: how many of the likeliest codes are left; all if None.
      top_p: codes are left from the likeliest on until their probability reaches this; all if
        None.
    """

    guidance: float = 1.0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self):
        if not (math.isfinite(self.guidance) and self.guidance >= 0):
            raise ValueError(f"Sampling.guidance is {self.guidance}: give 0 or a positive number")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(
                f"Sampling.temperature is {self.temperature}: give 0 or a positive number"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"Sampling.top_k is {self.top_k}: give 1 or more, or None for all")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(
                f"Sampling.top_p is {self.top_p}: give a number above 0 and up to 1, or None"
            )


def guide(logits_GK: jax.Array, guidance: jax.Array) -> jax.Array:
    """Moves logits away from those of the null condition.

    Args:
      logits_GK: f32, G = 2 B: those of the rows with their conditions, then those without.
      guidance: see `Sampling`.

    Returns:
      [B, K].
    """
    with_BK, without_BK = jnp.split(logits_GK, 2)
    return without_BK + guidance * (with_BK - without_BK)


def sample(
    logits_BK: jax.Array,
    keys_B: jax.Array,
    temperature: jax.Array,
    top_k: int | None = None,
    top_p: float | None = None,
) -> jax.Array:
    """Draws one code a row, each row from its own key.

    Args:
      logits_BK: f32.
      keys_B: `jax.random.key`s.
      temperature, top_k, top_p: see `Sampling`. The temperature may be traced, so that another
        one compiles nothing.

    Returns:
      int32 [B].
    """
    greedy = temperature <= 0
    scaled_BK = logits_BK / jnp.where(greedy, 1.0, temperature)
    scaled_BK = keep_likeliest(scaled_BK, top_k, top_p)
    # Adding Gumbel noise and taking the largest draws from the softmax.
    noise_BK = jax.vmap(lambda key: jax.random.gumbel(key, logits_BK.shape[1:]))(keys_B)
    return jnp.where(greedy, logits_BK, scaled_BK + noise_BK).argmax(-1).astype(jnp.int32)


def keep_likeliest(logits_BK: jax.Array, top_k: int | None, top_p: float | None) -> jax.Array:
    """Sets the logits of all codes that `top_k` and then `top_p` leave out to minus infinity."""
    if top_k is not None and top_k < logits_BK.shape[-1]:
        least_B1 = jax.lax.top_k(logits_BK, top_k)[0][:, -1:]
        logits_BK = jnp.where(logits_BK >= least_B1, logits_BK, -jnp.inf)
    if top_p is not None and top_p < 1:
        sorted_BK = jnp.sort(logits_BK, axis=-1, descending=True)
        probs_BK = jax.nn.softmax(sorted_BK, axis=-1)
        # A code stays if those before it do not reach p: the likeliest always does.
        stays_BK = jnp.cumsum(probs_BK, axis=-1) - probs_BK < top_p
        least_B1 = jnp.where(stays_BK, sorted_BK, jnp.inf).min(-1, keepdims=True)
        logits_BK = jnp.where(logits_BK >= least_B1, logits_BK, -jnp.inf)
    return logits_BK
