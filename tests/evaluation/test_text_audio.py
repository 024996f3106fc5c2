import numpy as np
import pytest

from musiclm.evaluation import text_audio


def _units(rng, *shape):
    vectors = rng.normal(size=shape)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def test_pairs_that_belong_together_are_told_from_those_that_do_not():
    rng = np.random.default_rng(0)
    text_ND = _units(rng, 40, 16)
    audio_ND = text_ND + 0.2 * _units(rng, 40, 16)
    audio_ND /= np.linalg.norm(audio_ND, axis=1, keepdims=True)
    cosine = text_audio.cosines(text_ND, audio_ND)
    assert cosine["matched"].low > 0.95
    assert cosine["mismatched"].low < 0 < cosine["mismatched"].high
    figures = text_audio.retrieval_figures(text_ND, audio_ND)
    recall = figures["text_to_audio/recall_at_10"]
    assert (recall.value, recall.high) == (1, 1)
    assert recall.low == pytest.approx(0.912, abs=1e-3)  # all of 40: Wilson's


def test_mismatched_pairs_are_all_but_the_diagonal():
    text_ND, audio_ND = np.eye(3), np.array([[0.5, 0, 0], [0.2, 0.7, 0], [0, 0.4, 0.9]])
    cosine = text_audio.cosines(text_ND, audio_ND)
    assert cosine["matched"].value == pytest.approx((0.5 + 0.7 + 0.9) / 3)
    assert cosine["mismatched"].value == pytest.approx((0.2 + 0.4) / 6)


def test_code_agreement_is_counted_by_level():
    text_NQ = np.array([[0, 1], [1, 1], [2, 2], [3, 5]])
    audio_NQ = np.array([[0, 1], [1, 0], [2, 1], [0, 5]])
    first, second = text_audio.code_agreement(text_NQ, audio_NQ)
    assert first["matched"].value == 0.75
    assert first["mismatched"].value == pytest.approx(1 / 12)  # text 0 and audio 3
    assert second["matched"].value == 0.5
    assert second["mismatched"].value == pytest.approx(3 / 12)


def test_embedding_in_batches_keeps_order_and_number():
    class Model:
        def embed_audio(self, waveform_BT):
            assert waveform_BT.shape == (4, 3)
            return waveform_BT[:, :2]

    waveform_NT = np.arange(30.0).reshape(10, 3)
    embedded = text_audio.embed_audio(Model(), waveform_NT, batch_size=4)
    np.testing.assert_array_equal(embedded, waveform_NT[:, :2])


def test_a_single_pair_has_no_mismatch():
    with pytest.raises(ValueError, match="two texts or more"):
        text_audio.cosines(np.ones((1, 2)), np.ones((1, 2)))
