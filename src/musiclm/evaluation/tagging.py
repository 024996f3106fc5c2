"""A joint embedding as a tagger: by the words of the tags alone, or by a linear probe.

MuLan (arXiv 2208.12415) is judged in both ways.

N, M clips, L tags, D embedding.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.stats
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from musiclm.evaluation import bootstrap

_ITERATIONS = 2000  # of the probe's fit; it stops when it has converged


@dataclasses.dataclass(frozen=True)
class Tagging:
    """How well scores tell clips that have a tag from those that have not.

    Attributes:
      roc_auc: by tag; the chance that a clip with the tag scores above one without.
      average_precision: by tag; what chance gets is about the share of clips with the tag.
      mean_roc_auc: over the tags.
      mean_average_precision: over the tags.
      left_out: tags that all clips or none have, for which both are undefined.
    """

    roc_auc: Mapping[str, float]
    average_precision: Mapping[str, float]
    mean_roc_auc: bootstrap.Estimate
    mean_average_precision: bootstrap.Estimate
    left_out: tuple[str, ...]


def zero_shot(
    tags: Sequence[str], text_LD: np.ndarray, audio_ND: np.ndarray, truth_NL: np.ndarray
) -> Tagging:
    """Tags clips by the cosine of each with the words of each tag.

    The intervals are over tags; the clips stay.

    Args:
      tags: names, each once.
      text_LD: unit vectors of the tags' words.
      audio_ND: unit vectors of the clips.
      truth_NL: whether a clip has a tag: bool, or 1 and 0.

    Raises:
      ValueError: the shapes don't fit, a tag comes twice, or all are left out.
    """
    # What differs by rounding alone is a tie.
    score_NL = np.round(np.asarray(audio_ND) @ np.asarray(text_LD).T, 6)
    truth_NL = np.asarray(truth_NL)
    if truth_NL.shape != score_NL.shape or truth_NL.shape[1:] != (len(set(tags)),):
        raise ValueError(
            f"truth of shape {truth_NL.shape} and {len(tags)} tags, {len(set(tags))} of them "
            f"different, for {score_NL.shape[0]} clips and {score_NL.shape[1]} texts: give [N, L]"
        )
    aucs, precisions, left_out = {}, {}, []
    for tag, score_N, truth_N in zip(tags, score_NL.T, truth_NL.T, strict=True):
        if truth_N.all() or not truth_N.any():
            left_out.append(tag)
            continue
        aucs[tag] = roc_auc(score_N, truth_N)
        precisions[tag] = average_precision(score_N, truth_N)
    if not aucs:
        raise ValueError(
            f"every tag is one that all of the {len(truth_NL)} clips or none have: give more clips"
        )
    return Tagging(
        aucs,
        precisions,
        bootstrap.mean(np.array(list(aucs.values()))),
        bootstrap.mean(np.array(list(precisions.values()))),
        tuple(left_out),
    )


def roc_auc(score_N: np.ndarray, truth_N: np.ndarray) -> float:
    """Area under the ROC curve: how often a right clip scores above a wrong one, ties half.

    Args:
      score_N: higher is likelier.
      truth_N: bool, or 1 and 0.

    Raises:
      ValueError: the shapes differ, a score is NaN, or all clips are right or none.
    """
    score_N, truth_N = _scored(score_N, truth_N)
    num_right, num_wrong = truth_N.sum(), (~truth_N).sum()
    # Ties share the middle of their ranks (Mann and Whitney's U).
    above = scipy.stats.rankdata(score_N)[truth_N].sum() - num_right * (num_right + 1) / 2
    return float(above / (num_right * num_wrong))


def average_precision(score_N: np.ndarray, truth_N: np.ndarray) -> float:
    """Mean over right clips of the share of right ones among those down to it.

    Ties are broken at random, in expectation, as in `retrieval`: a score that is the same for all
    gets what random scores get.

    Args:
      score_N: higher is likelier.
      truth_N: bool, or 1 and 0.

    Raises:
      ValueError: as in `roc_auc`.
    """
    score_N, truth_N = _scored(score_N, truth_N)
    _, group_N, size_G = np.unique(-score_N, return_inverse=True, return_counts=True)  # best first
    right_G = np.bincount(group_N, truth_N)
    size_N, right_N = np.repeat(size_G, size_G), np.repeat(right_G, size_G)
    place_N = np.arange(1, len(score_N) + 1)
    # Of the group that holds a place: how many clips, and right ones, come before.
    before_N = np.repeat(np.cumsum(size_G) - size_G, size_G)
    right_before_N = np.repeat(np.cumsum(right_G) - right_G, size_G)
    # If a right clip has the place, the group's other right ones fill its earlier places evenly.
    earlier_N = (place_N - 1 - before_N) * (right_N - 1) / np.maximum(size_N - 1, 1)
    precision_N = (right_before_N + earlier_N + 1) / place_N
    return float(np.sum(right_N / size_N * precision_N) / truth_N.sum())


def _scored(score_N: np.ndarray, truth_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    score_N, truth_N = np.asarray(score_N), np.asarray(truth_N).astype(bool)
    if score_N.ndim != 1 or score_N.shape != truth_N.shape:
        raise ValueError(f"scores {score_N.shape} and truth {truth_N.shape}: give one each a clip")
    if np.isnan(score_N).any():
        raise ValueError("a score is NaN: check the embeddings")
    if truth_N.all() or not truth_N.any():
        raise ValueError(
            f"{truth_N.sum()} of {len(truth_N)} clips are right: give clips of both kinds"
        )
    return score_N, truth_N


def linear_probe(
    train_ND: np.ndarray,
    train_classes_N: Sequence | np.ndarray,
    test_MD: np.ndarray,
    test_classes_M: Sequence | np.ndarray,
) -> bootstrap.Estimate:
    """Accuracy of logistic regression on embeddings, each dimension standardised.

    A class that training lacks is never answered, and counts as wrong.

    Args:
      train_ND: embeddings to fit on.
      train_classes_N: of any one type.
      test_MD: embeddings of other clips.
      test_classes_M: their classes.

    Raises:
      ValueError: the shapes don't fit, there is no clip to test, or training has a single class.
    """
    train_ND, test_MD = np.asarray(train_ND), np.asarray(test_MD)
    train_classes_N, test_classes_M = np.asarray(train_classes_N), np.asarray(test_classes_M)
    for what, x, classes in (
        ("train", train_ND, train_classes_N),
        ("test", test_MD, test_classes_M),
    ):
        if x.ndim != 2 or not len(x) or classes.shape != x.shape[:1]:
            raise ValueError(
                f"{what}: embeddings {x.shape} and classes {classes.shape}: give [N, D] and [N]"
            )
    if train_ND.shape[1] != test_MD.shape[1]:
        raise ValueError(
            f"embeddings of {train_ND.shape[1]} and {test_MD.shape[1]} dimensions: test the "
            "embedding that the probe learns from"
        )
    if len(np.unique(train_classes_N)) < 2:
        raise ValueError(f"a single class, {train_classes_N[0]}: give two or more to learn from")
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=_ITERATIONS))
    heard_M = probe.fit(train_ND, train_classes_N).predict(test_MD)
    return bootstrap.share(heard_M == test_classes_M)
