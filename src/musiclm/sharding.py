"""Where arrays live: the mesh, and one table of rules for every model.

Models never name devices. They may call `constrain`, which does nothing without a mesh.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from musiclm import errors

AXES = ("data", "fsdp", "tensor")

Rules = Sequence[tuple[str, P]]
# The first pattern found in a parameter's path decides. A spec speaks of the trailing dimensions,
# so that a stack of layers keeps its leading axis whole.
RULES: Rules = (
    (r"(query|key|value|up|gate)/kernel", P("fsdp", "tensor")),
    (r"(out|down)/kernel", P("tensor", "fsdp")),
    (r"embedding", P("tensor", "fsdp")),
    (r"kernel", P("fsdp", None)),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each axis; -1 (once) takes what the others leave."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def make(self, devices: Sequence[jax.Device] | None = None) -> Mesh:
        """The mesh over the given devices (all, by default), with Auto axes.

        Raises:
          UserError: the axes don't multiply to the device count.
        """
        devices = jax.devices() if devices is None else devices
        sizes = [self.data, self.fsdp, self.tensor]
        if sizes.count(-1) > 1:
            raise errors.UserError(
                f"MeshConfig {sizes} has several -1: give all axes but one a size"
            )
        known = int(np.prod([size for size in sizes if size != -1]))
        if -1 in sizes and len(devices) % known == 0:
            sizes[sizes.index(-1)] = len(devices) // known
        if int(np.prod(sizes)) != len(devices):
            raise errors.UserError(
                f"MeshConfig {dict(zip(AXES, sizes, strict=True))} does not divide "
                f"{len(devices)} devices: choose sizes whose product is {len(devices)}"
            )
        axis_types = (AxisType.Auto,) * len(AXES)
        return jax.make_mesh(tuple(sizes), AXES, axis_types=axis_types, devices=devices)


def path_name(path) -> str:
    """`a/b/0/c` of a pytree path."""
    return "/".join(
        str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path
    )


def _fit(spec: P, shape: tuple[int, ...], mesh: Mesh) -> P:
    """Puts a spec on the trailing dimensions, dropping axes that do not divide them."""
    if len(spec) > len(shape):
        return P()
    padded = (None,) * (len(shape) - len(spec)) + tuple(spec)
    return P(
        *(
            axis if axis is not None and size % mesh.shape[axis] == 0 else None
            for axis, size in zip(padded, shape, strict=True)
        )
    )


def state_sharding(tree: Any, mesh: Mesh, rules: Rules = RULES) -> Any:
    """A `NamedSharding` for every leaf of a state (arrays or shape structs), by the rules.

    Optimizer moments have their parameter's path inside their own, so they follow it.
    """

    def of(path, leaf):
        name = path_name(path)
        for pattern, spec in rules:
            if leaf.ndim > 1 and re.search(pattern, name):
                return NamedSharding(mesh, _fit(spec, leaf.shape, mesh))
        return NamedSharding(mesh, P())

    return jax.tree.map_with_path(of, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over the data and fsdp axes."""
    return NamedSharding(mesh, P(("data", "fsdp")))


def check_rows(batch_size: int, mesh: Mesh) -> None:
    """Sees that a batch divides over the mesh.

    Raises:
      UserError: it does not.
    """
    rows_over = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % rows_over:
        raise errors.UserError(
            f"batch_size is {batch_size} for {rows_over} devices along the data and fsdp axes: "
            f"give a multiple of {rows_over}"
        )


def abstract(tree: Any, where: Any) -> Any:
    """Shape structs with shardings, of a tree of shape structs or arrays."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        where,
    )


def to_devices(batch: Any, mesh: Mesh) -> Any:
    """Global arrays from each process's own rows of a batch."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def constrain(x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
    """Pins the layout of an activation under a mesh; without one, returns it as it is."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, P(*axes))
