"""Files of a job, wherever workers can reach them: paths, gs://, s3:// and what else Beam knows."""

import hashlib
import os
import pathlib
import uuid
from collections.abc import Iterator, Sequence

from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

_CHUNK = 1 << 22


def join(folder: str, *names: str) -> str:
    """A path below a folder."""
    return FileSystems.join(folder, *names)


def read(path: str) -> bytes:
    """A file's bytes, as they are.

    Raises:
      OSError: it cannot be read.
      ValueError: no file system of the path's scheme is installed.
    """
    with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
        return file.read()


def sha256(path: str) -> str:
    """A file's SHA-256, in hex; raises as `read` does."""
    digest = hashlib.sha256()
    for chunk in _chunks(path):
        digest.update(chunk)
    return digest.hexdigest()


def fetch(path: str, local: pathlib.Path) -> None:
    """Copies a file here; raises as `read` does."""
    with local.open("wb") as out:
        for chunk in _chunks(path):
            out.write(chunk)


def exists(path: str) -> bool:
    """Whether there is such a file."""
    return FileSystems.exists(path)


def sizes(folder: str) -> dict[str, int]:
    """Bytes of the files that lie directly in a folder, by name; unfinished ones left out."""
    found = {os.path.basename(path): size for path, size in _files(folder).items()}
    return {name: size for name, size in found.items() if not name.startswith(".")}


def sweep(folder: str) -> None:
    """Deletes what a kill left unfinished in a folder."""
    _delete([path for path in _files(folder) if os.path.basename(path).startswith(".")])


def write(path: str, data: bytes) -> None:
    """Writes a file whole, beside its place first."""
    beside = _beside(path)
    with _create(beside) as out:
        out.write(data)
    FileSystems.rename([beside], [path])


def move_in(local: pathlib.Path, path: str) -> None:
    """Moves a finished local file to its place, whole or not at all."""
    beside = _beside(path)
    with local.open("rb") as file, _create(beside) as out:
        while chunk := file.read(_CHUNK):
            out.write(chunk)
    FileSystems.rename([beside], [path])
    local.unlink()


def remove(path: str) -> None:
    """Deletes a file, if it is there."""
    if exists(path):
        _delete([path])


def _chunks(path: str) -> Iterator[bytes]:
    with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _is_local(path: str) -> bool:
    return "://" not in path


def _files(folder: str) -> dict[str, int]:
    """Bytes of the files that lie directly in a folder, by path; none if there is no folder."""
    if _is_local(folder):
        # To Beam paths are patterns: brackets in a folder's name would stand for one character.
        try:
            with os.scandir(folder) as entries:
                return {entry.path: entry.stat().st_size for entry in entries if entry.is_file()}
        except FileNotFoundError:
            return {}
    try:
        (found,) = FileSystems.match([join(folder, "*")])
    except BeamIOError:
        return {}
    return {file.path: file.size_in_bytes for file in found.metadata_list}


def _delete(paths: Sequence[str]) -> None:
    for path in filter(_is_local, paths):
        os.remove(path)
    if elsewhere := [path for path in paths if not _is_local(path)]:
        FileSystems.delete(elsewhere)


def _beside(path: str) -> str:
    folder, name = FileSystems.split(path)
    return join(folder, f".{name}.{uuid.uuid4().hex[:8]}")


def _create(path: str):
    folder, _ = FileSystems.split(path)
    if _is_local(folder):
        os.makedirs(folder, exist_ok=True)
    return FileSystems.create(path, compression_type=CompressionTypes.UNCOMPRESSED)
