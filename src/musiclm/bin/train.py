"""Trains one model, as its gin file says; started again it goes on from the newest checkpoint.

Exit codes: 0 done, 42 asked to stop (SIGTERM) and saved if a step was taken, 43 stood still, 44
stopped by a health gate, 78 a configuration, data set or checkpoint that can't be used.
"""

import argparse
import sys
from collections.abc import Callable

from musiclm import exit_codes
from musiclm.bin import compilation_cache, configuration

MISTAKE = exit_codes.CONFIGURATION
HELP = "train a model, as its gin file says"
EPILOG = """\
examples:
  musiclm train --gin_file gin/train/mini/coarse.gin --gin_bindings 'TRAIN="tokens/train/6ed7"' …
  musiclm train --check --gin_file gin/train/semantic.gin …    # reads everything, trains nothing
  musiclm train --distributed --gin_file …                     # as one process of several

The top of a gin file tells which macros must be set. Processes of a job find one another by
JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or by what SLURM, GKE or Cloud TPU
tell; `python -m tpu_launch` starts them.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `musiclm train`."""
    configuration.add_arguments(parser)
    parser.add_argument(
        "--check", action="store_true", help="check configuration, data and checkpoint, then stop"
    )
    parser.add_argument(
        "--distributed", action="store_true", help="join the other processes of the job"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    compilation_cache.enable()
    from absl import logging

    from musiclm import processes
    from musiclm.training import interruption, loop

    logging.set_verbosity(logging.WARNING)  # Orbax tells of every step of a save
    configuration.parse(args.gin_file, args.gin_bindings)
    if args.distributed:
        processes.join()

    def train() -> None:
        # Not only in the loop: making what the file refers to may take a while.
        with interruption.StopRequest(), configuration.told_without_gin():
            loop.train(**configuration.resolve(loop.train), check_only=args.check)

    with processes.failing_alone(MISTAKE):
        code = told(train)
    if code == exit_codes.UNHEALTHY:
        processes.fail_alone(code)
    if args.check and code == exit_codes.DONE:
        print("musiclm: configuration, data and checkpoints are in order")
    return code


def told(train: Callable[[], None]) -> int:
    """Trains, and tells what stopped it before the end, if that is no fault: an exit code."""
    try:
        train()
    except Exception as error:
        from musiclm.training import health, interruption

        if isinstance(error, interruption.Preempted):
            print(f"musiclm: {error}: start again to go on", file=sys.stderr)
            return exit_codes.PREEMPTED
        if isinstance(error, health.HealthError):
            print(f"musiclm: stopped at {error}", file=sys.stderr)
            return exit_codes.UNHEALTHY
        raise
    return exit_codes.DONE
