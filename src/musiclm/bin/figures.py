"""Measures a bundle on held-out clips of the corpus gm, and writes the figures down.

python -m musiclm.bin.figures --bundle gm-mini --train CORPUS --held_out CORPUS --out DIR

Writes figures.json, figures.md and the generated clips to DIR; started again, it goes on with the
clips that are there. With --readme the tables take their place in that file as well.
"""

import argparse
import hashlib
import json
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from musiclm.bin import compilation_cache
from musiclm.errors import UserError

SECONDS = 10.0
# Clips generated at once. Part of what decides a clip's rounding, hence no option.
BATCH = 16

Entry = dict[str, Any]


def read_manifest(corpus: pathlib.Path, count: int) -> list[Entry]:
    """The first `count` clips of a corpus, each with the path of its audio.

    Raises:
      UserError: there is no such corpus, or it has fewer clips.
    """
    try:
        lines = (corpus / "manifest.jsonl").read_text(encoding="utf-8").splitlines()[:count]
    except OSError as error:
        raise UserError(
            f"cannot read {corpus / 'manifest.jsonl'} ({error.strerror}): make the corpus with "
            "`musiclm data gm`"
        ) from error
    if len(lines) < count:
        raise UserError(f"{corpus} has {len(lines)} clips: {count} are needed, render more")
    entries = [json.loads(line) for line in lines]
    return [{**entry, "path": corpus / entry["file"]} for entry in entries]


def read_clips(paths: Sequence[pathlib.Path], sample_rate: int, what: str) -> Iterator[np.ndarray]:
    """Waveforms of `SECONDS`, f32 [T] each, with a progress bar."""
    from musiclm import audio

    for path in tqdm(paths, desc=what, unit="clip"):
        samples_T = audio.read_audio(path, sample_rate)
        length = round(SECONDS * sample_rate)
        yield np.pad(samples_T[:length], (0, max(0, length - len(samples_T))))


def long_caption(entry: Entry) -> str:
    """The first caption that names every attribute."""
    return next((c["text"] for c in entry["captions"] if c["kind"] == "long"), entry["caption"])


def generate(
    bundle, prompts: Sequence[str], folder: pathlib.Path, best_of: int = 1
) -> list[pathlib.Path]:
    """Makes the clip of each prompt unless its file is there already.

    The i-th has seed i, or is the best of several.
    """
    from musiclm.api import MusicLM

    folder.mkdir(parents=True, exist_ok=True)
    what = f"best of {best_of}" if best_of > 1 else "generated"
    names = [f"{bundle.digest} {SECONDS} {what} {seed} {text}" for seed, text in enumerate(prompts)]
    files = [folder / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.wav" for name in names]
    model = MusicLM(bundle)
    for first in tqdm(range(0, len(prompts), BATCH), desc=what, unit="batch"):
        batch = slice(first, first + BATCH)
        if not all(file.is_file() for file in files[batch]):
            clips = model.generate(
                list(prompts[batch]), seconds=SECONDS, seed=first * best_of, best_of=best_of
            )
            for clip, file in zip(clips, files[batch], strict=True):
                clip.save(file)
    return files


def main(argv: Sequence[str] | None = None) -> None:
    """Measures everything, then writes everything."""
    parser = argparse.ArgumentParser(
        prog="musiclm.bin.figures", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--bundle", required=True, help="a bundle's folder or name")
    parser.add_argument("--train", required=True, type=pathlib.Path, help="corpus to fit on")
    parser.add_argument("--held_out", required=True, type=pathlib.Path, help="corpus to measure on")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="where to write")
    parser.add_argument("--clips", type=int, default=96, help="clips to generate (%(default)s)")
    parser.add_argument(
        "--best_of", type=int, default=4, help="clips that one is chosen of (%(default)s)"
    )
    parser.add_argument("--pairs", type=int, default=500, help="for retrieval (%(default)s)")
    parser.add_argument("--fit_clips", type=int, default=1000, help="to fit on (%(default)s)")
    parser.add_argument("--readme", type=pathlib.Path, help="file with the figures' markers")
    options = parser.parse_args(argv)
    if options.best_of < 2:
        parser.error(f"--best_of is {options.best_of}: give 2 or more")
    if not 2 <= options.clips <= options.pairs:
        parser.error(f"--clips is {options.clips}: give 2 up to --pairs ({options.pairs})")
    compilation_cache.enable()

    from musiclm import bundle as bundles
    from musiclm.evaluation import adherence, codec_quality, figures, report
    from musiclm.tokens import tokenizers

    if options.readme:  # a README without markers is told before hours of work
        report.insert(options.readme.read_text(encoding="utf-8"), "")
    bundle = bundles.load(options.bundle)
    rate = bundle.token_spec.sample_rate
    codec = tokenizers.AcousticTokenizer.load(bundle.components["soundstream"])
    mulan = tokenizers.MuLanTokenizer.load(bundle.components["mulan"])
    held_out = read_manifest(options.held_out, options.pairs)
    real_NT = np.stack(list(read_clips([e["path"] for e in held_out], rate, "held-out clips")))
    measured = real_NT[: options.clips]
    prompts = [long_caption(entry) for entry in held_out]

    chosen_of = {"generated": 1, f"best of {options.best_of}": options.best_of}
    files = {
        source: generate(bundle, prompts[: options.clips], options.out / "clips", count)
        for source, count in chosen_of.items()
    }
    train = read_manifest(options.train, options.fit_clips)
    waveforms = read_clips([entry["path"] for entry in train], rate, "classifiers")
    judge = adherence.fit_on_clips(
        zip(waveforms, map(adherence.answers, train), strict=True),
        rate,
        codec=lambda waveform_BT: codec_quality.reconstruct(codec, waveform_BT),
    )
    made = {
        source: np.stack(list(read_clips(paths, rate, source))) for source, paths in files.items()
    }
    result = {
        "bundle": {"name": bundle.name, "digest": bundle.digest},
        "sizes": figures.sizes(bundles.find(options.bundle), bundle),
        "codec": figures.codec_figures(codec, measured),
        "mulan": figures.mulan_figures(
            mulan, real_NT, prompts, [[c["text"] for c in e["captions"]] for e in held_out]
        ),
        **figures.prompt_figures(
            judge,
            mulan,
            {
                **made,
                "real": measured,
                "real through the codec": codec_quality.reconstruct(codec, measured),
            },
            prompts[: options.clips],
            [adherence.answers(entry) for entry in held_out[: options.clips]],
            rate,
        ),
    }
    section = figures.markdown(result)
    options.out.mkdir(parents=True, exist_ok=True)
    record = json.dumps(result, indent=2, default=vars) + "\n"
    bundles.write_beside(options.out / "figures.json", record.encode())
    bundles.write_beside(options.out / "figures.md", (section + "\n").encode())
    if options.readme:
        readme = options.readme.read_text(encoding="utf-8")  # as it is now: work went on meanwhile
        bundles.write_beside(options.readme, report.insert(readme, section).encode())


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"figures: error: {error}", file=sys.stderr)
        sys.exit(2)
