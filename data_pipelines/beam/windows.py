"""Where the windows of a file lie: in time that every sample rate divides.

T: samples.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from data_pipelines import manifest
from data_pipelines.beam import decode
from musiclm import audio, errors

# What is left over after the last whole window gets a window of its own, which ends with the file
# and overlaps the one before, if it is at least this long: encoders pad files by some hundredths of
# a second, and two windows of the same music are no gain.
MIN_TAIL_SECONDS = 1.0


@dataclasses.dataclass(frozen=True, eq=False)
class Window:
    """One example.

    Attributes:
      key: see `shards.key_of`.
      waveforms: by sample rate, f32 [T] of the same seconds.
      captions: of the whole clip.
    """

    key: str
    waveforms: Mapping[int, np.ndarray]
    captions: Sequence[manifest.Caption]


@dataclasses.dataclass(frozen=True)
class Grid:
    """Time in ticks that are whole samples at every one of `sample_rates`."""

    sample_rates: tuple[int, ...]
    window_seconds: float

    def __post_init__(self):
        if not 0 < self.window_seconds * self.ticks_a_second < math.inf:
            raise errors.UserError(
                f"--window-seconds is {self.window_seconds:g}: give a positive number"
            )
        if self.ticks != self.window_seconds * self.ticks_a_second:
            raise errors.UserError(
                f"--window-seconds is {self.window_seconds:g}: give a multiple of 1/"
                f"{self.ticks_a_second} s, so that it is a whole number of samples"
            )

    @functools.cached_property
    def ticks_a_second(self) -> int:
        return math.gcd(*self.sample_rates)

    @functools.cached_property
    def ticks(self) -> int:
        """Of a window."""
        return round(self.window_seconds * self.ticks_a_second)

    def starts(self, num_frames: int, sample_rate: int) -> list[int]:
        """The ticks at which the windows of a file start.

        Args:
          num_frames: of the file.
          sample_rate: of the file, in Hz.

        Raises:
          BadAudio: "short": not one window fits.
        """
        total = num_frames * self.ticks_a_second // sample_rate
        if total < self.ticks:
            raise decode.BadAudio(
                "short", f"{num_frames / sample_rate:.3f} s, a window has {self.window_seconds:g} s"
            )
        starts = list(range(0, total - self.ticks + 1, self.ticks))
        if total % self.ticks >= MIN_TAIL_SECONDS * self.ticks_a_second:
            starts.append(total - self.ticks)
        return starts

    def cut(
        self, mono: np.ndarray, sample_rate: int, wanted: Sequence[int]
    ) -> Iterator[tuple[int, dict[int, np.ndarray]]]:
        """Some windows of a file.

        Args:
          mono: f32 [T] of the whole file.
          sample_rate: its rate, in Hz.
          wanted: indices of windows.

        Yields:
          The index, and the window's f32 samples by sample rate.
        """
        starts = self.starts(len(mono), sample_rate)
        at = {rate: audio.resample(mono, sample_rate, rate) for rate in self.sample_rates}
        for index in wanted:
            yield index, {rate: self._slice(at[rate], rate, starts[index]) for rate in at}

    def _slice(self, samples: np.ndarray, rate: int, start: int) -> np.ndarray:
        scale = rate // self.ticks_a_second
        piece = samples[start * scale : (start + self.ticks) * scale]
        # The resampler may end a sample early.
        return np.pad(piece, (0, self.ticks * scale - len(piece)))
