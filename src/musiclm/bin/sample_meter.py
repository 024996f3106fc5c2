"""How far `musiclm sample` is, and how fast it was."""

import collections
import resource
import sys
import time
from collections.abc import Container
from typing import Any

from musiclm import api


class Meter:
    """A progress bar over seconds of music, and how long the stages took.

    Itself what `api.MusicLM.render` takes as `progress`.

    Attributes:
      clips: that are done; for who uses it to count.
    """

    def __init__(self, seconds: float):
        import tqdm

        self.clips = 0
        self._bar = tqdm.tqdm(
            total=round(seconds, 1),
            desc="music",
            file=sys.stderr,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s "
            "[{elapsed}<{remaining}]",
        )
        self._tokens: collections.Counter = collections.Counter()
        self._times: collections.Counter = collections.Counter()
        self._made = self._before = self._round = self._done = 0.0
        self._stage, self._working = "", 0.0

    def start_round(self, seconds: float, stages: Container[str]) -> None:
        """Clips of so many seconds together are begun, which these stages make."""
        self._stages = [stage for stage in api.STAGES if stage in stages]
        self._before, self._round = self._bar.n, seconds
        self._stage, self._started = "", time.perf_counter()
        self._since = self._started

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.perf_counter()
        if stage != self._stage:
            self._stage, self._done = stage, 0
        self._tokens[stage] += done - self._done
        self._times[stage] += now - self._since
        self._done, self._since = done, now
        # Stages take about as long as one another.
        share = (self._stages.index(stage) + done / total) / len(self._stages)
        self._to(self._before + share * self._round)

    def end_round(self) -> None:
        """They are done."""
        self._working += time.perf_counter() - self._started
        self._made += self._round
        self._to(self._before + self._round)

    def summary(self) -> dict[str, Any]:
        """Seconds of music and of work on it, tokens a second of each stage, memory.

        Loading and compiling the stages are no such work; decoding and writing sound are.
        """
        return {
            "music_seconds": round(self._made, 3),
            "generating_seconds": round(self._working, 3),
            "music_seconds_per_second": self._made and round(self._made / self._working, 3),
            "tokens_per_second": {
                stage: round(self._tokens[stage] / self._times[stage], 1)
                for stage in api.STAGES
                if self._tokens[stage]
            },
            "peak_memory_bytes": _peak_memory(),
        }

    def _to(self, seconds: float) -> None:
        self._bar.update(seconds - self._bar.n)

    def __enter__(self) -> "Meter":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def _peak_memory() -> int:
    """Of the fullest device; of the process, where devices do not count."""
    import jax

    counted = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [stats["peak_bytes_in_use"] for stats in counted if "peak_bytes_in_use" in stats]
    return max(peaks, default=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
