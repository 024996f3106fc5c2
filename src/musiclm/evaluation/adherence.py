"""Whether a clip has what its prompt asks for, as heard by classifiers fitted on real renders only.

Each real clip should be learned from twice, once as it is and once degraded (`degrade`: low-pass,
noise, μ-law, or the codec), so that a classifier listens to the music and not to the medium.

N clips, T samples, D numbers of a description.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from musiclm.evaluation import key_finder

QUESTIONS = ("instrument", "drums", "tempo", "key", "register", "density", "bass", "chords")
PERMUTATIONS = 9_999  # the least p-value is one in 10,000

# One description of a clip: a vector for each question.
Description = Mapping[str, np.ndarray]


def answers(entry: Mapping[str, Any]) -> dict[str, str]:
    """The true class of each question, from a clip's line in the manifest of "gm"."""
    return {
        "instrument": entry["instrument"],
        "tempo": entry["tempo"],
        "key": key_finder.name(entry["tonic"], entry["mode"]),
        "register": entry["register"],
        "density": entry["density"],
        **{part: part if entry[part] else f"no {part}" for part in ("drums", "bass", "chords")},
    }


@dataclasses.dataclass(frozen=True)
class Judge:
    """Fitted classifiers, one a question."""

    classifiers: Mapping[str, ClassifierMixin]

    def answer(self, descriptions: Sequence[Description]) -> dict[str, np.ndarray]:
        """The class that each clip is heard as: by question, str [N]."""
        return {
            question: classifier.predict(_stack(descriptions, question))
            for question, classifier in self.classifiers.items()
        }

    def right(
        self, descriptions: Sequence[Description], truths: Sequence[Mapping[str, str]]
    ) -> dict[str, np.ndarray]:
        """Whether each clip is heard as what it should be: by question, f64 [N] of 1 and 0.

        Args:
          descriptions: of the clips, see `descriptors.describe`.
          truths: what each should be, see `answers`.
        """
        heard = self.answer(descriptions)
        return {
            question: (heard[question] == np.array([truth[question] for truth in truths])).astype(
                np.float64
            )
            for question in heard
        }


def permutation_p(
    heard: Mapping[str, np.ndarray], truths: Sequence[Mapping[str, str]], *, seed: int = 0
) -> dict[str, float]:
    """How likely so many right answers are if clips have nothing to do with their prompts.

    The prompts are dealt out to the clips anew, 9,999 times, and p is the share of deals, the true
    one among them, with as many right answers or more (one-sided; Phipson & Smyth, arXiv
    1603.05766). Unlike a comparison with chance or with the commonest class, it knows which
    classes are asked for and which are heard how often. Where all prompts ask for the same, every
    deal is the true one and p is 1.

    Args:
      heard: what each clip is heard as, see `Judge.answer`.
      truths: what each prompt asks for, see `answers`.
      seed: of the deals; all questions see the same.

    Returns:
      p by question, above 0, up to 1.

    Raises:
      ValueError: there is no clip, or the numbers of clips and prompts differ.
    """
    right_NN = {}  # whether each clip is right for each prompt
    for question, heard_N in heard.items():
        truth_N = np.array([truth[question] for truth in truths])
        if not len(truth_N) or np.shape(heard_N) != truth_N.shape:
            raise ValueError(
                f"{question}: answers of shape {np.shape(heard_N)} for {len(truth_N)} truths: give "
                "one each a clip, and a clip or more"
            )
        right_NN[question] = np.asarray(heard_N)[:, None] == truth_N
    found = {question: np.trace(right) for question, right in right_NN.items()}
    rng = np.random.default_rng(seed)
    as_many = dict.fromkeys(right_NN, 1)
    for _ in range(PERMUTATIONS):
        prompt_N = rng.permutation(len(truths))
        for question, right in right_NN.items():
            dealt = np.count_nonzero(right[np.arange(len(truths)), prompt_N])
            as_many[question] += int(dealt >= found[question])
    return {question: count / (PERMUTATIONS + 1) for question, count in as_many.items()}


def fit(descriptions: Sequence[Description], truths: Sequence[Mapping[str, str]]) -> Judge:
    """Fits a support vector machine to each question, and a `KeyFinder` to the key.

    Args:
      descriptions: of real clips, see `descriptors.describe`.
      truths: their true classes, see `answers`.

    Raises:
      ValueError: the numbers of both differ, or a question other than the key has a single class.
    """
    if len(descriptions) != len(truths):
        raise ValueError(f"{len(descriptions)} descriptions and {len(truths)} truths: pair them")
    classifiers = {}
    for question in QUESTIONS:
        truth_N = np.array([truth[question] for truth in truths])
        if question == "key":
            classifier = key_finder.KeyFinder()
        else:
            # Balanced: a class that the corpus happens to have more of is no likelier an answer.
            classifier = make_pipeline(StandardScaler(), SVC(C=3.0, class_weight="balanced"))
        classifiers[question] = classifier.fit(_stack(descriptions, question), truth_N)
    return Judge(classifiers)


def degrade(
    waveform_T: np.ndarray,
    sample_rate: int,
    rng: np.random.Generator,
    codec: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """Sends a clip through one of several poor channels at random.

    Args:
      waveform_T: f32.
      sample_rate: Hz.
      rng: decides which channel, and how poor it is.
      codec: one more channel, a round trip [B, T] to [B, T].
    """
    channel = rng.choice(["low-pass", "noise", "mu-law", *(["codec"] if codec else [])])
    if channel == "low-pass":
        return low_pass(waveform_T, sample_rate, rng.uniform(2500.0, 7000.0))
    if channel == "noise":
        return add_noise(waveform_T, rng.uniform(15.0, 40.0), rng)
    if channel == "mu-law":
        return mu_law(waveform_T, int(rng.integers(5, 9)))
    return codec(waveform_T[None])[0]


def low_pass(waveform_T: np.ndarray, sample_rate: int, cutoff: float) -> np.ndarray:
    """Takes off what is above a frequency in Hz, over a tenth of an octave."""
    frequency_F = np.fft.rfftfreq(len(waveform_T), 1 / sample_rate)
    octaves_F = np.log2(np.maximum(frequency_F, 1e-3) / cutoff)
    gain_F = np.clip(1 - 10 * octaves_F, 0.0, 1.0)
    return np.fft.irfft(np.fft.rfft(waveform_T) * gain_F, len(waveform_T)).astype(np.float32)


def add_noise(waveform_T: np.ndarray, snr_db: float, rng: np.random.Generator) -> np.ndarray:
    """Adds white noise, so many dB below the clip."""
    level = np.sqrt(np.mean(waveform_T**2)) * 10 ** (-snr_db / 20)
    noise_T = level * rng.standard_normal(len(waveform_T))
    return (waveform_T + noise_T).astype(np.float32)


def mu_law(waveform_T: np.ndarray, bits: int) -> np.ndarray:
    """Rounds to so many bits on the μ-law scale (μ = 255), relative to the peak."""
    peak = np.abs(waveform_T).max() + 1e-9
    steps = 2 ** (bits - 1) - 1
    folded_T = np.log1p(255 * np.abs(waveform_T) / peak) / np.log(256)
    level_T = np.round(folded_T * steps) / steps
    return (np.sign(waveform_T) * np.expm1(level_T * np.log(256)) / 255 * peak).astype(np.float32)


def _stack(descriptions: Sequence[Description], question: str) -> np.ndarray:
    return np.stack([description[question] for description in descriptions])
