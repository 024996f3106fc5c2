"""Starts training jobs on clusters: `python -m tpu_launch render --backend B JOB.yaml`.

Exit codes: 0 done, 2 a mistake on the command line, 78 a job that can't be used; after submitting,
those of the engine's own program, which takes this one's place.
"""

import argparse
import os
import pathlib
import sys
import tempfile
from collections.abc import Sequence
from typing import NoReturn

from musiclm import errors, exit_codes
from tpu_launch import job as job_lib
from tpu_launch import jobset, local, queued_resources, skypilot, slurm, supervisor, xpk

_BACKENDS = {
    "jobset": jobset.BACKEND,
    "xpk": xpk.BACKEND,
    "queued-resources": queued_resources.BACKEND,
    "skypilot": skypilot.BACKEND,
    "slurm": slurm.BACKEND,
    "local": local.BACKEND,
}
_SUMMARIES = "\n".join(f"  {name:<18}{backend.summary}" for name, backend in _BACKENDS.items())
_RENDER_EPILOG = f"""\
engines:
{_SUMMARIES}

examples:
  python -m tpu_launch render --backend jobset --dry-run tpu_launch/examples/semantic_v5e.yaml
  python -m tpu_launch render --backend slurm tpu_launch/examples/semantic_h100.yaml
  python -m tpu_launch render --backend local tpu_launch/examples/semantic_mini.yaml
"""
_SUPERVISE_EPILOG = """\
examples:
  python -m tpu_launch supervise --processes 2 --devices 4 --retries 3 --logs logs -- \\
      musiclm train --gin_file run.gin --distributed
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
      argv: arguments without the program's name; those of the process when None.

    Returns:
      The exit code, see the top of this file.
    """
    args = _parser().parse_args(argv)
    try:
        return args.run(args)
    except errors.UserError as error:
        print(f"tpu_launch: error: {' '.join(str(error).split())}", file=sys.stderr)
        return exit_codes.CONFIGURATION


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tpu_launch", description=__doc__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    render = commands.add_parser(
        "render",
        help="hands a job to an engine, or shows what it would hand over",
        epilog=_RENDER_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    render.add_argument("job", type=pathlib.Path, help="the job's description, a YAML file")
    render.add_argument("--backend", choices=_BACKENDS, required=True, help="the engine, see below")
    render.add_argument(
        "--dry-run", action="store_true", help="print what the engine takes, submit nothing"
    )
    render.set_defaults(run=_render)

    supervise = commands.add_parser(
        "supervise",
        help="runs the processes of any command on this machine, watches and restarts them",
        description=supervisor.__doc__,
        epilog=_SUPERVISE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    supervise.add_argument("command", nargs="+", help="program and arguments, after --")
    supervise.add_argument("--logs", type=pathlib.Path, required=True, help="folder of the output")
    supervise.add_argument("--processes", type=int, default=1)
    supervise.add_argument("--devices", type=int, default=1, help="CPU devices of a process")
    supervise.add_argument("--retries", type=int, default=0, help="restarts after a fault")
    supervise.add_argument(
        "--grace-seconds",
        type=float,
        default=job_lib.GRACE_SECONDS,
        help="how long processes may take to end",
    )
    supervise.set_defaults(run=_supervise)
    return parser


def _render(args: argparse.Namespace) -> int:
    backend = _BACKENDS[args.backend]
    text = backend(job_lib.load(args.job))
    if args.dry_run:
        sys.stdout.write(text)
        return exit_codes.DONE
    _become(backend.submit, text)


def _become(command: Sequence[str], text: str) -> NoReturn:
    """Replaces this process by another, with a text on its standard input.

    Signals, messages and the exit code are then the engine's own.
    """
    with tempfile.TemporaryFile("w+") as file:
        file.write(text)
        file.flush()
        file.seek(0)
        os.dup2(file.fileno(), sys.stdin.fileno())
    try:
        os.execvp(command[0], command)
    except FileNotFoundError as error:
        raise errors.UserError(
            f"{command[0]} is not installed here: install it, or give --dry-run to see what it "
            "would be handed"
        ) from error


def _supervise(args: argparse.Namespace) -> int:
    plan = supervisor.Plan(
        command=tuple(args.command),
        logs=args.logs,
        processes=args.processes,
        devices=args.devices,
        retries=args.retries,
        grace_seconds=args.grace_seconds,
    )
    return supervisor.supervise(plan)


if __name__ == "__main__":
    sys.exit(main())
