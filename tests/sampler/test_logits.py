"""Distributions that tokens are drawn from, against NumPy."""

import jax
import numpy as np
import pytest

from musiclm.sampler import logits as drawing
from musiclm.sampler.logits import Sampling, by_row

sample = jax.jit(drawing.sample, static_argnames="filtered")
keep_likeliest, guide = map(jax.jit, (drawing.keep_likeliest, drawing.guide))
LOGITS = np.array([2.0, -1.0, 0.5, 1.5, 0.4, -3.0], np.float32)
DRAWS = 20_000


def frequencies(temperature, top_k=None, top_p=None):
    logits = np.broadcast_to(LOGITS, (DRAWS, LOGITS.size))
    keys = jax.random.split(jax.random.key(0), DRAWS)
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    codes = sample(logits, keys, by_row([sampling] * DRAWS), filtered=sampling.filtered)
    return np.bincount(codes, minlength=LOGITS.size) / DRAWS


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


@pytest.mark.parametrize("temperature", [1.0, 0.4, 2.5])
def test_temperature(temperature):
    np.testing.assert_allclose(frequencies(temperature), softmax(LOGITS / temperature), atol=0.015)


def test_zero_is_greedy():
    np.testing.assert_array_equal(frequencies(0.0), [1, 0, 0, 0, 0, 0])


def test_top_k():
    kept = np.where(np.isin(np.arange(6), [0, 2, 3]), LOGITS, -np.inf)
    np.testing.assert_allclose(frequencies(1.0, top_k=3), softmax(kept), atol=0.015)
    np.testing.assert_allclose(frequencies(1.0, top_k=99), softmax(LOGITS), atol=0.015)


def test_top_p_takes_the_smallest_set_that_reaches_it():
    order = np.argsort(-LOGITS)
    reached = np.cumsum(softmax(LOGITS)[order])
    for p in (0.1, 0.6, 0.9, 0.999):
        count = 1 + int(np.searchsorted(reached, p))
        rows = by_row([Sampling(top_p=p)])
        kept = np.asarray(keep_likeliest(LOGITS[None], rows.top_k_B, rows.top_p_B))[0]
        assert set(np.flatnonzero(np.isfinite(kept))) == set(order[:count])


def test_top_p_is_of_what_top_k_left():
    # Of the two likeliest the first has 62 %: alone it is enough.
    np.testing.assert_array_equal(frequencies(1.0, top_k=2, top_p=0.6), [1, 0, 0, 0, 0, 0])


def test_rows_draw_with_their_own_keys():
    logits = np.broadcast_to(LOGITS, (8, LOGITS.size))
    keys = jax.random.split(jax.random.key(3), 8)
    rows = by_row([Sampling()] * 8)
    together, shuffled = (np.asarray(sample(logits, k, rows)) for k in (keys, keys[::-1]))
    np.testing.assert_array_equal(together, shuffled[::-1])


SETTINGS = [
    Sampling(),
    Sampling(temperature=0.0),
    Sampling(temperature=0.3, top_k=2),
    Sampling(temperature=1.7, top_p=0.7),
    Sampling(top_k=3, top_p=0.5),
    Sampling(top_k=99),
    Sampling(top_p=1.0),
]


def test_rows_draw_by_their_own_settings():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (400 * len(SETTINGS), 33)).astype(np.float32)
    keys = jax.random.split(jax.random.key(1), len(logits))
    together = np.asarray(sample(logits, keys, by_row(SETTINGS * 400)))
    for i, sampling in enumerate(SETTINGS):
        own = np.arange(i, len(logits), len(SETTINGS))
        alone = sample(logits[own], keys[own], by_row([sampling] * 400))
        np.testing.assert_array_equal(together[own], alone)


def test_a_row_without_a_filter_is_the_same_bits_beside_rows_with_one():
    """Over so many codes that the sums of their probabilities pass 1 before the last."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (4, 1024)).astype(np.float32)
    rows = by_row([Sampling(), Sampling(top_k=5), Sampling(), Sampling(top_p=0.5)])
    kept = np.asarray(keep_likeliest(logits, rows.top_k_B, rows.top_p_B))
    np.testing.assert_array_equal(kept[[0, 2]], logits[[0, 2]])
    assert np.isfinite(kept[1]).sum() == 5
    assert np.isfinite(kept[3]).sum() < 1024


def test_guidance_is_by_row_and_1_is_none():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (6, 50)).astype(np.float32)
    guided = np.asarray(guide(logits, np.float32([1.0, 0.0, 3.0])))
    np.testing.assert_array_equal(guided[0], logits[0])
    np.testing.assert_array_equal(guided[1], logits[4])
    np.testing.assert_allclose(guided[2], logits[5] + 3 * (logits[2] - logits[5]), rtol=1e-6)


@pytest.mark.parametrize(
    "bad", [{"temperature": -1}, {"temperature": float("nan")}, {"top_k": 0}, {"top_p": 1.5}]
)
def test_bad_settings_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Sampling(**bad)
