import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musiclm.losses import masked

sample_distractors = jax.jit(masked.sample_distractors, static_argnums=2)
contrastive_loss = jax.jit(masked.contrastive_loss)


@settings(max_examples=8, deadline=None)
@given(
    start_prob=st.sampled_from([0.02, 0.065, 0.2]),
    span=st.sampled_from([1, 4, 10]),
    seed=st.integers(0, 1000),
)
def test_mask_hides_the_share_that_probability_and_span_ask_for(start_prob, span, seed):
    mask_BN = np.asarray(
        masked.sample_mask(jax.random.key(seed), 64, 500, start_prob=start_prob, span=span)
    )
    expected = 1 - (1 - start_prob) ** span
    assert abs(mask_BN[:, span:].mean() - expected) < 0.04
    for row_N in mask_BN[:8]:
        edges = np.flatnonzero(np.diff(np.concatenate([[0], row_N, [0]])))
        lengths = (edges[1::2] - edges[::2])[:-1]  # the last run may be cut by the end
        assert (lengths >= span).all()
        if span == 10 and start_prob == 0.2:
            assert (lengths > span).any()  # spans overlap


def test_mask_of_every_frame_and_its_last_frame():
    everything = masked.sample_mask(jax.random.key(0), 3, 20, start_prob=0.999999, span=4)
    assert bool(everything.all())
    ends = masked.sample_mask(jax.random.key(1), 4000, 5, start_prob=0.1, span=2)
    # Frame 0 has one chance to be hidden, the others two.
    np.testing.assert_allclose(ends.mean(0), [0.1, 0.19, 0.19, 0.19, 0.19], atol=0.03)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), prob=st.floats(0.05, 0.9))
def test_distractors_are_other_hidden_frames_of_the_utterance(seed, prob):
    mask_BN = np.random.default_rng(seed).random((3, 24)) < prob
    drawn_BNM = np.asarray(sample_distractors(jax.random.key(seed), mask_BN, 7))
    assert drawn_BNM.shape == (3, 24, 7)
    for row, frame in np.argwhere(mask_BN & (mask_BN.sum(1, keepdims=True) > 1)):
        assert mask_BN[row, drawn_BNM[row, frame]].all()
        assert (drawn_BNM[row, frame] != frame).all()


def test_distractors_are_uniform():
    mask_BN = np.array([[True, False, True, True, False, True]])
    drawn = np.asarray(sample_distractors(jax.random.key(0), mask_BN, 6000))[0, 2]
    shares = np.bincount(drawn, minlength=6) / 6000
    np.testing.assert_allclose(shares, [1 / 3, 0, 0, 1 / 3, 0, 1 / 3], atol=0.03)


