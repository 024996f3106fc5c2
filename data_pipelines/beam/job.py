"""Makes a data set: survey, encoding in runs of some shards, `dataset.json` last.

Whatever is finished is kept: started again after a kill, a job goes on with the shards that are
missing, and ends with the same bytes. `job.json` says what the folder is for, so that no other
job's shards get between.
"""

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from data_pipelines import manifest, shards
from data_pipelines.beam import encoding, storage, survey
from data_pipelines.beam.encoders import Encoder
from data_pipelines.beam.windows import Grid
from musiclm import errors

NAME = "job.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be made.

    Attributes:
      manifests: files, or folders of corpora.
      out: folder of data sets; this one's has the first 16 hexadecimals of the encoder's digest.
      encoder: makes the records.
      split: whose clips to take, one of `manifest.SPLITS`, or "all".
      duplicates: which are left out: "exact", files of the same bytes, or "near", those of the same
        fingerprint as well. Renders of one sound library look alike without being so.
      window_seconds: length of every window.
      num_shards: files a stream.
      shards_a_run: shards that one run of the pipeline makes, which is what a kill can cost; each
        run reads the files anew that have windows in its shards. 0 makes all in one.
      max_failures: the share of the files that may be bad before the job gives up.
    """

    manifests: Sequence[str]
    out: str
    encoder: Encoder
    split: str = "all"
    duplicates: str = "near"
    window_seconds: float = 30.0
    num_shards: int = 64
    shards_a_run: int = 0
    max_failures: float = 0.01

    def __post_init__(self):
        if not 1 <= self.num_shards <= 99_999:
            raise errors.UserError(f"--num-shards is {self.num_shards}: give 1 to 99999")
        if self.shards_a_run < 0:
            raise errors.UserError(f"--shards-a-run is {self.shards_a_run}: give 0 or more")
        if not 0 <= self.max_failures <= 1:
            raise errors.UserError(f"--max-failures is {self.max_failures}: give 0 to 1")

    @property
    def folder(self) -> str:
        """Of the data set."""
        return storage.join(self.out, self.encoder.digest[:16])


def make(job: Job, options: PipelineOptions) -> str:
    """Makes the data set, or what is missing of it.

    Args:
      job: what to make.
      options: of Beam.

    Returns:
      The folder.

    Raises:
      UserError: the folder is another job's, a manifest can't be read, or too many files are bad.
    """
    grid = Grid(job.encoder.sample_rates, job.window_seconds)
    streams = job.encoder.streams(job.window_seconds)
    manifests = [_manifest_file(path) for path in job.manifests]
    corpora = encoding.digest(*[_sha256(path) for path in manifests])
    _claim(job, corpora)
    for folder in (job.folder, storage.join(job.folder, "job")):
        storage.sweep(folder)
    try:
        surveyed = _survey(job, manifests, grid, options)
    except Exception:
        _release(job)  # to be mended, and then it is another data set
        raise
    digest = encoding.digest(
        job.encoder.digest,
        f"{job.encoder.batch_size} {job.window_seconds} {job.num_shards}",
        surveyed.digest,
    )

    done = encoding.finished(job.folder, num_shards=job.num_shards, job=digest)
    missing = [shard for shard in range(job.num_shards) if shard not in done]
    data_set = storage.join(job.folder, shards.NAME)
    if not missing and storage.exists(data_set):
        return job.folder
    storage.remove(data_set)  # it must not vouch for shards that are about to be replaced
    total = round(surveyed.windows * len(missing) / job.num_shards)  # shards are about alike
    shards_a_run = job.shards_a_run or job.num_shards
    for start in range(0, len(missing), shards_a_run):
        wanted = missing[start : start + shards_a_run]
        with beam.Pipeline(options=options) as pipeline:
            encoding.build(
                pipeline,
                folder=job.folder,
                encoder=job.encoder,
                grid=grid,
                num_shards=job.num_shards,
                wanted=frozenset(wanted),
                job=digest,
                total=total,
            )
    done = encoding.finished(job.folder, num_shards=job.num_shards, job=digest)
    made = shards.DataSet(
        encoder=job.encoder.digest,
        corpora=corpora,
        window_seconds=job.window_seconds,
        streams=streams,
        shards={name: tuple(done[s][name] for s in range(job.num_shards)) for name in streams},
    )
    storage.write(data_set, shards.dumps(made).encode())
    return job.folder


def _manifest_file(corpus: str) -> str:
    """The manifest's file, absolute: workers may run elsewhere."""
    if "://" in corpus:
        return corpus
    return os.path.abspath(manifest.path_of(corpus))


def _sha256(path: str) -> str:
    try:
        return storage.sha256(path)
    except (OSError, ValueError) as error:
        raise errors.UserError(
            f"cannot read the manifest {path} ({error}): build the corpus first, or check the path"
        ) from error


def _claim(job: Job, corpora: str) -> None:
    """Makes the folder this job's, or checks that it is."""
    record = {
        "encoder": job.encoder.digest,
        "corpora": corpora,
        "split": job.split,
        "duplicates": job.duplicates,
        "window_seconds": job.window_seconds,
        "num_shards": job.num_shards,
        "batch_size": job.encoder.batch_size,
    }
    path = storage.join(job.folder, NAME)
    if storage.exists(path):
        there = json.loads(storage.read(path))
        differs = [name for name, value in record.items() if there.get(name) != value]
        if differs:
            told = ", ".join(f"{name} = {there.get(name)}, not {record[name]}" for name in differs)
            raise errors.UserError(
                f"{job.folder} is for another data set ({told}): choose another --out, or delete it"
            )
        return
    lists = {survey.DEAD_LETTERS, survey.DUPLICATES}  # of a survey that failed
    if strangers := sorted(storage.sizes(job.folder).keys() - lists):
        raise errors.UserError(
            f"{job.folder} has no {NAME}, but {strangers[0]}: choose another --out, or empty it"
        )
    try:
        storage.write(path, (json.dumps(record, indent=1) + "\n").encode())
    except OSError as error:
        raise errors.UserError(f"cannot write {path} ({error}): choose another --out") from error


def _release(job: Job) -> None:
    """Gives the folder up, unless it has shards."""
    if not any(name.endswith(".json") for name in storage.sizes(storage.join(job.folder, "job"))):
        storage.remove(storage.join(job.folder, NAME))


def _survey(
    job: Job, manifests: Sequence[str], grid: Grid, options: PipelineOptions
) -> survey.Survey:
    """Runs the survey, unless it was finished before."""
    path = storage.join(job.folder, survey.NAME)
    if not storage.exists(path):
        with beam.Pipeline(options=options) as pipeline:
            survey.build(
                pipeline,
                manifests=manifests,
                split=job.split,
                near=job.duplicates == "near",
                grid=grid,
                num_shards=job.num_shards,
                folder=job.folder,
            )
    found = survey.load(job.folder)
    files = found.clips + found.dead_letters + found.duplicates
    if not files:
        storage.remove(path)
        raise errors.UserError(f"the manifests have no clips of split {job.split!r}")
    if found.dead_letters > job.max_failures * files:
        storage.remove(path)  # so that mended files are read anew
        letters = storage.join(job.folder, survey.DEAD_LETTERS)
        reasons = Counter(json.loads(line)["reason"] for line in storage.read(letters).splitlines())
        told = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        raise errors.UserError(
            f"{found.dead_letters} of {files} files cannot be used ({told}), more than "
            f"--max-failures {job.max_failures:g}: see {letters}, mend or leave them out, or allow "
            "more"
        )
    return found
