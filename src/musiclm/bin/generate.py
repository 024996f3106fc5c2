"""Generates music from text: one WAV file a prompt and a manifest.jsonl."""

import argparse
import dataclasses
import json
import math
import pathlib
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from musiclm import api, errors
from musiclm.bin import compilation_cache, memory, staging

HELP = "generate music from text"
EPILOG = """\
examples:
  musiclm generate "a slow sad piano melody in A minor"
  musiclm generate "fast bright flute, no drums" "calm strings" --seconds 20 --seed 7 --out songs
  musiclm generate --story story.yaml --seconds 45
  musiclm generate "fast flute" --continuation song.flac --seconds 20
  musiclm generate "church organ" --model runs/mini/bundle --temperature-coarse 0.8 --png
  musiclm generate "church organ" --decoding parallel
  musiclm generate "calm strings" --melody tune.npy --model runs/melody/bundle

A story tells when each text takes over, in YAML: `0: calm strings`, `15: fast flute`, a line each.
The i-th clip (from 0) takes seed + i. The same seed on the same machine gives the same bytes.
Files of an earlier run with the same names are replaced.
"""

# Told where not even the model fits, or one row.
_NO_ROOM = "memory is full: take another device, or a smaller --model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `musiclm generate`."""
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="text, one clip each")
    parser.add_argument(
        "--story",
        metavar="YAML",
        help="in place of prompts: a file of seconds and texts, from 0 on",
    )
    parser.add_argument(
        "--continuation",
        metavar="FILE",
        help=f"begin with this sound and go on (wav, flac, mp3 …; {api.MIN_CONTINUED_SECONDS} s or "
        "more, and less than --seconds, which count it too)",
    )
    parser.add_argument(
        "--melody",
        metavar="FILE",
        help="for a model that wants a melody: its integer codes, a .npy file",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=10.0,
        help=f"length of each clip, {api.MIN_SECONDS:g} to {api.MAX_SECONDS:g} (default: 10)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first clip (default: 0)")
    parser.add_argument(
        "--out",
        default="out",
        metavar="DIR",
        help="folder for 000.wav … and manifest.jsonl (default: out)",
    )
    parser.add_argument(
        "--model",
        default=api.DEFAULT_MODEL,
        metavar="BUNDLE",
        help=f"name of a bundled model or folder of a bundle (default: {api.DEFAULT_MODEL})",
    )
    parser.add_argument(
        "--best-of",
        type=int,
        default=1,
        metavar="N",
        help="make N clips of each prompt and keep the one nearest to its text by MuLan",
    )
    parser.add_argument(
        "--decoding",
        choices=api.DECODINGS,
        default=api.DECODINGS[0],
        help="of acoustic tokens: by the coarse and the fine stage, or by SoundStorm in parallel "
        f"(default: {api.DECODINGS[0]})",
    )
    parser.add_argument(
        "--int8",
        action="append",
        choices=api.INT8,
        default=[],
        help="keep the stages' weights, or keys and values of tokens, as int8: less to read for "
        "each token, other music of the same seed; may be given twice",
    )
    parser.add_argument(
        "--rows",
        type=int,
        metavar="N",
        help="clips and windows that a stage decodes at once on each device: fewer take less "
        "memory, and another number may make other music (default: as many as there are, up to 16)",
    )
    parser.add_argument("--png", action="store_true", help="draw waveform and mel spectrogram too")
    for name, option in _SAMPLING.items():
        for stage in api.STAGES:
            parser.add_argument(
                option.flag(name, stage),
                type=option.type,
                metavar=option.metavar,
                help=f"{stage} stage: {option.help} (default: the model's own)",
            )


@dataclasses.dataclass(frozen=True)
class _Option:
    """A field of `Sampling` on the command line.

    Checked here as well as in the sampler: before JAX is imported and a model loaded.
    """

    type: Callable[[str], float | int]
    metavar: str
    help: str
    is_valid: Callable[[float | int], bool]
    wish: str

    @staticmethod
    def flag(name: str, stage: str) -> str:
        return f"--{name.replace('_', '-')}-{stage}"


_SAMPLING = {
    "guidance": _Option(
        float,
        "G",
        "follow the condition G times as far, for twice the time; 1 is none",
        lambda value: 0 <= value < math.inf,
        "0 or a positive number",
    ),
    "temperature": _Option(
        float,
        "T",
        "of the drawing; 0 takes the likeliest token",
        lambda value: 0 <= value < math.inf,
        "0 or a positive number",
    ),
    "top_k": _Option(
        int,
        "K",
        "draw from the K likeliest tokens",
        lambda value: value >= 1,
        "a whole number from 1",
    ),
    "top_p": _Option(
        float,
        "P",
        "draw from the likeliest tokens of probability P together",
        lambda value: 0 < value <= 1,
        "a number above 0 and up to 1",
    ),
}