def test_contrastive_loss_by_hand():
    context = jnp.array([[[1.0, 0.0], [0.0, 3.0], [1.0, 1.0]]])
    targets = jnp.array([[[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]])
    mask = jnp.array([[True, True, False]])
    distractors = jnp.array([[[1, 1], [0, 0], [0, 0]]])
    # Both hidden frames: cosine 1 with their own target, 0 with the two distractors.
    expected = -math.log(math.exp(2) / (math.exp(2) + 2))
    loss = contrastive_loss(context, targets, distractors, mask, temperature=0.5)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_contrastive_loss_of_a_collapsed_codebook_is_chance():
    context = np.random.default_rng(0).normal(size=(2, 10, 4))
    targets = np.broadcast_to([1.0, 2.0, 3.0, 4.0], (2, 10, 4))
    mask = np.ones((2, 10), bool)
    distractors = sample_distractors(jax.random.key(1), mask, 30)
    loss = contrastive_loss(context, targets, distractors, mask, temperature=0.1)
    assert float(loss) == pytest.approx(math.log(31), rel=1e-5)


def test_contrastive_loss_leaves_out_utterances_without_distractors():
    context = np.random.default_rng(0).normal(size=(2, 6, 4))
    mask = np.zeros((2, 6), bool)
    mask[0, 1] = mask[1, 2:5] = True
    distractors = sample_distractors(jax.random.key(1), mask, 5)
    both = contrastive_loss(context, context, distractors, mask, temperature=0.1)
    second = contrastive_loss(context[1:], context[1:], distractors[1:], mask[1:], temperature=0.1)
    assert float(both) == pytest.approx(float(second), rel=1e-5)
    nothing = contrastive_loss(context, context, distractors, np.zeros_like(mask), temperature=0.1)
    assert float(nothing) == 0.0


def test_prediction_loss_by_hand_and_on_hidden_frames_only():
    logits = np.log([[[0.7, 0.2, 0.1], [0.5, 0.25, 0.25], [0.9, 0.05, 0.05]]])
    ids, mask = np.array([[0, 2, 1]]), np.array([[True, True, False]])
    loss, gradient = jax.jit(jax.value_and_grad(masked.prediction_loss))(logits + 5.0, ids, mask)
    assert float(loss) == pytest.approx(-(math.log(0.7) + math.log(0.25)) / 2, rel=1e-5)
    assert np.abs(gradient)[0, 2].max() == 0.0


def test_diversity_loss_at_its_extremes():
    diversity_loss = jax.jit(masked.diversity_loss)
    all_alike = np.full((2, 5, 8), 1 / 8)
    assert float(diversity_loss(all_alike)) == pytest.approx(0.0, abs=1e-5)
    # Each frame sure of its own code uses the codebook as evenly as frames unsure of theirs.
    each_its_own = np.eye(8)[None]
    assert float(diversity_loss(each_its_own)) == pytest.approx(0.0, abs=1e-5)
    one_code = np.broadcast_to(np.eye(8)[0], (2, 5, 8))
    assert float(diversity_loss(one_code)) == pytest.approx(1 - 1 / 8, rel=1e-5)
    gradient_of = jax.jit(jax.grad(lambda x: masked.diversity_loss(jax.nn.softmax(x))))
    # Pushes the code that all frames choose down.
    assert np.min(gradient_of(one_code * 3.0)[..., 0]) > 0
    # Also where the others' probabilities are 0 in float32.
    assert np.isfinite(gradient_of(one_code * 200.0)).all()


def test_perplexity_of_a_half_used_codebook():
    assert float(masked.perplexity(jnp.array([0.25] * 4 + [0.0] * 4))) == pytest.approx(4.0)


@pytest.fixture(scope="module")
def draw():
    """`sample_pieces` with its places as a mask of all, after a look at them."""
    sample = jax.jit(masked.sample_pieces, static_argnames=("share", "num_special", "num_pieces"))

    def sampled(seed, ids_BN, **settings):
        shown_BN, hidden_BN, places_BP, told_BP = (
            np.asarray(array) for array in sample(jax.random.key(seed), ids_BN, **settings)
        )
        assert places_BP.shape[1] == math.ceil(settings["share"] * ids_BN.shape[1])
        assert (np.diff(np.sort(places_BP)) > 0).all()  # none twice
        predicted_BN = np.zeros(ids_BN.shape, bool)
        np.put_along_axis(predicted_BN, places_BP, told_BP, axis=1)
        return shown_BN, hidden_BN, predicted_BN

    return sampled


def test_pieces_are_hidden_replaced_or_left_as_bert_does(draw):
    """Eight to one to one of those that are predicted; special ones never are."""
    pieces = np.arange(4, 1_000, 60)  # of the others there is none
    ids_BN = np.tile(np.append(np.arange(4), pieces).astype(np.int32), (10_000, 1))
    shown_BN, hidden_BN, predicted_BN = draw(0, ids_BN, share=0.3, num_special=4, num_pieces=1_000)
    assert not predicted_BN[:, :4].any()
    np.testing.assert_allclose(predicted_BN[:, 4:].mean(0), 5 / 17, atol=0.02)  # 0.3 · 17, rounded
    assert (hidden_BN <= predicted_BN).all()
    assert hidden_BN[predicted_BN].mean() == pytest.approx(0.8, abs=0.01)
    replaced_BN = shown_BN != ids_BN
    assert not (replaced_BN & (hidden_BN | ~predicted_BN)).any()
    assert replaced_BN[predicted_BN].mean() == pytest.approx(0.1, abs=0.01)
    others, counts = np.unique(shown_BN[replaced_BN], return_counts=True)
    np.testing.assert_array_equal(others, pieces)
    assert counts.max() < 1.3 * counts.min()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.sampled_from([0.05, 0.15, 0.5, 0.9]))
def test_of_each_text_its_share_is_predicted(draw, seed, share):
    rng = np.random.default_rng(seed)
    count_B = rng.integers(0, 21, 32)
    count_B[:3] = 0, 1, 20
    ids_BN = np.where(np.arange(20) < count_B[:, None], rng.integers(4, 9, (32, 20)), 0)
    predicted_BN = draw(seed, ids_BN, share=share, num_special=4, num_pieces=9)[2]
    assert not predicted_BN[ids_BN == 0].any()
    wanted_B = np.maximum(np.round(np.float32(share) * count_B.astype(np.float32)), count_B > 0)
    np.testing.assert_array_equal(predicted_BN.sum(1), wanted_B)
