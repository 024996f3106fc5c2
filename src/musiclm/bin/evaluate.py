"""Measures a model on held-out clips of the corpus "gm", and writes a report of it.

Clips are generated from held-out captions and compared with the real clips of these captions, by
classifiers fitted on real clips only, by embeddings and by MuLan; the codec, the tokenizers and the
stages are measured on real clips. Writes report.json, report.md and report.html with plots and
players. Started again it finds the clips and what was computed of them.
"""

import argparse
import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from musiclm import api, errors, exit_codes
from musiclm.bin import compilation_cache, folders

HELP = "measure a model on held-out clips, and write a report"
EPILOG = """\
examples:
  musiclm data gm --out train --clips 1000 --seed 0
  musiclm data gm --out held_out --clips 500 --seed 1 --held-out
  musiclm evaluate --held-out held_out --train train --out report
  musiclm evaluate --held-out held_out --train train --out report --clips 200 --best-of 4
  musiclm evaluate --held-out held_out --train train --out report --folder "other model=songs"

A folder holds clips as `musiclm generate` writes them, one for each caption that is asked for: the
first long one of each held-out clip. The i-th clip is generated with seed i; if the model has a
SoundStorm, once more with its acoustic tokens decoded in parallel.
"""

SECONDS = 10.0
# Clips generated at once. Part of what decides a clip's rounding, hence no option.
BATCH = 16

# What a newcomer wants to know; the rest is in the report.
README_TABLES = ("Clips made from text", "MCC", "MuLan's retrieval", "Codec", "Size")

