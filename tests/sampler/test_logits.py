"""Distributions that tokens are drawn from, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm.sampler.logits import Sampling, keep_likeliest, sample

LOGITS = np.array([2.0, -1.0, 0.5, 1.5, 0.4, -3.0], np.float32)
DRAWS = 20_000


def frequencies(temperature, top_k=None, top_p=None):
    rows = jnp.broadcast_to(LOGITS, (DRAWS, LOGITS.size))
    keys = jax.random.split(jax.random.key(0), DRAWS)
    codes = sample(rows, keys, jnp.float32(temperature), top_k, top_p)
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
        kept = np.asarray(keep_likeliest(jnp.asarray(LOGITS)[None], None, p))[0]
        assert set(np.flatnonzero(np.isfinite(kept))) == set(order[:count])


def test_top_p_is_of_what_top_k_left():
    # Of the two likeliest the first has 62 %: alone it is enough.
    np.testing.assert_array_equal(frequencies(1.0, top_k=2, top_p=0.6), [1, 0, 0, 0, 0, 0])


def test_rows_draw_with_their_own_keys():
    rows = jnp.broadcast_to(LOGITS, (8, LOGITS.size))
    keys = jax.random.split(jax.random.key(3), 8)
    together = sample(rows, keys, jnp.float32(1))
    shuffled = sample(rows, keys[::-1], jnp.float32(1))
    np.testing.assert_array_equal(together, shuffled[::-1])


@pytest.mark.parametrize(
    "bad", [{"temperature": -1}, {"temperature": float("nan")}, {"top_k": 0}, {"top_p": 1.5}]
)
def test_bad_settings_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Sampling(**bad)
