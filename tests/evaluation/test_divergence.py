"""KL divergence: beside SciPy's, by hand, and what is no distribution."""

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from musiclm import evaluation
from musiclm.evaluation import divergence

logits = arrays.arrays(np.float32, (5, 7), elements=st.floats(-20, 20, width=32))


@given(logits, logits)
def test_equals_scipy(p, q):
    p, q = scipy.special.softmax(p, axis=1), scipy.special.softmax(q, axis=1)
    wanted = scipy.stats.entropy(p.astype(float), q.astype(float), axis=1)
    found = divergence.kl_divergences(p, q)
    assert (found >= 0).all()
    np.testing.assert_allclose(found, wanted, atol=1e-9)
    assert evaluation.kl_divergence(p, q) == pytest.approx(wanted.mean(), abs=1e-9)
    assert evaluation.kl_divergence(p, p) == 0


def test_golden():
    p, q = np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([[0.25, 0.75], [0.5, 0.5]])
    first = 0.5 * np.log(2) + 0.5 * np.log(2 / 3)
    assert evaluation.kl_divergence(p, q) == pytest.approx((first + np.log(2)) / 2)
    assert evaluation.kl_divergence(q[1:], p[1:]) == np.inf


@pytest.mark.parametrize(
    ("p", "message"),
    [
        ([0.5, 0.5], "shape"),
        ([[0.5, 0.6]], "sums to 1.1"),
        ([[1.5, -0.5]], "negative"),
        ([[np.nan, 1.0]], "NaN"),
        ([[0.2, 0.3, 0.5]], "same classes"),
    ],
)
def test_mistakes(p, message):
    with pytest.raises(ValueError, match=message):
        evaluation.kl_divergence(np.array(p), np.array([[0.5, 0.5]]))
