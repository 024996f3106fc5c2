"""Semantic tokens: beside scikit-learn, beside all paths and all triples, and by hand.

What must not matter is changed: the numbers of tokens, the names of classes, centroids' lengths.
"""

import functools
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from musiclm.evaluation import semantic_tokens

FIGURES = (semantic_tokens.pnmi, semantic_tokens.purity)
seeds = st.integers(0, 10_000)


def _circle(*degrees):
    """Centroids in a plane, of different lengths."""
    radians_K = np.radians(degrees)
    length_K = 1 + np.arange(len(degrees))
    return (np.stack([np.cos(radians_K), np.sin(radians_K)]) * length_K).T


# What tokens tell of classes.


@settings(max_examples=30)
@given(seeds)
def test_pnmi_is_scikit_learns_information_over_the_entropy_of_classes(seed):
    rng = np.random.default_rng(seed)
    class_NT = rng.integers(4, size=(6, 20))
    tokens_NT = np.where(rng.random((6, 20)) < 0.5, class_NT * 7, rng.integers(30, size=(6, 20)))
    shared = metrics.mutual_info_score(class_NT.ravel(), tokens_NT.ravel())
    entropy = metrics.mutual_info_score(class_NT.ravel(), class_NT.ravel())
    assert semantic_tokens.pnmi(tokens_NT, class_NT) == pytest.approx(shared / entropy, abs=1e-12)


def test_golden_figures_of_four_frames():
    # Token 5 says "a" for sure, token 9 leaves both: one bit over half of the frames.
    tokens_NT, classes = np.array([[5, 5], [9, 9]]), np.array([["a", "a"], ["a", "b"]])
    entropy = -(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25))
    assert semantic_tokens.pnmi(tokens_NT, classes) == pytest.approx(1 - 0.5 / entropy)
    assert semantic_tokens.purity(tokens_NT, classes).value == 0.75
    assert semantic_tokens.purity(tokens_NT, classes).n == 2  # clips, not frames


def test_a_clip_s_class_is_that_of_its_frames():
    tokens_NT, classes_N = np.array([[1, 2, 2], [2, 3, 3]]), ["flute", "organ"]
    frames = np.repeat(np.array(classes_N)[:, None], 3, axis=1)
    for figure in FIGURES:
        assert figure(tokens_NT, classes_N) == figure(tokens_NT, frames)
    assert semantic_tokens.purity(tokens_NT, classes_N).value == pytest.approx(5 / 6)


@settings(max_examples=30)
@given(seeds)
def test_the_numbers_of_tokens_mean_nothing(seed):
    rng = np.random.default_rng(seed)
    class_NT, tokens_NT = rng.integers(3, size=(4, 12)), rng.integers(8, size=(4, 12))
    renumbered_NT = rng.permutation(1000)[tokens_NT]
    renamed_NT = np.array(["x", "c", "m"])[class_NT]
    for figure in FIGURES:
        one, other = figure(tokens_NT, class_NT), figure(renumbered_NT, renamed_NT)
        one, other = (getattr(found, "value", found) for found in (one, other))
        assert one == pytest.approx(other, abs=1e-12)


@settings(max_examples=30)
@given(seeds)
def test_classes_themselves_tell_all_and_a_cluster_a_frame_too(seed):
    class_NT = np.random.default_rng(seed).integers(5, size=(7, 9))
    class_NT[0, :2] = [0, 1]  # two at least
    assert semantic_tokens.pnmi(class_NT, class_NT) == 1
    assert semantic_tokens.purity(class_NT, class_NT).value == 1
    assert semantic_tokens.pnmi(np.arange(63).reshape(7, 9), class_NT) == 1
    assert semantic_tokens.purity(np.arange(63).reshape(7, 9), class_NT).value == 1


def test_tokens_that_ignore_the_class_tell_nothing():
    every = np.array(list(itertools.product(range(4), range(3), range(5))))
    assert semantic_tokens.pnmi(every[:, :1], every[:, 1:2]) == pytest.approx(0, abs=1e-12)
    rng = np.random.default_rng(0)
    random = semantic_tokens.pnmi(rng.integers(4, size=(200, 100)), rng.integers(3, size=200))
    assert 0 <= random < 1e-3
    constant_NT, class_NT = np.zeros((5, 4), int), np.tile([0, 0, 0, 1], (5, 1))
    assert semantic_tokens.pnmi(constant_NT, class_NT) == 0
    assert semantic_tokens.purity(constant_NT, class_NT).value == 0.75


