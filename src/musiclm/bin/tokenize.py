"""Turns corpora into shards of tokens, with the three tokenizers of a bundle, on Apache Beam."""

import argparse

from musiclm.bin import beam, compilation_cache

HELP = "turn corpora into shards of tokens"
EPILOG = """\
examples:
  musiclm tokenize --manifest corpora/mine --bundle runs/mini/bundle --out tokens
  musiclm tokenize --manifest corpus --bundle gm-mini --window-seconds 10 --num-shards 16 \\
    --shards-a-run 1 --out tokens
  musiclm tokenize --manifest a/manifest.jsonl b/manifest.parquet --split train --bundle BUNDLE \\
    --out tokens --direct_running_mode=multi_processing --direct_num_workers=8

Prints the data set's folder, DIR/ and 16 hexadecimals of the tokenizers' digest. In it lie the
shards and dataset.json, dead_letters.jsonl with the files that could not be used and why, and
duplicates.jsonl. Start the same command again after a kill: it goes on, to the same bytes.

Takes every option of Apache Beam too (`--runner` and the runner's own; the embedded FnApiRunner by
default): data_pipelines/beam/README.md has the commands for Dataflow, Flink and Spark.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `musiclm tokenize`."""
    beam.load().add_tokenize_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command; see the top of the file."""
    compilation_cache.enable()
    return beam.load().tokenize(args)
