import math

import jax
import numpy as np
import pytest

from musiclm.losses import contrastive

mulan, info_nce = jax.jit(contrastive.mulan), jax.jit(contrastive.info_nce)


def random_unit(rng, batch, dim):
    x = rng.normal(size=(batch, dim))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def pairs():
    rng = np.random.default_rng(0)
    return random_unit(rng, 7, 5), random_unit(rng, 7, 5)


def test_mulan_loss_is_the_papers_sum_written_out(pairs):
    audio_BD, text_BD = pairs
    tau = 0.3
    h = np.exp(audio_BD.astype(np.float64) @ text_BD.T / tau)
    terms = []
    for i in range(7):
        denominator = sum(h[i, j] + h[j, i] for j in range(7) if j != i)
        terms.append(-math.log(h[i, i] / denominator))
    np.testing.assert_allclose(mulan(audio_BD, text_BD, tau), np.mean(terms), rtol=1e-5)


def test_info_nce_is_both_cross_entropies_written_out(pairs):
    audio_BD, text_BD = pairs
    tau = 0.2
    h = np.exp(audio_BD.astype(np.float64) @ text_BD.T / tau)
    own = np.diag(h)
    expected = -0.5 * np.mean(np.log(own / h.sum(0)) + np.log(own / h.sum(1)))
    np.testing.assert_allclose(info_nce(audio_BD, text_BD, tau), expected, rtol=1e-5)


@pytest.mark.parametrize("loss", contrastive.LOSSES)
def test_untrained_value_is_that_of_collapsed_embeddings(loss):
    same_BD = np.tile(random_unit(np.random.default_rng(1), 1, 8), (16, 1))
    value = jax.jit(contrastive.LOSSES[loss])(same_BD, same_BD, 0.1)
    np.testing.assert_allclose(value, contrastive.untrained_value(loss, 16), rtol=1e-4)


@pytest.mark.parametrize("loss", contrastive.LOSSES)
def test_untrained_value_is_nearly_that_of_random_embeddings(loss):
    rng = np.random.default_rng(2)
    value = jax.jit(contrastive.LOSSES[loss])(
        random_unit(rng, 128, 128), random_unit(rng, 128, 128), 0.5
    )
    assert abs(value - contrastive.untrained_value(loss, 128)) < 0.1


def test_only_mulan_keeps_the_positive_out_of_the_denominator():
    perfect_BD = np.eye(4, dtype=np.float32)
    # InfoNCE saturates at zero, MuLan's loss goes on falling as τ shrinks.
    assert info_nce(perfect_BD, perfect_BD, 0.05) >= 0
    np.testing.assert_allclose(mulan(perfect_BD, perfect_BD, 0.05), math.log(6) - 20, rtol=1e-5)


def test_low_temperature_stays_finite_with_finite_gradients(pairs):
    for loss in contrastive.LOSSES.values():
        value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(*pairs, 1e-3)
        assert all(np.isfinite(leaf).all() for leaf in (value, *gradients))


def test_a_single_pair_is_refused():
    with pytest.raises(ValueError, match="batch of 1"):
        contrastive.mulan(np.ones((1, 4)), np.ones((1, 4)), 0.1)
