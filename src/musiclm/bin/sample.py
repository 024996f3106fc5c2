"""Generates music for every line of a file of prompts; started again it goes on where it was.

A line is a JSON object with "prompt" and, if they are to differ from the gin file's, "seconds",
"seed" and "sampling" by stage; "story" has [second, text] pairs that take over from the prompt, and
"continuation" names a sound file that the clip begins with. What comes of a line depends on the
line, the model and ROWS alone.
"""

import argparse
import collections
import contextlib
import pathlib
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from musiclm import api, errors, exit_codes
from musiclm.bin import compilation_cache, configuration, prompts, sampled

HELP = "generate music for a file of prompts, as a gin file says"
EPILOG = """\
examples:
  musiclm sample --gin_file gin/sample/batch.gin --prompts prompts.jsonl --out songs
  musiclm sample --gin_file gin/sample/batch.gin --gin_bindings ROWS=64 \\
    --gin_bindings 'MODEL="runs/base/bundle"' --prompts prompts.jsonl --out songs
  musiclm sample --distributed --gin_file …            # as one process of several, each its share

lines such as:
  {"prompt": "a slow sad piano melody in A minor"}
  {"prompt": "church organ", "seconds": 60, "seed": 7, "sampling": {"semantic": {"guidance": 3}}}
  {"prompt": "calm strings", "seconds": 45, "story": [[15, "fast flute"], [30, "drums, loud"]]}
  {"prompt": "fast flute", "seconds": 20, "continuation": "songs/000001.wav"}

DIR gets 000001.wav … by the number of the line, manifest.jsonl, summary.json, and rejected.jsonl if
there are lines that nothing can be made of; those do not stop the others. Paths start from the file
of prompts. Several processes have manifests of their own. Exit codes: 0 all other lines are done,
2 something given can't be used.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `musiclm sample`."""
    configuration.add_arguments(parser)
    parser.add_argument("--prompts", required=True, metavar="JSONL", help="one object a line")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for what is made")
    parser.add_argument(
        "--distributed", action="store_true", help="join the other processes of the job"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    compilation_cache.enable()
    configuration.parse(args.gin_file, args.gin_bindings)
    names = ("model", "rows", "lines_a_round", "seconds", "seed", "sampling")
    settings = configuration.resolve_some(sample, names)
    texts = prompts.read(args.prompts)
    if args.distributed:
        from musiclm import processes

        processes.join()
    sample(texts, pathlib.Path(args.prompts).parent, args.out, **settings)
    if args.distributed:
        # Who is done waits: without its first process the others of a job would fail.
        processes.barrier("sampled", _PATIENCE_SECONDS)
    return exit_codes.DONE


_PATIENCE_SECONDS = 7 * 24 * 3600


def sample(
    texts: Sequence[bytes],
    folder: pathlib.Path,
    out: str,
    *,
    model: str = api.DEFAULT_MODEL,
    rows: int = 16,
    lines_a_round: int = 64,
    seconds: float = 10.0,
    seed: int = 0,
    sampling: Mapping[str, Mapping[str, float | int]] | None = None,
) -> None:
    """Makes a clip of every line.

    Args:
      texts: the lines.
      folder: that their paths start from.
      out: the folder to fill.
      model: name or folder of a bundle.
      rows: that a stage decodes at once on each device.
      lines_a_round: lines that are made together.
      seconds, seed, sampling: of lines that do not say their own.

    Raises:
      UserError: a setting, the model or a folder can't be used.
    """
    for name, value in (("rows", rows), ("lines_a_round", lines_a_round)):
        if value < 1:
            raise errors.UserError(f"{name} is {value}: give 1 or more")
    import jax

    process, num_processes = jax.process_index(), jax.process_count()
    output = sampled.Folder(out, process, num_processes)
    loaded = api.MusicLM.from_pretrained(model, rows=rows)
    defaults = {"seconds": seconds, "seed": seed, "sampling": sampling or {}}
    loaded.plan("defaults", **defaults)  # a mistake in them is no line's
    rejected = 0

    def reject(number: int, error: errors.UserError) -> None:
        nonlocal rejected
        rejected += 1
        output.reject(number, str(error))
        print(f"musiclm: line {number} is rejected: {error}", file=sys.stderr)

    lines, skipped = [], 0
    for number, text in enumerate(texts, start=1):
        if not text.strip() or (number - 1) % num_processes != process:
            continue
        try:
            line = prompts.parse(text, defaults, folder)
            digest = line.digest(loaded.digest)
        except errors.UserError as error:
            reject(number, error)
            continue
        if output.has(number, digest):
            skipped += 1
        else:
            lines.append((number, line, digest))
    with _Meter(sum(line.seconds for _, line, _ in lines)) as meter:
        for first in range(0, len(lines), lines_a_round):
            planned = []
            for number, line, digest in lines[first : first + lines_a_round]:
                try:
                    planned.append((number, line, digest, _plan(loaded, line)))
                except errors.UserError as error:
                    meter.skip(line.seconds)
                    reject(number, error)
            with _memory_told(rows):
                _round(loaded, output, planned, meter)
    summary = {"clips": meter.clips, "there already": skipped, "rejected": rejected}
    summary |= meter.summary()
    path = output.close(summary)
    _report(path, summary)


def _plan(model: api.MusicLM, line: prompts.Line):
    arguments = dict(vars(line))
    return model.plan(arguments.pop("prompt"), **arguments)


def _round(model: api.MusicLM, output: sampled.Folder, planned: list, meter: "_Meter") -> None:
    """Makes some clips together and writes each as soon as it is there."""
    plans = [plan for *_, plan in planned]
    model.compile(plans)
    meter.start_round(sum(line.seconds for _, line, *_ in planned))
    clips = model.render(plans, meter)
    for (number, line, digest, _), clip in zip(planned, clips, strict=True):
        told = {"prompt": line.prompt, "seconds": clip.seconds, "seed": line.seed}
        more = ("sampling", "story", "continuation")
        told |= {name: getattr(line, name) for name in more if getattr(line, name)}
        told |= {"sample_rate": clip.sample_rate, "model": model.name}
        output.add(number, digest, clip, told)
        meter.clips += 1
    meter.end_round()


@contextlib.contextmanager
def _memory_told(rows: int) -> Iterator[None]:
    import jax

    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise errors.UserError(
            f"rows is {rows}, and memory is full: add --gin_bindings ROWS={max(1, rows // 2)} and "
            "start again; what is done stays"
        ) from error


class _Meter:
    """A progress bar over seconds of music, and how long the stages took."""

    def __init__(self, seconds: float):
        import tqdm

        self.clips = 0
        self._bar = tqdm.tqdm(
            total=round(seconds, 1),
            unit="s",
            desc="music",
            file=sys.stderr,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s "
            "[{elapsed}<{remaining}]",
        )
        self._tokens: collections.Counter = collections.Counter()
        self._times: collections.Counter = collections.Counter()
        self._made = self._before = self._round = self._done = 0.0
        self._stage, self._working = "", 0.0

    def start_round(self, seconds: float) -> None:
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
        share = (api.STAGES.index(stage) + done / total) / len(api.STAGES)
        self._to(self._before + share * self._round)

    def end_round(self) -> None:
        self._working += time.perf_counter() - self._started
        self._made += self._round
        self._to(self._before + self._round)

    def skip(self, seconds: float) -> None:
        self._bar.total -= seconds

    def summary(self) -> dict[str, Any]:
        return {
            "music seconds": round(self._made, 3),
            "generating seconds": round(self._working, 3),
            "music seconds a second": round(self._made / self._working, 3) if self._made else None,
            "tokens a second": {
                stage: round(self._tokens[stage] / self._times[stage], 1)
                for stage in api.STAGES
                if self._tokens[stage]
            },
            "peak memory bytes": _peak_memory(),
        }

    def _to(self, seconds: float) -> None:
        self._bar.update(seconds - self._bar.n)

    def __enter__(self) -> "_Meter":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def _peak_memory() -> int:
    """Of the fullest device; of the process, where devices do not count."""
    import jax

    counted = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [stats["peak_bytes_in_use"] for stats in counted if "peak_bytes_in_use" in stats]
    return max(peaks, default=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def _report(path: pathlib.Path, summary: Mapping[str, Any]) -> None:
    rate = summary["music seconds a second"]
    speed = f"{rate:.2f} times faster than real time" if rate else "nothing to do"
    print(
        f"{path}: {summary['clips']} clips made, {summary['there already']} were there, "
        f"{summary['rejected']} lines rejected; {speed}"
    )
