"""Folders of clips as `musiclm generate` and `musiclm sample` leave them: named, and read."""

import argparse
import itertools
import json
import pathlib
from collections.abc import Sequence

from musiclm.errors import UserError


def add_argument(parser: argparse.ArgumentParser, help: str) -> None:
    """Adds `--folder`, to be given once or more."""
    parser.add_argument("--folder", action="append", default=[], metavar="NAME=DIR", help=help)


def named(folders: Sequence[str]) -> dict[str, pathlib.Path]:
    """Folders by name.

    Raises:
      UserError: one has no name, or the name of another.
    """
    named: dict[str, pathlib.Path] = {}
    for text in folders:
        name, equals, folder = text.partition("=")
        if not (name and equals and folder):
            raise UserError(f"--folder is {text!r}: write it like small=songs/small")
        if name in named:
            raise UserError(f"--folder names {name!r} twice: give each a name of its own")
        named[name] = pathlib.Path(folder)
    return named


def read(folder: pathlib.Path) -> dict[tuple[str, int], pathlib.Path]:
    """The clips of a folder in the manifest's order, by prompt and number among those of a prompt.

    Raises:
      UserError: there is no manifest, or a line of it names no prompt or no file.
    """
    manifest = folder / "manifest.jsonl"
    try:
        lines = manifest.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read {str(manifest)!r} ({getattr(error, 'strerror', None) or error}): give a "
            "folder that `musiclm generate` or `musiclm sample` made"
        ) from error
    clips: dict[tuple[str, int], pathlib.Path] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            prompt, file = entry["prompt"], entry["file"]
            if not isinstance(prompt, str) or not isinstance(file, str):
                raise TypeError("prompt and file are no texts")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise UserError(
                f"line {number} of {str(manifest)!r} is no clip ({error}): write it like "
                '{"prompt": "calm flute", "file": "000.wav"}'
            ) from error
        take = next(i for i in itertools.count() if (prompt, i) not in clips)
        clips[prompt, take] = folder / file
    return clips
