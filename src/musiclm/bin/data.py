"""Makes a corpus: a manifest with one record a clip, and report.html to look at it."""

import argparse
import importlib
import types

from musiclm import errors

HELP = "make a corpus: a manifest of audio and words, with a report"
EPILOG = """\
examples:
  musiclm data gm --out corpus --clips 1000 --seed 0
  musiclm data folder --audio ~/music --out corpora/mine --licence CC-BY-4.0
  musiclm data fma --help
"""


def _load(module: str) -> types.ModuleType:
    """A module of the data pipelines, on which the library does not depend: by name, when needed.

    Raises:
      UserError: it, or what it stands on, is not installed.
    """
    try:
        return importlib.import_module(f"data_pipelines.corpora{module}")
    except ImportError as error:
        raise _not_installed(error) from error


def _not_installed(error: ImportError) -> errors.UserError:
    return errors.UserError(
        f"the data pipelines cannot be loaded ({error}): run `pip install -e '.[data]'` in a "
        "checkout of the repository"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds one subcommand a corpus."""
    corpora = parser.add_subparsers(dest="corpus", metavar="CORPUS", required=True)
    for name in _load("").NAMES:
        module = _load(f".{name}")
        corpus = corpora.add_parser(
            name,
            help=module.__doc__.partition("\n")[0],
            description=module.__doc__,
            epilog=f"examples:\n{module.EXAMPLES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(corpus)


def run(args: argparse.Namespace) -> int:
    """Makes the corpus and its report, and says where they are."""
    try:
        made = _load(f".{args.corpus}").make(args)
        report = _load(".report").write(made, name=args.corpus)
    except ImportError as error:  # of what only this corpus needs
        raise _not_installed(error) from error
    except OSError as error:
        raise errors.UserError(
            f"cannot read or write {error.filename or args.out} ({error.strerror or error}): give "
            "another folder, or room and rights in this one"
        ) from error
    print(made.manifest)
    print(report)
    return 0
