"""Reading a data set's shards by record, and going on where a record can't be read."""

import bisect
import functools
import itertools
import os
import resource
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import logging
from array_record.python import array_record_module

from data_pipelines import shards
from data_pipelines.feed import rows

# What a damaged or vanished file raises, by where the reader notices.
_UNREADABLE = (RuntimeError, ValueError, IndexError, OSError)
# Nothing is read ahead: rows go through the shards at random.
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_BUFFER = 4096
_MOST_IN_A_ROW = 100
# Files that each data set of the process keeps open.
_held: weakref.WeakKeyDictionary["Records", int] = weakref.WeakKeyDictionary()


class Records:
    """Some streams of a data set, by record number: those of shard 0 first.

    Attributes:
      folder: of the data set.
      data_set: the content of its `dataset.json`.
      streams: those that are read.
      unreadable: how many records were replaced so far.
    """

    def __init__(
        self, folder: str | os.PathLike, streams: Sequence[str], *, encoder: str | None = None
    ):
        """Reads `dataset.json` and opens nothing yet.

        Args:
          folder: of the data set.
          streams: those to read.
          encoder: digest of what must have made the records; None takes any.

        Raises:
          shards.ShardError: there is no such data set, it is empty, or it lacks a stream.
        """
        self.folder = Path(folder)
        self.data_set = shards.load(folder)
        self.unreadable = 0
        self.streams = tuple(streams)
        self._encoder = encoder
        self._ends = list(itertools.accumulate(self.data_set.records))
        self._readers: dict[tuple[str, int], array_record_module.ArrayRecordReader] = {}
        self._checked: set[tuple[tuple[int, ...], int]] = set()
        self._lock = threading.Lock()  # training and evaluation read on threads of their own
        if lacking := set(streams) - set(self.data_set.streams):
            raise shards.ShardError(
                f"{folder} lacks the streams {sorted(lacking)} (it has "
                f"{sorted(self.data_set.streams)}): give a data set of the right kind"
            )
        if not len(self):
            raise shards.ShardError(f"{folder} has no records: make the data set again")

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def check(self, places: tuple[int, ...] = (0,), num_places: int = 1) -> None:
        """Holds the files to `dataset.json`, once a process; hosts share the checksums.

        Raises:
          shards.ShardError: a file is missing, damaged or foreign, or another encoder made it.
        """
        if (places, num_places) in self._checked:
            return
        shards.check(
            self.folder,
            encoder=self._encoder,
            streams=self.streams,
            parts=places,
            num_parts=num_places,
        )
        _held[self] = len(self.streams) * len(self._ends)
        _allow_open_files(sum(_held.values()))
        self._checked.add((places, num_places))

    def read(self, rows_R: np.ndarray, *, seed: int, shuffle: bool) -> Iterator[dict[str, bytes]]:
        """The records of rows, one after another: by stream, as they are stored.

        Where a row's record can't be read, in any of the streams, it gets that of the row after it:
        the same one on every host and in every run. That is counted in `unreadable` and logged.

        Args:
          rows_R: global rows, int64.
          seed, shuffle: see `rows.records_of`.

        Raises:
          shards.ShardError: the records of many rows on end can't be read.
        """
        records_R = rows.records_of(rows_R, len(self), seed=seed, shuffle=shuffle)
        for row, record in zip(rows_R.tolist(), records_R.tolist(), strict=True):
            yield self._read_or_next(row, record, seed, shuffle)

    def _read_or_next(self, row: int, record: int, seed: int, shuffle: bool) -> dict[str, bytes]:
        for following in range(row + 1, row + 1 + _MOST_IN_A_ROW):
            shard = bisect.bisect_right(self._ends, record)
            position = record - (self._ends[shard - 1] if shard else 0)
            try:
                return {name: self._read(name, shard, position) for name in self.streams}
            except _UNREADABLE as error:
                self.unreadable += 1
                logging.error(
                    "record %d of shard %d of %s can't be read (%s): row %d gets that of row %d; "
                    "%d replaced so far",
                    position, shard, self.folder, error, row, following, self.unreadable,
                )  # fmt: skip
            next_R = np.array([following])
            (record,) = rows.records_of(next_R, len(self), seed=seed, shuffle=shuffle).tolist()
        raise shards.ShardError(
            f"{self.folder}: the records of {_MOST_IN_A_ROW} rows on end can't be read, from row "
            f"{row} on: check the disk, or copy the data set again"
        )

    def _read(self, stream: str, shard: int, position: int) -> bytes:
        with self._lock:
            reader = self._readers.get((stream, shard))
            if reader is None:
                path = self.folder / self.data_set.shards[stream][shard].name
                reader = array_record_module.ArrayRecordReader(
                    str(path), _READER_OPTIONS, file_reader_buffer_size=_BUFFER
                )
                self._readers[stream, shard] = reader
            # One at a time: a list is handed to threads, which takes longer than the reading.
            (record,) = reader.read([position])
        size = record_size(self.data_set.streams[stream])
        if size is not None and len(record) != size:
            raise ValueError(f"it has {len(record)} bytes, not {size}")
        return record


@functools.lru_cache(maxsize=64)
def open_records(
    folder: str | os.PathLike, streams: Sequence[str], *, encoder: str | None = None
) -> Records:
    """`Records`, once a process: training and each evaluation share its files and checks.

    Args:
      folder, streams, encoder: see `Records`; `streams` as a tuple.
    """
    return Records(folder, streams, encoder=encoder)


def record_size(stream: shards.Stream) -> int | None:
    """Bytes of a stream's records; None where they vary."""
    if stream.dtype == shards.JSON or -1 in stream.shape:
        return None
    return int(np.prod(stream.shape)) * np.dtype(stream.dtype).itemsize


def _allow_open_files(count: int) -> None:
    """Every shard stays open: asks for as many files, beside some for the rest of the program."""
    wanted = count + 512
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        if hard != resource.RLIM_INFINITY and hard < wanted:
            raise shards.ShardError(
                f"{count} shards need as many open files, and the limit is {hard}: raise it "
                f"(`ulimit -Hn {wanted}`), or write fewer shards"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
