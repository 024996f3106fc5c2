"""Runs one fit on frozen models or on captions, as its gin file says."""

import argparse
from collections.abc import Callable

from musiclm import exit_codes
from musiclm.bin import compilation_cache, configuration, train

MISTAKE = exit_codes.CONFIGURATION
HELP = "fit quantizers, clusters or a vocabulary, as a gin file says"
EPILOG = """\
examples:
  musiclm fit --gin_file gin/train/mini/vocabulary.gin --gin_bindings 'CORPUS="corpus"' …

The top of a gin file tells which macros must be set.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `musiclm fit`."""
    configuration.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    compilation_cache.enable()
    configuration.parse(args.gin_file, args.gin_bindings)

    def fit_it() -> None:
        with configuration.told_without_gin():
            fit(**configuration.resolve(fit))

    return train.told(fit_it)  # a measurement may train


def fit(what: Callable[[], None]) -> None:
    """Runs `what`, a fully bound function such as `@quantizers.fit_semantic_clusters`."""
    what()
