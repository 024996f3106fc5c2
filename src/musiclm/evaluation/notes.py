"""Which notes sound when, without any trained weights.

Spectra are taken apart into harmonic tones, one a semitone, by non-negative least squares on the
square roots of magnitudes. Overtones thus count for the note below them, and a chord is several.

N frames, F frequency bins, P notes, C pitch classes.
"""

import functools

import numpy as np

LOWEST, HIGHEST = 28, 100  # MIDI pitches: E1, a bass guitar's lowest string, to E7
_TOP = 4000.0  # Hz; what lies above helps little
_NUM_PARTIALS = 10
_DECAY = 0.7  # from partial to partial
_FLOOR = 1e-3  # of the loudest: -60 dB
_STEPS = 50  # of the least squares


def strengths(magnitude_NF: np.ndarray, sample_rate: int, lowest: int = LOWEST) -> np.ndarray:
    """How strongly each note sounds in each frame.

    Args:
      magnitude_NF: of Hann windows of 2 (F - 1) samples.
      sample_rate: Hz, 8000 or more.
      lowest: MIDI pitch of the first note; the last is `HIGHEST`.

    Returns:
      f32 [N, HIGHEST - lowest + 1], 1 for the strongest notes of the clip whatever its loudness.
    """
    tones_PF = _tones(2 * (magnitude_NF.shape[1] - 1), sample_rate, lowest)
    loudest = np.quantile(magnitude_NF.max(axis=1), 0.95) + 1e-9
    relative_NF = magnitude_NF[:, : tones_PF.shape[1]] / loudest
    heard_NF = np.sqrt(np.maximum(relative_NF, _FLOOR)) - np.sqrt(_FLOOR)
    # Multiplicative updates (Lee & Seung 2001), which keep the strengths non-negative.
    wanted_NP, overlap_PP = heard_NF @ tones_PF.T, tones_PF @ tones_PF.T
    strength_NP = wanted_NP + 1e-6
    for _ in range(_STEPS):
        strength_NP *= wanted_NP / (strength_NP @ overlap_PP + 1e-6)
    scale = np.quantile(strength_NP.max(axis=1), 0.95) + 1e-6
    return (strength_NP / scale).astype(np.float32)


def chroma(strength_NP: np.ndarray) -> np.ndarray:
    """Sums the octaves of notes from `LOWEST` on: [N, 12], from C."""
    chroma_NC = np.zeros((len(strength_NP), 12), np.float32)
    for note in range(strength_NP.shape[1]):
        chroma_NC[:, (LOWEST + note) % 12] += strength_NP[:, note]
    return chroma_NC


@functools.cache
def _tones(window: int, sample_rate: int, lowest: int) -> np.ndarray:
    """What a note on each semitone looks like: f32 [P, bins below `_TOP`], of length 1."""
    bins_F = np.arange(int(_TOP * window / sample_rate))
    pitch_P = np.arange(lowest, HIGHEST + 1)
    fundamental_P = 440 * 2 ** ((pitch_P - 69) / 12) * window / sample_rate
    tones_PF = np.zeros((len(pitch_P), len(bins_F)))
    for partial in range(1, _NUM_PARTIALS + 1):
        away_PF = np.abs(bins_F - partial * fundamental_P[:, None])
        # The main lobe of a Hann window is four bins wide, and much like this.
        lobe_PF = np.cos(np.pi * np.minimum(away_PF, 2) / 4) ** 2
        tones_PF += _DECAY ** (partial - 1) * lobe_PF
    return (tones_PF / np.linalg.norm(tones_PF, axis=1, keepdims=True)).astype(np.float32)
