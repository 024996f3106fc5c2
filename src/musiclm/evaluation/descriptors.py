"""What a clip sounds like in numbers, without any trained weights.

All are blind to loudness, and to what lies 60 dB below the loudest moments, so that codec noise in
silence counts for nothing.

T samples, N frames, F frequency bins, M mel bands, P notes, D numbers.
"""

import itertools
import math

import numpy as np
import scipy.fft
import scipy.ndimage

from musiclm import audio
from musiclm.evaluation import notes

SAMPLE_RATE = 16_000  # Hz; others are brought to it
_WINDOW, _HOP = 1024, 256  # 64 ms, 16 ms
_FRAME_RATE = SAMPLE_RATE / _HOP
_NUM_MELS = 64
_RANGE_DB = 60.0
# dB in a neper: NumPy's natural logarithms and powers take a third of the time of the others.
_NEPER = 20 / math.log(10)
_NUM_CEPSTRA = 20
# Edges in mel bands: low and high, and what cymbals fill alone.
_RHYTHM_BANDS = ((0, 10), (10, 26), (26, 44), (44, 64), (0, 64))
_DRUM_BANDS = ((0, 6), (6, 16), (16, 32), (32, 48), (48, 56), (56, 64))
# Beats and their divisions: 0.45 to 13 a second, 24 steps an octave.
_PULSE_RATES = np.geomspace(0.45, 13.0, 117)
# Edges in bins of 15.6 Hz: octaves from 200 Hz, halved from 2 kHz on.
_CONTRAST_EDGES = (0, 13, 26, 51, 77, 128, 192, 256, 384, 512)
# Semitones between partials, among them the octave (12), the twelfth (19) and their neighbours.
_PARTIAL_LAGS = (
    0.33, 0.67, 1, 1.33, 2, 4, 6, 7, 8, 9, 10, 11, 11.33, 11.67, 12, 12.33, 12.67, 13,
    14, 16, 18, 19, 20, 24, 26, 28, 30, 31, 32, 33.67, 34, 36,
)  # fmt: skip
_FIRST, _LAST = 0.5, 1.2  # seconds: a tune sets out from its tonic and comes to rest on it
_BASS, _ABOVE_BASS = 16, 12  # notes to G2, and from E2
_MELODY = 40  # MIDI pitch: onsets of lower notes are the bass's
_ONSET_WIDTHS = (3, 5, 8)  # frames of 32 ms
_ONSET_RANKS = (4, 6, 8, 10, 13, 16, 20, 25, 32, 40, 50, 64)


def describe(waveform_T: np.ndarray, sample_rate: int) -> dict[str, np.ndarray]:
    """Describes a clip for each of the questions that `adherence` asks.

    Args:
      waveform_T: f32, two seconds or more.
      sample_rate: Hz.

    Returns:
      By question, see `adherence.QUESTIONS`: f32 vectors, of one length for every clip.

    Raises:
      ValueError: the clip is too short, or holds NaN or infinities.
    """
    samples_T = audio.resample(np.asarray(waveform_T, np.float32), sample_rate, SAMPLE_RATE)
    if samples_T.ndim != 1 or len(samples_T) < 2 * SAMPLE_RATE or not np.isfinite(samples_T).all():
        raise ValueError(
            f"a clip of shape {samples_T.shape} at {SAMPLE_RATE} Hz: give two seconds or more of "
            "finite mono samples"
        )
    magnitude_NF = _magnitude(samples_T, _WINDOW, _HOP)
    filters_FM = audio.mel_filters(_NUM_MELS, _WINDOW, SAMPLE_RATE, 40.0)
    decibels_NM = _decibels(magnitude_NF @ filters_FM)
    strength_NP = notes.strengths(_magnitude(samples_T, 4096, 1024), SAMPLE_RATE)
    timbre = [
        _statistics(scipy.fft.dct(decibels_NM, axis=1, norm="ortho")[:, :_NUM_CEPSTRA]),
        _contrast(_decibels(magnitude_NF)),
        _partials(samples_T),
    ]
    levels = _levels(strength_NP)
    pulses_RB = _pulses(decibels_NM)
    vectors = {
        "instrument": timbre,
        "drums": [_hits(decibels_NM), _noisiness(magnitude_NF)],
        "tempo": [pulses_RB.ravel()],
        "key": [_chromas(strength_NP)],
        # How a note is coloured tells how high it is, and whether it is alone.
        "register": [*timbre, levels],
        # Notes are counted a beat; the beat's rate is coarser here, so that it doesn't drown them.
        "density": [
            _note_onsets(samples_T),
            pulses_RB[:-1].mean(axis=1).reshape(-1, 2).mean(axis=1),
        ],
        "bass": [*timbre, levels],
        "chords": [*timbre, _intervals(strength_NP[:, _ABOVE_BASS:])],
    }
    return {name: np.concatenate(parts).astype(np.float32) for name, parts in vectors.items()}