def _sampling(args: argparse.Namespace) -> dict[str, dict[str, float | int]]:
    """The sampling options that were given, by stage, checked."""
    given: dict[str, dict[str, float | int]] = {stage: {} for stage in api.STAGES}
    for stage, options in given.items():
        for name, option in _SAMPLING.items():
            value = getattr(args, f"{name}_{stage}")
            if value is None:
                continue
            if not option.is_valid(value):
                raise errors.UserError(f"{option.flag(name, stage)} is {value}: give {option.wish}")
            options[name] = value
    return given


def _read_story(path: str) -> dict[float, str]:
    """The texts of a story by the second at which they start.

    Raises:
      UserError: the file can't be read, or is no story.
    """
    import yaml

    try:
        story = yaml.safe_load(pathlib.Path(path).read_bytes())
    except OSError as error:
        raise errors.UserError(
            f"cannot read the story {path!r} ({error.strerror}): check the path"
        ) from error
    except Exception as error:  # PyYAML raises many kinds over values that it can't make
        raise errors.UserError(f"the story {path!r} is no YAML ({error})") from error
    if not isinstance(story, dict) or 0 not in story:
        raise errors.UserError(
            f"the story {path!r} does not start at 0: write lines like `0: calm strings` and "
            "`15: fast flute`"
        )
    return story


class _Bars:
    """One progress bar a stage, on stderr."""

    def __init__(self):
        self._bars = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        import tqdm

        bar = self._bars.get(stage)
        if bar is None:
            self.close()  # stages follow one another: the one before is done
            bar = self._bars[stage] = tqdm.tqdm(
                total=total, desc=f"{stage:>10}", unit="tok", file=sys.stderr, leave=True
            )
        bar.update(done - bar.n)

    def close(self) -> None:
        for bar in self._bars.values():
            bar.close()

    def __enter__(self) -> "_Bars":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def run(args: argparse.Namespace) -> int:
    """Runs the command; see the top of the file."""
    started = time.perf_counter()
    prompts, story = tuple(args.prompts), {}
    if args.story is not None:
        if prompts:
            raise errors.UserError("prompts beside --story: write the text into the story, at 0")
        story = _read_story(args.story)
        prompts = (story.pop(0),)
    request = api.Request(
        prompts, args.seconds, args.seed, tuple(story.items()), args.best_of, args.decoding
    )
    sampling = _sampling(args)
    compilation_cache.enable()
    with staging.staged(args.out, last="manifest.jsonl") as folder:
        with memory.telling(_NO_ROOM):
            model = api.MusicLM.from_pretrained(args.model, rows=args.rows, int8=args.int8)
        loaded = time.perf_counter()
        wanted = {
            "seconds": request.seconds,
            "seed": request.seed,
            "sampling": sampling,
            "story": request.story,
            "continuation": args.continuation,
            "melody": args.melody,
            "best_of": request.best_of,
            "decoding": request.decoding,
        }
        try:
            with _Bars() as progress:
                clips = model.generate(list(request.prompts), **wanted, progress=progress)
        except Exception as error:
            if not memory.is_full(error):
                raise
            raise errors.UserError(_what_fits(model, request, wanted, error)) from error
        generated = time.perf_counter()
        lines = []
        for i, clip in enumerate(clips):
            line = {"file": f"{i:03d}.wav", **clip.provenance}
            line |= {"seconds": clip.seconds, "sample_rate": clip.sample_rate}
            clip.save(folder / line["file"])
            if args.png:
                from musiclm.bin import picture

                line["picture"] = f"{i:03d}.png"
                picture.save(folder / line["picture"], clip, line["prompt"])
            lines.append(line)
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / "manifest.jsonl").write_text(text, encoding="utf-8")
    _report(args.out, lines, loaded - started, generated - loaded)
    return 0


def _what_fits(
    model: api.MusicLM, request: api.Request, wanted: dict[str, Any], error: Exception
) -> str:
    """Says that memory is full, and with how many rows it would not be."""
    traceback.clear_frames(error.__traceback__)  # they keep what the run has filled
    with memory.telling(_NO_ROOM):
        plans = [plan for prompt in request.prompts for plan in model.plans(prompt, **wanted)]
    rows = model.most_rows(plans)
    fit = memory.rows_that_fit(model, plans, rows // 2)
    return f"memory is full with {rows} rows at once: add --rows {fit}" if fit else _NO_ROOM


def _report(out: str, lines: list[dict], loading_s: float, generating_s: float) -> None:
    """Says where the files are and how long they took."""
    folder = pathlib.Path(out)
    for line in lines:
        names = [line["file"], *([line["picture"]] if "picture" in line else [])]
        print(f"{'  '.join(str(folder / name) for name in names)}  (seed {line['seed']})")
    music_s = sum(line["seconds"] for line in lines)
    print(
        f"{music_s / generating_s:.2f} × real time: {music_s:.1f} s of music in "
        f"{generating_s:.1f} s, after {loading_s:.1f} s of loading"
    )