Entry = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `musiclm evaluate`."""
    corpus = {"required": True, "type": pathlib.Path, "metavar": "CORPUS"}
    parser.add_argument("--held-out", help="captions and clips to measure with", **corpus)
    parser.add_argument("--train", help="clips to fit classifiers on and to compare with", **corpus)
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder of the report")
    parser.add_argument(
        "--model",
        default=api.DEFAULT_MODEL,
        metavar="BUNDLE",
        help=f"name of a bundled model or folder of a bundle (default: {api.DEFAULT_MODEL})",
    )
    parser.add_argument(
        "--judge",
        metavar="BUNDLE",
        help="a bundle whose MuLan, trained apart, is to judge too",
    )
    parser.add_argument(
        "--vggish",
        metavar="FILE",
        help="published weights of VGGish, for distances in its embedding as well",
    )
    folders.add_argument(parser, "clips made elsewhere, to be measured as well; may be repeated")
    for name, default, what in (
        ("clips", 96, "captions to generate from"),
        ("best-of", 1, "measure also the best of so many, chosen by MuLan"),
        ("pairs", 500, "held-out clips for what needs no generating"),
        ("fit-clips", 1000, "of --train"),
    ):
        parser.add_argument(
            f"--{name}", type=int, default=default, metavar="N", help=f"{what} (default: {default})"
        )
    parser.add_argument(
        "--readme",
        type=pathlib.Path,
        metavar="FILE",
        help="file that takes the main tables as well",
    )


def run(args: argparse.Namespace) -> int:
    """Measures everything, then writes everything."""
    if not 3 <= args.clips <= args.pairs or args.best_of < 1:
        raise errors.UserError(
            f"--clips {args.clips}, --pairs {args.pairs}, --best-of {args.best_of}: give 3 clips "
            "or more, as many pairs at least, and 1 or more to choose from"
        )
    compilation_cache.enable()
    from musiclm import bundle as bundles
    from musiclm.models import vggish

    try:
        from musiclm.evaluation import embeddings, figures, page, report, suite
    except ModuleNotFoundError as error:
        raise errors.UserError(
            f"evaluation needs more packages ({error}): run `pip install -e '.[eval]'` in a "
            "checkout of the repository"
        ) from error

    if args.readme:  # a README without markers is told before hours of work
        report.insert(_read_text(args.readme, "give a file that is there"), "")
    bundle = bundles.load(args.model)
    judges = [bundles.load(args.judge)] if args.judge else []
    if any(judge.digest == bundle.digest for judge in judges):
        raise errors.UserError(f"--judge {args.judge} is the model itself: give another bundle")
    held_out = read_manifest(args.held_out, args.pairs)
    train = read_manifest(args.train, args.fit_clips)
    prompts = [suite.long_caption(entry) for entry in held_out[: args.clips]]
    files = {name: choose(path, prompts) for name, path in folders.named(args.folder).items()}
    for name, options in ways(bundle, args.best_of).items():
        if name in files:
            raise errors.UserError(
                f"--folder {name}: the report has clips of that name, choose another"
            )
        files[name] = generate(bundle, prompts, args.out / "clips", name, **options)

    rate = bundle.token_spec.sample_rate
    with Bars() as bars:
        measured = suite.Suite(
            bundle=bundle,
            judges=judges,
            train=suite.Clips(waveform_NT=read_clips(_paths(train), rate), entries=train),
            held_out=suite.Clips(waveform_NT=read_clips(_paths(held_out), rate), entries=held_out),
            cache=embeddings.Cache(args.out / "embeddings"),
            vggish=vggish.load(args.vggish) if args.vggish else None,
            progress=bars.move,
        )
        made = {name: read_clips(paths, rate) for name, paths in files.items()}
        tables = measured.tables(made, greedy(bundle))
    tables.append(figures.size_table(bundles.find(args.model), bundle))
    opening = (
        f"{bundle.name}, digest {bundle.digest[:12]}, on combinations of attributes that training "
        f"never saw: clips of {len(prompts)} long captions, {SECONDS:g} s each. In brackets 95 % "
        "intervals."
    )
    clips = {
        prompt: {name: os.path.relpath(paths[i], args.out) for name, paths in files.items()}
        | {"real": os.path.relpath(held_out[i]["path"], args.out)}
        for i, prompt in enumerate(prompts)
    }
    text = report.markdown(opening, tables)
    record = {
        "bundle": {"name": bundle.name, "digest": bundle.digest},
        "tables": [table.record() for table in tables],
    }
    for name, content in (
        ("report.md", text + "\n"),
        ("report.html", page.page(f"Evaluation of {bundle.name}", opening, tables, clips)),
        ("report.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n"),
    ):
        bundles.write_beside(args.out / name, content.encode())
    if args.readme:
        readme = args.readme.read_text(encoding="utf-8")  # as it is now: work went on meanwhile
        chosen = [table for table in tables if table.title in README_TABLES]
        section = report.markdown(opening, chosen)
        bundles.write_beside(args.readme, report.insert(readme, section).encode())
    print(args.out / "report.html")
    return exit_codes.DONE


def read_manifest(corpus: pathlib.Path, count: int) -> list[Entry]:
    """The first `count` clips of a corpus, each with the path of its audio.

    Raises:
      UserError: there is no such corpus, or it has fewer clips.
    """
    text = _read_text(corpus / "manifest.jsonl", "make the corpus with `musiclm data gm`")
    lines = [json.loads(line) for line in text.splitlines()[:count]]
    if len(lines) < count:
        raise errors.UserError(
            f"{corpus} has {len(lines)} clips: {count} are needed, render more or ask for fewer"
        )
    return [{**entry, "path": corpus / entry["file"]} for entry in lines]


def choose(folder: pathlib.Path, prompts: Sequence[str]) -> list[pathlib.Path]:
    """The first clip of each prompt in a folder of clips.

    Raises:
      UserError: it can't be read, or lacks a clip.
    """
    clips = folders.read(folder)
    if missing := [prompt for prompt in prompts if (prompt, 0) not in clips]:
        raise errors.UserError(
            f"{folder} lacks clips of {len(missing)} of {len(prompts)} captions, such as "
            f"{missing[0]!r}: make them, or ask for fewer --clips"
        )
    return [clips[prompt, 0] for prompt in prompts]


def _read_text(path: pathlib.Path, mend: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise errors.UserError(f"cannot read {path} ({error.strerror}): {mend}") from error


def _paths(entries: Sequence[Entry]) -> list[pathlib.Path]:
    return [entry["path"] for entry in entries]


def read_clips(paths: Sequence[pathlib.Path], sample_rate: int):
    """Waveforms of `SECONDS` each, f32 [N, T]; shorter ones end in silence."""
    import numpy as np

    from musiclm import audio

    length = round(SECONDS * sample_rate)
    waveform_NT = np.zeros((len(paths), length), np.float32)
    for waveform_T, path in zip(waveform_NT, paths, strict=True):
        samples_T = audio.read_audio(path, sample_rate)[:length]
        waveform_T[: len(samples_T)] = samples_T
    return waveform_NT


def ways(bundle, best_of: int) -> dict[str, dict[str, Any]]:
    """How a bundle's clips are made, by the names that they have in the report."""
    named: dict[str, dict[str, Any]] = {"generated": {}}
    if "soundstorm" in bundle.components:
        named["generated, parallel"] = {"decoding": "parallel"}
    if best_of > 1:
        named[f"best of {best_of}"] = {"best_of": best_of}
    return named


