"""Folders of clips as `musiclm generate` and `musiclm sample` leave them: named, and read."""

import argparse
import collections
import itertools
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from musiclm.errors import UserError

MANIFEST = "manifest.jsonl"


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


def shares(folder: pathlib.Path, name: str) -> list[pathlib.Path]:
    """The files of this name in a folder, and those that several processes have in its place."""
    whole = folder / name
    parts = folder.glob(f"{whole.stem}-?????-of-?????{whole.suffix}")
    return [path for path in (whole, *sorted(parts)) if path.is_file()]


def digest_of(path: pathlib.Path) -> str | None:
    """The digest of what a clip was made of, as it says itself; None if it doesn't."""
    from musiclm import audio

    try:
        return (audio.read_provenance(path) or {}).get("digest")
    except UserError:
        return None


def read(folder: pathlib.Path) -> dict[tuple[str, int], pathlib.Path]:
    """The clips of a folder in the order of their lines, by prompt and number among those of one.

    Of a file that several manifests have, the line holds that it was made of.

    Raises:
      UserError: there is no manifest, or a line of it names no prompt or no file.
    """
    entries = collections.defaultdict(list)
    for manifest in shares(folder, MANIFEST) or [folder / MANIFEST]:
        for entry in _entries(manifest):
            entries[entry["line"], entry["file"]].append(entry)
    clips: dict[tuple[str, int], pathlib.Path] = {}
    for (_, file), told in sorted(entries.items()):
        digest = digest_of(folder / file) if len(told) > 1 else None
        entry = next((one for one in told if one.get("digest") == digest), told[-1])
        prompt = entry["prompt"]
        take = next(i for i in itertools.count() if (prompt, i) not in clips)
        clips[prompt, take] = folder / file
    return clips


def _entries(manifest: pathlib.Path) -> Iterator[dict[str, Any]]:
    """The lines of a manifest, with their number in "line" where they don't tell it."""
    try:
        lines = manifest.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read {str(manifest)!r} ({getattr(error, 'strerror', None) or error}): give a "
            "folder that `musiclm generate` or `musiclm sample` made"
        ) from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = {"line": number, **json.loads(line)}
            if not isinstance(entry["prompt"], str) or not isinstance(entry["file"], str):
                raise TypeError("prompt and file are no texts")
            if not isinstance(entry["line"], int):
                raise TypeError("line is no number")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise UserError(
                f"line {number} of {str(manifest)!r} is no clip ({error}): write it like "
                '{"prompt": "calm flute", "file": "000.wav"}'
            ) from error
        yield entry
