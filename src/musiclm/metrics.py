"""Where a run's figures and sounds go: TensorBoard, and one JSON object a line."""

import itertools
import json
import os
import pathlib
from collections.abc import Mapping

import jax
import numpy as np

from musiclm import audio, processes


class MetricWriter:
    """Writes scalars to `directory` for TensorBoard and to `directory/metrics.jsonl`.

    Of a job's processes the first writes, the others' writers do nothing.
    """

    def __init__(self, directory: str | os.PathLike):
        self._writes = processes.is_first()
        if not self._writes:
            return
        self._directory = pathlib.Path(directory)
        self._directory.mkdir(parents=True, exist_ok=True)
        self._opened = itertools.count()
        self._open()

    def _open(self) -> None:
        # Only who trains has it; it comes without TensorFlow, which takes seconds to import.
        import tensorboardX

        # By the second alone, a file could have the name of the one before, and take its place.
        number = f".{next(self._opened):06}"
        self._curves = tensorboardX.SummaryWriter(
            str(self._directory), flush_secs=30, filename_suffix=number
        )
        self._lines = (self._directory / "metrics.jsonl").open("a")

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Records the scalars of a step."""
        if not self._writes:
            return
        record = {name: float(value) for name, value in scalars.items()}
        for name, value in record.items():
            self._curves.add_scalar(name, value, step)
        self._lines.write(json.dumps({"step": step} | record) + "\n")
        self._lines.flush()

    def write_sounds(self, step: int, sounds_NT: Mapping[str, jax.Array], sample_rate: int) -> None:
        """Records waveforms f32 [N, T] to listen to, and pictures of their log-mel spectra."""
        if not self._writes:
            return
        config = audio.MelConfig(sample_rate=sample_rate)
        lowest = np.log(config.floor)
        for name, waveform_NT in sounds_NT.items():
            waveform_NT = np.clip(np.asarray(waveform_NT), -1, 1)
            mel_NTF = _log_mel(waveform_NT, config)
            brightness_NFT = np.clip(1 - mel_NTF / lowest, 0, 1).swapaxes(1, 2)[:, ::-1]
            for n, sound_T in enumerate(waveform_NT):
                self._curves.add_audio(f"sound/{name}/{n}", sound_T, step, sample_rate)
                self._curves.add_image(
                    f"spectrogram/{name}/{n}", brightness_NFT[n], step, dataformats="HW"
                )

    def publish(self) -> None:
        """Closes the files and goes on in others: a mounted bucket shows those that are closed."""
        if self._writes:
            self.close()
            self._open()

    def close(self) -> None:
        """Flushes both."""
        if self._writes:
            self._curves.close()
            self._lines.close()

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _log_mel(waveform_NT: np.ndarray, config: audio.MelConfig) -> np.ndarray:
    """`audio.log_mel` on the host: under a mesh JAX would wait for the job's other processes."""
    window, hop = config.window_size, config.hop_size
    whole_NT = waveform_NT[:, : waveform_NT.shape[1] // hop * hop]
    left = (window - hop) // 2
    padded_NT = np.pad(whole_NT, ((0, 0), (left, window - hop - left)))
    frames = np.lib.stride_tricks.sliding_window_view(padded_NT, window, axis=1)[:, ::hop]
    magnitude_NTF = np.abs(np.fft.rfft(frames * audio.hann(window), config.num_fft))
    filters = audio.mel_filters(config.num_mels, config.num_fft, config.sample_rate)
    return np.log(magnitude_NTF @ filters + config.floor)
