"""Where arrays live: the mesh, and one table of rules for every model.

Models never name devices. They may call `constrain` and `shard_map`, which do nothing without a
mesh.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from musiclm import errors

AXES = ("data", "fsdp", "tensor")
# A batch's rows lie over both: fsdp differs from data in that it splits the state as well.
ROWS = ("data", "fsdp")

Rules = Sequence[tuple[str, P]]
# The first pattern found in a parameter's path decides. A spec speaks of the trailing dimensions,
# so that a stack of layers keeps its leading axis whole.
RULES: Rules = (
    # Adafactor's factors lack an axis of their parameter, and are small; so is the table of biases.
    (r"v_(row|col)/|relative_bias", P()),
    (r"latents_MND", P(ROWS, None)),
    (r"(query|key|value|up|gate)/kernel", P("fsdp", "tensor")),
    (r"(out|down)/kernel", P("tensor", "fsdp")),
    (r"embedding", P("tensor", "fsdp")),
    (r"kernel", P("fsdp", None)),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each axis; -1 (once) takes what the others leave.

    Attributes:
      data: copies of the state. The only axis that reaches over several slices, as its outermost
        part: what it sends a step, a sum of gradients, is the least.
      fsdp: devices that share one copy of the state; each gathers a layer when it computes it.
      tensor: devices that share each layer's heads and hidden units.
      slices: that the devices form. None asks the devices: TPUs know, all others are one slice.
        Those of a CPU can be cut into any number.

    Raises:
      UserError: a size is neither -1 nor 1 or more, or several are -1.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    slices: int | None = None

    def __post_init__(self):
        sizes = {axis: getattr(self, axis) for axis in AXES}
        for axis, size in sizes.items():
            if size < 1 and size != -1:
                raise errors.UserError(
                    f"MeshConfig.{axis} is {size}: give 1 or more, or -1 for what the others leave"
                )
        if list(sizes.values()).count(-1) > 1:
            raise errors.UserError(
                f"MeshConfig {sizes} has several -1: give all axes but one a size"
            )
        if self.slices is not None and self.slices < 1:
            raise errors.UserError(f"MeshConfig.slices is {self.slices}: give 1 or more, or None")

    def make(self, devices: Sequence[jax.Device] | None = None) -> Mesh:
        """The mesh over the given devices (all, by default), with Auto axes.

        Raises:
          UserError: the axes don't multiply to the device count, or data not over the slices.
        """
        devices = jax.devices() if devices is None else devices
        by_slice = self._by_slice(devices)
        data, fsdp, tensor = self._sizes(len(devices))
        if data % len(by_slice):
            raise errors.UserError(
                f"MeshConfig.data is {data} for {len(by_slice)} slices: give a multiple of "
                f"{len(by_slice)}, every slice holds whole copies of the state"
            )
        shape = (data // len(by_slice), fsdp, tensor)
        # Inside a slice, neighbours on an axis become neighbours on the wires.
        meshes = [
            mesh_utils.create_device_mesh(shape, slice_, allow_split_physical_axes=True)
            for slice_ in by_slice
        ]
        return Mesh(np.concatenate(meshes), AXES, axis_types=(AxisType.Auto,) * len(AXES))

    def _by_slice(self, devices: Sequence[jax.Device]) -> list[Sequence[jax.Device]]:
        if self.slices is None:
            slices = collections.defaultdict(list)
            for device in devices:
                # GPUs have an index as well, of their machine, and fsdp may reach over machines.
                index = getattr(device, "slice_index", None) if device.platform == "tpu" else None
                slices[index or 0].append(device)
            return [slices[index] for index in sorted(slices)]
        if len(devices) % self.slices:
            raise errors.UserError(
                f"MeshConfig.slices is {self.slices} for {len(devices)} devices: give a divisor"
            )
        size = len(devices) // self.slices
        return [devices[i : i + size] for i in range(0, len(devices), size)]

    def _sizes(self, num_devices: int) -> list[int]:
        sizes = [self.data, self.fsdp, self.tensor]
        known = math.prod(size for size in sizes if size != -1)
        if -1 in sizes and num_devices % known == 0:
            sizes[sizes.index(-1)] = num_devices // known
        if math.prod(sizes) != num_devices:
            raise errors.UserError(
                f"MeshConfig {dict(zip(AXES, sizes, strict=True))} does not divide "
                f"{num_devices} devices: choose sizes whose product is {num_devices}"
            )
        return sizes


def path_name(path) -> str:
    """`a/b/0/c` of a pytree path."""
    return "/".join(
        str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path
    )


def _fit(spec: P, shape: tuple[int, ...], mesh: Mesh | jax.sharding.AbstractMesh) -> P:
    """A spec of the same axes, but for those that do not divide their dimension."""

    def divides(axes: str | tuple[str, ...], size: int) -> bool:
        axes = (axes,) if isinstance(axes, str) else axes
        return size % math.prod(mesh.shape[axis] for axis in axes) == 0

    return P(
        *(
            axes if axes is not None and divides(axes, size) else None
            for axes, size in zip(spec, shape, strict=True)
        )
    )


def _trailing(spec: P, num_dimensions: int) -> P:
    """Puts a spec on the trailing dimensions; on none, where there are fewer than it speaks of."""
    if len(spec) > num_dimensions:
        spec = P()
    return P(*(None,) * (num_dimensions - len(spec)), *spec)


def state_sharding(tree: Any, mesh: Mesh, rules: Rules = RULES) -> Any:
    """A `NamedSharding` for every leaf of a state (arrays or shape structs), by the rules.

    Optimizer moments have their parameter's path inside their own, so they follow it.
    """

    def of(path, leaf):
        name = path_name(path)
        for pattern, spec in rules:
            if leaf.ndim > 1 and re.search(pattern, name):
                spec = _trailing(spec, leaf.ndim)
                return NamedSharding(mesh, _fit(spec, leaf.shape, mesh))
        return NamedSharding(mesh, P())

    return jax.tree.map_with_path(of, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over the data and fsdp axes."""
    return NamedSharding(mesh, P(ROWS))


