"""What a compiled program sends between devices, read from its HLO text."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Sequence

import jax
import numpy as np

_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BITS = {"pred": 8, "token": 0}  # the others have theirs in their names

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(
    r"^ +(?:ROOT )?%[\w.\-]+ = (?P<shape>.*?) (?P<operation>[a-z][\w\-]*)\((?P<operands>[^)]*)\)"
)
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
_CALL = re.compile(r"\b(calls|body|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")
_CONDITION = re.compile(r"\bcondition=%?([\w.\-]+)")
_TURNS = re.compile(r'known_trip_count[^}]*"?n"?:"?(\d+)')
_BOUND = re.compile(r"= s32\[\]\S* constant\((\d+)\)")

_LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_TILED = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\]"
    r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}"
)
_CHAIN = re.compile(r'channel_id=(\d+),.*\bchain_id="(\d+)"')
_BETWEEN_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_PAIRS = re.compile(r"source_target_pairs=\{\{(\d+),(\d+)\}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """One instruction.

    Attributes:
      kind: "all-reduce", "all-gather", "reduce-scatter", "all-to-all" or "collective-permute".
      axes: of the mesh, along which devices take part.
      group_size: devices that exchange with one another.
      array_bytes: of each array that it moves, whole: an all-reduce's or a reduce-scatter's
        operands, the others' results.
      turns: how often it runs in a call of the program.
      in_loop: whether it is in the body of a loop.
      crosses_slices: whether its devices are of several slices.
    """

    kind: str
    axes: tuple[str, ...]
    group_size: int
    array_bytes: tuple[int, ...]
    turns: int
    in_loop: bool
    crosses_slices: bool

    @property
    def sent_bytes(self) -> int:
        """What a device sends in a call of the program, with the algorithms of a ring."""
        if self.kind == "collective-permute":
            return self.turns * sum(self.array_bytes)
        rounds = 2 if self.kind == "all-reduce" else 1
        share = (self.group_size - 1) / self.group_size
        return round(self.turns * rounds * share * sum(self.array_bytes))


@dataclasses.dataclass
class _Computation:
    lines: list[str] = dataclasses.field(default_factory=list)
    turns: int = 0
    in_loop: bool = False


def of_program(hlo: str, mesh: jax.sharding.Mesh, *, num_slices: int = 1) -> list[Collective]:
    """The collectives of a compiled program, each as often as the loops around it run.

    Args:
      hlo: text of the compiled module, `compiled.as_text()`.
      mesh: that it was compiled for; devices are numbered in its order.
      num_slices: that the outermost axis spans.

    Returns:
      One item an instruction, but none for those that no device takes part in with another.
    """
    found, chains = [], set()
    for name, computation in _computations(hlo).items():
        for line in computation.lines if computation.turns else ():
            match = _INSTRUCTION.match(line)
            if match and match["operation"] == "send":
                if transfer := _BETWEEN_SLICES.search(line):
                    kind = transfer[1].lower().replace("_", "-")
                    found.append(_between_slices(kind, match, computation, mesh, num_slices))
                continue
            kind = match and match["operation"].removesuffix("-start")
            if kind not in _KINDS:
                continue
            # A TPU spreads one over several fusions, to hide it; each of them shows it whole.
            if chain := _CHAIN.search(line):
                if chain.groups() in chains:
                    continue
                chains.add(chain.groups())
            group = _group(line, mesh.size)
            coordinates = np.unravel_index(group, mesh.devices.shape)
            axes = tuple(
                axis
                for axis, places in zip(mesh.axis_names, coordinates, strict=True)
                if len(set(places.tolist())) > 1
            )
            if not axes:
                continue
            slices = coordinates[0] // (mesh.devices.shape[0] // num_slices)
            # A TPU's reduce-scatter is a fusion, of an all-reduce and the slice that each keeps.
            scattered = kind == "all-reduce" and name.startswith("all-reduce-scatter")
            found.append(
                Collective(
                    kind="reduce-scatter" if scattered else kind,
                    axes=axes,
                    group_size=len(group),
                    array_bytes=_moved(match, kind, len(group)),
                    turns=computation.turns,
                    in_loop=computation.in_loop,
                    crosses_slices=len(set(slices.tolist())) > 1,
                )
            )
    return found


def _between_slices(
    kind: str,
    match: re.Match,
    computation: _Computation,
    mesh: jax.sharding.Mesh,
    num_slices: int,
) -> Collective:
    """What a device hands to its host, for the same collective over one device of each slice."""
    (operand,) = array_bytes(match["shape"])[:1]
    return Collective(
        kind=kind,
        axes=mesh.axis_names[:1],
        group_size=num_slices,
        array_bytes=(operand * num_slices if kind == "all-gather" else operand,),
        turns=computation.turns,
        in_loop=computation.in_loop,
        crosses_slices=True,
    )


def _moved(match: re.Match, kind: str, group_size: int) -> tuple[int, ...]:
    """Bytes of the arrays that an instruction moves, from the shape of its result."""
    sizes = array_bytes(match["shape"])
    if match["operation"].endswith("-start") and kind != "all-reduce":
        # The results of these begin with the operands, and may end in scalars for the hardware.
        num_operands = match["operands"].count("%")
        sizes = sizes[num_operands : 2 * num_operands]
    if kind == "reduce-scatter":
        sizes = [group_size * size for size in sizes]
    return tuple(sizes)


def array_bytes(shape: str) -> list[int]:
    """Bytes of each array of an HLO shape, such as `(bf16[2,3]{1,0}, f32[])`."""
    return [
        math.prod(map(int, filter(None, dimensions.split(",")))) * _bits(dtype) // 8
        for dtype, dimensions in _ARRAY.findall(re.sub(r"\{[^}]*\}", "", shape))
    ]


def _bits(dtype: str) -> int:
    return _BITS[dtype] if dtype in _BITS else int(re.search(r"\d+", dtype)[0])


def _computations(hlo: str) -> dict[str, _Computation]:
    """The computations of a module, and how often each runs."""
    computations: dict[str, _Computation] = {}
    current, entry = None, ""
    for line in hlo.splitlines():
        if current is None:
            if header := _HEADER.match(line):
                current = computations.setdefault(header[2], _Computation())
                entry = header[2] if header[1] else entry
        elif line.startswith("}"):  # a thread's name may follow: a TPU's SparseCore's
            current = None
        else:
            current.lines.append(line)

    def visit(name: str, turns: int, in_loop: bool) -> None:
        computation = computations[name]
        computation.turns += turns
        computation.in_loop |= in_loop
        for line in computation.lines:
            for how, callee in _callees(line):
                loops = how == "body"
                times = _turns(line, computations) if loops else 1
                if callee in computations:
                    visit(callee, turns * times, in_loop or loops)

    visit(entry, 1, False)
    return computations


def _callees(line: str) -> Iterator[tuple[str, str]]:
    yield from _CALL.findall(line)
    for names in _BRANCHES.findall(line):
        yield from (("branch", name.strip().lstrip("%")) for name in names.split(","))


def _turns(line: str, computations: dict[str, _Computation]) -> int:
    """How often a loop runs: what XLA found, or the bound in its condition; once, if neither."""
    if known := _TURNS.search(line):
        return int(known[1])
    condition = computations[_CONDITION.search(line)[1]]
    bounds = [int(bound) for text in condition.lines for bound in _BOUND.findall(text)]
    return max(bounds, default=1)


def _group(line: str, num_devices: int) -> np.ndarray:
    """The numbers of the devices that exchange with the first one."""
    if match := _PAIRS.search(line):
        return np.array([int(match[1]), int(match[2])])
    if match := _LISTED.search(line):
        return np.array(_numbers(match[1]))
    if match := _TILED.search(line):
        return _tiled(match[2], match[3]).reshape(_numbers(match[1]))[0]
    if match := _MESH.search(line):
        sizes = {
            name: int(size) for name, size in (item.split("=") for item in match[1].split(","))
        }
        devices = _tiled(match[2], match[3]) if match[2] else np.arange(num_devices)
        devices = devices.reshape(tuple(sizes.values()))
        axes = [name.strip() for name in match[4].split(",")]
        return devices[tuple(slice(None) if name in axes else 0 for name in sizes)].ravel()
    return np.arange(num_devices)  # no groups: everyone


def _tiled(sizes: str, permutation: str | None) -> np.ndarray:
    """`[16,8]T(1,0)`: numbers counted up in a box, whose axes are then permuted."""
    box = np.arange(math.prod(_numbers(sizes))).reshape(_numbers(sizes))
    return box.transpose(_numbers(permutation)) if permutation else box


def _numbers(text: str) -> Sequence[int]:
    return [int(number) for number in text.split(",")]


def totals(found: Sequence[Collective]) -> list[dict[str, object]]:
    """Bytes that a device sends in a call, by kind and axes: JSON-ready, the most first."""
    sums = collections.defaultdict(lambda: [0, 0])
    for collective in found:
        key = collective.kind, collective.axes, collective.crosses_slices
        sums[key][0] += collective.turns
        sums[key][1] += collective.sent_bytes
    rows = [
        {
            "kind": kind,
            "axes": list(axes),
            "crosses_slices": crosses,
            "turns": turns,
            "sent_bytes": sent,
        }
        for (kind, axes, crosses), (turns, sent) in sums.items()
    ]
    return sorted(rows, key=lambda row: -row["sent_bytes"])