def test_chance_is_what_tokens_of_the_clip_alone_get():
    rng = np.random.default_rng(0)
    # Every clip has tokens of its own, more or less: few clips tell their class by that alone.
    tokens_NT = rng.integers(5, size=(30, 8)) + 3 * np.arange(30)[:, None]
    class_N = np.arange(30) % 3
    chance = semantic_tokens.pnmi_by_chance(tokens_NT, class_N)
    assert chance > 0.4
    assert chance == semantic_tokens.pnmi_by_chance(tokens_NT, class_N)
    found = [semantic_tokens.pnmi(tokens_NT, rng.permutation(class_N)) for _ in range(20)]
    assert np.mean(found) == pytest.approx(chance, abs=0.03)
    frames_NT = np.repeat(class_N[:, None], 8, axis=1)
    assert semantic_tokens.pnmi_by_chance(tokens_NT, frames_NT) == pytest.approx(
        semantic_tokens.pnmi_by_chance(tokens_NT, class_N), abs=1e-12
    )


@pytest.mark.parametrize(
    ("tokens", "classes", "message"),
    [
        (np.zeros(5, int), [0, 1, 0, 1, 0], "one row a clip"),
        (np.zeros((0, 5), int), [], "one row a clip"),
        (np.zeros((2, 5)), [0, 1], "float64: give whole numbers"),
        (np.zeros((2, 5), int), [0, 1, 1], r"classes of shape \(3,\)"),
        (np.zeros((2, 5), int), [4, 4], "a single class, 4"),
    ],
)
@pytest.mark.parametrize("figure", FIGURES)
def test_no_figure_of_what_does_not_fit(figure, tokens, classes, message):
    with pytest.raises(ValueError, match=message):
        figure(tokens, classes)


# Distances and ABX.


def _by_all_paths(one_T, other_T, angle_KK):
    """The mean along the best path, found among all."""

    def paths(i, j):
        if (i, j) == (len(one_T) - 1, len(other_T) - 1):
            yield [(i, j)]
        for step in ((0, 1), (1, 0), (1, 1)):
            if i + step[0] < len(one_T) and j + step[1] < len(other_T):
                yield from ([(i, j), *rest] for rest in paths(i + step[0], j + step[1]))

    walked = [[angle_KK[one_T[i], other_T[j]] for i, j in path] for path in paths(0, 0)]
    least = min(map(sum, walked))
    return least / min(len(path) for path in walked if sum(path) < least + 1e-6)


@settings(max_examples=30)
@given(seeds, st.integers(1, 5))
def test_alignment_is_the_best_of_all_paths(seed, length):
    rng = np.random.default_rng(seed)
    angle_KK = semantic_tokens.angles(rng.normal(size=(4, 3)))
    one_T, other_PT = rng.integers(4, size=length), rng.integers(4, size=(6, length))
    found_P = semantic_tokens.alignment_distances(one_T, other_PT, angle_KK)
    wanted_P = [_by_all_paths(one_T, other_T, angle_KK) for other_T in other_PT]
    np.testing.assert_allclose(found_P, wanted_P, atol=1e-6)


def test_golden_alignments():
    angle_KK = semantic_tokens.angles(_circle(0, 90, 180))
    np.testing.assert_allclose(angle_KK, [[0, 0.5, 1], [0.5, 0, 0.5], [1, 0.5, 0]])
    align = functools.partial(semantic_tokens.alignment_distances, angle_KK=angle_KK)
    # Stretched; a path of two steps before one of three with the same sum; no common token.
    assert align(np.array([0, 0, 1]), np.array([[0, 1, 1]])) == 0
    assert align(np.array([0, 1]), np.array([[1, 0]])) == 0.5
    assert align(np.array([0, 0, 0]), np.array([[2, 2, 2]])) == 1


@settings(max_examples=30)
@given(seeds)
def test_alignment_is_symmetric_even_where_paths_tie(seed):
    rng = np.random.default_rng(seed)
    angle_KK = semantic_tokens.angles(_circle(0, 45, 90, 180))
    one_T, other_T = rng.integers(4, size=(2, 12))
    there = semantic_tokens.alignment_distances(one_T, other_T[None], angle_KK)
    back = semantic_tokens.alignment_distances(other_T, one_T[None], angle_KK)
    assert there == back
    assert semantic_tokens.alignment_distances(one_T, one_T[None], angle_KK) == 0


