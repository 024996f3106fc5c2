import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from musiclm.evaluation import bootstrap, tagging

seeds = st.integers(0, 10_000)


def _units(rng, *shape):
    vectors = rng.normal(size=shape)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _scored(seed, scores):
    """Scores out of so many different ones, and which clips are right; both kinds are there."""
    rng = np.random.default_rng(seed)
    truth_N = rng.random(25) < 0.4
    truth_N[:2] = [True, False]
    return rng.integers(scores, size=25) / scores, truth_N


@settings(max_examples=50)
@given(seeds, st.sampled_from([1, 3, 10, 100_000]))
def test_auc_is_scikit_learns_ties_included(seed, scores):
    score_N, truth_N = _scored(seed, scores)
    wanted = metrics.roc_auc_score(truth_N, score_N)
    assert tagging.roc_auc(score_N, truth_N) == pytest.approx(wanted)


@settings(max_examples=50)
@given(seeds)
def test_average_precision_is_scikit_learns_where_nothing_ties(seed):
    _, truth_N = _scored(seed, 1)
    score_N = np.random.default_rng(seed).permutation(25)
    wanted = metrics.average_precision_score(truth_N, score_N)
    assert tagging.average_precision(score_N, truth_N) == pytest.approx(wanted)


@pytest.mark.parametrize("score", [[3, 3, 3, 2, 2, 9], [5, 5, 5, 5, 5, 5], [1, 4, 4, 4, 4, 0]])
def test_average_precision_of_ties_is_the_mean_over_all_orders(score):
    score_N, truth_N = np.array(score), np.array([1, 0, 1, 0, 1, 0])
    broken = [
        metrics.average_precision_score(truth_N, score_N + np.array(order_N) / 10)
        for order_N in itertools.permutations(range(6))
    ]
    assert tagging.average_precision(score_N, truth_N) == pytest.approx(np.mean(broken))


@settings(max_examples=30)
@given(seeds)
def test_only_the_order_of_scores_counts(seed):
    score_N, truth_N = _scored(seed, 8)
    order_N = np.random.default_rng(seed).permutation(25)
    for figure in (tagging.roc_auc, tagging.average_precision):
        again = figure(np.exp(3 * score_N[order_N]), truth_N[order_N].astype(int))
        assert again == pytest.approx(figure(score_N, truth_N))
    turned = tagging.roc_auc(-score_N, truth_N)
    assert turned == pytest.approx(1 - tagging.roc_auc(score_N, truth_N))


def test_golden_tags():
    # "flute" has clips 0 and 2, found first and third; "drums" 0 alone, tied with 1 at the top.
    text_LD = np.eye(4)
    audio_ND = np.array(
        [[0.9, 0.5, 0, 0], [0.8, 0.5, 0, 0], [0.7, 0.1, 0, 0], [0.1, 0.2, 0, 0]]
    )  # fmt: skip
    truth_NL = np.array([[1, 1, 0, 1], [0, 0, 0, 1], [1, 0, 0, 1], [0, 0, 0, 1]])
    found = tagging.zero_shot(["flute", "drums", "none", "all"], text_LD, audio_ND, truth_NL)
    assert found.roc_auc == pytest.approx({"flute": 3 / 4, "drums": 2.5 / 3})
    assert found.average_precision == pytest.approx({"flute": (1 + 2 / 3) / 2, "drums": 3 / 4})
    assert found.mean_roc_auc.value == pytest.approx((3 / 4 + 2.5 / 3) / 2)
    assert found.mean_average_precision.value == pytest.approx((5 / 6 + 3 / 4) / 2)
    assert found.mean_roc_auc.n == 2
    assert found.left_out == ("none", "all")


def test_words_that_lie_with_their_clips_tag_them():
    rng = np.random.default_rng(0)
    truth_NL = rng.random((100, 40)) < 0.1
    text_LD = _units(rng, 40, 64)
    audio_ND = truth_NL @ text_LD + 0.3 * _units(rng, 100, 64)
    audio_ND /= np.linalg.norm(audio_ND, axis=1, keepdims=True)
    tags = [f"tag {i}" for i in range(40)]
    near = tagging.zero_shot(tags, text_LD, audio_ND, truth_NL)
    assert near.mean_roc_auc.low > 0.8
    far = tagging.zero_shot(tags, text_LD, _units(rng, 100, 64), truth_NL)
    assert far.mean_roc_auc.value == pytest.approx(0.5, abs=0.04)
    assert near.mean_average_precision.low > far.mean_average_precision.high