def _magnitude(samples_T: np.ndarray, window: int, hop: int) -> np.ndarray:
    """Spectral magnitudes, f32 [T // hop, window // 2 + 1]."""
    left = (window - hop) // 2
    padded = np.pad(samples_T, (left, window - hop - left))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop]
    return np.abs(scipy.fft.rfft(frames[: len(samples_T) // hop] * audio.hann(window), axis=1))


def _decibels(magnitude_NX: np.ndarray) -> np.ndarray:
    """dB above a floor `_RANGE_DB` below the loudest frames (their 95th percentile)."""
    loudest = np.quantile(magnitude_NX.max(axis=1), 0.95) + 1e-9
    nepers_NX = np.log(np.maximum(magnitude_NX / loudest, 1e-9))
    return np.maximum(_NEPER * nepers_NX + _RANGE_DB, 0.0)


def _statistics(values_ND: np.ndarray) -> np.ndarray:
    """Mean, spread, median and outer deciles over time, and the spread of changes."""
    change_ND = values_ND[2:] - values_ND[:-2]
    deciles = np.quantile(values_ND, (0.1, 0.5, 0.9), axis=0).ravel()
    return np.concatenate([values_ND.mean(0), values_ND.std(0), change_ND.std(0), deciles])


def _contrast(decibels_NF: np.ndarray) -> np.ndarray:
    """How far partials stand out of what is between them, by frequency band."""
    numbers = []
    for low, high in itertools.pairwise(_CONTRAST_EDGES):
        band_NF = decibels_NF[:, low:high]
        # Sorted before: NumPy parts many short rows slowly.
        valley_N, peak_N = np.quantile(np.sort(band_NF, axis=1), (0.1, 0.9), axis=1)
        power_N = np.exp(band_NF * (2 / _NEPER)).mean(axis=1)
        flatness = (band_NF.mean(axis=1) - _NEPER / 2 * np.log(power_N)).mean()
        numbers += [(peak_N - valley_N).mean(), (peak_N - valley_N).std(), flatness]
    return np.array(numbers)


def _partials(samples_T: np.ndarray) -> np.ndarray:
    """Autocorrelation of the spectrum along pitch: which partials a note has, at any key."""
    window, steps = 4096, 36  # steps an octave
    decibels_NF = _decibels(_magnitude(samples_T, window, window // 2))
    pitch = 60.0 * 2 ** (np.arange(7 * steps) / steps)
    position = pitch * window / SAMPLE_RATE
    below = position.astype(int)
    rise = (position - below).astype(np.float32)
    along_NP = decibels_NF[:, below] * (1 - rise) + decibels_NF[:, below + 1] * rise
    peaks_NP = np.maximum(along_NP - scipy.ndimage.uniform_filter1d(along_NP, steps, axis=1), 0.0)
    power_P = (np.abs(scipy.fft.rfft(peaks_NP, 2 * peaks_NP.shape[1], axis=1)) ** 2).mean(axis=0)
    correlation_P = scipy.fft.irfft(power_P)
    lags = np.round(np.array(_PARTIAL_LAGS) * steps / 12).astype(int)
    return correlation_P[lags] / (correlation_P[0] + 1e-9)


def _onsets(decibels_NM: np.ndarray, bands) -> np.ndarray:
    """How much louder each band has become since two frames before, [N - 2, bands]."""
    rise_NM = np.maximum(decibels_NM[2:] - decibels_NM[:-2], 0.0)
    return np.stack([rise_NM[:, low:high].mean(axis=1) for low, high in bands], axis=1)


def _hits(decibels_NM: np.ndarray) -> np.ndarray:
    """Short events by band: drums strike all of them, and the highest with nothing below."""
    # Band by band: along one axis SciPy is quicker.
    held = [scipy.ndimage.median_filter(band_N, 15, mode="nearest") for band_N in decibels_NM.T]
    held_NM = np.stack(held, axis=1)
    struck_NM = decibels_NM - held_NM
    struck_NB = np.stack([struck_NM[:, low:high].mean(axis=1) for low, high in _DRUM_BANDS], axis=1)
    onset_NB = _onsets(decibels_NM, _DRUM_BANDS)
    quantiles = (0.1, 0.5, 0.8, 0.9, 0.95, 0.99)
    return np.concatenate(
        [
            np.quantile(struck_NB, quantiles, axis=0).ravel(),
            np.quantile(onset_NB, quantiles[1:], axis=0).ravel(),
            onset_NB.mean(axis=0),
            onset_NB.std(axis=0),
            scipy.fft.dct(struck_NM, axis=1, norm="ortho")[:, :_NUM_CEPSTRA].std(axis=0),
        ]
    )


def _noisiness(magnitude_NF: np.ndarray) -> np.ndarray:
    """Deciles over time of spectral flatness above 2 kHz, by band; noise is flat, notes are not."""
    power_NF = magnitude_NF**2 + 1e-10
    numbers = []
    for low, high in ((128, 256), (256, 384), (384, 512)):
        band_NF = power_NF[:, low:high]
        flatness_N = np.log(band_NF).mean(axis=1) - np.log(band_NF.mean(axis=1))
        numbers.append(np.quantile(flatness_N, (0.1, 0.5, 0.9, 0.95)))
    return np.concatenate(numbers)


def _pulses(decibels_NM: np.ndarray) -> np.ndarray:
    """Fourier tempogram of the whole clip: how strongly onsets recur, by rate and band."""
    onset_NB = _onsets(decibels_NM, _RHYTHM_BANDS)
    # Only what stands out of its second counts: a loud bar must not drown the rest.
    local_NB = scipy.ndimage.uniform_filter1d(onset_NB, round(_FRAME_RATE), axis=0)
    onset_NB = np.maximum(onset_NB - local_NB, 0.0)
    size = 4096
    strength_RB = np.abs(scipy.fft.rfft(onset_NB - onset_NB.mean(axis=0), size, axis=0))
    strength_RB /= strength_RB[: int(16 * size / _FRAME_RATE)].mean(axis=0) + 1e-9
    position = _PULSE_RATES * size / _FRAME_RATE
    below = position.astype(int)
    rise = (position - below)[:, None]
    return np.sqrt(strength_RB[below] * (1 - rise) + strength_RB[below + 1] * rise)


def _chromas(strength_NP: np.ndarray) -> np.ndarray:
    """What pitch classes sound: in all frames alike, in the bass, at first, and at last.

    The last two part a key from its relative, which has the same notes. A clip that is cut out of
    the middle of a tune lacks them, and is answered worse.
    """
    rate = SAMPLE_RATE / 1024
    chroma_NC = notes.chroma(strength_NP)
    alike_NC = chroma_NC / (np.linalg.norm(chroma_NC, axis=1, keepdims=True) + 0.05)
    means = [
        part_NC.mean(axis=0)
        for part_NC in (
            alike_NC,
            notes.chroma(strength_NP[:, :_BASS]),
            chroma_NC[: round(_FIRST * rate)],
            chroma_NC[-round(_LAST * rate) :],
        )
    ]
    return np.concatenate([mean / (np.linalg.norm(mean) + 1e-6) for mean in means])


def _levels(strength_NP: np.ndarray) -> np.ndarray:
    """Mean, upper decile and spread over time of each note's strength."""
    decile_P = np.quantile(strength_NP, 0.9, axis=0)
    return np.concatenate([strength_NP.mean(axis=0), decile_P, strength_NP.std(axis=0)])


def _intervals(strength_NP: np.ndarray) -> np.ndarray:
    """How strongly two notes sound together, by semitones between them up to three octaves."""
    power = (strength_NP**2).sum() + 1e-6
    together = [(strength_NP[:, k:] * strength_NP[:, :-k]).sum() / power for k in range(1, 37)]
    return np.array(together)


def _note_onsets(samples_T: np.ndarray) -> np.ndarray:
    """How far notes rise at the 4th, 6th, … 64th clearest moments: how many there are, in short.

    By the time that they take (vibrato and slow attacks want more than plucks), and by what counts:
    the note that rises most, three of them together, or rather the high ones, as melodies are.
    """
    strength_NP = np.sqrt(notes.strengths(_magnitude(samples_T, 2048, 512), SAMPLE_RATE, _MELODY))
    height_P = np.arange(strength_NP.shape[1]) / 30
    numbers = []
    for width in _ONSET_WIDTHS:
        mean_NP = scipy.ndimage.uniform_filter1d(strength_NP, width, axis=0, mode="constant")
        rise_NP = np.maximum(mean_NP[width:] - mean_NP[:-width], 0.0)
        three_N = np.sort(rise_NP, axis=1)[:, -3:].sum(axis=1)
        for rise_N in (rise_NP.max(axis=1), three_N, (rise_NP * height_P).max(axis=1)):
            is_peak_N = rise_N == scipy.ndimage.maximum_filter1d(rise_N, 2 * (width // 2) + 1)
            peaks = np.sort(rise_N * is_peak_N)[::-1]
            numbers.append(np.pad(peaks, (0, _ONSET_RANKS[-1]))[np.array(_ONSET_RANKS) - 1])
    return np.concatenate(numbers)
