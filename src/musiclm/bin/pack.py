"""Packs corpora into shards of sound, int16 PCM of one rate, to train the tokenizers on."""

import argparse

from musiclm.bin import beam

HELP = "pack corpora into shards of sound"
EPILOG = """\
examples:
  musiclm pack --manifest corpora/mine --sample-rate 24000 --split train --out sound
  musiclm pack --manifest corpus --sample-rate 16000 --window-seconds 10 --num-shards 16 --out sound

Decodes, mixes to mono, resamples, cuts and finds duplicates just as `musiclm tokenize` does, and
takes Beam's options as it does. Prints the data set's folder.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `musiclm pack`."""
    beam.load().add_pack_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command; see the top of the file."""
    return beam.load().pack(args)
