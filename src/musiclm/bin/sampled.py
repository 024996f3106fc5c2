"""The folder that `musiclm sample` fills: a WAV file a line, manifests, lines that were rejected.

A clip is there once its line stands in a manifest: the file comes first, whole, and then the line.
Whatever a kill leaves besides is cleared away by the next run. Runs of several processes, or of
another number of them, have manifests of their own; where these differ over a file, the digest in
the file's own provenance decides. Of lines that the prompts no longer have, and of those that are
rejected now, the files stay, but no manifest of the run names them once it is done; nor do those of
other numbers of processes, once a run of one process is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from musiclm import errors
from musiclm.bin import folders

if TYPE_CHECKING:
    from musiclm.audio import Waveform


_SUMMARY = "summary.json"
# Of every line of a manifest.
_BEGINNING = b'{"file": "'


class Folder:
    """What one process writes, and what all have written.

    Attributes:
      num_rejected: lines of this run, so far.
    """

    def __init__(self, path: str | os.PathLike[str], process: int = 0, num_processes: int = 1):
        """Makes the folder, if need be, and reads what is there.

        Args:
          path: of the folder.
          process, num_processes: each process has files of its own.

        Raises:
          UserError: the folder can't be written, or a manifest is none.
        """
        self.num_rejected = 0
        self._alone = num_processes == 1
        self._path = pathlib.Path(path)
        share = f"-{process:05d}-of-{num_processes:05d}" if num_processes > 1 else ""
        self._manifest = self._path / f"manifest{share}.jsonl"
        self._rejected = self._path / f"rejected{share}.jsonl"
        self._summary = self._path / f"summary{share}.json"
        with _writing(self._path):
            self._path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._path):
                pass  # can be written, as is known now and not after the first clips
            # Those of other processes, and of runs with another number of them, count as well. All
            # are read before anything is changed: the folder may be somebody else's.
            self._made = {
                (record["file"], record["digest"])
                for manifest in folders.shares(self._path, folders.MANIFEST)
                for record in _records(manifest)
            }
            _cut_after_last_line(self._manifest)
            for file in (self._manifest, self._summary):
                self._clear(file.name)
            for left in self._path.glob(".*.wav.*"):
                number = left.name[1:].partition(".")[0]
                if number.isdecimal() and (int(number) - 1) % num_processes == process:
                    left.unlink()
            # Each run tells anew, and for those of another number of processes.
            count = share.rpartition("-")[2]
            for name in ("rejected.jsonl", _SUMMARY):
                for told in folders.shares(self._path, name):
                    if told == self._rejected or told.stem.partition("-of-")[2] != count:
                        told.unlink(missing_ok=True)
        self._current: set[tuple[str, str]] = set()  # what this run found or made

    def has(self, number: int, digest: str) -> bool:
        """Whether the clip of a line is there, made of the same line; if so, it stays told of."""
        name = _name(number)
        if (name, digest) not in self._made or folders.digest_of(self._path / name) != digest:
            return False
        self._current.add((name, digest))
        return True

    def add(self, number: int, digest: str, clip: Waveform, told: Mapping[str, Any]) -> None:
        """Writes a clip and its line in the manifest.

        Args:
          number: of its line, from 1.
          digest: of all that decides how it sounds.
          clip: what was made.
          told: what else the manifest shall tell.
        """
        name = _name(number)
        record = {"file": name, "line": number, **told, "digest": digest}
        with _writing(self._path):
            provenance = {**(clip.provenance or {}), "digest": digest}
            dataclasses.replace(clip, provenance=provenance).save(self._path / name)
            _append(self._manifest, record)
        self._current.add((name, digest))

    @contextlib.contextmanager
    def rejecting(self, number: int) -> Iterator[None]:
        """Notes a line of which nothing can be made, with what was told of it, and goes on."""
        try:
            yield
        except errors.UserError as error:
            reason = " ".join(str(error).split())
            print(f"musiclm: line {number} is rejected: {reason}", file=sys.stderr)
            with _writing(self._path):
                _append(self._rejected, {"line": number, "reason": reason})
            self.num_rejected += 1

    def close(self, summary: Mapping[str, Any]) -> pathlib.Path:
        """Leaves the clips that this run found or made in its manifest, and writes a summary.

        They stand in the order of the lines, once each.
        """
        from musiclm import bundle

        manifests = folders.shares(self._path, folders.MANIFEST)
        records = {
            record["line"]: record
            for manifest in manifests
            for record in _records(manifest)
            if (record["file"], record["digest"]) in self._current
        }
        text = "".join(_line(records[number]) for number in sorted(records))
        with _writing(self._path):
            bundle.write_beside(self._manifest, _encode(text))
            if self._alone:  # one of several does not know what the others still need
                for manifest in manifests:
                    if manifest != self._manifest:
                        manifest.unlink()
            bundle.write_beside(self._summary, _encode(json.dumps(summary, indent=2) + "\n"))
        return self._summary

    def _clear(self, name: str) -> None:
        """Takes away what a kill left of a file of this process."""
        for left in self._path.glob(f".{name}.*"):
            left.unlink()


def sum_up(
    path: str | os.PathLike[str], total: Callable[[list[dict[str, Any]]], Mapping[str, Any]]
) -> None:
    """Writes the summary of a job whose processes have all closed the folder.

    Args:
      path: of the folder.
      total: makes one summary of several.

    Raises:
      UserError: the folder can't be written.
    """
    from musiclm import bundle

    folder = pathlib.Path(path)
    with _writing(folder):
        parts = [json.loads(part.read_bytes()) for part in folders.shares(folder, _SUMMARY)]
        text = json.dumps(total(parts), indent=2) + "\n"
        bundle.write_beside(folder / _SUMMARY, _encode(text))


@contextlib.contextmanager
def _writing(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise errors.UserError(
            f"cannot read or write in {str(path)!r} ({error.strerror}): mend that or make room and "
            "start again, what is done stays, or choose another folder with --out"
        ) from error


def _name(number: int) -> str:
    return f"{number:06d}.wav"


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _append(path: pathlib.Path, record: Mapping[str, Any]) -> None:
    with path.open("ab") as file:
        file.write(_encode(_line(record)))
        file.flush()
        os.fsync(file.fileno())


def _encode(text: str) -> bytes:
    # Names of files need not be Unicode. What stands for their other bytes JSON writes as Python.
    return text.encode("utf-8", "backslashreplace")


def _cut_after_last_line(path: pathlib.Path) -> None:
    """Takes off the half line that a kill may have left."""
    if path.is_file():
        data = path.read_bytes()
        os.truncate(path, data.rfind(b"\n") + 1)


def _records(path: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a manifest, but for one that is still being written.

    Raises:
      UserError: it is somebody else's.
    """
    if not path.is_file():
        return []
    whole, _, rest = path.read_bytes().rpartition(b"\n")
    records = []
    for number, text in enumerate(whole.split(b"\n") if whole else [], start=1):
        try:
            record = json.loads(text)
            hash((record["line"], record["file"], record["digest"]))  # there, and no lists
        except (ValueError, KeyError, TypeError) as error:
            raise errors.UserError(
                f"line {number} of {path} is none of `musiclm sample` ({error!r}): choose another "
                "folder with --out, or take the file away"
            ) from error
        records.append(record)
    # Behind lines of ours a power cut may leave anything.
    if not (records or rest.startswith(_BEGINNING) or _BEGINNING.startswith(rest)):
        raise errors.UserError(
            f"{path} is none of `musiclm sample`: choose another folder with --out, "
            "or take the file away"
        )
    return records
