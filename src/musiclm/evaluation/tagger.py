"""A tagger of the corpus "gm": how likely each answer to `adherence`'s questions is for a clip.

It stands in for the AudioSet classifier of the paper's KLD (MusicLM, section 5.1), and its figures
compare with others of the same tagger alone.

Shapes: N clips, C classes.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from musiclm.evaluation import divergence
from musiclm.evaluation.adherence import Description

_INVERSE_STRENGTH = 0.02  # of regularisation: descriptions have hundreds of numbers
_LEAST = 1e-4  # probability of any class: a clip that none fits is not infinitely far from one


@dataclasses.dataclass(frozen=True)
class Tagger:
    """Logistic regressions, one a question."""

    classifiers: Mapping[str, Pipeline]

    def distributions(self, descriptions: Sequence[Description]) -> dict[str, np.ndarray]:
        """Probabilities of the classes: by question, f64 [N, C]."""
        found = {}
        for question, classifier in self.classifiers.items():
            vectors = np.stack([description[question] for description in descriptions])
            floored_NC = np.maximum(classifier.predict_proba(vectors), _LEAST)
            found[question] = floored_NC / floored_NC.sum(axis=1, keepdims=True)
        return found


def fit(
    descriptions: Sequence[Description],
    truths: Sequence[Mapping[str, str]],
    questions: Sequence[str],
) -> Tagger:
    """Fits the tagger.

    Args:
      descriptions: of real clips, see `descriptors.describe`.
      truths: their true classes, see `adherence.answers`.
      questions: that it shall answer.
    """
    classifiers = {}
    for question in questions:
        regression = LogisticRegression(C=_INVERSE_STRENGTH, max_iter=2000)
        vectors = np.stack([description[question] for description in descriptions])
        truth_N = [truth[question] for truth in truths]
        classifiers[question] = make_pipeline(StandardScaler(), regression).fit(vectors, truth_N)
    return Tagger(classifiers)


def divergences(p: Mapping[str, np.ndarray], q: Mapping[str, np.ndarray]) -> np.ndarray:
    """KL(p ‖ q) in nats of clips over all questions together, f64 [N].

    The questions are taken as independent: the divergence of a product is the sum.

    Args:
      p: from `Tagger.distributions`.
      q: of other clips, row i compared with row i.
    """
    return sum(divergence.kl_divergences(p[question], q[question]) for question in p)
