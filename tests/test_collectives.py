"""Collectives read from HLO text: how often, how much, along which axes."""

import numpy as np
import pytest

from musiclm import collectives

HLO = """\
HloModule step

%body (state: (s32[], f32[8])) -> (s32[], f32[8]) {
  %x = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  %gathered = bf16[16,8]{1,0} all-gather(%x), replica_groups=[4,4]<=[16], dimensions={0}
  %step.1 = bf16[16,8]{1,0} fusion(%x), kind=kCustom, calls=%async_collective_fusion.1
  %step.2 = bf16[16,8]{1,0} fusion(%x), kind=kCustom, calls=%async_collective_fusion.2
  ROOT %scattered = f32[2,8]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
}

%async_collective_fusion.1 (x: bf16[4,8]) -> bf16[16,8] {
  %part.1 = bf16[16,8]{1,0} all-gather(%x), channel_id=7, CHAINED
}

%async_collective_fusion.2 (x: bf16[4,8]) -> bf16[16,8] {
  %part.2 = bf16[16,8]{1,0} all-gather(%x), channel_id=7, CHAINED
}

%all-reduce-scatter.1 (input: f32[8,8]) -> f32[2,8] {
  %sum = (f32[8,8]{1,0}, f32[]) all-reduce(%input, %one), replica_groups=[4,4]<=[4,4]T(1,0)
}

%condition (state: (s32[], f32[8])) -> pred[] {
  %bound = s32[]{:T(128)} constant(24)
  ROOT %less = pred[] compare(%turn, %bound), direction=LT
}

%unused (x: f32[8]) -> f32[8] {
  ROOT %y = f32[8]{0} all-reduce(%x), replica_groups=[4,4]<=[16]
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %loop = (s32[], f32[8]{0}) while(%start), condition=%condition, body=%body
  %r = f32[100]{0} all-reduce(%p), replica_groups=GROUPS, to_apply=%add
  %moved = (f32[10]{0}, f32[10]{0}, u32[]) collective-permute-start(%p), PAIRS
  ROOT %alone = f32[100]{0} all-reduce(%p), replica_groups=[16,1]<=[16]
}
"""


class Mesh:
    """Sixteen devices by number."""

    devices = np.arange(16).reshape(4, 4)
    axis_names = ("data", "fsdp")
    size = 16


def read(groups="[4,4]<=[16]", num_slices=1):
    chained = 'replica_groups=[4,4]<=[16], frontend_attributes={chain_id="3"}'
    pairs = "source_target_pairs={{0,4},{4,8}}"
    hlo = HLO.replace("GROUPS", groups).replace("CHAINED", chained).replace("PAIRS", pairs)
    return collectives.of_program(hlo, Mesh, num_slices=num_slices)


def test_loops_multiply():
    gathered, in_parts, scattered, summed, moved = sorted(read(), key=lambda c: -c.turns)
    assert in_parts == gathered
    assert (gathered.kind, gathered.axes, gathered.turns) == ("all-gather", ("fsdp",), 24)
    assert gathered.sent_bytes == 24 * 3 / 4 * 16 * 8 * 2
    assert (scattered.kind, scattered.axes) == ("reduce-scatter", ("data",))
    assert scattered.array_bytes == (8 * 8 * 4, 4)
    assert scattered.in_loop
    assert (summed.kind, summed.turns, summed.in_loop) == ("all-reduce", 1, False)
    assert summed.sent_bytes == 2 * 3 / 4 * 400
    assert (moved.kind, moved.axes, moved.sent_bytes) == ("collective-permute", ("data",), 40)


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("{{0,1,2,3},{4,5,6,7},{8,9,10,11},{12,13,14,15}}", ("fsdp",)),
        ("{{0,4,8,12},{1,5,9,13},{2,6,10,14},{3,7,11,15}}", ("data",)),
        ("[1,16]<=[16]", ("data", "fsdp")),
        ("{}", ("data", "fsdp")),
        ("mesh['a'=4,'b'=4] {'b'}", ("fsdp",)),
        ("mesh['a'=4,'b'=4] {'a'}", ("data",)),
        ("mesh['a'=4,'b'=4], device_ids=([4,4]T(1,0)) {'a'}", ("fsdp",)),
        ("mesh['a'=4,'b'=4] {'a','b'}", ("data", "fsdp")),
    ],
)
def test_groups_are_told_by_axes(groups, axes):
    (summed,) = (c for c in read(groups) if c.kind == "all-reduce")
    assert summed.axes == axes


def test_slices_are_the_outermost_part_of_the_first_axis():
    crossing = {c.kind for c in read("[4,4]<=[4,4]T(1,0)", num_slices=2) if c.crosses_slices}
    assert crossing == {"reduce-scatter", "all-reduce"}
    crossing = {c.kind for c in read(num_slices=4) if c.crosses_slices}
    assert crossing == {"reduce-scatter", "collective-permute"}


def test_what_goes_through_the_hosts_crosses_slices():
    """The compiler splits a sum over slices: within each, and between them through the hosts."""
    sent = (
        "  %s = (f32[10]{0}, u32[], token[]) send(%p, %after), is_host_transfer=true, "
        'frontend_attributes={_xla_megascale_target="{1,2}",_xla_megascale_transfer_type='
        '"ALL_REDUCE"}\n'
    )
    hlo = f"ENTRY %main (p: f32[10]) -> f32[10] {{\n{sent}}}\n"
    (summed,) = collectives.of_program(hlo, Mesh, num_slices=2)
    assert (summed.kind, summed.axes, summed.crosses_slices) == ("all-reduce", ("data",), True)
    assert summed.sent_bytes == 40


def test_what_a_sparse_core_does_is_seen():
    """On a TPU7x sums run beside the program, in computations that end in their thread's name."""
    hlo = """\
%add.sparsecore (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}, execution_thread="sparsecore"

%called (p: f32[10]) -> f32[10] {
  ROOT %r = f32[10]{0} all-reduce(%p), replica_groups=[4,4]<=[16], to_apply=%add.sparsecore
}, execution_thread="sparsecore"

ENTRY %main (p: f32[10]) -> f32[10] {
  %start = ((f32[10]), f32[10]) call-start(%p), async_execution_thread="sparsecore", \
to_apply=%called
  ROOT %done = f32[10] call-done(%start)
}
"""
    (summed,) = collectives.of_program(hlo, Mesh)
    assert (summed.kind, summed.axes, summed.turns) == ("all-reduce", ("fsdp",), 1)
    assert summed.sent_bytes == 2 * 3 / 4 * 40
