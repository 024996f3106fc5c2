"""Clips as vectors, for distances between sets of clips; each clip is described once.

Shapes: B clips of a batch, N clips, T samples, W windows, D embedding.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import scipy.fft

from musiclm import audio, bundle
from musiclm.evaluation import threads

_WINDOW_SECONDS = 0.96  # of a timbre vector, as of VGGish
_FRAME, _HOP = 0.064, 0.016  # seconds
_NUM_MELS, _NUM_CEPSTRA = 64, 20
_RANGE_DB = 60.0

Arrays = Mapping[str, np.ndarray]


def timbre(waveform_T: np.ndarray, sample_rate: int) -> np.ndarray:
    """Timbre without any trained weights: f32 [W, 40], a vector for each 0.96 s.

    Mean and deviation over the window of 20 cepstra of the log-mel spectrum, which ends 60 dB
    below the clip's loudest frame. The first cepstrum, the level, counts relative to the clip's:
    a louder copy has the same vectors.

    Args:
      waveform_T: f32, a window or more; what is left after the last whole one is not heard.
      sample_rate: Hz.

    Raises:
      ValueError: the clip is shorter than a window or holds NaN or infinities.
    """
    waveform_T = np.asarray(waveform_T, np.float32)
    length = round(_WINDOW_SECONDS * sample_rate)
    if waveform_T.ndim != 1 or len(waveform_T) < length or not np.isfinite(waveform_T).all():
        raise ValueError(
            f"a clip of shape {waveform_T.shape} at {sample_rate} Hz: give {_WINDOW_SECONDS} s or "
            "more of finite mono samples"
        )
    frame, hop = round(_FRAME * sample_rate), round(_HOP * sample_rate)
    frames_NT = np.lib.stride_tricks.sliding_window_view(waveform_T, frame)[::hop]
    magnitude_NF = np.abs(scipy.fft.rfft(frames_NT * audio.hann(frame), axis=1))
    mel_NM = magnitude_NF @ audio.mel_filters(_NUM_MELS, frame, sample_rate, 40.0)
    decibels_NM = 20 * np.log10(np.maximum(mel_NM / (mel_NM.max() + 1e-9), 10 ** (-_RANGE_DB / 20)))
    cepstra_NC = scipy.fft.dct(decibels_NM, axis=1, norm="ortho")[:, :_NUM_CEPSTRA]
    per_window = round(_WINDOW_SECONDS / _HOP)
    num_windows = max(1, len(cepstra_NC) // per_window)
    windows_WNC = cepstra_NC[: num_windows * per_window].reshape(num_windows, -1, _NUM_CEPSTRA)
    return np.concatenate([windows_WNC.mean(axis=1), windows_WNC.std(axis=1)], axis=1).astype(
        np.float32
    )


@dataclasses.dataclass(frozen=True)
class Cache:
    """What was computed of clips, in a folder, by the content of each.

    Neither a clip's name nor its folder decides: the same samples are never looked at twice, and
    others never taken for them.

    Attributes:
      folder: of the files; made when the first is written.
    """

    folder: pathlib.Path

    def each(
        self,
        computations: Mapping[str, Callable[[np.ndarray], Arrays]],
        clips: Iterable[np.ndarray],
        progress: Callable[[int], None] | None = None,
    ) -> list[Arrays]:
        """Arrays of every clip, by name; computed where they are not there yet.

        Args:
          computations: of one clip [T]; called by several threads at once. A key names what is
            computed and all that it depends on besides the samples: rates, sizes, the digest of a
            model. Each is kept apart: one more leaves the others as they are.
          clips: f32 waveforms [T].
          progress: called with 1 after each clip.
        """

        def one(waveform_T: np.ndarray) -> Arrays:
            found = {}
            for what, compute in computations.items():
                path = self.folder / f"{_digest(what, waveform_T)}.npz"
                if not path.is_file():
                    _save(path, compute(waveform_T))
                with np.load(path) as arrays:
                    found.update(arrays)
            return found

        return list(threads.each(one, clips, progress))


def _digest(what: str, waveform_T: np.ndarray) -> str:
    digest = hashlib.sha256(what.encode() + b"\0")
    digest.update(np.ascontiguousarray(waveform_T, np.float32).tobytes())
    return digest.hexdigest()[:40]


def _save(path: pathlib.Path, arrays: Arrays) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with bundle.beside(path) as unfinished, unfinished.open("wb") as file:
        np.savez(file, **arrays)
