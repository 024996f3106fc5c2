"""What a corpus is: a folder of audio files and a `manifest.jsonl`, one JSON object a line.

Every corpus gives at least `file` (relative to the manifest), `caption`, `seconds`,
`sample_rate` and `split`; each adds the attributes that it knows.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

NAME = "manifest.jsonl"
REQUIRED_KEYS = ("file", "caption", "seconds", "sample_rate", "split")

Entry = dict[str, Any]


class ManifestError(ValueError):
    """A manifest is missing or malformed; the message names the file, the line and the mend."""


def path_of(corpus: str | os.PathLike) -> Path:
    """The manifest's path, given either the corpus's folder or the manifest itself."""
    path = Path(corpus)
    return path / NAME if path.is_dir() else path


def read(corpus: str | os.PathLike) -> list[Entry]:
    """Reads a manifest.

    Args:
      corpus: the corpus's folder, or the manifest file.

    Returns:
      One dict a clip, in the file's order; `file` is as written (see `audio_path`).

    Raises:
      ManifestError: no such file, a line that is not a JSON object, or a required key missing.
    """
    path = path_of(corpus)
    if not path.is_file():
        raise ManifestError(f"no manifest at {path}: build the corpus first, or check the path")
    entries = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except ValueError as error:
                raise ManifestError(f"{path}, line {number}: not JSON ({error})") from None
            missing = (
                [key for key in REQUIRED_KEYS if key not in entry]
                if isinstance(entry, dict)
                else list(REQUIRED_KEYS)
            )
            if missing:
                raise ManifestError(f"{path}, line {number}: lacks {', '.join(missing)}")
            entries.append(entry)
    if not entries:
        raise ManifestError(f"{path} is empty: build the corpus again")
    return entries


def audio_path(corpus: str | os.PathLike, entry: Mapping[str, Any]) -> Path:
    """Where an entry's audio lies."""
    return path_of(corpus).parent / entry["file"]


def dumps(entry: Mapping[str, Any]) -> str:
    """One manifest line, without the newline; keys keep their order."""
    return json.dumps(entry, ensure_ascii=False)


def write(corpus: str | os.PathLike, entries: Iterable[Mapping[str, Any]]) -> Path:
    """Writes a manifest whole, beside its place first, so that no reader sees half of one."""
    path = path_of(corpus)
    partial = path.with_name(path.name + ".tmp")
    with partial.open("w", encoding="utf-8") as out:
        out.writelines(dumps(entry) + "\n" for entry in entries)
    os.replace(partial, path)
    return path
