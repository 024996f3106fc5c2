"""The `musiclm` command: `generate`, `describe`, `data` …, one small file each.

Nothing at the top of this module, nor of the subcommands' modules, imports JAX: `--help` and a
mistyped argument answer at once.

Exit codes: see `musiclm.exit_codes`. What the person can mend is told in one line on stderr, with
the code `MISTAKE` of the command's module, or else 2.
"""

import argparse
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

import musiclm
from musiclm import errors, exit_codes
from musiclm.bin import (
    ablate,
    compile,
    data,
    describe,
    evaluate,
    fit,
    generate,
    inspect,
    listen,
    pack,
    sample,
    tokenize,
    train,
)

_EPILOG = """\
examples:
  musiclm generate "a slow sad piano melody in A minor"
  musiclm sample --gin_file gin/sample/batch.gin --prompts prompts.jsonl --out clips
  musiclm describe gin/models/*/base.gin
  musiclm data gm --out corpus --clips 1000 --seed 0
  musiclm tokenize --manifest corpus --bundle gm-mini --window-seconds 10 --out tokens
"""

_COMMANDS = {
    "generate": generate,
    "sample": sample,
    "inspect": inspect,
    "listen": listen,
    "describe": describe,
    "evaluate": evaluate,
    "data": data,
    "tokenize": tokenize,
    "pack": pack,
    "fit": fit,
    "train": train,
    "ablate": ablate,
    "compile": compile,
}


class _Parser(argparse.ArgumentParser):
    """Raises instead of printing its usage, so that every mistake is reported the same way."""

    def error(self, message: str) -> NoReturn:
        raise errors.UserError(f"{message} (see `{self.prog} --help`)")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments; a command that sets `others` gets what it does not know there."""
    parser = _build_parser(argv)
    args, others = parser.parse_known_args(argv)
    if others and "others" not in args:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    args.others = others
    return args


def _build_parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="musiclm",
        description="Text to music with MusicLM.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"musiclm {musiclm.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    in_use = next((argument for argument in argv if not argument.startswith("-")), None)
    for name, module in _COMMANDS.items():
        command = commands.add_parser(
            name,
            help=module.HELP,
            description=module.__doc__,
            epilog=module.EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        mistake = getattr(module, "MISTAKE", exit_codes.USAGE)
        command.set_defaults(command_run=module.run, mistake=mistake)
        # Only of the command in use: those of `data` belong to the corpora, and cost imports.
        if name == in_use:
            module.add_arguments(command)
    return parser


@contextlib.contextmanager
def _polite_kill() -> Iterator[None]:
    """Turns SIGTERM into an exception for a while, so that unfinished files are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set a handler
        return

    def stop(signum: int, frame: object) -> NoReturn:
        raise SystemExit(exit_codes.TERMINATED)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
      argv: arguments without the program's name; those of the process when None.

    Returns:
      The exit code, see the top of this file.
    """
    mistake = exit_codes.USAGE
    try:
        argv = sys.argv[1:] if argv is None else argv
        args = _parse(argv)
        mistake = args.mistake
        command: Callable[[argparse.Namespace], int] = args.command_run
        with _polite_kill():
            return command(args)
    except errors.UserError as error:
        # One line, whatever the message was made of: scripts read the last line of stderr.
        print(f"musiclm: error: {' '.join(str(error).split())}", file=sys.stderr)
        return mistake
    except KeyboardInterrupt:
        print("musiclm: interrupted", file=sys.stderr)
        return exit_codes.INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has seen enough; keep the interpreter's last flush quiet too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as stop:  # argparse, after --help and --version; or a polite kill
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)


def run() -> NoReturn:
    """Entry point of the installed `musiclm` script."""
    sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be no text
    sys.exit(main())


if __name__ == "__main__":
    run()
