"""Contrastive losses over a batch of pairs: MuLan's own, and InfoNCE.

Plain array code: under `jit` with a batch sharded over devices, the similarities are those of the
global batch.

Shapes: B batch, D embedding.
"""

import math

import jax
import jax.numpy as jnp


def mulan(audio_BD: jax.Array, text_BD: jax.Array, temperature: jax.Array) -> jax.Array:
    """The loss of MuLan (arXiv 2208.12415, section 3.2): the positive is not in the denominator.

    With h = exp(a·t / τ), the mean over i of -log(h_ii / Σ_{j≠i} (h_ij + h_ji)). The paper sums;
    the mean keeps the gradient's scale when the batch grows. Below zero is possible and good.

    Args:
      audio_BD: Unit vectors.
      text_BD: Unit vectors, row i belonging to audio i.
      temperature: τ, a positive scalar.

    Returns:
      A scalar, float32.

    Raises:
      ValueError: The batch has a single pair, hence no negatives.
    """
    scores_BB = _scores(audio_BD, text_BD, temperature)
    positive_B = jnp.diagonal(scores_BB)
    own = jnp.eye(len(scores_BB), dtype=bool)
    negatives_BB = jnp.where(own, -jnp.inf, scores_BB)
    both = jnp.concatenate([negatives_BB, negatives_BB.T], axis=1)
    return jnp.mean(jax.nn.logsumexp(both, axis=1) - positive_B)


def info_nce(audio_BD: jax.Array, text_BD: jax.Array, temperature: jax.Array) -> jax.Array:
    """Symmetric InfoNCE: the mean of both directions' cross-entropies.

    Args, returns and errors as for `mulan`.
    """
    scores_BB = _scores(audio_BD, text_BD, temperature)
    to_text_B = jnp.diagonal(jax.nn.log_softmax(scores_BB, axis=1))
    to_audio_B = jnp.diagonal(jax.nn.log_softmax(scores_BB, axis=0))
    return -0.5 * jnp.mean(to_text_B + to_audio_B)


LOSSES = {"mulan": mulan, "info_nce": info_nce}


def untrained_value(loss: str, batch_size: int) -> float:
    """What a loss of `LOSSES` is while all pairs look alike.

    ln B for InfoNCE; ln 2(B - 1) for MuLan's, whose denominator holds the negatives of both
    directions. A run that stays here has learned nothing.
    """
    return math.log(batch_size) if loss == "info_nce" else math.log(2 * (batch_size - 1))


def _scores(audio_BD: jax.Array, text_BD: jax.Array, temperature: jax.Array) -> jax.Array:
    if audio_BD.shape[0] < 2:
        raise ValueError(
            f"a contrastive loss got a batch of {audio_BD.shape[0]}; it needs 2 pairs or more, and "
            "learns well from 128 on."
        )
    return audio_BD @ text_BD.T / temperature
