"""What a corpus is: a manifest, one record an audio file, as JSONL or Parquet.

A JSONL line holds the fields of `Clip`, and beside them whatever else the corpus knows:

  {"file": "a/1.flac", "sha256": "…", "seconds": 93.1, "sample_rate": 44100, "channels": 2,
   "licence": "CC-BY-4.0", "split": "train", "captions": [{"kind": "long", "text": "…"}], "bpm": 80}
"""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from musiclm import bundle, errors

NAME = "manifest.jsonl"
CAPTION_KINDS = ("short", "long", "playlist", "tags")
SPLITS = ("train", "validation", "test")


class ManifestError(errors.UserError):
    """A manifest is missing or malformed; the message names the file, the record and the mend."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Caption:
    """Words about a clip.

    Attributes:
      kind: one of `CAPTION_KINDS`: MuLan's sources of text (section 4.1 there).
      text: the words.
    """

    kind: str
    text: str

    def __post_init__(self):
        if self.kind not in CAPTION_KINDS:
            raise ValueError(f"a caption's kind is {self.kind!r}: choose one of {CAPTION_KINDS}")
        _check_text(f"the text of a {self.kind} caption", self.text)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    """One audio file.

    Attributes:
      file: its path relative to the manifest's folder, an absolute path, or a URL (gs://, s3://).
      sha256: of the file's bytes, in hex.
      seconds: duration.
      sample_rate: Hz.
      channels: of the file.
      licence: SPDX identifier, or as published; "" if unknown.
      split: one of `SPLITS`, see `split_of`.
      captions: none or more.
      attributes: what else the corpus knows, by name; JSON values.
    """

    file: str
    sha256: str
    seconds: float
    sample_rate: int
    channels: int
    licence: str
    split: str
    captions: tuple[Caption, ...] = ()
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        _check_text("file", self.file)
        _check_text(f"{self.file}: sha256", self.sha256)
        if isinstance(self.seconds, str) or not 0 <= self.seconds < math.inf:
            raise ValueError(f"{self.file}: seconds is {self.seconds!r}: give a duration")
        for name in ("sample_rate", "channels"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{self.file}: {name} is {value!r}: give a number from 1")
        check_told(self.file, self.split, self.licence, self.attributes)


_OWN = tuple(f.name for f in dataclasses.fields(Clip) if f.name not in ("captions", "attributes"))


def check_told(name: str, split: str, licence: str, attributes: Mapping[str, Any]) -> None:
    """Holds what is told of a clip against what a manifest can say, before its audio is read.

    Raises:
      ValueError: no such split, a licence that is no text, or attributes with names that the
        fields of `Clip` have, or with text that is not Unicode.
    """
    if split not in SPLITS:
        raise ValueError(f"{name}: split is {split!r}: choose one of {SPLITS}")
    _check_text(f"{name}: licence", licence)
    if taken := {*_OWN, "captions", "attributes"}.intersection(attributes):
        raise ValueError(f"{name}: attributes named {sorted(taken)}: rename them")
    _check_text(f"{name}: attributes", json.dumps(dict(attributes), ensure_ascii=False))


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can say it: names of files, and JSON, may hold lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_text(what: str, value: object) -> None:
    if not isinstance(value, str) or not is_unicode(value):
        raise ValueError(f"{what} is {value!r}: give text in UTF-8")


def split_of(group: str, *, validation: float = 0.01, test: float = 0.01) -> str:
    """The split of a group of clips, by its hash alone.

    Args:
      group: what must not be torn apart, such as an artist, or a track where that is unknown.
      validation: fraction of the groups.
      test: fraction of the groups.
    """
    # A path need not be Unicode.
    content = group.encode("utf-8", "surrogatepass")
    place = int.from_bytes(hashlib.sha256(content).digest()[:8], "big") / 2**64
    if place < test:
        return "test"
    return "validation" if place < test + validation else "train"


def path_of(corpus: str | os.PathLike) -> Path:
    """The manifest's path, given the corpus's folder, or the manifest itself by its suffix."""
    path = Path(corpus)
    return path if path.suffix in (".jsonl", ".parquet") else path / NAME


def audio_path(corpus: str | os.PathLike, clip: Clip) -> str:
    """Where a clip's audio lies: a path, or the URL that the manifest has."""
    if "://" in clip.file:
        return clip.file
    return str(path_of(corpus).parent / clip.file)


def dumps(clip: Clip) -> str:
    """One line of JSONL, without the newline."""
    record = {name: getattr(clip, name) for name in _OWN}
    captions = [dataclasses.asdict(caption) for caption in clip.captions]
    return json.dumps(record | {"captions": captions} | dict(clip.attributes), ensure_ascii=False)


