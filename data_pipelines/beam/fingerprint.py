"""Near duplicates: the same recording in another encoding, at another level, lightly cropped.

A landmark is a triple of peaks of the spectrogram: their frequencies, and the time between them.
Peaks outlive encoders and do not know the level; a crop moves all landmarks of a file by one time.
A file's sketch is the landmarks with the smallest hashes, each with its place in time, so that two
files of one recording keep the same ones. Two files are alike if they share `ALIKE` hashes at one
shift in time. Different takes or arrangements of a piece are not alike: their peaks differ.

T: samples, N: frames, F: bins.
"""

import itertools
from collections.abc import Iterator

import numpy as np
import scipy.fft
import scipy.ndimage
import soxr

# (hash, frame of its first peak) of the landmarks.
Sketch = tuple[tuple[int, int], ...]

SKETCH_SIZE = 256
ALIKE = 40
_RATE = 8_000
_WINDOW = 1_024
_HOP = 128
_NEIGHBOURS = (21, 31)  # frames and bins around a peak that are all lower
_FAN = 4  # how many of the peaks that follow form landmarks with one
_MAX_FRAMES = 124  # from the first to the last peak of a landmark
# Frames and bins that count as equal: another encoding, or a crop between frames, moves a peak.
_SAME_FRAMES, _SAME_BINS = 8, 2
_SHIFT_FRAMES = 16
_FRAMES_A_BLOCK = 4_096


def sketch(mono: np.ndarray, sample_rate: int) -> Sketch:
    """The fingerprint of f32 samples [T]."""
    samples = soxr.resample(mono, sample_rate, _RATE, quality="LQ")
    times, bins = _peaks(_log_spectrogram(samples))
    hashes, starts = _landmarks(times, bins)
    hashes, first = np.unique(hashes, return_index=True)
    return tuple(
        zip(
            hashes[:SKETCH_SIZE].tolist(),
            starts[first[:SKETCH_SIZE]].tolist(),
            strict=True,
        )
    )


def shifts(frames: int) -> Iterator[tuple[int, int]]:
    """The two bins of a time between files: of overlapping sets, so that close ones share one."""
    yield 0, frames // _SHIFT_FRAMES
    yield 1, (frames + _SHIFT_FRAMES // 2) // _SHIFT_FRAMES


def _log_spectrogram(samples: np.ndarray) -> np.ndarray:
    samples = np.pad(samples, (0, max(0, _WINDOW - len(samples))))
    frames_NT = np.lib.stride_tricks.sliding_window_view(samples, _WINDOW)[::_HOP]
    hann = np.hanning(_WINDOW).astype(np.float32)
    floor = 1e-6 * float(np.abs(samples).max(initial=1e-6))
    blocks = [
        np.log(np.abs(scipy.fft.rfft(frames_NT[i : i + _FRAMES_A_BLOCK] * hann)) + floor)
        for i in range(0, len(frames_NT), _FRAMES_A_BLOCK)
    ]
    return np.concatenate(blocks)


def _peaks(log_NF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frames and bins of the peaks above the mean, in time."""
    is_peak_NF = (log_NF == scipy.ndimage.maximum_filter(log_NF, _NEIGHBOURS)) & (
        log_NF > log_NF.mean()
    )
    is_peak_NF[:, :4] = False  # below 30 Hz there is no music
    return np.nonzero(is_peak_NF)


def _landmarks(times: np.ndarray, bins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hashes, uint64, and the frames of their first peaks; sorted by both."""
    count = max(0, len(times) - _FAN)
    place = (bins // _SAME_BINS).astype(np.uint64)
    hashes, starts = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for second, third in itertools.combinations(range(1, _FAN + 1), 2):
        gaps = [times[i : i + count] - times[:count] for i in (second, third)]
        parts = [place[:count], place[second : second + count], place[third : third + count]]
        parts += [(gap // _SAME_FRAMES).astype(np.uint64) for gap in gaps]
        near = (gaps[1] > 0) & (gaps[1] <= _MAX_FRAMES)
        hashes.append(_mix(parts)[near])
        starts.append(times[:count][near])
    hashes, starts = np.concatenate(hashes), np.concatenate(starts)
    order = np.lexsort((starts, hashes))
    return hashes[order], starts[order]


def _mix(parts: list[np.ndarray]) -> np.ndarray:
    """Numbers below 1024 packed into one and scattered evenly, so that the smallest are a draw."""
    packed = np.zeros_like(parts[0])
    for part in parts:
        packed = (packed << np.uint64(10)) | part
    packed *= np.uint64(0x9E3779B97F4A7C15)
    packed ^= packed >> np.uint64(29)
    packed *= np.uint64(0xBF58476D1CE4E5B9)
    return (packed ^ (packed >> np.uint64(32))) >> np.uint64(1)  # fits Beam's signed 64 bits
