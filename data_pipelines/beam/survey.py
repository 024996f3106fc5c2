"""The first pipeline: reads every file of the manifests, and decides which of them go in.

It writes three lists, sorted, and then `survey.json`, which counts them:

  job/clips-00003-of-00064.jsonl  what goes in: {"windows": 3, "clip": {…}}, by the hash of the
                                  file, in as many parts as the data set has shards
  dead_letters.jsonl              what can't: {"file": …, "reason": one of `decode.REASONS`, …}
  duplicates.jsonl                what is there already: {"file": …, "duplicate_of": …, "kind": …}:
                                  "exact" has the same bytes, "near" the same fingerprint
"""

import dataclasses
import hashlib
import json
import pathlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence

import apache_beam as beam

from data_pipelines import manifest, shards
from data_pipelines.beam import decode, fingerprint, progress, storage
from data_pipelines.beam.windows import Grid

NAME = "survey.json"
DEAD_LETTERS = "dead_letters.jsonl"
DUPLICATES = "duplicates.jsonl"
# A clip, after its place: the manifest's, then that within.
Ordered = tuple[tuple[int, int], manifest.Clip]
# One hash in more files than this is a common chord or a drum machine: it tells nothing, and the
# pairs of its files grow with the square.
_FILES_A_HASH = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Survey:
    """The content of `survey.json`.

    Attributes:
      clips, windows: that go in.
      digest: of the list of clips.
      dead_letters, duplicates: files that don't.
    """

    clips: int
    windows: int
    digest: str
    dead_letters: int
    duplicates: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """A file that can be used.

    Attributes:
      order: of the manifests, then within one.
      clip: its record, with `file` where the audio lies.
      windows: how many it has.
      sketch: its fingerprint, if near duplicates are looked for.
    """

    order: tuple[int, int]
    clip: manifest.Clip
    windows: int
    sketch: fingerprint.Sketch


def build(
    pipeline: beam.Pipeline,
    *,
    manifests: Sequence[str],
    split: str,
    near: bool,
    grid: Grid,
    num_shards: int,
    folder: str,
) -> None:
    """Adds the survey to a pipeline.

    Args:
      pipeline: to be run by the caller.
      manifests: their files.
      split: takes only its clips; "all" takes all.
      near: whether near duplicates are left out as well.
      grid: of the windows.
      num_shards: of the data set.
      folder: of the data set.
    """
    files = (
        pipeline
        | "Manifests" >> beam.Create(list(enumerate(manifests)))
        | "Read manifests" >> beam.FlatMap(_clips, split=split)
        | beam.Reshuffle()
        | "Inspect"
        >> beam.FlatMap(_inspect, near=near, grid=grid).with_outputs("dead", main="found")
    )
    exact = (
        files.found
        | "By content" >> beam.Map(lambda found: (found.clip.sha256, found))
        | "Same content" >> beam.GroupByKey()
        | "First of the same" >> beam.FlatMap(_first).with_outputs("duplicates", main="firsts")
    )
    alike = (
        exact.firsts
        | "By hash" >> beam.FlatMap(_hashes)
        | "Same hash" >> beam.GroupByKey()
        | "Pairs" >> beam.FlatMap(_pairs)
        | "Shared hashes" >> beam.combiners.Count.PerElement()
        | "Alike" >> beam.Filter(lambda pair: pair[1] >= fingerprint.ALIKE)
        | "Later of the two" >> beam.Map(lambda pair: (pair[0][0], pair[0][1]))
    )
    judged = (
        {
            "found": exact.firsts | beam.Map(lambda found: (found.clip.sha256, found)),
            "alike": alike,
        }
        | beam.CoGroupByKey()
        | "Judge" >> beam.FlatMap(_judge, num_shards=num_shards)
    )
    lines = (files.dead, exact.duplicates, judged) | beam.Flatten()
    # A list without lines is written as well.
    names = (*clip_lists(num_shards), DEAD_LETTERS, DUPLICATES)
    wanted = pipeline | "Lists" >> beam.Create([(name, None) for name in names])
    (
        {"lines": lines, "wanted": wanted}
        | "By list" >> beam.CoGroupByKey()
        | "Write lists" >> beam.Map(_write_list, folder=folder)
        | "All lists" >> beam.combiners.ToList()
        | "Write survey" >> beam.Map(_write_survey, folder=folder)
    )


def clip_lists(num_shards: int) -> list[str]:
    """The parts of the list of clips, as paths within the data set."""
    return [f"job/clips-{part:05d}-of-{num_shards:05d}.jsonl" for part in range(num_shards)]


