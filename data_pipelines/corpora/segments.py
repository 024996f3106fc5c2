"""Audio of YouTube segments: files that people have cut and named in ways of their own."""

from collections.abc import Iterable
from pathlib import Path

from data_pipelines.corpora import corpus

_ID_LENGTH = 11


def find(folder: Path, ids: Iterable[str]) -> dict[str, Path]:
    """The file of each id that has one: any whose name contains it, the first by path.

    "ID.wav", "YID.flac", "[ID]-[30-40].wav" and "ID_30_40.mp3" are all found.

    Args:
      folder: with the audio, at any depth.
      ids: YouTube ids, 11 characters each.

    Raises:
      CorpusError: there is no such folder, or no audio in it.
    """
    wanted = set(ids)
    found: dict[str, Path] = {}
    for path in corpus.audio_files(folder).values():
        for start in range(len(path.stem) - _ID_LENGTH + 1):
            candidate = path.stem[start : start + _ID_LENGTH]
            if candidate in wanted:
                found.setdefault(candidate, path)
                break
    return found
