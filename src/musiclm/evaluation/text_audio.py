"""What a joint embedding of text and audio knows, and how near clips come to their texts.

N pairs, T samples, D embedding, Q levels.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from musiclm.evaluation import bootstrap, retrieval


class JointEmbedding(Protocol):
    """What is asked of MuLan; `tokens.tokenizers.MuLanTokenizer` is one."""

    def embed_audio(self, waveform_BT: np.ndarray) -> np.ndarray:
        """Unit vectors [B, D]."""

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors [B, D]."""

    def quantize(self, embeddings_BD: np.ndarray, modality: str) -> np.ndarray:
        """Codes [B, Q] of the vectors of "audio" or "text"."""


def embed_audio(
    model: JointEmbedding, waveform_NT: np.ndarray, *, batch_size: int = 16
) -> np.ndarray:
    """Unit vectors of clips, f32 [N, D], a batch of one shape at a time."""
    size = min(batch_size, len(waveform_NT))
    parts = [
        model.embed_audio(waveform_NT[np.minimum(np.arange(i, i + size), len(waveform_NT) - 1)])
        for i in range(0, len(waveform_NT), size)
    ]
    return np.concatenate(parts)[: len(waveform_NT)]


def retrieval_figures(
    text_ND: np.ndarray, audio_ND: np.ndarray, *, k: int = 10
) -> dict[str, bootstrap.Estimate]:
    """Recall at k and mean average precision, both ways.

    The intervals are over queries; the candidates stay.

    Args:
      text_ND: Unit vectors.
      audio_ND: Unit vectors, row i belonging to text i.
      k: depth of recall.

    Returns:
      "text_to_audio/recall_at_10" and the like, with "mean_average_precision".
    """
    # What differs by rounding alone is a tie.
    similarity_NN = np.round(text_ND @ audio_ND.T, 6)
    figures = {}
    for way, matrix in (("text_to_audio", similarity_NN), ("audio_to_text", similarity_NN.T)):
        figures[f"{way}/recall_at_{k}"] = bootstrap.share(retrieval.hits_at_k(matrix, k))
        figures[f"{way}/mean_average_precision"] = bootstrap.mean(
            retrieval.average_precisions(matrix)
        )
    return figures


def code_agreement(
    text_codes_NQ: np.ndarray, audio_codes_NQ: np.ndarray
) -> list[dict[str, bootstrap.Estimate]]:
    """How often a text has the code of its own clip, and of the others, level by level.

    A language model that was trained on the codes of audio hears the words through this agreement.

    Returns:
      One dict a level, "matched" and "mismatched".
    """
    agreement = []
    for text_N, audio_N in zip(text_codes_NQ.T, audio_codes_NQ.T, strict=True):
        same_NN = (text_N[:, None] == audio_N).astype(np.float64)
        agreement.append(_split(same_NN))
    return agreement


def cosines(text_ND: np.ndarray, audio_ND: np.ndarray) -> dict[str, bootstrap.Estimate]:
    """Mean cosine of texts with their own clips, and with all others ("matched", "mismatched")."""
    return _split(text_ND @ audio_ND.T)


def _split(pairs_NN: np.ndarray) -> dict[str, bootstrap.Estimate]:
    """The mean over the diagonal, and over all else; an item is a text, hence a row."""
    n = len(pairs_NN)
    if n < 2 or pairs_NN.shape != (n, n):
        raise ValueError(f"pairs of shape {pairs_NN.shape}: give two texts or more, each its clip")
    matched_N = np.diagonal(pairs_NN).astype(np.float64)
    others_N = (pairs_NN.sum(axis=1, dtype=np.float64) - matched_N) / (n - 1)
    return {"matched": bootstrap.mean(matched_N), "mismatched": bootstrap.mean(others_N)}
