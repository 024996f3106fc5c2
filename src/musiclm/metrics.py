"""Where a run's figures go: TensorBoard curves and one JSON object a line."""

import json
import os
import pathlib
from collections.abc import Mapping

from musiclm import processes


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

    def close(self) -> None:
        """Flushes both."""
        if self._writes:
            self._curves.close()
            self._lines.close()

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *_) -> None:
        self.close()