def load(folder: str) -> Survey:
    """Reads `survey.json` of a data set's folder."""
    return Survey(**json.loads(storage.read(storage.join(folder, NAME))))


def _clips(
    numbered: tuple[int, str], *, split: str
) -> Iterator[tuple[tuple[int, int], manifest.Clip]]:
    """The clips of a manifest, with their order and where their audio lies."""
    number, path = numbered
    home, name = path.rpartition("/")[::2]
    with tempfile.TemporaryDirectory() as folder:
        local = pathlib.Path(folder) / name
        storage.fetch(path, local)
        for line, clip in enumerate(manifest.iterate(local, name=path)):
            if split in ("all", clip.split):
                file = clip.file if "://" in clip.file else storage.join(home, clip.file)
                yield (number, line), dataclasses.replace(clip, file=file)


def _inspect(ordered: Ordered, *, near: bool, grid: Grid) -> Iterator:
    order, clip = ordered
    progress.bar("survey", "file").update()
    try:
        mono, rate = decode.read(clip.file, clip)
        windows = len(grid.starts(len(mono), rate))
    except decode.BadAudio as error:
        letter = {"file": clip.file, "reason": error.reason, "detail": error.detail}
        yield beam.pvalue.TaggedOutput("dead", (DEAD_LETTERS, (*_line(clip.file, letter), 0)))
        return
    sketch = fingerprint.sketch(mono, rate) if near else ()
    yield Found(order=order, clip=clip, windows=windows, sketch=sketch)


def _first(same: tuple[str, Iterable[Found]]) -> Iterator:
    first, *others = sorted(same[1], key=lambda found: found.order)
    yield first
    for other in others:
        yield beam.pvalue.TaggedOutput("duplicates", _duplicate(other, first.clip.file, "exact"))


def _hashes(found: Found) -> Iterator[tuple[int, tuple[str, str, int]]]:
    for value, time in found.sketch:
        yield value, (found.clip.sha256, found.clip.file, time)


def _pairs(same: tuple[int, Iterable[tuple[str, str, int]]]) -> Iterator[tuple[str, tuple, tuple]]:
    """(the later file, the earlier, what lies between them in time), for files with one hash."""
    files = sorted(same[1])
    if len(files) > _FILES_A_HASH:
        return
    for index, (later, _, later_time) in enumerate(files):
        for earlier, name, earlier_time in files[:index]:
            for shift in fingerprint.shifts(later_time - earlier_time):
                yield later, (earlier, name), shift


def _judge(file: tuple[str, dict], *, num_shards: int) -> Iterator[tuple[str, tuple]]:
    (found,) = file[1]["found"]
    if earlier := sorted(file[1]["alike"]):
        yield _duplicate(found, earlier[0][1], "near")
        return
    sha256 = found.clip.sha256
    entry = {"windows": found.windows, "clip": json.loads(manifest.dumps(found.clip))}
    name = clip_lists(num_shards)[shards.shard_of(sha256, num_shards)]
    yield name, (*_line(sha256, entry), found.windows)


def _duplicate(found: Found, of: str, kind: str) -> tuple[str, tuple]:
    entry = {"file": found.clip.file, "duplicate_of": of, "kind": kind}
    return DUPLICATES, (*_line(found.clip.file, entry), 0)


def _line(key: str, entry: dict) -> tuple[str, str]:
    """What a list is sorted by, and the line."""
    return key, json.dumps(entry, ensure_ascii=False) + "\n"


def _write_list(grouped: tuple[str, dict], *, folder: str) -> tuple[str, dict]:
    name, values = grouped
    lines = sorted(values["lines"])
    data = "".join(line for _, line, _ in lines).encode()
    storage.write(storage.join(folder, *name.split("/")), data)
    facts = {"lines": len(lines), "windows": sum(windows for *_, windows in lines)}
    return name, facts | {"sha256": hashlib.sha256(data).hexdigest()}


def _write_survey(lists: list[tuple[str, dict]], *, folder: str) -> None:
    facts = dict(sorted(lists))
    others = {name: facts.pop(name)["lines"] for name in (DEAD_LETTERS, DUPLICATES)}
    parts = facts.values()
    survey = Survey(
        clips=sum(part["lines"] for part in parts),
        windows=sum(part["windows"] for part in parts),
        digest=hashlib.sha256("".join(part["sha256"] for part in parts).encode()).hexdigest(),
        dead_letters=others[DEAD_LETTERS],
        duplicates=others[DUPLICATES],
    )
    text = json.dumps(dataclasses.asdict(survey), indent=1) + "\n"
    storage.write(storage.join(folder, NAME), text.encode())
