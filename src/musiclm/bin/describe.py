"""Tells the size of the models in gin files: parameters, rates, sequence lengths, bytes."""

import argparse

HELP = "tell the size of the models in gin files"
EPILOG = """\
examples:
  musiclm describe gin/models/*/base.gin
  musiclm describe --json gin/models/semantic/mini.gin

Nothing is allocated: the shapes come from jax.eval_shape, so any size fits any machine.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `musiclm describe`."""
    parser.add_argument("gin_files", nargs="+", metavar="GIN_FILE", help="read one by one")
    parser.add_argument("--json", action="store_true", help="print a JSON list of objects")
