"""The description of a job: a small YAML file, checked whole before anything is asked of a cluster.

name: semantic-base
model:
  gin_files: [gin/train/semantic.gin]
  gin_bindings: [NUM_STEPS = 200000]
data: {TRAIN: gs://BUCKET/tokens/train, VALIDATION: gs://BUCKET/tokens/validation}
workdir: gs://BUCKET/runs/semantic-base
cluster: {accelerator: v5e-256, slices: 2, spot: true}
image: REGION-docker.pkg.dev/PROJECT/musiclm/tpu:0.1.0
retries: 20
"""

import dataclasses
import difflib
import json
import pathlib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import yaml

from musiclm import exit_codes
from tpu_launch.chips import Accelerator
from tpu_launch.errors import JobError

# What every back end makes of an exit code: these are never started again, a preempted job is at
# once and for nothing, and all others use up a retry.
FINAL = (
    exit_codes.USAGE,
    exit_codes.UNHEALTHY,
    exit_codes.CONFIGURATION,
    exit_codes.INTERRUPTED,
)
FREE = (exit_codes.PREEMPTED,)
# A job that is asked to stop needs time to write a checkpoint.
GRACE_SECONDS = 300
# Where the images hold the repository; gin files are given relative to it.
IMAGE_FOLDER = "/opt/musiclm"
# Where hosts have the buckets: training reads shards at random and renames checkpoints, which takes
# a file system.
MOUNTS = "/mnt/gs"
# A place in a bucket, by the bucket's name or as hosts have it.
_BUCKET = re.compile(rf"^(?:gs:/|{MOUNTS})/([\w.-]+)")
# Folders that no object names are there, folders can be renamed, and hosts see at once what others
# have written.
_GCSFUSE = (
    "gcsfuse --implicit-dirs --rename-dir-limit=100000 --metadata-cache-ttl-secs=0 "
    "--metadata-cache-negative-ttl-secs=0"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """What is trained.

    Attributes:
      gin_files: paths relative to the repository, as the image holds them.
      gin_bindings: lines of gin, as `NUM_STEPS = 200000`.
    """

    gin_files: tuple[str, ...]
    gin_bindings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.gin_files:
            raise JobError("model.gin_files = [] names nothing to train: give a .gin file")
        for line in self.gin_bindings:
            if "=" not in line or "\n" in line:
                raise JobError(f"model.gin_bindings: {line!r} binds nothing: write NAME = VALUE")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
    """What the job runs on.

    Attributes:
      accelerator: one slice, as `v5e-256`; a slice of GPUs (`h100-8`) is a machine, one of CPU
        devices (`cpu-4`) a process.
      slices: how many of them.
      spot: machines that may be taken away, at a lower price.
      queue: Kueue's local queue, or SLURM's partition.
      name: xpk's cluster.
      zone: of Google Cloud.
    """

    accelerator: str
    slices: int = 1
    spot: bool = False
    queue: str = ""
    name: str = ""
    zone: str = ""

    def __post_init__(self) -> None:
        Accelerator.parse(self.accelerator)
        if self.slices < 1:
            raise JobError(f"cluster.slices = {self.slices} is too few: give 1 or more")

    @property
    def slice(self) -> Accelerator:
        """The accelerator, looked up."""
        return Accelerator.parse(self.accelerator)

    @property
    def hosts(self) -> int:
        """Machines in all slices."""
        return self.slices * self.slice.hosts

    @property
    def environment(self) -> dict[str, str]:
        """What the compiler is told about the chips."""
        return self.slice.environment(self.slices)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A training job.

    Attributes:
      name: what clusters call it; lower-case letters, digits and hyphens.
      model: what is trained.
      cluster: on what.
      workdir: bucket or folder of checkpoints and curves, bound to the gin macro WORKDIR.
      data: gin macros to the buckets or folders that they name. A bucket's place is gs://NAME/… or
        /mnt/gs/NAME/…, as hosts have it.
      image: the container's image; the back end `local` needs none.
      retries: how often the job is started again after a fault.
    """

    name: str
    model: Model
    cluster: Cluster
    workdir: str
    data: Mapping[str, str] = dataclasses.field(default_factory=dict)
    image: str = ""
    retries: int = 10

    def __post_init__(self) -> None:
        # Kubernetes appends slice, host and five letters to it, and takes 63 characters.
        if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", self.name):
            raise JobError(
                f"name = {self.name!r} is no name for a cluster: give at most 40 lower-case "
                "letters, digits and hyphens, a letter first"
            )
        if not self.workdir:
            raise JobError("workdir = '' is nowhere: give a bucket or a folder for checkpoints")
        for macro in self.data:
            if not macro.isidentifier():
                raise JobError(f"data: {macro!r} is no gin macro: write a name, as TRAIN")
        if self.retries < 0:
            raise JobError(f"retries = {self.retries} is negative: give 0 or more")

    @property
    def buckets(self) -> dict[str, str]:
        """Buckets, as gs://NAME, and the folders that hosts are to mount them on."""
        found = map(_BUCKET.match, (*self.data.values(), self.workdir))
        return {f"gs://{match[1]}": _folder(match) for match in found if match}

    @property
    def command(self) -> list[str]:
        """The process that runs on every host, on which the buckets are mounted."""
        places = {**self.data, "WORKDIR": self.workdir}
        bindings = [
            f"{macro}={json.dumps(_BUCKET.sub(_folder, place), ensure_ascii=False)}"
            for macro, place in places.items()
        ]
        command = ["musiclm", "train"]
        for file in self.model.gin_files:
            command += ["--gin_file", file]
        for line in (*bindings, *self.model.gin_bindings):
            command += ["--gin_bindings", line]
        return [*command, "--distributed"]

    @property
    def mounting_command(self) -> list[str]:
        """The same after it has mounted the buckets, in a container that may, and has gcsfuse."""
        steps = [
            f"mkdir -p {folder} && {_GCSFUSE} {bucket.removeprefix('gs://')} {folder}"
            for bucket, folder in self.buckets.items()
        ]
        return ["bash", "-c", " && ".join([*steps, 'exec "$@"']), "mount", *self.command]


def _folder(bucket: re.Match[str]) -> str:
    return f"{MOUNTS}/{bucket[1]}"


def load(path: pathlib.Path) -> Job:
    """Reads a job's description.

    Args:
      path: a YAML file.

    Returns:
      The job.

    Raises:
      JobError: the file can't be read, or a field is unknown, missing, of a wrong type or value.
    """
    try:
        tree = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise JobError(f"{path} can't be read: {' '.join(str(error).split())}") from error
    return _build(Job, tree, "")


_T = TypeVar("_T")


def _build(cls: type[_T], tree: object, where: str) -> _T:
    """A dataclass from a mapping; `where` is the path of fields to it, with a dot at the end."""
    place = where.rstrip(".") or "the job"
    if not isinstance(tree, Mapping):
        raise JobError(f"{place} = {tree!r} is no mapping: write `field: value` lines")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name in tree:
        if name not in fields:
            near = difflib.get_close_matches(str(name), fields, n=1)
            mend = f"did you mean {near[0]}?" if near else f"give {', '.join(fields)}"
            raise JobError(f"{where}{name} = {tree[name]!r} is an unknown field: {mend}")
    for name, field in fields.items():
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and name not in tree:
            raise JobError(f"{where}{name} is missing: add it to {place}")
    hints = typing.get_type_hints(cls)
    return cls(**{name: _value(hints[name], tree[name], f"{where}{name}") for name in tree})


def _value(hint: Any, value: object, where: str) -> Any:
    """A value of the type that a field asks for; YAML gives it or it is refused."""
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, f"{where}.")
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(_value(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is Mapping and isinstance(value, Mapping):
        return types.MappingProxyType(
            {
                _value(arguments[0], key, where): _value(arguments[1], item, f"{where}.{key}")
                for key, item in value.items()
            }
        )
    if type(value) is hint:  # exactly: True is an int otherwise
        return value
    wanted = {tuple: "a list", Mapping: "a mapping", int: "a whole number"}.get(
        origin or hint, "true or false" if hint is bool else "a string"
    )
    raise JobError(f"{where} = {value!r} is of type {type(value).__name__}: give {wanted}")
