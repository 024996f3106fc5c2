"""A classifier of keys: one profile a mode, which the twelve tonics share.

N clips, D numbers of a description, C chromas, K keys.
"""

from collections.abc import Sequence

import numpy as np
import scipy.optimize
import scipy.special
from sklearn.base import BaseEstimator, ClassifierMixin

TONICS = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
MODES = ("major", "minor")
_DECAY = 1e-4  # weight of the profiles' squares in the loss


def name(tonic: int, mode: str) -> str:
    """A key in words, "A minor".

    Args:
      tonic: pitch class, from 0 (C) to 11 (B).
      mode: "major" or "minor".
    """
    return f"{TONICS[tonic]} {mode}"


KEYS = np.array([name(tonic, mode) for mode in MODES for tonic in range(12)])


class KeyFinder(ClassifierMixin, BaseEstimator):
    """Multinomial logistic regression over 24 keys that share their weights.

    A clip's chromas are turned until the tonic comes first, and weighed by the mode's profile; the
    key with the highest sum is the answer. A key is therefore known as well as any other of its
    mode, even one that was never fitted.

    Attributes:
      classes_: the 24 keys, str [K], see `name`.
      profile_: f64 [2, 12 C], by mode.
      offset_: f64 [2], by mode.
    """

    def fit(self, chromas_ND: np.ndarray, key_N: Sequence[str]) -> "KeyFinder":
        """Fits the profiles by L-BFGS.

        Args:
          chromas_ND: C chromas from C to B, one after another: D = 12 C.
          key_N: true keys, see `name`.

        Raises:
          ValueError: a key is none of the 24.
        """
        unknown = sorted(set(map(str, key_N)) - set(KEYS))
        if unknown:
            raise ValueError(f"key {unknown[0]!r}: must be one of {', '.join(KEYS)}")
        turned_NTD = _turn(chromas_ND)
        true_NK = np.asarray(key_N)[:, None] == KEYS
        size = turned_NTD.shape[2]

        def loss(weights):
            profile, offset = weights[:-2].reshape(2, size), weights[-2:]
            log_p_NK = scipy.special.log_softmax(_scores(turned_NTD, profile, offset), axis=1)
            excess_NMT = (np.exp(log_p_NK) - true_NK).reshape(-1, 2, 12) / len(true_NK)
            slope = np.einsum("nmt,ntd->md", excess_NMT, turned_NTD, optimize=True)
            slopes = np.concatenate([slope.ravel(), excess_NMT.sum(axis=(0, 2))])
            value = -log_p_NK[true_NK].mean() + _DECAY * weights @ weights
            return value, slopes + 2 * _DECAY * weights

        best = scipy.optimize.minimize(loss, np.zeros(2 * size + 2), jac=True, method="L-BFGS-B")
        self.profile_, self.offset_ = best.x[:-2].reshape(2, size), best.x[-2:]
        self.classes_ = KEYS
        return self

    def predict(self, chromas_ND: np.ndarray) -> np.ndarray:
        """The key of each clip: str [N]."""
        scores_NK = _scores(_turn(chromas_ND), self.profile_, self.offset_)
        return self.classes_[scores_NK.argmax(axis=1)]


def _turn(chromas_ND: np.ndarray) -> np.ndarray:
    """Chromas as they look from each tonic: f64 [N, 12, D]."""
    chromas_NCP = np.asarray(chromas_ND, np.float64).reshape(len(chromas_ND), -1, 12)
    turned = [np.roll(chromas_NCP, -tonic, axis=2) for tonic in range(12)]
    return np.stack(turned, axis=1).reshape(len(chromas_ND), 12, -1)


def _scores(turned_NTD: np.ndarray, profile: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """How well each key fits, [N, K] in the order of `KEYS`."""
    return np.concatenate([turned_NTD @ profile[mode] + offset[mode] for mode in (0, 1)], axis=1)
