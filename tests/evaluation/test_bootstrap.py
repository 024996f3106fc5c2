import numpy as np
import pytest
import scipy.stats

from musiclm.evaluation import bootstrap


def test_the_interval_covers_the_true_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(200):
        estimate = bootstrap.mean((rng.random(80) < 0.7).astype(float))
        covered.append(estimate.low <= 0.7 <= estimate.high)
    assert 0.89 <= np.mean(covered) <= 0.99


def test_the_interval_is_the_normal_one_for_many_items():
    values_N = np.random.default_rng(1).normal(3.0, 2.0, 2_000)
    estimate = bootstrap.mean(values_N)
    half = 1.96 * values_N.std() / np.sqrt(len(values_N))
    assert estimate.value == pytest.approx(values_N.mean())
    assert estimate.high - estimate.value == pytest.approx(half, rel=0.1)
    assert estimate.value - estimate.low == pytest.approx(half, rel=0.1)
    assert estimate.n == 2_000


def test_the_same_values_give_the_same_interval():
    values_N = np.random.default_rng(2).random(30)
    assert bootstrap.mean(values_N) == bootstrap.mean(values_N)
    assert bootstrap.mean(values_N, seed=1) != bootstrap.mean(values_N)


def test_equal_values_have_an_interval_without_width():
    assert bootstrap.mean(np.ones(9)) == bootstrap.Estimate(1.0, 1.0, 1.0, 9)


@pytest.mark.parametrize("values", [[], [1.0, np.nan], [[1.0]]])
def test_no_interval_of_what_is_no_sample(values):
    with pytest.raises(ValueError, match="one finite number an item"):
        bootstrap.mean(np.array(values))


def test_the_level_is_a_probability():
    with pytest.raises(ValueError, match="level is 95"):
        bootstrap.mean(np.ones(3), level=95)


def test_a_jackknife_of_the_mean_is_its_standard_error():
    values_N = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    found = bootstrap.jackknife(lambda chosen: values_N[chosen].mean(), 400, groups=400)
    reach = 1.959964 * values_N.std(ddof=1) / 20
    assert found.value == pytest.approx(values_N.mean())
    assert found.high - found.value == pytest.approx(reach, rel=1e-6)
    assert found.value - found.low == pytest.approx(reach, rel=1e-6)
    grouped = bootstrap.jackknife(lambda chosen: values_N[chosen].mean(), 400)
    assert grouped.high - grouped.value == pytest.approx(reach, rel=0.5)


def test_a_jackknife_leaves_each_item_out_once():
    left = []
    bootstrap.jackknife(lambda chosen: left.append(set(range(7)) - set(chosen)) or 0.0, 7, groups=3)
    assert left == [{0, 3, 6}, {1, 4}, {2, 5}, set()]
    with pytest.raises(ValueError, match="2 items"):
        bootstrap.jackknife(lambda chosen: 0.0, 2)


@pytest.mark.parametrize(("successes", "trials"), [(8, 10), (0, 5), (5, 5), (312, 600)])
def test_wilson_is_scipys(successes, trials):
    interval = scipy.stats.binomtest(successes, trials).proportion_ci(method="wilson")
    estimate = bootstrap.wilson(successes, trials)
    assert (estimate.value, estimate.n) == (successes / trials, trials)
    assert (estimate.low, estimate.high) == pytest.approx((interval.low, interval.high), abs=1e-12)


def test_wilson_by_hand():
    estimate = bootstrap.wilson(8, 10)
    assert (estimate.low, estimate.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    with pytest.raises(ValueError, match="0 successes of 0"):
        bootstrap.wilson(0, 0)


@pytest.mark.parametrize(("right", "low", "high"), [(0, 0.0, 0.0566), (64, 0.9434, 1.0)])
def test_a_share_of_none_or_all_has_an_interval_with_a_width(right, low, high):
    estimate = bootstrap.share(np.arange(64) < right)
    assert (estimate.value, estimate.n) == (right / 64, 64)
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize("values", [[], [2.0], [np.nan], [[1.0]]])
def test_no_share_of_what_is_neither_right_nor_wrong(values):
    with pytest.raises(ValueError, match="one from 0 to 1 an item"):
        bootstrap.share(np.array(values))
