"""What a corpus is: a manifest, one record an audio file, as JSONL or Parquet.

A JSONL line holds the fields of `Clip`, and beside them whatever else the corpus knows:

  {"file": "a/1.flac", "sha256": "…", "seconds": 93.1, "sample_rate": 44100, "channels": 2,
   "licence": "CC-BY-4.0", "split": "train", "captions": [{"kind": "long", "text": "…"}], "bpm": 80}
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

NAME = "manifest.jsonl"
CAPTION_KINDS = ("short", "long", "playlist", "tags")
SPLITS = ("train", "validation", "test")


class ManifestError(ValueError):
    """A manifest is missing or malformed; the message names the file, the line and the mend."""


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
        if self.split not in SPLITS:
            raise ValueError(f"{self.file}: split is {self.split!r}: choose one of {SPLITS}")
        own = {field.name for field in dataclasses.fields(self)}
        if taken := own.intersection(self.attributes):
            raise ValueError(f"{self.file}: attributes named {sorted(taken)}: rename them")


_OWN = tuple(f.name for f in dataclasses.fields(Clip) if f.name not in ("captions", "attributes"))


def split_of(group: str, *, validation: float = 0.01, test: float = 0.01) -> str:
    """The split of a group of clips, by its hash alone.

    Args:
      group: what must not be torn apart, such as an artist, or a track where that is unknown.
      validation: fraction of the groups.
      test: fraction of the groups.
    """
    place = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64
    if place < test:
        return "test"
    return "validation" if place < test + validation else "train"


def path_of(corpus: str | os.PathLike) -> Path:
    """The manifest's path, given either the corpus's folder or the manifest itself."""
    path = Path(corpus)
    return path / NAME if path.is_dir() else path


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


def loads(line: str) -> Clip:
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
    captions = tuple(
        Caption(kind=caption["kind"], text=caption["text"])
        for caption in record.pop("captions", ())
    )
    return Clip(**own, captions=captions, attributes=record)


def iterate(corpus: str | os.PathLike) -> Iterator[Clip]:
    """The clips one by one, in the file's order.

    Args:
      corpus: the corpus's folder, or the manifest: `.parquet`, or else JSONL.

    Raises:
      ManifestError: no such file, or a record that is no clip.
    """
    path = path_of(corpus)
    if not path.is_file():
        raise ManifestError(f"no manifest at {path}: build the corpus first, or check the path")
    records = _parquet_lines(path) if path.suffix == ".parquet" else _lines(path)
    for number, line in records:
        try:
            clip = loads(line)
        except (ValueError, TypeError, KeyError) as error:
            raise ManifestError(f"{path}, record {number}: {error}") from None
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
      corpus: the corpus's folder, or the manifest: `.parquet`, or else JSONL.
      clips: its records.
    """
    path = path_of(corpus)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    if path.suffix == ".parquet":
        _write_parquet(beside, clips)
    else:
        with beside.open("w", encoding="utf-8") as out:
            out.writelines(dumps(clip) + "\n" for clip in clips)
    os.replace(beside, path)
    return path


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open(encoding="utf-8") as lines:
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


def _parquet_lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        file = parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise ManifestError(f"{path} is no Parquet file ({error}): build it again") from None
    number = 0
    for batch in file.iter_batches(_ROWS_A_GROUP):
        for record in batch.to_pylist():
            number += 1
            yield number, json.dumps(record | json.loads(record.pop("attributes")))


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
