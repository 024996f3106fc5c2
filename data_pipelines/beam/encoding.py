"""The second pipeline: windows of the files that go in, encoded, as shards.

  lists of clips → read, cut and encode (one fused stage: sound stays in its worker)
                 → grouped by shard: records alone → one worker a shard sorts and writes

A shard's files are there once its record is, `job/00003.json`, which is written last.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.ml.inference import base

from data_pipelines import manifest, shards
from data_pipelines.beam import decode, progress, storage, survey
from data_pipelines.beam.encoders import Encode, Encoder
from data_pipelines.beam.windows import Grid, Window
from musiclm import errors


class EncodeWindows(base.ModelHandler[Window, Any, Encode]):
    """Runs an encoder on batches: Beam's way to load a model once a worker.

    `total` is the number of windows of the whole job, for the progress bar.
    """

    def __init__(self, encoder: Encoder, total: int):
        super().__init__(min_batch_size=encoder.batch_size, max_batch_size=encoder.batch_size)
        self._encoder, self._total = encoder, total

    def load_model(self) -> Encode:
        """See `ModelHandler`."""
        return self._encoder.load()

    def run_inference(
        self, batch: Sequence[Window], model: Encode, inference_args: dict[str, Any] | None = None
    ) -> Iterable[Any]:
        """The records of some windows."""
        records = model(batch)
        progress.bar("encode", "window", self._total).update(len(batch))
        return records

    def get_num_bytes(self, batch: Sequence[Window]) -> int:
        """For Beam's metrics; its own way would pickle all the sound."""
        return sum(wave.nbytes for window in batch for wave in window.waveforms.values())


def build(
    pipeline: beam.Pipeline,
    *,
    folder: str,
    encoder: Encoder,
    grid: Grid,
    num_shards: int,
    wanted: frozenset[int],
    job: str,
    total: int,
) -> None:
    """Adds the encoding of some shards to a pipeline.

    Args:
      pipeline: to be run by the caller.
      folder: of the data set, where the survey is finished.
      encoder: makes the records.
      grid: of the windows.
      num_shards: of the data set.
      wanted: the shards to be made.
      job: digest of all that decides the records, for the shards' own records.
      total: windows of the whole job, for the progress bar.
    """
    streams = encoder.streams(grid.window_seconds)
    records = (
        pipeline
        | "Lists" >> beam.Create(survey.clip_lists(num_shards))
        | "Read clips" >> beam.FlatMap(_lines, folder=folder)
        | beam.Reshuffle()
        | "Cut" >> beam.FlatMap(_cut, grid=grid, num_shards=num_shards, wanted=wanted)
        | "Encode" >> base.RunInference(EncodeWindows(encoder, total))
        | "To bytes" >> beam.Map(_to_bytes, streams=streams, num_shards=num_shards)
    )
    # A shard to which no key falls is written as well, empty.
    numbers = pipeline | "Shards" >> beam.Create([(shard, None) for shard in sorted(wanted)])
    (
        {"records": records, "wanted": numbers}
        | "By shard" >> beam.CoGroupByKey()
        | "Write shard"
        >> beam.Map(_write, folder=folder, streams=tuple(streams), num_shards=num_shards, job=job)
    )


def _lines(name: str, *, folder: str) -> list[bytes]:
    return storage.read(storage.join(folder, *name.split("/"))).splitlines()


def _cut(line: bytes, *, grid: Grid, num_shards: int, wanted: frozenset[int]) -> Iterator[Window]:
    """The windows of a clip that fall into the wanted shards; without any, it is not read."""
    entry = json.loads(line)
    keys = [shards.key_of(entry["clip"]["sha256"], index) for index in range(entry["windows"])]
    indices = [i for i, key in enumerate(keys) if shards.shard_of(key, num_shards) in wanted]
    if not indices:
        return
    clip = manifest.loads(json.dumps(entry["clip"]))
    try:
        mono, rate = decode.read(clip.file, clip)
    except decode.BadAudio as error:
        raise errors.UserError(
            f"{clip.file} was good when the survey read it, and now is {error.reason} "
            f"({error.detail}): put it back, or delete {survey.NAME} to survey anew"
        ) from error
    captions = tuple(caption for caption in clip.captions if caption.text.strip())
    for index, waveforms in grid.cut(mono, rate, indices):
        yield Window(key=keys[index], waveforms=waveforms, captions=captions)


def _to_bytes(record: Any, *, streams: dict, num_shards: int) -> tuple[int, tuple[str, dict]]:
    key = record["key"]
    encoded = {name: stream.encode(record[name]) for name, stream in streams.items()}
    return shards.shard_of(key, num_shards), (key, encoded)


def _write(
    grouped: tuple[int, dict], *, folder: str, streams: Sequence[str], num_shards: int, job: str
) -> None:
    shard, values = grouped
    records = [encoded for _, encoded in sorted(values["records"], key=lambda record: record[0])]
    files = {}
    with tempfile.TemporaryDirectory() as local:
        for stream in streams:
            path = pathlib.Path(local) / shards.shard_name(stream, shard, num_shards)
            written = shards.write_shard(path, [encoded[stream] for encoded in records])
            storage.move_in(path, storage.join(folder, path.name))
            files[stream] = dataclasses.asdict(written)
    text = json.dumps({"job": job, "files": files}, indent=1) + "\n"
    storage.write(record_path(folder, shard), text.encode())


def record_path(folder: str, shard: int) -> str:
    """Where the record of a finished shard lies."""
    return storage.join(folder, "job", f"{shard:05d}.json")


def finished(folder: str, *, num_shards: int, job: str) -> dict[int, dict[str, shards.Shard]]:
    """The shards that are there, by number: their files by stream.

    A shard counts if its record is of this job and its files have the recorded sizes.
    """
    there = storage.sizes(folder)
    records = storage.sizes(storage.join(folder, "job"))
    done = {}
    for shard in range(num_shards):
        path = record_path(folder, shard)
        if os.path.basename(path) not in records:
            continue
        record = json.loads(storage.read(path))
        files = {name: shards.Shard(**file) for name, file in record["files"].items()}
        whole = all(there.get(file.name) == file.bytes for file in files.values())
        if record["job"] == job and whole:
            done[shard] = files
    return done


def digest(*parts: str) -> str:
    """One digest of several texts."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
