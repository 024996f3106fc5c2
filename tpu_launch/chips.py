"""What the launcher knows of accelerators: one table of chips, one of compiler flags.

Names are those of Cloud TPU and xpk: the number counts TensorCores for v4, v5p and tpu7x (two a
chip) and chips for the others. Sizes and topologies follow xpk 1.13 and Google's tables.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

from tpu_launch.errors import JobError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flag:
    """A flag of XLA or libtpu, and why it is set."""

    name: str
    value: str
    why: str

    def __str__(self) -> str:
        return f"--{self.name}={self.value}"


# MaxText documents these, and sets them where the table of chips does.
_ASYNC_ALL_GATHER = Flag(
    name="xla_enable_async_all_gather",
    value="true",
    why="parameters sharded over chips are gathered while others are computed with",
)
_FUSION = (
    _ASYNC_ALL_GATHER,
    Flag(
        name="xla_tpu_enable_async_collective_fusion",
        value="true",
        why="fuses a collective with the computation that is scheduled while it runs",
    ),
    Flag(
        name="xla_tpu_enable_async_collective_fusion_fuse_all_gather",
        value="true",
        why="the same for all-gathers, the collective of sharded parameters",
    ),
    Flag(
        name="xla_tpu_enable_async_collective_fusion_multiple_steps",
        value="true",
        why="lets one collective go on through several fusions",
    ),
    Flag(
        name="xla_tpu_overlap_compute_collective_tc",
        value="true",
        why="overlaps computation and communication on one TensorCore",
    ),
)
_BETWEEN_SLICES = (
    Flag(
        name="xla_tpu_enable_data_parallel_all_reduce_opt",
        value="true",
        why="overlaps the all-reduce of gradients over the data-center network",
    ),
    Flag(
        name="xla_tpu_data_parallel_opt_different_sized_ops",
        value="true",
        why="the same for gradients of different sizes, as layers of a model have",
    ),
)
# NVIDIA's JAX images set this one and no other.
_GPU = (
    Flag(
        name="xla_gpu_enable_latency_hiding_scheduler",
        value="true",
        why="moves collectives to where computation hides them",
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One kind of accelerator, and what each engine calls it.

    Attributes:
      kind: which back ends can run it.
      topologies: the number in the accelerator's name to the shape of its slice, in chips.
      chips_per_host: chips that one machine, and so one process, holds.
      flags: what the compiler is told; `slice_flags` as well when there are several slices.
      gke: value of the node label `cloud.google.com/gke-tpu-accelerator`.
      machine: machine type of GKE's node pools.
      cloud_tpu: prefix of Cloud TPU's accelerator type, also xpk's and (after `tpu-`) SkyPilot's.
      runtime: software version of a Cloud TPU VM; empty where Cloud TPU offers GKE only.
      skypilot: SkyPilot's name where it is not `tpu-` and `cloud_tpu`.
    """

    kind: Literal["tpu", "gpu", "cpu"]
    topologies: Mapping[int, str] = dataclasses.field(default_factory=dict)
    chips_per_host: int = 4
    flags: tuple[Flag, ...] = ()
    slice_flags: tuple[Flag, ...] = ()
    gke: str = ""
    machine: str = ""
    cloud_tpu: str = ""
    runtime: str = ""
    skypilot: str = ""


