"""Kullback-Leibler divergence of a classifier's answers to two sets of clips (MusicLM, 5.1).

Shapes: N clips, C classes.
"""

import numpy as np

# How far from 1 a row may sum: f32 softmax over some hundred classes stays well within.
_TOLERANCE = 1e-3


def kl_divergences(p_NC: np.ndarray, q_NC: np.ndarray) -> np.ndarray:
    """KL(p ‖ q) of each row in nats, f64 [N], 0 or more; infinite where q excludes what p holds.

    Args:
      p_NC: distributions, of any real type; computed in f64.
      q_NC: row i is compared with row i.

    Raises:
      ValueError: the shapes differ, or a row is no distribution.
    """
    p_NC, q_NC = _distributions(p_NC, "p"), _distributions(q_NC, "q")
    if p_NC.shape != q_NC.shape:
        raise ValueError(f"p {p_NC.shape} and q {q_NC.shape}: give pairs over the same classes")
    with np.errstate(divide="ignore", invalid="ignore"):
        terms_NC = np.where(p_NC > 0, p_NC * (np.log(p_NC) - np.log(q_NC)), 0.0)
    return np.maximum(terms_NC.sum(axis=1), 0.0)


def kl_divergence(p_NC: np.ndarray, q_NC: np.ndarray) -> float:
    """Mean over rows of KL(p ‖ q), in nats; see `kl_divergences`.

    The paper's KLD has the reference as p and what was generated as q.
    """
    return float(kl_divergences(p_NC, q_NC).mean())


def _distributions(x_NC: np.ndarray, name: str) -> np.ndarray:
    x_NC = np.asarray(x_NC, np.float64)
    if x_NC.ndim != 2 or not x_NC.size:
        raise ValueError(f"{name} has the shape {x_NC.shape}: give one distribution a row, [N, C]")
    total_N1 = x_NC.sum(axis=1, keepdims=True)
    if not (np.isfinite(x_NC).all() and (x_NC >= 0).all()):
        raise ValueError(f"{name} holds negative numbers or NaN: give probabilities, not logits")
    if (np.abs(total_N1 - 1) > _TOLERANCE).any():
        raise ValueError(
            f"a row of {name} sums to {total_N1[np.abs(total_N1 - 1).argmax(), 0]:g}: give "
            "distributions (softmax; independent tags have to be normalised first)"
        )
    return x_NC / total_N1
