"""Generates music for every line of a file of prompts; started again it goes on where it was.

A line is a JSON object with "prompt" and, if they are to differ from the gin file's, "seconds",
"seed", "sampling" by stage, "decoding" ("autoregressive" or "parallel") and "best_of" (so many are
made, and the one is kept that is nearest to its text by MuLan); "story" has [second, text] pairs
that take over from the prompt, "continuation" names a sound file that the clip begins with, and
"melody" a .npy file of a melody's codes, for a model that wants one.
What comes of a line depends on the line, the model, INT8 and ROWS alone.
"""

import argparse
import contextlib
import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from musiclm import api, errors, exit_codes
from musiclm.bin import compilation_cache, configuration, memory, prompts, sample_meter, sampled

HELP = "generate music for a file of prompts, as a gin file says"
EPILOG = """\
examples:
  musiclm sample --gin_file gin/sample/batch.gin --prompts prompts.jsonl --out clips
  musiclm sample --gin_file gin/sample/batch.gin --gin_bindings ROWS=64 \\
    --gin_bindings 'MODEL="runs/base/bundle"' --prompts prompts.jsonl --out clips
  musiclm sample --distributed --gin_file …            # as one process of several, each its share

lines such as:
  {"prompt": "a slow sad piano melody in A minor"}
  {"prompt": "church organ", "seconds": 60, "seed": 7, "sampling": {"semantic": {"guidance": 3}}}
  {"prompt": "calm strings", "seconds": 45, "story": [[15, "fast flute"], [30, "drums, loud"]]}
  {"prompt": "fast flute", "seconds": 20, "continuation": "begun/flute.wav"}
  {"prompt": "fast flute", "decoding": "parallel", "best_of": 4}

DIR gets 000001.wav … by the number of the line, manifest.jsonl, summary.json, and rejected.jsonl if
there are lines that nothing can be made of; those do not stop the others. Paths start from the file
of prompts. Several processes have manifests of their own. Exit codes: 0 all other lines are done,
2 something given can't be used.
"""

# Told of a line that is all by itself too much.
_FULL_OF_ONE = "memory is full as its continuation is heard: give a shorter one, or another device"
# For the slowest of several processes.
_PATIENCE_SECONDS = 7 * 24 * 3600


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
    names = ("model", "rows", "lines_a_round", "int8")
    settings = configuration.resolve_some(sample, (*names, *prompts.DEFAULTS))
    texts = prompts.read(args.prompts)
    from musiclm import processes

    if args.distributed:
        processes.join(agree_to_stop=False)
    with processes.failing_alone(exit_codes.USAGE):
        sample(texts, pathlib.Path(args.prompts).parent, args.out, **settings)
        # Who is done waits: without its first process the others of a job would fail.
        processes.barrier("sampled", _PATIENCE_SECONDS)
        if processes.count() > 1 and processes.is_first():
            sampled.sum_up(args.out, sample_meter.total)
    return exit_codes.DONE


def sample(
    texts: Sequence[bytes],
    folder: pathlib.Path,
    out: str,
    *,
    model: str = api.DEFAULT_MODEL,
    rows: int = 16,
    lines_a_round: int = 64,
    int8: Sequence[str] = (),
    seconds: float = 10.0,
    seed: int = 0,
    sampling: Mapping[str, Mapping[str, float | int]] | None = None,
    decoding: str = api.DECODINGS[0],
    best_of: int = 1,
) -> None:
    """Makes a clip of every line.

    Args:
      texts: the lines.
      folder: that their paths start from.
      out: the folder to fill.
      model: name or folder of a bundle.
      rows: that a stage decodes at once on each device.
      lines_a_round: lines that are made together.
      int8: what the stages keep as int8; see `api.MusicLM.from_pretrained`.
      seconds, seed, sampling, decoding, best_of: of lines that do not say their own.

    Raises:
      UserError: a setting, the model or a folder can't be used, or memory is full.
    """
    for name, value in (("rows", rows), ("lines_a_round", lines_a_round)):
        if value < 1:
            raise errors.UserError(f"{name} is {value}: give 1 or more")
    import jax
    import numpy as np

    process, num_processes = jax.process_index(), jax.process_count()
    output = sampled.Folder(out, process, num_processes)
    values = (seconds, seed, sampling or {}, decoding, best_of)
    defaults = dict(zip(prompts.DEFAULTS, values, strict=True))
    with memory.telling("memory is full: take another device or model"):
        loaded = api.MusicLM.from_pretrained(model, rows=rows, int8=int8)
        melody = None if loaded.melody_shape is None else np.zeros(loaded.melody_shape, np.int32)
        loaded.plans("defaults", **defaults, melody=melody)  # a mistake in them is no line's
    jobs, there = [], 0
    for number, text in enumerate(texts, start=1):
        if not text.strip() or (number - 1) % num_processes != process:
            continue
        with output.rejecting(number):
            line = prompts.parse(text, defaults, folder)
            digest = line.digest(" ".join((loaded.digest, *loaded.int8)))
            if output.has(number, digest):
                there += 1
            else:
                jobs.append((number, line, digest))
    with sample_meter.Meter(sum(line.seconds for _, line, _ in jobs)) as meter:
        for first in range(0, len(jobs), lines_a_round):
            with memory.telling(_full(rows, rows // 2)):
                _round(loaded, output, jobs[first : first + lines_a_round], meter)
    summary = {"clips": meter.clips, "there_already": there, "rejected": output.num_rejected}
    summary |= meter.summary(loaded.bytes_read)
    _report(output.close(summary), summary)


def _round(
    model: api.MusicLM,
    output: sampled.Folder,
    jobs: Sequence[tuple[int, prompts.Line, str]],
    meter: sample_meter.Meter,
) -> None:
    """Makes some clips together and writes each as soon as it is there."""
    planned = []
    for number, line, digest in jobs:
        alone = memory.telling(_FULL_OF_ONE) if line.continuation else contextlib.nullcontext()
        with output.rejecting(number), alone:
            planned.append((number, line, digest, model.plans(**vars(line))))
    plans = [plan for *_, candidates in planned for plan in candidates]
    if (fit := memory.rows_that_fit(model, plans, model.rows)) < model.rows:
        raise errors.UserError(_full(model.rows, fit))
    stages = {stage for plan in plans for stage in plan.clip.stages}
    meter.start_round(sum(line.seconds for _, line, *_ in planned), stages)
    clips = model.render(plans, meter)
    for number, line, digest, candidates in planned:
        clip = model.best(list(itertools.islice(clips, len(candidates))))
        more = ("sampling", *prompts.FILES)
        told = {name: getattr(line, name) for name in more if getattr(line, name)}
        told = {**clip.provenance, **told, "sample_rate": clip.sample_rate}
        output.add(number, digest, clip, told)
        meter.clips += 1
    meter.end_round()


def _full(rows: int, fewer: int) -> str:
    """Says that memory is full with so many rows, and with how many to start again."""
    mend = (
        f"add --gin_bindings ROWS={fewer} and start again, what is done stays"
        if fewer
        else "not even 1 fits: take another device or model"
    )
    return f"rows is {rows}, and memory is full: {mend}"


def _report(path: pathlib.Path, summary: Mapping[str, Any]) -> None:
    rate = summary["music_seconds_per_second"]
    speed = f"{rate:.2f} × real time" if rate else "nothing to do"
    print(
        f"{path}: {summary['clips']} clips made, {summary['there_already']} were there, "
        f"{summary['rejected']} lines rejected; {speed}"
    )
