"""Composes captioned General-MIDI music by a seeded program, and renders it with FluidSynth."""

import argparse
import sys

from data_pipelines.corpora import corpus
from musiclm import exit_codes

EXAMPLES = """\
  musiclm data gm --out corpus --clips 1000 --seed 0
  musiclm data gm --out held_out --clips 600 --seed 1 --held-out

Started again, it goes on where it was; with more clips, it enlarges the corpus.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the corpus's arguments to a parser."""
    parser.add_argument("--out", required=True, help="folder for the WAVs and manifest.jsonl")
    parser.add_argument("--clips", type=int, required=True, help="how many clips")
    parser.add_argument("--seed", type=int, default=0, help="clip i depends on seed and i (0)")
    parser.add_argument(
        "--held-out",
        action="store_true",
        help="draw only attribute combinations that training never sees",
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a clip (10)")
    parser.add_argument("--sample-rate", type=int, default=16_000, help="Hz (16000)")
    parser.add_argument("--workers", type=int, default=None, help="processes (one a core)")
    parser.add_argument(
        "--soundfont",
        default=None,
        help="a General-MIDI .sf2, else $MUSICLM_SOUNDFONT, else"
        " FluidR3_GM where the system keeps it",
    )


def make(args: argparse.Namespace) -> corpus.Made:
    """Builds the corpus; see `build.build`."""
    from data_pipelines.corpora.gm.build import build  # here: it needs FluidSynth's bindings

    try:
        path = build(
            args.out,
            args.clips,
            seed=args.seed,
            held_out=args.held_out,
            seconds=args.seconds,
            sample_rate=args.sample_rate,
            workers=args.workers,
            soundfont=args.soundfont,
        )
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        sys.exit(exit_codes.INTERRUPTED)
    return corpus.Made(manifest=path)
