"""Retrieval figures: how well one modality finds its pair among many of the other.

Shapes: N queries, M candidates, D embedding. The pair of query i is candidate i.
Ties are broken at random, in expectation: embeddings that collapsed to a point score what chance
scores, not a perfect figure.
"""

import numpy as np


def recall_at_k(similarity_NM: np.ndarray, k: int) -> float:
    """Share of queries whose own candidate is among the k most similar; see `hits_at_k`."""
    return float(np.mean(hits_at_k(similarity_NM, k)))


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


def median_rank(similarity_NM: np.ndarray) -> float:
    """Median place of the own candidate, 1 being best; ties take the middle of their places."""
    above_N, tied_N = _ahead(similarity_NM)
    return float(np.median(1 + above_N + tied_N / 2))


def mean_average_precision(similarity_NM: np.ndarray) -> float:
    """Mean of 1 / place of the own candidate: average precision with one right answer a query."""
    return float(np.mean(average_precisions(similarity_NM)))


def average_precisions(similarity_NM: np.ndarray) -> np.ndarray:
    """1 / place of each query's own candidate, f64 [N]; where ties decide, its expectation."""
    above_N, tied_N = _ahead(similarity_NM)
    harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, similarity_NM.shape[1] + 1))])
    return (harmonic[above_N + tied_N + 1] - harmonic[above_N]) / (tied_N + 1)


def retrieval(text_ND: np.ndarray, audio_ND: np.ndarray, ks=(1, 5, 10)) -> dict[str, float]:
    """Both directions of retrieval between paired embeddings.

    Args:
      text_ND: Unit vectors.
      audio_ND: Unit vectors, row i belonging to text i.
      ks: Depths of recall.

    Returns:
      "text_to_audio/recall_at_10" and the like, with "median_rank" and "mean_average_precision".
    """
    # What differs by float32 rounding alone is a tie: summation order must not decide it.
    similarity_NN = np.round(np.asarray(text_ND) @ np.asarray(audio_ND).T, 6)
    figures = {}
    for name, matrix in (("text_to_audio", similarity_NN), ("audio_to_text", similarity_NN.T)):
        figures |= {f"{name}/recall_at_{k}": recall_at_k(matrix, k) for k in ks}
        figures[f"{name}/median_rank"] = median_rank(matrix)
        figures[f"{name}/mean_average_precision"] = mean_average_precision(matrix)
    return figures


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
