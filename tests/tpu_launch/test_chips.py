"""The table of chips agrees with itself and with what is known of single slices."""

import math

import pytest

from tpu_launch.chips import CHIPS, Accelerator

TPUS = [
    Accelerator(chip=name, size=size)
    for name, chip in CHIPS.items()
    if chip.kind == "tpu"
    for size in chip.topologies
]


@pytest.mark.parametrize(
    ("name", "topology", "hosts", "cloud_tpu"),
    [
        ("v4-128", "4x4x4", 16, "v4-128"),
        ("v5e-256", "16x16", 64, "v5litepod-256"),
        ("v5p-128", "4x4x4", 16, "v5p-128"),
        ("v6e-256", "16x16", 64, "v6e-256"),
        ("tpu7x-128", "4x4x4", 16, "tpu7x-128"),
    ],
)
def test_slices_as_google_tells_them(name, topology, hosts, cloud_tpu):
    slice_ = Accelerator.parse(name)
    assert (slice_.topology, slice_.hosts, slice_.cloud_tpu) == (topology, hosts, cloud_tpu)


def test_a_slice_of_gpus_is_a_machine_and_one_of_cpus_a_process():
    assert Accelerator.parse("h100-8").hosts == Accelerator.parse("cpu-4").hosts == 1


@pytest.mark.parametrize("slice_", TPUS, ids=str)
def test_sizes_count_cores_or_chips(slice_):
    chips = math.prod(map(int, slice_.topology.split("x")))
    cores_a_chip = 1 if slice_.chip in ("v5e", "v6e") else 2
    assert slice_.size == chips * cores_a_chip
    assert slice_.hosts * slice_.spec.chips_per_host == chips
    # The chips of v5e and v6e lie in a plane.
    assert len(slice_.topology.split("x")) == (2 if cores_a_chip == 1 else 3)


def test_every_flag_has_a_reason_and_appears_once_a_chip():
    for chip in CHIPS.values():
        flags = chip.flags + chip.slice_flags
        assert len({flag.name for flag in flags}) == len(flags)
        assert all(flag.why for flag in flags)


def test_flags_between_slices_are_for_several_slices():
    one, two = (Accelerator.parse("v5e-16").environment(slices) for slices in (1, 2))
    assert set(one) == set(two) == {"LIBTPU_INIT_ARGS"}
    more = set(two["LIBTPU_INIT_ARGS"].split()) - set(one["LIBTPU_INIT_ARGS"].split())
    assert more == {str(flag) for flag in CHIPS["v5e"].slice_flags}
    assert Accelerator.parse("tpu7x-128").environment(2) == {}
