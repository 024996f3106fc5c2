"""The arithmetic of rows: permutations, exact mixtures, hosts and draws."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.feed import rows
from data_pipelines.feed.rows import Pattern, Purpose

SEEDS = st.integers(0, 2**31 - 1)
WEIGHTS = st.lists(st.floats(0.01, 10), min_size=1, max_size=5)


@given(st.integers(1, 3_000), SEEDS, st.integers(0, 10**9))
def test_every_epoch_is_a_permutation(size, seed, epoch):
    rows_R = epoch * size + np.arange(size)
    records_R = rows.records_of(rows_R, size, seed=seed, shuffle=True)
    np.testing.assert_array_equal(np.sort(records_R), np.arange(size))


@given(st.integers(1, 2**40), SEEDS, st.integers(0, 10**7))
def test_large_data_sets_need_no_table(size, seed, step):
    rows_R = rows.rows_of(step, batch_size=64)
    records_R = rows.records_of(rows_R, size, seed=seed, shuffle=True)
    assert ((records_R >= 0) & (records_R < size)).all()
    if size > 64 and rows_R[0] // size == rows_R[-1] // size:
        assert len(set(records_R)) == 64


def test_orders_differ_by_seed_and_epoch_and_are_even():
    first = rows.records_of(np.arange(1_000), 1_000, seed=0, shuffle=True)
    assert (first != rows.records_of(np.arange(1_000), 1_000, seed=1, shuffle=True)).mean() > 0.98
    assert (first != rows.records_of(1_000 + np.arange(1_000), 1_000, seed=0, shuffle=True)).any()
    # What the first place holds over 30,000 epochs of 10 records: 3,000 each, a deviation of 52.
    starts = rows.records_of(10 * np.arange(30_000), 10, seed=0, shuffle=True)
    assert abs(np.bincount(starts, minlength=10) - 3_000).max() < 5 * 52
    # And what follows what: 90 ordered pairs.
    nexts = rows.records_of(10 * np.arange(30_000) + 1, 10, seed=0, shuffle=True)
    pairs = np.bincount(10 * starts + nexts, minlength=100).reshape(10, 10)
    assert (np.diag(pairs) == 0).all()
    assert abs(pairs[~np.eye(10, dtype=bool)] - 333).max() < 5 * 19


def test_without_shuffling_records_come_in_order():
    records_R = rows.records_of(np.arange(25), 10, seed=0, shuffle=False)
    np.testing.assert_array_equal(records_R, np.arange(25) % 10)


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.permutations(range(8)))
def test_places_share_the_batch(start, step, places):
    whole = rows.rows_of(step, batch_size=16, start_step=start)
    parts = [
        rows.rows_of(step, batch_size=16, start_step=start, places=own, num_places=8)
        for own in (places[:3], places[3:])
    ]
    order = np.concatenate([whole.reshape(8, 2)[place] for place in places])
    np.testing.assert_array_equal(np.concatenate(parts), order)
    np.testing.assert_array_equal(whole, rows.rows_of(start + step, batch_size=16))


def test_batches_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="batch_size is 10 for 4 places"):
        rows.rows_of(0, batch_size=10, num_places=4)
    with pytest.raises(ValueError, match=r"places are \(1, 4\) of 4"):
        rows.rows_of(0, batch_size=8, places=(1, 4), num_places=4)


@given(WEIGHTS)
def test_a_pattern_has_the_shares_that_were_asked_for(weights):
    slots = np.array(Pattern.of(weights).slots)
    assert (slots > 0).all()
    shares = np.array(weights) / sum(weights)
    np.testing.assert_allclose(slots / slots.sum(), shares, atol=1 / 4096)


@given(WEIGHTS, SEEDS, st.integers(0, 10**9))
def test_a_mixture_walks_through_each_component(weights, seed, first_block):
    """Over whole blocks each component's own rows are all there, once, and no others."""
    pattern = Pattern.of(weights)
    size = sum(pattern.slots)
    rows_R = first_block * size + np.arange(2 * size)
    components_R, own_R = pattern.deal(rows_R, seed=seed)
    for component, slots in enumerate(pattern.slots):
        own = np.sort(own_R[components_R == component])
        np.testing.assert_array_equal(own, first_block * slots + np.arange(2 * slots))


def test_components_are_interleaved_and_not_in_runs():
    components_R, _ = Pattern.of([1, 2, 5]).deal(np.arange(8_000), seed=3)
    for share in np.array_split(components_R, 40):
        assert len(set(share)) == 3
    assert list(components_R[:8]) != list(components_R[8:16])


@pytest.mark.parametrize("weights", [[1, 0], [1, -1], [1e6, 1]])
def test_weights_that_give_nothing_are_refused(weights):
    with pytest.raises(ValueError, match="weights"):
        Pattern.of(weights)


@given(SEEDS, st.integers(0, 2**50))
def test_draws_depend_on_the_row_alone(seed, row):
    rows_R = row + np.arange(32)
    whole = rows.uniform(seed, rows_R, Purpose.CROP)
    assert ((whole >= 0) & (whole < 1)).all()
    np.testing.assert_array_equal(whole[7:9], rows.uniform(seed, rows_R[7:9], Purpose.CROP))
    assert (whole != rows.uniform(seed, rows_R, Purpose.MULAN)).all()
    assert (whole != rows.uniform(seed + 1, rows_R, Purpose.CROP)).all()


def test_draws_are_even_and_independent():
    draws = np.stack([rows.uniform(5, np.arange(50_000), purpose) for purpose in Purpose])
    counts = np.stack([np.bincount((20 * one).astype(int), minlength=20) for one in draws])
    assert abs(counts - 2_500).max() < 5 * 49
    correlations = np.corrcoef(draws)
    assert abs(correlations[~np.eye(len(draws), dtype=bool)]).max() < 5 / np.sqrt(50_000)
    assert abs(np.corrcoef(draws[0][1:], draws[0][:-1])[0, 1]) < 5 / np.sqrt(50_000)
    chosen = rows.integers(5, np.arange(50_000), Purpose.CROP, 7)
    assert abs(np.bincount(chosen) - 50_000 / 7).max() < 5 * 79