def test_golden_abx_of_phrases_of_one_frame():
    # X = 0°: 90° is its own, 60° is nearer, 180° isn't: ½. X = 90°: 60° is nearer, 180° ties: ¾.
    # X = 60°: both others are nearer than 180°: 1. X = 180°: 60° is its own, 90° is nearer: ½.
    tokens_NT = np.array([[0], [1], [2], [3]])
    estimate = semantic_tokens.abx(tokens_NT, ["a", "a", "b", "b"], _circle(0, 90, 60, 180))
    assert estimate.value == pytest.approx((1 / 2 + 3 / 4 + 1 + 1 / 2) / 4)
    assert estimate.n == 4


def _by_all_triples(tokens_NT, class_N, centroids_KD):
    angle_KK = semantic_tokens.angles(centroids_KD)
    rows = [semantic_tokens.alignment_distances(t, tokens_NT, angle_KK) for t in tokens_NT]
    pairs = []
    for own, other in itertools.permutations(np.unique(class_N), 2):
        errors = [
            (rows[x][a] > rows[x][b]) + 0.5 * (rows[x][a] == rows[x][b])
            for a, x in itertools.permutations(np.flatnonzero(class_N == own), 2)
            for b in np.flatnonzero(class_N == other)
        ]
        pairs.append(np.mean(errors))
    return np.mean(pairs)


@settings(max_examples=15)
@given(seeds)
def test_abx_is_the_mean_over_pairs_of_classes_of_all_triples(seed):
    rng = np.random.default_rng(seed)
    class_N = np.repeat([0, 1, 2], [2, 5, 3])
    tokens_NT, centroids_KD = rng.integers(5, size=(10, 4)), rng.normal(size=(5, 3))
    wanted = _by_all_triples(tokens_NT, class_N, centroids_KD)
    found = semantic_tokens.abx(tokens_NT, class_N, centroids_KD)
    assert found.value == pytest.approx(wanted)
    assert found.low <= found.value <= found.high
    # Neither order nor names nor lengths of centroids count.
    order_N = rng.permutation(10)
    again = semantic_tokens.abx(
        tokens_NT[order_N], np.array(["q", "a", "k"])[class_N[order_N]], 3 * centroids_KD
    )
    assert again.value == pytest.approx(found.value)


def test_classes_apart_are_told_without_error_at_any_tempo():
    rng = np.random.default_rng(0)
    class_N = np.repeat([0, 1], [8, 4])
    # Rising and falling phrases over the same tokens, each held for as long as it likes.
    tokens_NT = np.sort(rng.integers(4, size=(12, 20)), axis=1)
    tokens_NT[:, 0], tokens_NT[:, -1] = 0, 3
    tokens_NT[class_N == 1] = tokens_NT[class_N == 1, ::-1]
    estimate = semantic_tokens.abx(tokens_NT, class_N, _circle(0, 60, 120, 180))
    assert (estimate.value, estimate.low, estimate.high) == (0, 0, 0)


def test_classes_without_meaning_are_told_by_chance():
    rng = np.random.default_rng(0)
    tokens_NT, class_N = rng.integers(50, size=(60, 10)), np.arange(60) % 2
    estimate = semantic_tokens.abx(tokens_NT, class_N, rng.normal(size=(50, 8)))
    assert estimate.value == pytest.approx(0.5, abs=0.03)
    uneven_N = np.arange(60) // 40
    alike = semantic_tokens.abx(np.zeros((60, 10), int), uneven_N, np.ones((1, 3)))
    assert (alike.value, alike.low, alike.high) == (0.5, 0.5, 0.5)