def test_collapsed_embeddings_score_chance():
    point_D = _units(np.random.default_rng(0), 16).astype(np.float32)
    truth_NL = np.random.default_rng(1).random((40, 3)) < 0.5
    tags, point_LD, point_ND = "abc", np.tile(point_D, (3, 1)), np.tile(point_D, (40, 1))
    found = tagging.zero_shot(tags, point_LD, point_ND, truth_NL)
    assert set(found.roc_auc.values()) == {0.5}


@pytest.mark.parametrize(
    ("tags", "truth", "message"),
    [
        (["a", "b"], np.zeros((3, 3)), r"truth of shape \(3, 3\) and 2 tags"),
        (["a", "a"], np.eye(3, 2), "2 tags, 1 of them different"),
        (["a", "b"], np.ones(3), r"truth of shape \(3,\)"),
        (["a", "b"], np.ones((3, 2)), "every tag is one that all of the 3 clips or none"),
    ],
)
def test_no_tagging_of_what_does_not_fit(tags, truth, message):
    with pytest.raises(ValueError, match=message):
        tagging.zero_shot(tags, np.eye(2, 4), np.eye(3, 4), truth)


@pytest.mark.parametrize("figure", [tagging.roc_auc, tagging.average_precision])
@pytest.mark.parametrize(
    ("score", "truth", "message"),
    [
        ([0.1, 0.2], [1, 0, 1], r"scores \(2,\) and truth \(3,\)"),
        ([0.1, np.nan], [1, 0], "NaN"),
        ([0.1, 0.2], [1, 1], "2 of 2 clips are right"),
        ([], [], "0 of 0 clips are right"),
    ],
)
def test_no_figure_of_what_does_not_fit(figure, score, truth, message):
    with pytest.raises(ValueError, match=message):
        figure(np.array(score), np.array(truth))


def test_a_probe_finds_what_planes_divide_whatever_the_units():
    rng = np.random.default_rng(0)
    x_ND = rng.normal(size=(400, 8))
    classes_N = np.array(["flute", "organ", "piano"])[x_ND[:, :3].argmax(axis=1)]
    x_ND = x_ND * 10.0 ** np.arange(-4, 4) + 100
    estimate = tagging.linear_probe(x_ND[:300], classes_N[:300], x_ND[300:], classes_N[300:])
    assert estimate.n == 100
    assert estimate.low > 0.85
    shuffled_N = rng.permutation(classes_N)
    chance = tagging.linear_probe(x_ND[:300], shuffled_N[:300], x_ND[300:], shuffled_N[300:])
    assert chance.high < 0.55


def test_a_class_that_was_never_learned_is_never_right():
    x_ND = np.array([[0.0], [0.1], [1.0], [1.1]])
    estimate = tagging.linear_probe(x_ND, [0, 0, 1, 1], x_ND, [0, 7, 1, 7])
    assert estimate == bootstrap.wilson(2, 4)


@pytest.mark.parametrize(
    ("train", "train_classes", "test", "message"),
    [
        (np.eye(3), [0, 1], np.eye(3), r"train: embeddings \(3, 3\) and classes \(2,\)"),
        (np.eye(3), [0, 1, 0], np.eye(2), r"test: embeddings \(2, 2\) and classes \(3,\)"),
        (np.eye(3), [0, 1, 0], np.eye(3, 2), "of 3 and 2 dimensions"),
        (np.eye(3), [4, 4, 4], np.eye(3), "a single class, 4"),
        (np.zeros((0, 3)), [], np.eye(3), r"train: embeddings \(0, 3\)"),
    ],
)
def test_no_probe_of_what_does_not_fit(train, train_classes, test, message):
    with pytest.raises(ValueError, match=message):
        tagging.linear_probe(train, train_classes, test, [0, 1, 0])