# v5e-8 and v6e-8 are left out: Cloud TPU makes them one host of eight chips, GKE two of four.
_FLAT = {4: "2x2", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBES = {
    8: "2x2x1",
    16: "2x2x2",
    32: "2x2x4",
    64: "2x4x4",
    128: "4x4x4",
    256: "4x4x8",
    512: "4x8x8",
    1024: "8x8x8",
    2048: "8x8x16",
    4096: "8x16x16",
}

CHIPS: Mapping[str, Chip] = {
    "v4": Chip(
        kind="tpu",
        topologies=_CUBES,
        flags=(_ASYNC_ALL_GATHER,),
        gke="tpu-v4-podslice",
        machine="ct4p-hightpu-4t",
        cloud_tpu="v4",
        runtime="tpu-ubuntu2204-base",
    ),
    "v5e": Chip(
        kind="tpu",
        topologies=_FLAT,
        flags=_FUSION,
        slice_flags=_BETWEEN_SLICES,
        gke="tpu-v5-lite-podslice",
        machine="ct5lp-hightpu-4t",
        cloud_tpu="v5litepod",
        runtime="v2-alpha-tpuv5-lite",
    ),
    "v5p": Chip(
        kind="tpu",
        topologies=_CUBES,
        flags=_FUSION,
        slice_flags=_BETWEEN_SLICES,
        gke="tpu-v5p-slice",
        machine="ct5p-hightpu-4t",
        cloud_tpu="v5p",
        runtime="v2-alpha-tpuv5",
    ),
    "v6e": Chip(
        kind="tpu",
        topologies=_FLAT,
        flags=_FUSION,
        slice_flags=_BETWEEN_SLICES,
        gke="tpu-v6e-slice",
        machine="ct6e-standard-4t",
        cloud_tpu="v6e",
        runtime="v2-alpha-tpuv6e",
    ),
    # No flags: libtpu offloads its collectives to the SparseCores by default.
    "tpu7x": Chip(
        kind="tpu",
        topologies=_CUBES,
        gke="tpu7x",
        machine="tpu7x-standard-4t",
        cloud_tpu="tpu7x",
    ),
    # A slice of GPUs is one machine.
    "h100": Chip(kind="gpu", topologies={8: "8"}, chips_per_host=8, flags=_GPU, skypilot="H100:8"),
    "h200": Chip(kind="gpu", topologies={8: "8"}, chips_per_host=8, flags=_GPU, skypilot="H200:8"),
    # A slice of CPU devices is one process, with as many devices as the number says.
    "cpu": Chip(kind="cpu"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accelerator:
    """A slice of chips, as `v5e-256`.

    Attributes:
      chip: the name of a row in `CHIPS`.
      size: the number in the name.
    """

    chip: str
    size: int

    def __post_init__(self) -> None:
        if self.chip not in CHIPS:
            raise JobError(
                f"cluster.accelerator = {str(self)!r} is none that is known: give one of "
                f"{', '.join(CHIPS)} with a size, as v5e-256"
            )
        sizes = self.spec.topologies
        if self.size < 1 or (sizes and self.size not in sizes):
            choice = ", ".join(f"{self.chip}-{size}" for size in sizes) or "cpu-1 or more"
            raise JobError(f"cluster.accelerator = {str(self)!r} has no such size: give {choice}")

    @classmethod
    def parse(cls, name: str) -> "Accelerator":
        """Reads a name as `v5e-256`.

        Args:
          name: a chip of `CHIPS`, a hyphen, a size.

        Returns:
          The accelerator.

        Raises:
          JobError: there is no such chip or size.
        """
        chip, _, size = name.partition("-")
        if not size.isdecimal():
            raise JobError(f"cluster.accelerator = {name!r} has no size: write it as v5e-256")
        return cls(chip=chip, size=int(size))

    def __str__(self) -> str:
        return f"{self.chip}-{self.size}"

    @property
    def spec(self) -> Chip:
        """The chip's row in the table."""
        return CHIPS[self.chip]

    @property
    def topology(self) -> str:
        """The slice's shape in chips, as `16x16`."""
        return self.spec.topologies[self.size]

    @property
    def hosts(self) -> int:
        """Machines in one slice, each with one process."""
        if self.spec.kind == "cpu":
            return 1
        chips = math.prod(map(int, self.topology.split("x")))
        return chips // self.spec.chips_per_host

    @property
    def cloud_tpu(self) -> str:
        """Cloud TPU's accelerator type, as `v5litepod-256`."""
        return f"{self.spec.cloud_tpu}-{self.size}"

    @property
    def skypilot(self) -> str:
        """SkyPilot's name, as `tpu-v5litepod-256` or `H100:8`."""
        return self.spec.skypilot or f"tpu-{self.cloud_tpu}"

    def environment(self, slices: int) -> dict[str, str]:
        """The environment variables that tell the compiler about the chips.

        Args:
          slices: how many slices the job has.

        Returns:
          Names to values; empty where the defaults are best.
        """
        flags = self.spec.flags + (self.spec.slice_flags if slices > 1 else ())
        variable = "LIBTPU_INIT_ARGS" if self.spec.kind == "tpu" else "XLA_FLAGS"
        return {variable: " ".join(map(str, flags))} if flags else {}
