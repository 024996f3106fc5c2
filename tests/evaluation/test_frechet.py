"""Fréchet distance: beside SciPy's matrix root, by hand, and where roots fail."""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from musiclm import evaluation
from musiclm.evaluation import frechet


def by_matrix_root(x, y):
    c1, c2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(c1 @ c2).real
    return np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(c1 + c2 - 2 * root)


def sets(n, m, dim, seed=0):
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(dim, dim))
    return rng.normal(size=(n, dim)), rng.normal(size=(m, dim)) @ mix + rng.normal(size=dim)


@pytest.mark.parametrize("shape", [(50, 40, 3), (500, 900, 16), (300, 300, 64)])
def test_equals_the_formula_with_a_matrix_root(shape):
    x, y = sets(*shape)
    assert evaluation.frechet_distance(x, y) == pytest.approx(by_matrix_root(x, y), rel=1e-8)


def test_golden():
    # Variances 2 and 8 (ddof 1), means 0 and 3: 9 + 2 + 8 - 2·4.
    x, y = np.array([[-1.0], [1.0]]), np.array([[1.0], [5.0]])
    assert evaluation.frechet_distance(x, y) == pytest.approx(11.0)


def test_fewer_vectors_than_dimensions():
    """Two sets in planes of their own: nothing shared, so the spreads add up."""
    x, y = np.zeros((3, 10)), np.zeros((4, 10))
    x[:, 0], y[:, 1] = [-1, 0, 1], [-1, 1, -1, 1]
    assert evaluation.frechet_distance(x, y) == pytest.approx(1 + 4 / 3)
    assert evaluation.frechet_distance(x, x) == pytest.approx(0, abs=1e-12)


values = st.floats(-100, 100, width=32)


@settings(max_examples=60)
@given(arrays.arrays(np.float32, (7, 4), elements=values), st.integers(0, 99))
def test_is_a_distance(x, seed):
    y = np.random.default_rng(seed).normal(size=(9, 4))
    scale = 1 + np.square(x.astype(float)).sum()
    assert evaluation.frechet_distance(x, x) <= 1e-9 * scale
    there, back = evaluation.frechet_distance(x, y), evaluation.frechet_distance(y, x)
    assert 0 <= there == pytest.approx(back, abs=1e-9 * scale)
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(4, 4)))[0]
    turned = evaluation.frechet_distance(x @ rotation, y @ rotation)
    assert turned == pytest.approx(there, abs=1e-8 * scale)


def test_single_precision_loses_nothing():
    x, y = (part.astype(np.float32) + 100 for part in sets(2000, 2000, 32))
    assert evaluation.frechet_distance(x, y) == evaluation.frechet_distance(
        x.astype(np.float64), y.astype(np.float64)
    )


def test_extrapolation_takes_the_bias_of_small_sets_away():
    rng = np.random.default_rng(0)
    reference, x = rng.normal(size=(100_000, 16)), rng.normal(size=(2_000, 16))
    line = frechet.extrapolate(reference[:, None], x[:, None])
    biased = evaluation.frechet_distance(reference, x[:400])
    assert line.slope > 0
    assert line.r_squared > 0.9
    assert abs(line.value) < biased / 10
    assert line == frechet.extrapolate(reference[:, None], x[:, None])


def test_extrapolation_is_over_clips_and_not_over_their_vectors():
    """Four fifths of the variance are between clips: pooled vectors are fewer than they seem."""
    rng = np.random.default_rng(0)

    def clips(count):
        own_N1D, window_NWD = rng.normal(size=(count, 1, 40)), rng.normal(size=(count, 10, 40))
        return 0.8**0.5 * own_N1D + 0.2**0.5 * window_NWD

    reference_MWD, x_NWD = clips(2_000), clips(96)
    line = frechet.extrapolate(reference_MWD, x_NWD)
    assert abs(line.value) < frechet.of_clips(reference_MWD, x_NWD).value / 4
    assert line.r_squared > 0.95


def test_of_clips_with_one_vector_each_it_is_over_these():
    """Golden: what sets of vectors gave."""
    x, y = sets(60, 40, 3)
    line = frechet.extrapolate(x[:, None], y[:, None])
    assert (line.value, line.slope) == pytest.approx(
        (1.4190988425969988, 5.950359096021101), rel=1e-9
    )


def test_clips_rank_by_nearness():
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(500, 4))
    clips = [rng.normal(size=(20, 4)) + shift for shift in (5, 0, 20, 1)]
    assert frechet.rank_clips(reference, clips).tolist() == [1, 3, 0, 2]
    with pytest.raises(ValueError, match="different lengths"):
        frechet.rank_clips(reference, [clips[0], clips[1][:5]])


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((1, 3)), np.zeros((5, 3)), "two vectors"),
        (np.zeros(5), np.zeros((5, 3)), "two vectors"),
        (np.zeros((5, 2)), np.zeros((5, 3)), "2 and 3 dimensions"),
        (np.full((5, 3), np.nan), np.zeros((5, 3)), "NaN"),
    ],
)
def test_mistakes(x, y, message):
    with pytest.raises(ValueError, match=message):
        evaluation.frechet_distance(x, y)


def test_too_few_for_a_line():
    x, y = sets(10, 10, 2)
    with pytest.raises(ValueError, match="more clips"):
        frechet.extrapolate(x[:, None], y[:, None])
    with pytest.raises(ValueError, match=r"shape \(10, 2\): give the vectors of each"):
        frechet.extrapolate(x, y)


def test_clips_are_pooled_and_their_interval_covers():
    rng = np.random.default_rng(3)
    reference_MWD = rng.normal(size=(200, 4, 3))
    clips_NWD = rng.normal(0.5, 1.0, size=(60, 4, 3))
    found = frechet.of_clips(reference_MWD, clips_NWD)
    pooled = frechet.frechet_distance(reference_MWD.reshape(-1, 3), clips_NWD.reshape(-1, 3))
    assert found.value == pytest.approx(pooled)
    assert found.low < 0.75 < found.high  # three means, each half a unit away
    assert found.n == 60
