"""How far `musiclm sample` is, and how fast it was."""

import collections
import pathlib
import re
import resource
import sys
import time
from collections.abc import Container, Mapping, Sequence
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

    def summary(self, bytes_read: Mapping[str, int]) -> dict[str, Any]:
        """Seconds of music and of work on it, tokens a second of each stage, memory.

        Loading and compiling the stages are no such work; decoding and writing sound are. The share
        of the bandwidth bound is the time that what a stage had to read takes at least, in the time
        that it took; above 1 where caches hold it, and left out where the bandwidth can't be
        measured, such as for want of memory.

        Args:
          bytes_read: by stage, see `api.MusicLM.bytes_read`.
        """
        import jax

        peak = _peak_memory()
        read = {stage: count for stage, count in bytes_read.items() if self._tokens[stage]}
        try:
            bandwidth = read and read_bytes_per_second()
        except (jax.errors.JaxRuntimeError, MemoryError):
            read = {}  # what the job made is worth more than this number
        return {
            "music_seconds": round(self._made, 3),
            "generating_seconds": round(self._working, 3),
            "music_seconds_per_second": self._made and round(self._made / self._working, 3),
            "tokens_per_second": {
                stage: round(self._tokens[stage] / self._times[stage], 1)
                for stage in api.STAGES
                if self._tokens[stage]
            },
            "bandwidth_bound_share": {
                stage: round(count / bandwidth / self._times[stage], 3)
                for stage, count in read.items()
            },
            "peak_memory_bytes": peak,
        }

    def _to(self, seconds: float) -> None:
        self._bar.update(seconds - self._bar.n)

    def __enter__(self) -> "Meter":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def total(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The summary of a job, of those of its processes, which worked at the same time."""

    def sums(field: str) -> Any:
        return sum(one[field] for one in summaries)

    def by_stage(field: str) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        for one in summaries:
            for stage, value in one[field].items():
                found.setdefault(stage, []).append(value)
        return found

    music = round(sums("music_seconds"), 3)
    working = max(one["generating_seconds"] for one in summaries)
    tokens, shares = by_stage("tokens_per_second"), by_stage("bandwidth_bound_share")
    return {
        **{field: sums(field) for field in ("clips", "there_already", "rejected")},
        "music_seconds": music,
        "generating_seconds": working,
        "music_seconds_per_second": music and round(music / working, 3),
        "tokens_per_second": {stage: round(sum(found), 1) for stage, found in tokens.items()},
        "bandwidth_bound_share": {
            stage: round(sum(found) / len(found), 3) for stage, found in shares.items()
        },
        "peak_memory_bytes": max(one["peak_memory_bytes"] for one in summaries),
    }


def read_bytes_per_second() -> float:
    """How fast a device reads memory: the most of several sums over half a gigabyte."""
    import jax
    import jax.numpy as jnp

    array = jnp.ones(2**27, jnp.float32)
    total = jax.jit(jnp.sum)
    total(array).block_until_ready()
    spent = []
    for _ in range(7):
        begun = time.perf_counter()
        total(array).block_until_ready()
        spent.append(time.perf_counter() - begun)
    return array.nbytes / min(spent)


def _peak_memory() -> int:
    """Of the fullest device; of the process, where devices do not count."""
    import jax

    counted = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [stats["peak_bytes_in_use"] for stats in counted if "peak_bytes_in_use" in stats]
    return max(peaks, default=_peak_of_process())


def _peak_of_process() -> int:
    try:
        # Linux's getrusage starts from the peak of the parent.
        status = pathlib.Path("/proc/self/status").read_text()
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])
    except (OSError, TypeError):
        kilobytes = 1 if sys.platform == "darwin" else 1024
        return kilobytes * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
