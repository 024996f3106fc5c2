"""How a token is drawn from logits.

Shapes: B batch, K codes.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """Temperature, then the k likeliest codes, then the smallest set of probability p.

    Attributes:
      temperature: divides the logits; 0 takes the likeliest code.
      top_k: how many of the likeliest codes are left; all if None.
      top_p: codes are left from the likeliest on until their probability reaches this; all if
        None.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self):
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