def check_rows(batch_size: int, mesh: Mesh) -> None:
    """Sees that a batch divides over the mesh.

    Raises:
      UserError: it does not.
    """
    rows_over = math.prod(mesh.shape[axis] for axis in ROWS)
    if batch_size % rows_over:
        raise errors.UserError(
            f"batch_size is {batch_size} for {rows_over} devices along the data and fsdp axes: "
            f"give a multiple of {rows_over}"
        )


def places_of_rows(mesh: Mesh) -> tuple[tuple[int, ...], int]:
    """Which parts of every batch this process feeds its devices, in order, and how many there are.

    Rows lie over the data and fsdp axes, a part at each place. A host of a pod has a square of
    chips, whose places are not neighbours. Processes that a tensor axis spans feed the same parts.

    Raises:
      UserError: processes share some of their rows and not all, or hold more than others.
    """
    num_places = math.prod(mesh.shape[axis] for axis in ROWS)
    held = collections.defaultdict(set)
    for (place, _), device in np.ndenumerate(mesh.devices.reshape(num_places, -1)):
        held[device.process_index].add(place)
    parts = {frozenset(places) for places in held.values()}
    if any(len(part) * len(parts) != num_places for part in parts):
        raise errors.UserError(
            f"MeshConfig.tensor is {mesh.shape['tensor']}, and hosts share some rows of a batch "
            "and not all: give a divisor or a multiple of the devices of a host"
        )
    return tuple(sorted(held[jax.process_index()])), num_places


def abstract(tree: Any, where: Any) -> Any:
    """Shape structs with shardings, of a tree of shape structs or arrays."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        where,
    )


def to_devices(batch: Any, mesh: Mesh) -> Any:
    """Global arrays from each process's own rows of a batch, in the order of `places_of_rows`."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def constrain(x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
    """Pins the layout of an activation under a mesh; without one, or on one device of it already
    (`shard_map`), returns it as it is.

    Left to itself, XLA may follow the parameters, split features over fsdp, and sum activations
    over devices in every layer.

    Args:
      x: the activation.
      *axes: of its first dimensions; the others lie whole on every device. Axes that do not divide
        their dimension are dropped: models are initialised on a single row.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or AxisType.Auto not in mesh.axis_types:
        return x
    spec = P(*axes, *(None,) * (x.ndim - len(axes)))
    return jax.lax.with_sharding_constraint(x, _fit(spec, x.shape, mesh))


def shard_map(function: Callable[..., Any], *, in_specs: Sequence[P], out_specs: P) -> Any:
    """Runs a function on each device's shards; without a mesh, or on one already, leaves it alone.

    The gradient of an argument that every device holds whole is first summed within a device, over
    all that the function does with it, and only then, at the argument's own size, over devices.
    XLA's partitioner sums over devices first, at whatever size the argument was broadcast to.

    Args:
      function: of arrays, each with its spec, to one array.
      in_specs, out_specs: over which axes they lie. Where one does not divide, as with the single
        row that models are initialised on, the function runs whole.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or AxisType.Auto not in mesh.axis_types:
        return function

    def sharded(*arrays):
        for array, spec in zip(arrays, in_specs, strict=True):
            spec = P(*spec, *(None,) * (array.ndim - len(spec)))
            if _fit(spec, array.shape, mesh) != spec:
                return function(*arrays)
        # Without the check of what varies, whose casts would bring the early sums back.
        mapped = jax.shard_map(
            function, in_specs=tuple(in_specs), out_specs=out_specs, check_vma=False
        )
        return mapped(*arrays)

    return sharded
