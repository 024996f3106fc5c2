"""The folder that `musiclm sample` fills: a WAV file a line, manifests, lines that were rejected.

A clip is there once its line stands in a manifest: the file comes first, whole, and then the line.
Whatever a kill leaves besides is cleared away by the next run.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from musiclm import errors

if TYPE_CHECKING:
    from musiclm.audio import Waveform


class Folder:
    """What one process writes, and what all have written."""

    def __init__(self, path: str | os.PathLike[str], process: int = 0, num_processes: int = 1):
        """Makes the folder, if need be, and reads what is there.

        Args:
          path: of the folder.
          process, num_processes: each process has files of its own.

        Raises:
          UserError: the folder can't be written, or a manifest is none.
        """
        self._path = pathlib.Path(path)
        share = f"-{process:05d}-of-{num_processes:05d}" if num_processes > 1 else ""
        self._manifest = self._path / f"manifest{share}.jsonl"
        self._rejected = self._path / f"rejected{share}.jsonl"
        self._summary = self._path / f"summary{share}.json"
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            self._rejected.unlink(missing_ok=True)  # each run tells anew
            _cut_after_last_line(self._manifest)
        except OSError as error:
            raise errors.UserError(
                f"cannot write to {str(path)!r} ({error.strerror}): choose another folder with "
                "--out"
            ) from error
        # Those of other processes, and of runs with another number of them, count as well.
        self._digests = {
            record["file"]: record["digest"]
            for manifest in sorted(self._path.glob("manifest*.jsonl"))
            for record in _records(manifest)
        }

    def has(self, number: int, digest: str) -> bool:
        """Whether the clip of a line is there, made of the same line."""
        name = _name(number)
        return self._digests.get(name) == digest and (self._path / name).is_file()

    def add(self, number: int, digest: str, clip: Waveform, told: Mapping[str, Any]) -> None:
        """Writes a clip and its line in the manifest.

        Args:
          number: of its line, from 1.
          digest: of all that decides how it sounds.
          clip: what was made.
          told: what else the manifest shall tell.
        """
        name = _name(number)
        for left in self._path.glob(f".{name}.*"):  # by a kill
            left.unlink()
        clip.save(self._path / name)
        record = {"file": name, "line": number, **told, "digest": digest}
        _append(self._manifest, record)

    def reject(self, number: int, reason: str) -> None:
        """Notes a line that nothing can be made of."""
        _append(self._rejected, {"line": number, "reason": " ".join(reason.split())})

    def close(self, summary: Mapping[str, Any]) -> pathlib.Path:
        """Puts the manifest into the order of the lines, once each, and writes a summary."""
        records = {record["line"]: record for record in _records(self._manifest)}
        text = "".join(_line(records[number]) for number in sorted(records))
        _replace(self._manifest, text)
        _replace(self._summary, json.dumps(summary, indent=2) + "\n")
        return self._summary


def _name(number: int) -> str:
    return f"{number:06d}.wav"


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _append(path: pathlib.Path, record: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(_line(record))
        file.flush()
        os.fsync(file.fileno())


def _replace(path: pathlib.Path, text: str) -> None:
    beside = path.with_name(f".{path.name}")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def _cut_after_last_line(path: pathlib.Path) -> None:
    """Takes off the half line that a kill may have left."""
    if path.is_file():
        data = path.read_bytes()
        os.truncate(path, data.rfind(b"\n") + 1)


def _records(path: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a manifest, but for one that is still being written."""
    if not path.is_file():
        return []
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    records = []
    for number, text in enumerate(whole.split(b"\n") if whole else [], start=1):
        try:
            record = json.loads(text)
            record["line"], record["file"], record["digest"]
        except (ValueError, KeyError, TypeError) as error:
            raise errors.UserError(
                f"line {number} of {path} is none of `musiclm sample` ({error!r}): choose another "
                "folder with --out, or take the file away"
            ) from error
        records.append(record)
    return records
