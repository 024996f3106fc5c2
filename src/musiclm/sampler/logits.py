"""How a token is drawn from logits.

Shapes: B batch, K codes.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# As `top_k`: more than any stage has.
ALL_CODES = 2**31 - 1


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
        if self.top_k is not None and (self.top_k < 1 or self.top_k % 1):
            raise ValueError(
                f"Sampling.top_k is {self.top_k}: give a whole number from 1, or None for all"
            )
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(
                f"Sampling.top_p is {self.top_p}: give a number above 0 and up to 1, or None"
            )

    @property
    def guided(self) -> bool:
        """Whether it takes twice the rows."""
        return self.guidance != 1

    @property
    def filtered(self) -> bool:
        """Whether it leaves out codes."""
        return self.top_k is not None or self.top_p is not None


class Rows(NamedTuple):
    """The settings of a batch, one number a row, so that no other setting compiles anything."""

    guidance_B: np.ndarray
    temperature_B: np.ndarray
    top_k_B: np.ndarray
    top_p_B: np.ndarray


def by_row(samplings: Sequence[Sampling]) -> Rows:
    """Settings as arrays: f32, and int32 for `top_k`, whose largest number keeps all codes."""
    return Rows(
        np.array([s.guidance for s in samplings], np.float32),
        np.array([s.temperature for s in samplings], np.float32),
        np.array([min(s.top_k or ALL_CODES, ALL_CODES) for s in samplings], np.int32),
        np.array([1.0 if s.top_p is None else s.top_p for s in samplings], np.float32),
    )


def guide(logits_GK: jax.Array, guidance_B: jax.Array) -> jax.Array:
    """Moves logits away from those of the null condition.

    Args:
      logits_GK: f32, G = 2 B: those of the rows with their conditions, then those without.
      guidance_B: see `Sampling`.

    Returns:
      [B, K].
    """
    with_BK, without_BK = jnp.split(logits_GK, 2)
    guidance_B1 = guidance_B[:, None]
    guided_BK = without_BK + guidance_B1 * (with_BK - without_BK)
    # Exactly, not but for rounding: a row without guidance may stand beside one with it.
    return jnp.where(guidance_B1 == 1, with_BK, guided_BK)


def sample(
    logits_BK: jax.Array, keys_B: jax.Array, rows: Rows, *, filtered: bool = True
) -> jax.Array:
    """Draws one code a row, each row from its own key and by its own settings.

    Args:
      logits_BK: f32, guided already.
      keys_B: `jax.random.key`s.
      rows: see `by_row`.
      filtered: whether any row has a `top_k` or `top_p`; looking for them takes a sort.

    Returns:
      int32 [B].
    """
    temperature_B1 = rows.temperature_B[:, None]
    greedy_B1 = temperature_B1 <= 0
    scaled_BK = logits_BK / jnp.where(greedy_B1, 1.0, temperature_B1)
    if filtered:
        scaled_BK = keep_likeliest(scaled_BK, rows.top_k_B, rows.top_p_B)
    # Adding Gumbel noise and taking the largest draws from the softmax.
    noise_BK = jax.vmap(lambda key: jax.random.gumbel(key, logits_BK.shape[1:]))(keys_B)
    return jnp.where(greedy_B1, logits_BK, scaled_BK + noise_BK).argmax(-1).astype(jnp.int32)


def keep_likeliest(logits_BK: jax.Array, top_k_B: jax.Array, top_p_B: jax.Array) -> jax.Array:
    """Sets the logits of all codes that `top_k` and then `top_p` leave out to minus infinity."""
    top_p_B1 = top_p_B[:, None]
    sorted_BK = jnp.sort(logits_BK, axis=-1, descending=True)
    last_B1 = jnp.minimum(top_k_B, logits_BK.shape[-1])[:, None] - 1
    stays_BK = sorted_BK >= jnp.take_along_axis(sorted_BK, last_B1, axis=-1)
    probs_BK = jax.nn.softmax(jnp.where(stays_BK, sorted_BK, -jnp.inf), axis=-1)
    # A code stays if those before it do not reach p: the likeliest always does. At 1 all stay: sums
    # of rounded numbers may reach it too early.
    stays_BK &= (jnp.cumsum(probs_BK, axis=-1) - probs_BK < top_p_B1) | (top_p_B1 >= 1)
    least_B1 = jnp.where(stays_BK, sorted_BK, jnp.inf).min(-1, keepdims=True)
    return jnp.where(logits_BK >= least_B1, logits_BK, -jnp.inf)
