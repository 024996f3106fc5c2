"""The command `musiclm data gm` (also `python -m data_pipelines.gm`)."""

from __future__ import annotations

import argparse
import sys

from data_pipelines import manifest
from data_pipelines.gm.build import BuildError, build
from data_pipelines.gm.synth import SynthError
from data_pipelines.gm.worker import WorkerError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to a parser."""
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


def run(args: argparse.Namespace) -> int:
    """Builds the corpus; returns the exit code, 2 after one line that says what to mend."""
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
    except (BuildError, SynthError, WorkerError, manifest.ManifestError) as error:
        print(f"musiclm: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        reason = error.strerror or error
        print(f"musiclm: error: cannot write {args.out}: {reason}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    print(path)
    return 0
