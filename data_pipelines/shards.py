"""A data set on disk: aligned sets of ArrayRecord shards, a set a stream, and what they must hold.

  FOLDER/dataset.json
  FOLDER/semantic-00003-of-00064.array_record
  FOLDER/acoustic-00003-of-00064.array_record  …

Record i of shard s is the same window of the same clip in every stream. Windows of one data set
are all of one length, so that records of a stream have one shape. A window's shard is the hash of
its key, and within a shard windows are sorted by key: two runs write the same bytes.

Streams of tokens: "semantic" uint16 [T], "acoustic" uint16 [T, Q], "mulan" uint16 [W, Q] (the
codes of the 10 s windows that start at second 0, 1, …), "text" uint16 [C, 1 + Q] (for each caption
its index in `manifest.CAPTION_KINDS`, then the MuLan codes of its words; C varies), and for stages
with a melody, where something makes it, "melody" uint16 [W, E, Q] (of the same windows). Of audio:
"audio" int16 [T], "captions" JSON. Both have "key": the SHA-256 of the clip's file and the index
of the window.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import google_crc32c
import numpy as np
from array_record.python import array_record_module

from musiclm import bundle, errors

NAME = "dataset.json"
FORMAT = 1
# One record a group, not compressed: a random read fetches what it needs and no more.
WRITER_OPTIONS = "group_size:1,uncompressed"
JSON = "json"
# Of sound that MuLan hears at once, a window a second.
MULAN_SECONDS = 10


class ShardError(errors.UserError):
    """A data set can't be used; the message names the file and the mend."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stream:
    """What a record of a stream holds.

    Attributes:
      dtype: NumPy's name, little-endian; or "json".
      shape: of a record; a first axis of -1 varies.
      rate: records' frames a second; 0 where frames are not in time.
    """

    dtype: str
    shape: tuple[int, ...] = ()
    rate: float = 0.0

    def decode(self, record: bytes) -> np.ndarray | object:
        """The array, or the JSON value, of a record."""
        if self.dtype == JSON:
            return json.loads(record)
        return np.frombuffer(record, self.dtype).reshape(self.shape)

    def encode(self, value) -> bytes:
        """The inverse of `decode`."""
        if self.dtype == JSON:
            return json.dumps(value, ensure_ascii=False).encode()
        array = np.ascontiguousarray(value, self.dtype)
        if array.shape[1:] != self.shape[1:] or self.shape[0] not in (-1, len(array)):
            raise ValueError(f"a record of shape {array.shape}: give {self.shape}")
        return array.tobytes()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """One file as it must be: name, number of records, bytes, and CRC-32C in hex."""

    name: str
    records: int
    bytes: int
    crc32c: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSet:
    """The content of `dataset.json`.

    Attributes:
      encoder: digest of what made the records, such as the tokenizers' weights.
      corpora: digest of the manifests that went in.
      window_seconds: length of every window.
      streams: by name.
      shards: the files of each stream, by its name, in order.
    """

    encoder: str
    corpora: str
    window_seconds: float
    streams: Mapping[str, Stream]
    shards: Mapping[str, Sequence[Shard]]

    @property
    def records(self) -> list[int]:
        """Records of each shard: the same in every stream."""
        return [shard.records for shard in next(iter(self.shards.values()))]


def key_of(sha256: str, window: int) -> str:
    """The key of a window of a file: sorts by file, then by time."""
    return f"{sha256}-{window:06d}"


