import dataclasses
import functools

import jax
import numpy as np
import pytest

from musiclm.models.bert import POOLINGS, Bert, BertConfig, MaskedLanguageModel
from musiclm.nn.encoder import EncoderConfig

SMALL = BertConfig(
    encoder=EncoderConfig(num_layers=2, model_dim=16, num_heads=2, ffn_dim=32, init_deviation=0.25),
    vocab_size=50,
    max_length=12,
)
TEXT_BL = np.array([[2, 5, 6, 7, 3, 0], [2, 8, 9, 3, 0, 0]], np.int32)
HIDDEN_BL = np.zeros(TEXT_BL.shape, bool)
HIDDEN_BL[0, 2] = True
PLACES_BL = np.tile(np.arange(6, dtype=np.int32), (2, 1))


@pytest.fixture(scope="module")
def predict():
    model = MaskedLanguageModel(SMALL)
    variables = model.init(jax.random.key(0), TEXT_BL, HIDDEN_BL, PLACES_BL, train=False)

    def logits_BLK(text_ids_BL, hidden_BL, places_BL=PLACES_BL):
        return model.apply(variables, text_ids_BL, hidden_BL, places_BL, train=False)

    return jax.jit(logits_BLK)


def test_a_hidden_piece_is_not_seen_and_a_shown_one_is(predict):
    logits_BLK = predict(TEXT_BL, HIDDEN_BL)
    assert logits_BLK.shape == (2, 6, 50)
    other_BL = TEXT_BL.copy()
    other_BL[0, 2] = 30
    np.testing.assert_array_equal(predict(other_BL, HIDDEN_BL), logits_BLK)
    shown = predict(TEXT_BL, np.zeros_like(HIDDEN_BL)), predict(other_BL, np.zeros_like(HIDDEN_BL))
    assert np.abs(shown[0] - shown[1])[0].max() > 0.1
    # What surrounds the hidden piece tells it.
    other_BL = TEXT_BL.copy()
    other_BL[0, 1] = 30
    assert np.abs(predict(other_BL, HIDDEN_BL) - logits_BLK)[0, 2].max() > 1e-3


def test_pieces_of_some_places_are_those_of_all(predict):
    places_BP = np.array([[3, 1, 4], [0, 2, 2]], np.int32)
    np.testing.assert_allclose(
        predict(TEXT_BL, HIDDEN_BL, places_BP),
        np.take_along_axis(np.asarray(predict(TEXT_BL, HIDDEN_BL)), places_BP[..., None], 1),
        atol=1e-5,
    )


def test_padding_does_not_change_what_is_predicted(predict):
    wider = [np.pad(array_BL, ((0, 0), (0, 5))) for array_BL in (TEXT_BL, HIDDEN_BL)]
    np.testing.assert_allclose(
        predict(*wider)[:, :4], predict(TEXT_BL, HIDDEN_BL)[:, :4], atol=1e-5
    )


@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_encoder_that_is_trained_is_the_one_that_pools(pooling):
    config = dataclasses.replace(SMALL, pooling=pooling)
    shapes = functools.partial(jax.tree.map, np.shape)
    model = MaskedLanguageModel(SMALL)
    variables = model.init(jax.random.key(0), TEXT_BL, HIDDEN_BL, PLACES_BL, train=False)
    trained = shapes(variables["params"]["bert"])
    used = shapes(Bert(config).init(jax.random.key(0), TEXT_BL, train=False))["params"]
    assert used.keys() - trained.keys() == ({"pooler"} if pooling == "first" else set())
    assert trained == {name: used[name] for name in trained}


def test_in_bfloat16_the_same_pieces_are_predicted(predict):
    encoder = dataclasses.replace(SMALL.encoder, dtype="bfloat16")
    model = MaskedLanguageModel(dataclasses.replace(SMALL, encoder=encoder))
    variables = model.init(jax.random.key(0), TEXT_BL, HIDDEN_BL, PLACES_BL, train=False)
    logits_BLK = model.apply(variables, TEXT_BL, HIDDEN_BL, PLACES_BL, train=False)
    assert logits_BLK.dtype == np.float32
    wanted_BLK = predict(TEXT_BL, HIDDEN_BL)
    assert 0 < np.abs(logits_BLK - wanted_BLK)[TEXT_BL > 0].max() < 0.1 * wanted_BLK.std()


def test_longer_texts_than_there_are_positions_are_refused(predict):
    with pytest.raises(ValueError, match=r"got 13 positions, BertConfig\.max_length is 12"):
        predict(np.ones((1, 13), np.int32), np.zeros((1, 13), bool))