def test_a_sample_of_the_clips():
    rng = np.random.default_rng(0)
    tokens_NT, class_N = rng.integers(9, size=(30, 6)), np.repeat([0, 1, 2], [3, 7, 20])
    calls = []
    abx = functools.partial(
        semantic_tokens.abx, tokens_NT, class_N, rng.normal(size=(9, 4)), progress=calls.append
    )
    assert abx(clips_per_class=20) == abx()
    assert len(calls) == 60
    sample = abx(clips_per_class=5, seed=3)
    assert sample.n == 3 + 5 + 5
    assert sample == abx(clips_per_class=5, seed=3)
    assert sample != abx(clips_per_class=5, seed=4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes_N": [0, 0, 1]}, r"classes of shape \(3,\): give one a clip, 4"),
        ({"classes_N": [0, 0, 0, 0]}, r"clips by class: \{0: 4\}"),
        ({"classes_N": [0, 0, 0, 1]}, r"clips by class: \{0: 3, 1: 1\}"),
        ({"clips_per_class": 1}, "clips_per_class is 1"),
        ({"clips_per_class": -1}, "clips_per_class is -1"),
        ({"tokens_NT": np.full((4, 3), 2)}, "from 2 to 2 of 2 clusters"),
        ({"tokens_NT": np.zeros((4, 0), int)}, "one row a clip"),
        ({"centroids_KD": np.array([[1.0, 2.0], [0.0, 0.0]])}, "zero or not finite"),
    ],
)
def test_no_abx_of_what_does_not_fit(change, message):
    given = {
        "tokens_NT": np.zeros((4, 3), int), "classes_N": [0, 0, 1, 1], "centroids_KD": np.eye(2),
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        semantic_tokens.abx(**{**given, **change})


# Real order and shuffled.


def test_golden_share_of_phrases_that_are_likelier_as_they_are():
    real_N = np.array([-1.0, -2.0, -3.0])
    shuffled_NK = np.array([[-2.0, -9.0], [-2.0, -3.0], [-1.0, -3.0]])
    estimate = semantic_tokens.spot_the_real(real_N, shuffled_NK)
    assert estimate.value == pytest.approx((1 + 0.75 + 0.25) / 3)
    assert estimate.n == 3


def test_a_stage_that_hears_nothing_is_at_chance():
    rng = np.random.default_rng(0)
    estimate = semantic_tokens.spot_the_real(rng.normal(size=500), rng.normal(size=(500, 4)))
    assert estimate.low < 0.5 < estimate.high
    assert estimate.value == pytest.approx(0.5, abs=0.05)
    same = semantic_tokens.spot_the_real(np.full(5, -3.0), np.full((5, 2), -3.0))
    assert (same.value, same.low, same.high) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("real", "shuffled", "message"),
    [
        (np.zeros(3), np.zeros((2, 4)), r"shape \(3,\) and \(2, 4\)"),
        (np.zeros(3), np.zeros(3), r"shape \(3,\) and \(3,\)"),
        (np.zeros(0), np.zeros((0, 4)), r"shape \(0,\)"),
        (np.zeros((3, 1)), np.zeros((3, 1)), r"shape \(3, 1\)"),
        (np.array([0.0, np.nan]), np.zeros((2, 1)), "NaN"),
    ],
)
def test_no_share_of_what_does_not_fit(real, shuffled, message):
    with pytest.raises(ValueError, match=message):
        semantic_tokens.spot_the_real(real, shuffled)


@settings(max_examples=30)
@given(seeds, st.integers(2, 5), st.integers(1, 4))
def test_shuffling_moves_whole_segments_and_never_none(seed, num_segments, segment):
    rng = np.random.default_rng(seed)
    tokens_NT = rng.integers(2, size=(20, num_segments * segment))
    foils_NT = semantic_tokens.shuffle_phrases(tokens_NT, segment, rng)
    for real_T, foil_T in zip(tokens_NT, foils_NT, strict=True):
        real, foil = (sorted(x.reshape(-1, segment).tolist()) for x in (real_T, foil_T))
        assert real == foil
        assert (real_T != foil_T).any() == (real[0] != real[-1])


def test_every_order_but_the_real_one_is_as_likely():
    tokens_NT = np.tile(np.repeat([4, 5, 6], 2), (5_000, 1))
    before_NT = tokens_NT.copy()
    foils_NT = semantic_tokens.shuffle_phrases(tokens_NT, 2, np.random.default_rng(0))
    orders, counts = np.unique(foils_NT, axis=0, return_counts=True)
    assert len(orders) == 5
    np.testing.assert_allclose(counts, 1_000, atol=120)
    np.testing.assert_array_equal(tokens_NT, before_NT)


@pytest.mark.parametrize("segment", [0, 3, 8, 16])
def test_phrases_must_divide_into_segments(segment):
    with pytest.raises(ValueError, match=f"segments of {segment} frames in phrases of 8"):
        semantic_tokens.shuffle_phrases(np.zeros((2, 8), int), segment, np.random.default_rng(0))
