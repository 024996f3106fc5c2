"""What chips can do at best: their makers' published figures, for rooflines and MFU."""

import dataclasses
from collections.abc import Mapping

from musiclm import errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One kind of chip.

    Attributes:
      kind: JAX's `device_kind` of it.
      flops: peak operations a second in bfloat16.
      hbm_bytes: memory.
      hbm_bandwidth: bytes a second between memory and cores.
      ici_bandwidth: bytes a second that it can send to its neighbours, over all links together;
        half of what is published as bidirectional.
      dcn_bandwidth: bytes a second that it can send to other slices, its share of the host's.
      devices: as which JAX sees one chip.
      config_name: of the topology, where libtpu needs it.
    """

    kind: str
    flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    ici_bandwidth: float
    dcn_bandwidth: float
    devices: int = 1
    config_name: str | None = None


GIB = 2**30
# By the names of topologies. Sources: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}.
CHIPS: Mapping[str, Chip] = {
    "v4": Chip(
        kind="TPU v4",
        flops=275e12,
        hbm_bytes=32 * GIB,
        hbm_bandwidth=1.2e12,
        ici_bandwidth=300e9,
        dcn_bandwidth=6.25e9,
        config_name="megacore",
    ),
    "v5e": Chip(
        kind="TPU v5 lite",
        flops=197e12,
        hbm_bytes=16 * GIB,
        hbm_bandwidth=819e9,
        ici_bandwidth=200e9,
        dcn_bandwidth=3.125e9,
    ),
    "v5p": Chip(
        kind="TPU v5",
        flops=459e12,
        hbm_bytes=95 * GIB,
        hbm_bandwidth=2.765e12,
        ici_bandwidth=600e9,
        dcn_bandwidth=6.25e9,
    ),
    "v6e": Chip(
        kind="TPU v6 lite",
        flops=918e12,
        hbm_bytes=32 * GIB,
        hbm_bandwidth=1.64e12,
        ici_bandwidth=400e9,
        dcn_bandwidth=12.5e9,
    ),
    "tpu7x": Chip(
        kind="TPU7x",
        flops=2307e12,
        hbm_bytes=192 * GIB,
        hbm_bandwidth=7.38e12,
        ici_bandwidth=600e9,
        dcn_bandwidth=12.5e9,
        devices=2,
    ),
}


def of_topology(topology: str) -> Chip:
    """The chip of a topology such as "v5e:16x16".

    Raises:
      UserError: it is none of the table.
    """
    name = topology.partition(":")[0]
    if name not in CHIPS:
        raise errors.UserError(
            f"topology {topology!r} is of no known chip: give one of {', '.join(CHIPS)} and a "
            "shape, such as v5e:16x16"
        )
    return CHIPS[name]


# Dense bfloat16, NVIDIA's data sheets.
_GPU_FLOPS = {"A100": 312e12, "H100": 989e12, "H200": 989e12}


def peak_flops(device_kind: str) -> float | None:
    """Peak operations a second in bfloat16 of a JAX device; None where the table lacks it."""
    for chip in CHIPS.values():
        if chip.kind == device_kind:
            return chip.flops / chip.devices
    return next((flops for name, flops in _GPU_FLOPS.items() if name in device_kind), None)
