"""Where a run's figures and sounds go: TensorBoard, and one JSON object a line."""

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
        # TensorFlow comes with clu and takes seconds to import: only a run that writes pays.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        from clu import metric_writers

        directory = pathlib.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self._curves = metric_writers.AsyncWriter(metric_writers.SummaryWriter(str(directory)))
        self._lines = (directory / "metrics.jsonl").open("a")

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Records the scalars of a step."""
        if not self._writes:
            return
        self._curves.write_scalars(step, dict(scalars))
        record = {"step": step} | {name: float(value) for name, value in scalars.items()}
        self._lines.write(json.dumps(record) + "\n")
        self._lines.flush()

    def write_sounds(self, step: int, sounds_NT: Mapping[str, jax.Array], sample_rate: int) -> None:
        """Records waveforms f32 [N, T] to listen to, and pictures of their log-mel spectra."""
        if not self._writes:
            return
        config = audio.MelConfig(sample_rate=sample_rate)
        players, pictures = {}, {}
        for name, waveform_NT in sounds_NT.items():
            waveform_NT = np.asarray(waveform_NT)
            players[f"sound/{name}"] = np.clip(waveform_NT, -1, 1)[..., None]
            mel_NFT = np.asarray(audio.log_mel(waveform_NT, config)).swapaxes(1, 2)[:, ::-1]
            lowest = np.log(config.floor)
            pictures[f"spectrogram/{name}"] = np.clip(1 - mel_NFT / lowest, 0, 1)[..., None]
        self._curves.write_audios(step, players, sample_rate=sample_rate)
        self._curves.write_images(step, pictures)

    def close(self) -> None:
        """Flushes both."""
        if self._writes:
            self._curves.close()
            self._lines.close()

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *_) -> None:
        self.close()