def shard_of(key: str, num_shards: int) -> int:
    """The shard of a key, as even as a hash is."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % num_shards


def shard_name(stream: str, shard: int, num_shards: int) -> str:
    """The file of a shard."""
    return f"{stream}-{shard:05d}-of-{num_shards:05d}.array_record"


def write_shard(path: Path, records: Sequence[bytes]) -> Shard:
    """Writes a file whole or not at all.

    Returns:
      What `dataset.json` is to say of it.
    """
    with bundle.beside(path) as unfinished:
        writer = array_record_module.ArrayRecordWriter(str(unfinished), WRITER_OPTIONS)
        try:
            for record in records:
                writer.write(record)
        finally:
            writer.close()
        return Shard(
            name=path.name,
            records=len(records),
            bytes=unfinished.stat().st_size,
            crc32c=crc32c_of(unfinished),
        )


def crc32c_of(path: Path) -> str:
    """CRC-32C of a file, in hex."""
    checksum = google_crc32c.Checksum()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            checksum.update(chunk)
    return checksum.hexdigest().decode()


def dumps(data_set: DataSet) -> str:
    """The text of `dataset.json`."""
    return json.dumps({"format": FORMAT, **dataclasses.asdict(data_set)}, indent=1) + "\n"


def save(folder: Path, data_set: DataSet) -> None:
    """Writes `dataset.json`, last of all: a folder without it is not finished."""
    bundle.write_beside(folder / NAME, dumps(data_set).encode())


def load(folder: str | os.PathLike) -> DataSet:
    """Reads `dataset.json`.

    Raises:
      ShardError: it is missing, damaged, or of another format.
    """
    path = Path(folder) / NAME
    try:
        record = json.loads(path.read_text())
        found = record.pop("format")
        if found != FORMAT:
            raise ShardError(
                f"{path} has format {found}, and this version reads {FORMAT}: make the data set "
                "again, or use the version that wrote it"
            )
        streams = {
            name: Stream(**stream | {"shape": tuple(stream["shape"])})
            for name, stream in record.pop("streams").items()
        }
        shards = {
            name: tuple(Shard(**shard) for shard in files)
            for name, files in record.pop("shards").items()
        }
        return DataSet(streams=streams, shards=shards, **record)
    except FileNotFoundError:
        raise ShardError(
            f"{path} is missing: give the folder of a finished data set, or finish it"
        ) from None
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ShardError(f"{path} is damaged ({error!r}): make the data set again") from None


def check(
    folder: str | os.PathLike,
    *,
    encoder: str | None = None,
    streams: Sequence[str] | None = None,
    parts: Sequence[int] = (0,),
    num_parts: int = 1,
) -> DataSet:
    """Reads `dataset.json` and holds the files to it.

    Args:
      folder: of the data set.
      encoder: what must have made it; None accepts any.
      streams: those needed; all by default.
      parts, num_parts: whose checksums to compute, so that hosts can share the work; sizes are
        looked at in full.

    Raises:
      ShardError: a shard is missing, damaged, or not of this data set; or another encoder made it.
    """
    folder = Path(folder)
    data_set = load(folder)
    if encoder is not None and data_set.encoder != encoder:
        raise ShardError(
            f"{folder} was made by the tokenizers {data_set.encoder[:12]}, and the run's are "
            f"{encoder[:12]}: tokenize the corpus with them, or give the data set that they made"
        )
    lacking = set(streams or ()) - set(data_set.streams)
    if lacking:
        raise ShardError(
            f"{folder} lacks the streams {sorted(lacking)} (it has {sorted(data_set.streams)}): "
            "give a data set of the right kind"
        )
    wanted = [shard for name in streams or data_set.streams for shard in data_set.shards[name]]
    strangers = {path.name for path in folder.glob("*.array_record")} - {
        shard.name for files in data_set.shards.values() for shard in files
    }
    if strangers:
        raise ShardError(
            f"{folder / min(strangers)} is not in {NAME}: it belongs to another run, move it away"
        )
    for index, shard in enumerate(wanted):
        path = folder / shard.name
        if not path.is_file():
            raise ShardError(f"{path} is missing: copy it again, or make the data set again")
        size = path.stat().st_size
        if size != shard.bytes:
            raise ShardError(f"{path} has {size} bytes, not {shard.bytes}: copy it again")
        if index % num_parts in parts and crc32c_of(path) != shard.crc32c:
            raise ShardError(f"{path} is damaged (its checksum differs): copy it again")
    return data_set
