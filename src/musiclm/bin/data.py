"""Makes a training corpus: WAV files and a manifest.jsonl with one line a clip."""

import argparse
import importlib
import types

from musiclm import errors

HELP = "make a training corpus"
EPILOG = """\
example:
  musiclm data gm --out corpus --clips 1000 --seed 0
"""

_CORPORA = {"gm": "captioned General-MIDI music, composed by a program and rendered by FluidSynth"}


def _command(corpus: str) -> types.ModuleType | None:
    """The module with the corpus's arguments and runner; None where it is not installed.

    By name, at run time: the library does not depend on `data_pipelines`.
    """
    try:
        return importlib.import_module(f"data_pipelines.{corpus}.cli")
    except ImportError:
        return None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds one subcommand a corpus."""
    corpora = parser.add_subparsers(dest="corpus", metavar="CORPUS", required=True)
    for name, about in _CORPORA.items():
        command = _command(name)
        if command is None:
            # Takes whatever follows, so that `run` can say what is really wrong.
            corpus = corpora.add_parser(name, help=about, add_help=False, prefix_chars="\0")
            corpus.add_argument("arguments", nargs="*")
        else:
            corpus = corpora.add_parser(
                name,
                help=about,
                description=f"Makes {about}.",
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
            command.add_arguments(corpus)


def run(args: argparse.Namespace) -> int:
    """Runs the corpus's command."""
    try:
        command = importlib.import_module(f"data_pipelines.{args.corpus}.cli")
    except ImportError as error:
        raise errors.UserError(
            f"the data pipelines cannot be loaded ({error}): run `pip install -e '.[data]'` in a "
            "checkout of the repository"
        ) from error
    return command.run(args) or 0