def generate(
    bundle,
    prompts: Sequence[str],
    folder: pathlib.Path,
    what: str,
    *,
    best_of: int = 1,
    decoding: str = api.DECODINGS[0],
) -> list[pathlib.Path]:
    """Makes the clip of each prompt unless its file is there already.

    The i-th has seed i, or is the best of several.

    Args:
      bundle: that makes them.
      prompts: of the clips.
      folder: for the files.
      what: one of `ways`.
      best_of, decoding: see `api.MusicLM.generate`.
    """
    from tqdm import tqdm

    from musiclm.api import MusicLM

    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{bundle.digest} {SECONDS} {what} {seed} {text}" for seed, text in enumerate(prompts)]
    files = [folder / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.wav" for name in names]
    model = MusicLM(bundle)
    for first in tqdm(range(0, len(prompts), BATCH), desc=what, unit="batch"):
        batch = slice(first, first + BATCH)
        if not all(file.is_file() for file in files[batch]):
            clips = model.generate(
                list(prompts[batch]),
                seconds=SECONDS,
                seed=first * best_of,
                best_of=best_of,
                decoding=decoding,
            )
            for clip, file in zip(clips, files[batch], strict=True):
                clip.save(file)
    return files


def greedy(bundle):
    """What goes on greedily with semantic tokens; see `suite.GoOn`."""
    import jax
    import numpy as np

    from musiclm.sampler.logits import Sampling
    from musiclm.sampler.stages import Stage

    part = bundle.components["semantic"]
    stage = Stage(part.config, part.variables["params"])

    def go_on(condition_NQ, given_NT, num_tokens: int):
        codes_NTQ = stage.generate(
            {"mulan": condition_NQ},
            jax.random.split(jax.random.key(0), len(condition_NQ)),
            [Sampling(temperature=0.0)] * len(condition_NQ),
            num_frames=num_tokens,
            prompts=[np.asarray(given_T)[:, None] for given_T in given_NT],
            prefilled=given_NT.shape[1],
        )
        return codes_NTQ[:, :, 0]

    return go_on


class Bars(contextlib.AbstractContextManager):
    """A progress bar for each thing at work."""

    def __init__(self):
        self._bars: dict[str, Any] = {}

    def move(self, what: str, done: int, total: int) -> None:
        """Shows how far something is."""
        from tqdm import tqdm

        if what not in self._bars:
            self._bars[what] = tqdm(total=total, desc=what, unit="clip")
        self._bars[what].update(done - self._bars[what].n)

    def __exit__(self, *_) -> None:
        for bar in self._bars.values():
            bar.close()
