"""Retrieval figures: how well one modality finds its pair among many of the other.

Shapes: N queries, M candidates, D embedding. The pair of query i is candidate i.
Ties are broken at random, in expectation: embeddings that collapsed to a point score what chance
scores, not a perfect figure.
"""

import numpy as np


def hits_at_k(similarity_NM: np.ndarray, k: int) -> np.ndarray:
    """Whether each query's own candidate is among the k most similar, f64 [N].

    Args:
      similarity_NM: Higher is closer; candidate i belongs to query i, M ≥ N.
      k: At least 1.

    Returns:
      1 or 0; between them the probability where ties decide.

    Raises:
      ValueError: k is below 1, there are fewer candidates than queries, or a value is NaN.
    """
    if k < 1:
        raise ValueError(f"k is {k}; set it to 1 or more.")
    above_N, tied_N = _ahead(similarity_NM)
    # The own candidate stands anywhere in its group of ties with equal probability.
    return np.clip((k - above_N) / (tied_N + 1), 0.0, 1.0)


def average_precisions(similarity_NM: np.ndarray) -> np.ndarray:
    """1 / place of each query's own candidate, f64 [N]; where ties decide, its expectation."""
    above_N, tied_N = _ahead(similarity_NM)
    harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, similarity_NM.shape[1] + 1))])
    return (harmonic[above_N + tied_N + 1] - harmonic[above_N]) / (tied_N + 1)


def _ahead(similarity_NM: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many candidates are strictly closer than the own one, and how many others tie with it."""
    queries, candidates = similarity_NM.shape
    if candidates < queries:
        raise ValueError(
            f"{queries} queries have {candidates} candidates; give every query its own candidate."
        )
    if np.isnan(similarity_NM).any():
        raise ValueError("the similarity holds NaN; check the embeddings.")
    own_N1 = similarity_NM[np.arange(queries), np.arange(queries)][:, None]
    return (similarity_NM > own_N1).sum(axis=1), (similarity_NM == own_N1).sum(axis=1) - 1
