"""The commands `musiclm tokenize` and `musiclm pack`.

Nothing at the top imports Beam or JAX: `--help` answers at once.
"""

import argparse
import logging
import re
import sys
from collections.abc import Callable, Sequence

from data_pipelines import manifest
from musiclm import errors, exit_codes


def add_tokenize_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `musiclm tokenize`."""
    _add_arguments(parser, window_seconds=30.0)
    parser.add_argument(
        "--bundle",
        required=True,
        help="name of a bundled model, or folder with a bundle or its three tokenizers",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=8,
        metavar="N",
        help="windows that the tokenizers take at once (default: 8)",
    )


def add_pack_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `musiclm pack`."""
    _add_arguments(parser, window_seconds=10.0)
    parser.add_argument(
        "--sample-rate", type=int, default=16_000, help="of the shards, in Hz (default: 16000)"
    )


def _add_arguments(parser: argparse.ArgumentParser, *, window_seconds: float) -> None:
    parser.allow_abbrev = False  # a shortened option could be Beam's
    parser.set_defaults(others=[])  # takes options of Beam
    parser.add_argument(
        "--manifest",
        nargs="+",
        required=True,
        metavar="M",
        help="manifests (.jsonl or .parquet), or folders of corpora",
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="the data set goes to a folder in DIR that is named by what made it",
    )
    parser.add_argument(
        "--split",
        default="all",
        choices=[*manifest.SPLITS, "all"],
        help="whose clips to take (default: all)",
    )
    parser.add_argument(
        "--duplicates",
        default="near",
        choices=("exact", "near"),
        help="which to leave out: files of the same bytes, or re-encoded, softer and lightly "
        "cropped ones as well (default: near)",
    )
    parser.add_argument(
        "--window-seconds",
        type=float,
        default=window_seconds,
        metavar="S",
        help=f"length of every window (default: {window_seconds:g})",
    )
    parser.add_argument(
        "--num-shards", type=int, default=64, metavar="N", help="files a stream (default: 64)"
    )
    parser.add_argument(
        "--shards-a-run",
        type=int,
        default=0,
        metavar="N",
        help="shards that are made, and so kept after a kill, at once; each such run reads the "
        "files anew that have windows in its shards (default: all)",
    )
    parser.add_argument(
        "--max-failures",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="of the files that may be bad before the job gives up (default: 0.01)",
    )


def tokenize(args: argparse.Namespace) -> int:
    """Runs `musiclm tokenize`."""

    def encoder():
        from data_pipelines.beam import encoders

        return encoders.TokenEncoder.of(args.bundle, batch_size=args.batch_size)

    return _run(args, encoder)


def pack(args: argparse.Namespace) -> int:
    """Runs `musiclm pack`."""
    if args.sample_rate < 1:
        raise errors.UserError(f"--sample-rate is {args.sample_rate}: give Hz")

    def encoder():
        from data_pipelines.beam import encoders

        return encoders.PcmEncoder(sample_rate=args.sample_rate)

    return _run(args, encoder)


def _run(args: argparse.Namespace, encoder: Callable) -> int:
    """Makes the data set; the last line of stdout is its folder."""
    logging.getLogger().setLevel(logging.ERROR)  # Beam tells much, from its import on
    # It would also tell every exception that it raises, traceback and all.
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    from data_pipelines.beam import job

    options = _beam_options(args.others)
    wanted = job.Job(
        manifests=args.manifest,
        out=args.out,
        encoder=encoder(),
        split=args.split,
        duplicates=args.duplicates,
        window_seconds=args.window_seconds,
        num_shards=args.num_shards,
        shards_a_run=args.shards_a_run,
        max_failures=args.max_failures,
    )
    try:
        print(job.make(wanted, options))
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return exit_codes.INTERRUPTED
    except RuntimeError as error:
        if (mistake := _mistake_of_a_worker(error)) is None:
            raise
        raise mistake from error
    return 0


def _mistake_of_a_worker(error: RuntimeError) -> errors.UserError | None:
    """What a person can mend, of which workers in other processes tell in a traceback's text."""
    for module, name, told in re.findall(r"^([\w.]+)\.(\w+): (.+)$", str(error), re.MULTILINE):
        kind = getattr(sys.modules.get(module), name, None)
        if isinstance(kind, type) and issubclass(kind, errors.UserError):
            return errors.UserError(re.sub(r" \[while running .*\]$", "", told))
    return None


def _beam_options(arguments: Sequence[str]):
    """Beam's options, with the embedded runner where none is given.

    Raises:
      UserError: neither this command nor Beam knows an option.
    """
    from apache_beam.options.pipeline_options import PipelineOptions

    # "DirectRunner" would download another runner, Prism.
    options = PipelineOptions(["--runner=FnApiRunner", *arguments])
    parsers: list[argparse.ArgumentParser] = []
    options.get_all_options(add_extra_args_fn=parsers.append)
    _, unknown = parsers[0].parse_known_args(arguments)
    if unknown:
        raise errors.UserError(f"unrecognized arguments: {' '.join(unknown)}")
    return options
