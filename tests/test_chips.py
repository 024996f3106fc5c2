"""Peaks by JAX's names of devices."""

import os

import pytest

from musiclm import chips


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v5 lite", 197e12),
        ("TPU7x", 2307e12 / 2),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H200", 989e12),
        ("cpu", None),
    ],
)
def test_peak_flops(kind, peak):
    assert chips.peak_flops(kind) == peak


@pytest.mark.parametrize(
    ("name", "topology"),
    [("v4", "2x2x1"), ("v5e", "2x2"), ("v5p", "2x2x1"), ("v6e", "2x2"), ("tpu7x", "2x2x1")],
)
def test_kinds_are_those_that_jax_gives(name, topology, monkeypatch):
    pytest.importorskip("libtpu")
    from jax.experimental import topologies

    for variable in ("TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        monkeypatch.setitem(os.environ, variable, "1")
    chip = chips.CHIPS[name]
    options = {"chip_config_name": chip.config_name} if chip.config_name else {}
    found = topologies.get_topology_desc(
        platform="tpu", topology_name=f"{name}:{topology}", **options
    )
    assert found.devices[0].device_kind == chip.kind
