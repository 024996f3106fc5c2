"""Memorization: transport beside linear programming, thresholds, and stages that remember."""

import numpy as np
import pytest
import scipy.spatial
import scipy.stats

from musiclm.evaluation import memorization

RNG = np.random.default_rng(0)
CENTROIDS = RNG.normal(size=(20, 6))


def test_transport_is_the_earth_mover_s():
    """SciPy's own distance of two clouds of points, by linear programming."""
    one, other = RNG.integers(20, size=(2, 6, 12))
    unit = scipy.spatial.distance.pdist(CENTROIDS).mean()
    wanted = [
        scipy.stats.wasserstein_distance_nd(CENTROIDS[a], CENTROIDS[b]) / unit
        for a, b in zip(one, other, strict=True)
    ]
    found = memorization.transport_costs(one, other, CENTROIDS)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_order_is_nothing_to_a_histogram():
    one = RNG.integers(20, size=(3, 25))
    shuffled = RNG.permuted(one, axis=1)
    np.testing.assert_allclose(memorization.transport_costs(one, shuffled, CENTROIDS), 0)


def test_pairs_are_of_different_examples():
    pairs = memorization.permuted_pairs(5, 10_000)
    assert (pairs[:, 0] != pairs[:, 1]).all()
    assert (np.bincount(pairs.ravel()) > 3_000).all()


def test_threshold_lets_few_pass():
    costs = RNG.normal(size=30_000)
    tau = memorization.threshold(costs)
    assert (costs < tau).sum() == 3
    with pytest.raises(ValueError, match="10000 or more"):
        memorization.threshold(costs[:500])


def test_entropy():
    tokens = np.array([[3, 3, 3, 3], [1, 2, 1, 2], [0, 1, 2, 3]])
    wanted = [0, np.log(2), np.log(4)]
    np.testing.assert_allclose(memorization.token_entropy(tokens), wanted)


def test_a_stage_that_remembers_after_a_prompt():
    """Half of the examples come back after ten tokens, none without a prompt."""
    examples = RNG.integers(20, size=(40, 35))
    strangers = RNG.integers(4, size=(40, 25))  # other clusters, other histograms

    def go_on(length):
        made = strangers.copy()
        if length == 10:
            made[:20] = examples[:20, 10:]
            made[20:30] = RNG.permuted(examples[20:30, 10:], axis=1)
        return made

    without, after = memorization.measure(
        go_on, examples, CENTROIDS, cost_below=0.1, prompt_tokens=(0, 10), num_tokens=25
    )
    assert (without.exact.value, without.approximate.value) == (0, 0)
    assert (after.exact.value, after.approximate.value) == (0.5, 0.75)
    assert without.exact.high == pytest.approx(0.088, abs=1e-3)  # none of 40: Wilson's
    assert without.approximate == without.exact
    assert without.entropy.value < np.log(4) < after.entropy.value
    with pytest.raises(ValueError, match="give 35"):
        memorization.measure(
            go_on, examples[:, :30], CENTROIDS, cost_below=1, prompt_tokens=(10,), num_tokens=25
        )


def test_foreign_tokens():
    with pytest.raises(ValueError, match="of 20 clusters"):
        memorization.transport_costs(np.full((1, 5), 20), np.zeros((1, 5), int), CENTROIDS)
