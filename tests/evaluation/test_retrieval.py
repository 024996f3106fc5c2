import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musiclm.evaluation import retrieval, text_audio


def test_recall_counts_the_queries_whose_pair_is_near_the_top():
    similarity_NM = np.array([[0.9, 0.1, 0.0], [0.8, 0.5, 0.1], [0.3, 0.2, 0.1]])
    assert retrieval.hits_at_k(similarity_NM, 1).mean() == pytest.approx(1 / 3)
    assert retrieval.hits_at_k(similarity_NM, 2).mean() == pytest.approx(2 / 3)
    assert retrieval.hits_at_k(similarity_NM, 3).mean() == 1
    assert retrieval.average_precisions(similarity_NM) == pytest.approx([1, 1 / 2, 1 / 3])


def test_the_two_directions_differ():
    # Text 0 is a hub: every audio is nearest to it, but each text finds its own audio.
    similarity_NN = np.array([[0.9, 0.7, 0.7], [0.0, 0.6, 0.1], [0.0, 0.1, 0.6]])
    assert retrieval.hits_at_k(similarity_NN, 1).mean() == 1
    assert retrieval.hits_at_k(similarity_NN.T, 1).mean() == pytest.approx(1 / 3)


@settings(deadline=None)
@given(st.integers(2, 60), st.integers(1, 60))
def test_collapsed_embeddings_score_chance(size, k):
    point_ND = np.tile(np.random.default_rng(0).normal(size=16) / 4, (size, 1)).astype(np.float32)
    figures = text_audio.retrieval_figures(point_ND, point_ND, k=k)
    for way in ("text_to_audio", "audio_to_text"):
        assert figures[f"{way}/recall_at_{k}"].value == pytest.approx(min(1, k / size))
        chance = np.mean(1 / np.arange(1, size + 1))
        assert figures[f"{way}/mean_average_precision"].value == pytest.approx(chance)


def test_ties_are_the_average_over_random_orders():
    rng = np.random.default_rng(1)
    similarity_NN = rng.integers(0, 3, (12, 12)).astype(float)
    noise = (rng.random((4000, 12, 12)) - 0.5) * 1e-3
    recalls = [retrieval.hits_at_k(similarity_NN + n, 3).mean() for n in noise]
    precisions = [retrieval.average_precisions(similarity_NN + n).mean() for n in noise]
    assert retrieval.hits_at_k(similarity_NN, 3).mean() == pytest.approx(np.mean(recalls), abs=0.01)
    assert retrieval.average_precisions(similarity_NN).mean() == pytest.approx(
        np.mean(precisions), abs=0.01
    )


def test_perfect_embeddings_score_one():
    figures = text_audio.retrieval_figures(np.eye(20), np.eye(20))
    assert all(estimate.value == 1 for estimate in figures.values())


def test_bad_arguments_say_what_is_wrong():
    with pytest.raises(ValueError, match="k is 0"):
        retrieval.hits_at_k(np.eye(3), 0)
    with pytest.raises(ValueError, match="3 queries have 2 candidates"):
        retrieval.hits_at_k(np.ones((3, 2)), 1)
    with pytest.raises(ValueError, match="NaN"):
        retrieval.hits_at_k(np.full((2, 2), np.nan), 1)
