"""What the readers of published corpora share: from listed clips to a manifest of those on disk.

A reader lists clips (`Listed`) from a corpus's own files; `write` looks at the audio of each, and
puts into the manifest those that can be read. The others are never invented, but counted.
"""

import argparse
import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import soundfile
import tqdm

from data_pipelines import manifest
from musiclm import errors

SUFFIXES = (".wav", ".flac", ".mp3", ".ogg")
MISSING = "no such file"
# How much longer than its segment a file may be: encoders round up.
SLACK_SECONDS = 1.0


class CorpusError(errors.UserError):
    """A corpus's files are not as published, or not there; the message says which, and the mend."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listed:
    """A clip as a corpus lists it, before its audio has been looked at.

    Attributes:
      name: what the corpus calls it.
      path: where its audio lies; None if nowhere.
      split: one of `manifest.SPLITS`.
      licence: as published; "" if that is not told.
      captions: none or more.
      attributes: what else is known.
      seconds: how long it is by the list, if that must hold: a file much longer was not cut to it.
    """

    name: str
    path: Path | None
    split: str
    licence: str = ""
    captions: tuple[manifest.Caption, ...] = ()
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seconds: float | None = None

    def __post_init__(self):
        manifest.check_told(self.name, self.split, self.licence, self.attributes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A listed clip that is not in the manifest, and why."""

    name: str
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Made:
    """What came of a corpus.

    Attributes:
      manifest: its path.
      left_out: clips that the corpus lists, but whose audio is missing or unusable.
    """

    manifest: Path
    left_out: Sequence[LeftOut] = ()


def add_arguments(parser: argparse.ArgumentParser, *, audio: str | None) -> None:
    """Adds the arguments that every reader has.

    Args:
      audio: what --audio holds; None for a reader that brings its own audio.
    """
    if audio:
        parser.add_argument("--audio", required=True, type=Path, metavar="DIR", help=audio)
    parser.add_argument(
        "--out",
        required=True,
        type=Path,
        help="folder for manifest.jsonl and report.html, or the manifest's own path: .jsonl or "
        ".parquet",
    )
    parser.add_argument(
        "--licence",
        default="",
        help="of clips whose licence the corpus does not tell: an SPDX identifier (default: none)",
    )


def audio_files(folder: Path) -> dict[str, Path]:
    """All audio files below a folder, by path relative to it (with /), sorted.

    Raises:
      CorpusError: there is no such folder, or no audio in it.
    """
    if not folder.is_dir():
        raise CorpusError(f"{folder} is no folder: give the one that holds the audio")
    found = {}
    for place, _, names in os.walk(folder, followlinks=True):
        for name in names:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                path = Path(place) / name
                found[path.relative_to(folder).as_posix()] = path
    if not found:
        kinds = ", ".join(SUFFIXES)
        raise CorpusError(f"{folder} holds no audio ({kinds}): give the folder that does")
    return dict(sorted(found.items()))


def tag_captions(tags: Sequence[str]) -> tuple[manifest.Caption, ...]:
    """One caption of all tags; none where there are none."""
    return (manifest.Caption(kind="tags", text=", ".join(tags)),) if tags else ()


def write(listed: Sequence[Listed], args: argparse.Namespace) -> Made:
    """Looks at the audio of all listed clips, with a progress bar, and writes the manifest.

    Args:
      listed: the clips, in the manifest's order.
      args: `out` and `licence`, see `add_arguments`.

    Raises:
      CorpusError: none of the clips can be used; nothing is written then.
    """
    if not manifest.is_unicode(args.licence):
        raise CorpusError(f"--licence is {args.licence!r}: give text in UTF-8")
    path = manifest.path_of(args.out)
    left_out: list[LeftOut] = []
    clips = []
    for one, result in zip(listed, _look_at_all(listed, path.parent), strict=True):
        if isinstance(result, LeftOut):
            left_out.append(result)
        else:
            clips.append(dataclasses.replace(result, licence=one.licence or args.licence))
    if not clips:
        why = f"{left_out[0].name}: {left_out[0].reason}" if left_out else "the list is empty"
        raise CorpusError(
            f"none of the {len(listed)} clips can be used ({why}): check that the audio's folder "
            "and the metadata belong together"
        )
    manifest.write(path, clips)
    return Made(manifest=path, left_out=left_out)


def _look_at_all(listed: Sequence[Listed], folder: Path) -> Iterator[manifest.Clip | LeftOut]:
    # Threads: reading, hashing and libsndfile all let go of the interpreter's lock.
    pool = futures.ThreadPoolExecutor()
    try:
        results = pool.map(lambda one: look_at(one, folder), listed)
        yield from tqdm.tqdm(results, total=len(listed), unit="clip", desc="audio")
    finally:
        pool.shutdown(cancel_futures=True)


def look_at(one: Listed, folder: Path) -> manifest.Clip | LeftOut:
    """A clip's record, or why there is none.

    Args:
      one: the clip as listed.
      folder: the manifest's. Audio below it gets a relative path, other audio an absolute one.
    """
    if one.path is None or not one.path.is_file():
        return LeftOut(name=one.name, reason=MISSING)
    path, folder = one.path.absolute(), folder.absolute()
    file = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
    if not manifest.is_unicode(file):
        return LeftOut(name=one.name, reason="its name is not UTF-8")
    try:
        info = soundfile.info(os.fsencode(path))
        with path.open("rb") as content:
            sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    except soundfile.LibsndfileError as error:
        return LeftOut(name=one.name, reason=f"cannot be read: {error.error_string.rstrip('.')}")
    except OSError as error:
        return LeftOut(name=one.name, reason=f"cannot be read: {error.strerror}")
    if info.frames == 0:
        return LeftOut(name=one.name, reason="holds no sound")
    if one.seconds is not None and info.duration > one.seconds + SLACK_SECONDS:
        return LeftOut(name=one.name, reason="longer than its segment: cut it to start and end")
    return manifest.Clip(
        file=file,
        sha256=sha256,
        seconds=round(info.duration, 6),
        sample_rate=info.samplerate,
        channels=info.channels,
        licence=one.licence,
        split=one.split,
        captions=one.captions,
        attributes=one.attributes,
    )
