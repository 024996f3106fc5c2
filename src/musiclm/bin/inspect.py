"""Tells what sound a file holds and, of a file that musiclm made, what it was made of."""

import argparse
import json
from typing import Any

from musiclm import errors

HELP = "tell how a file was generated"
EPILOG = """\
examples:
  musiclm inspect out/000.wav
  musiclm inspect --json songs/*.wav | jq .provenance.prompt

A WAV that musiclm writes says in its comment (RIFF INFO, ICMT) that it is generated, and from what.
It proves nothing: anybody can change or remove it.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `musiclm inspect`."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="wav, flac, ogg or mp3")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")


def run(args: argparse.Namespace) -> int:
    """Runs the command; files that can't be read are told at the end, together."""
    mistakes = []
    for path in args.files:
        try:
            found = inspect(path)
        except errors.UserError as error:
            mistakes.append(str(error))
        else:
            print(_as_json(found) if args.json else _as_text(found))
    if mistakes:
        raise errors.UserError("; ".join(mistakes))
    return 0


def inspect(path: str) -> dict[str, Any]:
    """What a file says: JSON-ready; "provenance" is None where it says nothing of it.

    Raises:
      UserError: the file is missing, empty or no audio.
    """
    from musiclm import audio

    return {"file": path, **audio.read_facts(path), "provenance": audio.read_provenance(path)}


def _as_json(found: dict[str, Any]) -> str:
    # Names of files need not be Unicode. What stands for their other bytes JSON writes as Python.
    text = json.dumps(found, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode()


def _as_text(found: dict[str, Any]) -> str:
    channels = f"{found['channels']} channel{'s' if found['channels'] > 1 else ''}"
    sound = f"{found['seconds']:.2f} s, {found['sample_rate']} Hz, {channels}, {found['format']}"
    lines = {"sound": sound}
    lines |= found["provenance"] or {"provenance": "none, the file doesn't say what made it"}
    width = max(map(len, lines))
    told = [f"  {_printable(name):{width}}  {_printable(value)}" for name, value in lines.items()]
    return "\n".join([_printable(found["file"]), *told])


def _printable(value: Any) -> str:
    """A value in one line; what would steer a terminal is escaped."""
    if isinstance(value, str) and value.isprintable():
        return value
    return json.dumps(value)
