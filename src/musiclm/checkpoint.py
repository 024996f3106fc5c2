"""Training checkpoints, by Orbax."""

import os
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp


class Checkpointer:
    """Saves in the background and restores the newest, onto any mesh.

    Use as a context manager: leaving it waits for the save under way.
    """

    def __init__(self, directory: str | os.PathLike, keep: int = 2):
        directory = pathlib.Path(directory).absolute()
        directory.mkdir(parents=True, exist_ok=True)
        self._manager = ocp.CheckpointManager(
            directory,
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True),
        )

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *_) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    @property
    def latest_step(self) -> int | None:
        """The newest step that was saved whole, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any) -> None:
        """Saves a pytree of arrays; returns before the write is done."""
        if step != self.latest_step:
            self._manager.save(step, args=ocp.args.StandardSave(state))

    def restore(self, abstract_state: Any) -> Any:
        """The newest state.

        Args:
          abstract_state: a pytree of `jax.ShapeDtypeStruct` with the shardings to restore onto.
        """
        return self._manager.restore(
            self.latest_step, args=ocp.args.StandardRestore(abstract_state)
        )


def abstract(tree: Any, sharding: Any) -> Any:
    """Shape structs with shardings, of a tree of shape structs or arrays."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        tree,
        sharding,
    )
