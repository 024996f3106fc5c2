"""What a run of a study is that trains nothing: a measurement, from a seed, written down.

A gin file binds it as the function of `musiclm fit`:

  fit.fit.what = @measuring.measure
  measuring.measure.measurement = @sampled_clips.SampledClips()
"""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from musiclm import bundle


class Measurement(Protocol):
    """What is measured, and of what; everything but the seed is decided when it is made."""

    @property
    def figures(self) -> Sequence[str]:
        """Names of what `measure` finds."""

    def data(self) -> str:
        """Digest of the data and models that it rests on.

        Raises:
          UserError: they can't be used.
        """

    def measure(
        self, folder: pathlib.Path, cache: pathlib.Path, seed: int
    ) -> Mapping[str, float | np.ndarray]:
        """The figures, or of each that is a mean the items [N].

        Args:
          folder: for what is made on the way; what is there of an earlier start is not made again.
          cache: folder that is shared with other measurements.
          seed: of all draws.
        """


def measure(
    *, measurement: Measurement, workdir: str | os.PathLike, cache: str | os.PathLike, seed: int = 0
) -> None:
    """Measures, and writes the figures as training writes those of an evaluation.

    Args:
      measurement: what to measure.
      workdir: gets items.json, of the figures that are means, and then metrics.jsonl.
      cache: folder that is shared with other measurements.
      seed: of all draws.
    """
    folder = pathlib.Path(workdir)
    found = measurement.measure(folder, pathlib.Path(cache), seed)
    items = {f"eval/{name}": x.tolist() for name, x in found.items() if isinstance(x, np.ndarray)}
    line = {"step": 0, **{f"eval/{name}": float(np.mean(x)) for name, x in found.items()}}
    for name, content in (("items.json", items), ("metrics.jsonl", line)):
        bundle.write_beside(folder / name, (json.dumps(content) + "\n").encode())