def loads(line: str | bytes) -> Clip:
    """The inverse of `dumps`.

    Raises:
      ValueError: no JSON object, a field is missing, or its value is none of those allowed.
    """
    record = json.loads(line)
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    missing = [name for name in _OWN if name not in record]
    if missing:
        raise ValueError(f"lacks {', '.join(missing)}")
    own = {name: record.pop(name) for name in _OWN}
    captions = tuple(Caption(**caption) for caption in record.pop("captions", ()))
    return Clip(**own, captions=captions, attributes=record)


def iterate(corpus: str | os.PathLike, *, name: str | None = None) -> Iterator[Clip]:
    """The clips one by one, in the file's order.

    Args:
      corpus: the corpus's folder, or the manifest: `.jsonl` or `.parquet`.
      name: what errors call the manifest, if that is not its path.

    Raises:
      ManifestError: no such file, or a record that is no clip.
    """
    path = path_of(corpus)
    name = name or str(path)
    if not path.is_file():
        raise ManifestError(f"no manifest at {name}: build the corpus first, or check the path")
    if path.suffix == ".parquet":
        records, parse = _rows(path, name), _clip_of
    else:
        records, parse = _lines(path), loads
    for number, record in records:
        try:
            clip = parse(record)
        except (ValueError, TypeError, RecursionError) as error:
            raise ManifestError(
                f"{name}, record {number}: {error}; mend it there, or build the corpus again"
            ) from None
        yield clip


def read(corpus: str | os.PathLike) -> list[Clip]:
    """All clips of a manifest; see `iterate`.

    Raises:
      ManifestError: also where there are none.
    """
    clips = list(iterate(corpus))
    if not clips:
        raise ManifestError(f"{path_of(corpus)} is empty: build the corpus again")
    return clips


def write(corpus: str | os.PathLike, clips: Iterable[Clip]) -> Path:
    """Writes a manifest whole, beside its place first, so that no reader sees half of one.

    Args:
      corpus: the corpus's folder, made if need be, or the manifest: `.jsonl` or `.parquet`.
      clips: its records.

    Returns:
      The manifest's path.
    """
    path = path_of(corpus)
    path.parent.mkdir(parents=True, exist_ok=True)
    with bundle.beside(path) as unfinished:
        if path.suffix == ".parquet":
            _write_parquet(unfinished, clips)
        else:
            with unfinished.open("w", encoding="utf-8") as out:
                out.writelines(dumps(clip) + "\n" for clip in clips)
    return path


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as lines:  # `loads` decodes, so that a bad byte is a bad record
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, line


# In Parquet, `captions` is a list of structs and `attributes` a string of JSON.
_SCHEMA = pyarrow.schema(
    [
        ("file", pyarrow.string()),
        ("sha256", pyarrow.string()),
        ("seconds", pyarrow.float64()),
        ("sample_rate", pyarrow.int32()),
        ("channels", pyarrow.int32()),
        ("licence", pyarrow.string()),
        ("split", pyarrow.string()),
        (
            "captions",
            pyarrow.list_(pyarrow.struct([("kind", pyarrow.string()), ("text", pyarrow.string())])),
        ),
        ("attributes", pyarrow.string()),
    ]
)
_ROWS_A_GROUP = 10_000


def _rows(path: Path, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches(_ROWS_A_GROUP):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (pyarrow.ArrowException, OSError) as error:
        raise ManifestError(
            f"{name} is no Parquet file, or damaged after record {number} ({error}): build the "
            "corpus again"
        ) from None


def _clip_of(row: dict[str, Any]) -> Clip:
    """The clip of a row; raises as `loads`."""
    text = row.pop("attributes", "{}")
    if not isinstance(text, str) or not isinstance(attributes := json.loads(text), dict):
        raise ValueError(f"attributes is {text!r}: give a JSON object, as text")
    return loads(json.dumps(row | attributes))


def _write_parquet(path: Path, clips: Iterable[Clip]) -> None:
    with parquet.ParquetWriter(path, _SCHEMA) as writer:
        rows: list[dict[str, Any]] = []
        for clip in clips:
            row = dataclasses.asdict(clip)
            rows.append(row | {"attributes": json.dumps(row["attributes"], ensure_ascii=False)})
            if len(rows) == _ROWS_A_GROUP:
                writer.write_table(pyarrow.Table.from_pylist(rows, _SCHEMA))
                rows.clear()
        writer.write_table(pyarrow.Table.from_pylist(rows, _SCHEMA))
