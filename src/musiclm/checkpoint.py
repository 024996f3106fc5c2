"""Training checkpoints: Orbax writes and reads them, this module vouches for what was read.

A checkpoint is a folder named after its step. `state` holds the arrays, sharded, in Orbax's layout;
`record` is JSON under a digest of its own: the step, what the caller wants to know again (`facts`),
metrics, and of every array its shape, dtype and fingerprint.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from musiclm import processes, sharding
from musiclm.errors import UserError

T = TypeVar("T")


class Checkpointer:
    """Saves in the background, keeps the newest and the best, restores the newest that is whole.

    Every process of a job calls every method, in the same order. Use as a context manager: leaving
    it waits for the save under way. A save that failed is reported by whichever comes next, `save`,
    `finish` or leaving, and no older checkpoint goes before a newer one is whole. Until the first
    `save` nothing on the disk is changed: the folder may be that of a job that runs.

    Attributes:
      latest_step: the newest finished checkpoint, or None. Only `restore` finds out whether it is
        whole, and sets this to the step that it restored.
      facts: of the checkpoint that was restored; None before.
    """

    def __init__(self, directory: str | os.PathLike, *, keep: int = 2, best: str | None = None):
        """Opens a folder of checkpoints, which need not be there.

        Args:
          directory: the folder, the same on every process; one job at a time may save to it.
          keep: how many of the newest stay, at least one.
          best: a metric given to `save`; the checkpoint where it is lowest stays too.

        Raises:
          UserError: keep is below one.
        """
        if keep < 1:
            raise UserError(f"keep is {keep}: give the number of newest checkpoints to keep, 1 up")
        self._directory = pathlib.Path(directory).absolute()
        self._keep = keep
        self._best = best
        self._saving: int | None = None
        self._tidied = False
        self._damaged: list[pathlib.Path] = []
        self._orbax = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
        self.latest_step = max(self._agreed_steps(), default=None)
        self.facts: dict[str, Any] | None = None

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, _, error: BaseException | None, __) -> None:
        try:
            self.finish()
        except UserError as failed_save:
            # What ended the block comes first.
            if error is None:
                raise
            logging.error("%s", failed_save)
        finally:
            self._orbax.close()

    def save(
        self,
        step: int,
        state: Any,
        *,
        facts: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Saves a state; returns once it is copied, before it is written.

        The first time it makes the folder, clears away unfinished saves, and sets checkpoints that
        `restore` found damaged aside as `damaged-<step>`.

        Args:
          step: after all that are saved; the newest itself is not saved again.
          state: a pytree of arrays, which may be donated or overwritten once this returns.
          facts: JSON to find again in `facts` after restoring.
          metrics: of this state; see `best`.

        Raises:
          UserError: the save before this one, or this one, could not be written.
          ValueError: step is before the newest.
        """
        self.finish()
        if step == self.latest_step:
            return
        if self.latest_step is not None and step < self.latest_step:
            raise ValueError(f"step is {step}, before the newest checkpoint {self.latest_step}")
        arrays = _by_path(state)
        record = _Record(
            step=step,
            facts=dict(facts or {}),
            metrics=dict(metrics or {}),
            shapes={path: _shape(array) for path, array in arrays.items()},
            fingerprints=fingerprints(arrays),
        )
        self._saving = step
        with self._explained(step):
            self._tidy_up()
            self._orbax.save(
                self._directory / str(step),
                args=ocp.args.Composite(
                    # Orbax refuses arrays without elements; `restore` makes them anew.
                    state=ocp.args.StandardSave({k: x for k, x in arrays.items() if x.size}),
                    record=ocp.args.JsonSave(record.to_json()),
                ),
            )

    def finish(self) -> None:
        """Waits for the save under way; then what need not stay goes.

        Raises:
          UserError: it could not be written.
        """
        if self._saving is None:
            return
        step, self._saving = self._saving, None
        with self._explained(step):
            self._orbax.wait_until_finished()
        self.latest_step = step
        if processes.is_first():
            self._prune()

    def restore(self, abstract_state: Any) -> Any:
        """The newest state that is whole, onto any mesh; sets `facts` and `latest_step`.

        Checkpoints that can't be read, or whose arrays aren't those that were saved, are skipped
        with a line in the log each.

        Args:
          abstract_state: a pytree of `jax.ShapeDtypeStruct` with the shardings to restore onto.

        Raises:
          UserError: no checkpoint is whole, or the newest is of another model. The latter is known
            before an array is read or anything is compiled.
        """
        self.finish()
        wanted = _by_path(abstract_state)
        damaged = {}
        for step in reversed(self._agreed_steps()):
            folder = self._directory / str(step)
            try:
                record = _on_every_process(lambda folder=folder: _Record.read(folder))
                _check_model(folder, record.shapes, wanted)
                arrays = _on_every_process(lambda folder=folder: _read_arrays(folder, wanted))
                _check_fingerprints(record.fingerprints, fingerprints(arrays))
            except _DamagedError as error:
                logging.error("skipped checkpoint %s: %s", folder, error)
                damaged[folder] = error
                continue
            self.latest_step, self.facts, self._damaged = step, record.facts, list(damaged)
            return jax.tree.unflatten(jax.tree.structure(abstract_state), arrays.values())
        reasons = "".join(f"; {folder.name}: {error}" for folder, error in damaged.items())
        raise UserError(
            f"no checkpoint in {self._directory} is whole{reasons}: "
            "bring back a copy, or move the folder away to start anew"
        )

    def _tidy_up(self) -> None:
        """Makes room for a save: once for the folder, and for what was found damaged since."""
        if self._tidied and not self._damaged:
            return
        if processes.is_first():
            self._directory.mkdir(parents=True, exist_ok=True)
            # Of earlier jobs: none of this one's is under way.
            for unfinished in self._directory.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"):
                shutil.rmtree(unfinished)
            for folder in self._damaged:
                _set_aside(folder)
        multihost_utils.sync_global_devices("tidied")
        self._tidied, self._damaged = True, []

    @contextlib.contextmanager
    def _explained(self, step: int) -> Iterator[None]:
        """Turns whatever Orbax and the file system raise on writing into one line."""
        try:
            yield
        except Exception as error:
            self._saving = None
            kept = "none" if self.latest_step is None else f"step {self.latest_step}"
            raise UserError(
                f"checkpoint {self._directory / str(step)} could not be written "
                f"({_one_line(error)}); the newest whole one is {kept}: make room on the disk or "
                "mend it, and start again"
            ) from error

    def _steps(self) -> list[int]:
        """Of the finished checkpoints in the folder, ascending."""
        if not self._directory.is_dir():
            return []
        return sorted(int(path.name) for path in self._directory.iterdir() if path.name.isdecimal())

    def _agreed_steps(self) -> list[int]:
        """`_steps` as the first process sees them: file systems may show others a moment late."""
        steps = self._steps()
        count = int(multihost_utils.broadcast_one_to_all(np.int32(len(steps))))
        return multihost_utils.broadcast_one_to_all(
            np.resize(steps, count).astype(np.int32)
        ).tolist()

    def _prune(self) -> None:
        """Removes all but the newest and the best."""
        steps = self._steps()
        kept = steps[-self._keep :]
        if self._best is not None:
            best = min(steps, key=self._score)
            kept += [best] if math.isfinite(self._score(best)) else []
        for step in set(steps).difference(kept):
            # What can't be removed now is tried again after the next save.
            shutil.rmtree(self._directory / str(step), ignore_errors=True)

    def _score(self, step: int) -> float:
        """The metric that the best is the lowest of; infinite where it isn't known or finite."""
        try:
            score = _Record.read(self._directory / str(step)).metrics[self._best]
        except Exception:  # Missing or damaged: `restore` is the place to complain.
            return math.inf
        return score if math.isfinite(score) else math.inf


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Record:
    """What a checkpoint says about itself.

    Attributes:
      step: equals the folder's name.
      facts, metrics: as the caller gave them.
      shapes: `float32[2,3]` of every array, by path.
      fingerprints: of every array, by path; see `fingerprints`.
    """

    step: int
    facts: dict[str, Any]
    metrics: dict[str, float]
    shapes: dict[str, str]
    fingerprints: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """The fields with a digest over them."""
        fields = json.loads(json.dumps(dataclasses.asdict(self)))
        return fields | {"sha256": _digest(fields)}

    @classmethod
    def read(cls, folder: pathlib.Path) -> "_Record":
        """The record in a checkpoint's folder; anything may be raised where it is damaged."""
        fields = ocp.JsonCheckpointHandler().restore(folder / "record")
        if fields.pop("sha256") != _digest(fields):
            raise _DamagedError("its record is not as it was written")
        record = cls(**fields)
        if str(record.step) != folder.name:
            raise _DamagedError(f"its record is of step {record.step}")
        return record


class _DamagedError(Exception):
    """A checkpoint is not what was saved."""


def fingerprints(arrays: Mapping[str, jax.Array]) -> dict[str, str]:
    """64 bits of every array's content, whatever devices and processes it is laid out over.

    Two sums over elements of a hash of (bits, global index), modulo 2³². Sums may be taken in any
    order, so each device reads its own part, once. A change confined to one element always shows.

    Args:
      arrays: of any shape, boolean, numeric or PRNG keys, all on the same devices.

    Returns:
      16 hexadecimal digits by name.
    """
    meshes = [x.sharding.mesh for x in arrays.values() if isinstance(x.sharding, NamedSharding)]
    # Replicated, so that every process can look at them.
    where = NamedSharding(meshes[0], P()) if meshes else None
    sums = jax.device_get(jax.jit(_fingerprints, out_shardings=where)(dict(arrays)))
    return {name: f"{first:08x}{second:08x}" for name, (first, second) in sums.items()}


def _fingerprints(arrays: Mapping[str, jax.Array]) -> dict[str, tuple[jax.Array, jax.Array]]:
    return {name: _fingerprint(array) for name, array in arrays.items()}


def _fingerprint(array: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two uint32 scalars."""
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    if array.dtype == bool:
        array = array.astype(jnp.uint8)
    # Wider elements than 32 bits become several words, narrower ones fill one each.
    word = {1: jnp.uint8, 2: jnp.uint16}.get(array.dtype.itemsize, jnp.uint32)
    words = jax.lax.bitcast_convert_type(array, word).astype(jnp.uint32)
    index = jnp.zeros(words.shape, jnp.uint32)
    for axis, size in enumerate(words.shape):
        # From iotas and not from a reshaped one: that would gather a sharded array.
        index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    odd = 2 * index + 1
    # The finish of MurmurHash3: invertible, so that different words never hash alike in one place.
    hashed = words + odd * jnp.uint32(0x9E3779B1)
    hashed = (hashed ^ (hashed >> 16)) * jnp.uint32(0x85EBCA6B)
    hashed = (hashed ^ (hashed >> 13)) * jnp.uint32(0xC2B2AE35)
    hashed = hashed ^ (hashed >> 16)
    # One reduction of pairs: two separate sums read twice and compile for several times as long.
    return jax.lax.reduce(
        (hashed, hashed * odd),
        (jnp.uint32(0), jnp.uint32(0)),
        lambda a, b: (a[0] + b[0], a[1] + b[1]),
        tuple(range(words.ndim)),
    )


def _by_path(tree: Any) -> dict[str, Any]:
    """Leaves by path, in the tree's order."""
    return {sharding.path_name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def _shape(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def _digest(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _on_every_process(read: Callable[[], T]) -> T:
    """What `read` returns, once it succeeded on all processes.

    Raises:
      _DamagedError: on all of them, if any failed: they must go on to the same checkpoint.
    """
    error = None
    try:
        result = read()
    except Exception as caught:  # Damaged bytes raise anything, from KeyError to tensorstore's own.
        error = caught
    failed = np.ravel(multihost_utils.process_allgather(np.array(error is not None)))
    if error is not None:
        raise _DamagedError(
            str(error) if isinstance(error, _DamagedError) else _one_line(error)
        ) from error
    if failed.any():
        raise _DamagedError(f"process {failed.argmax()} could not read it")
    return result


def _read_arrays(folder: pathlib.Path, wanted: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Arrays of a checkpoint, by path in the order of `wanted`."""
    # By the handler: the checkpointer's `restore` ends in a barrier, where all others would wait
    # for a process that failed.
    read = ocp.StandardCheckpointHandler().restore(
        folder / "state",
        args=ocp.args.StandardRestore(
            {path: x for path, x in wanted.items() if math.prod(x.shape)}
        ),
    )
    return {path: read[path] if path in read else _empty(x) for path, x in wanted.items()}


def _empty(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """An array without elements."""
    return jax.jit(lambda: jnp.zeros(leaf.shape, leaf.dtype), out_shardings=leaf.sharding)()


def _check_model(folder: pathlib.Path, saved: Mapping[str, str], wanted: Mapping[str, Any]) -> None:
    """Raises UserError at the first array that the checkpoint and the model don't share."""
    here = {path: _shape(leaf) for path, leaf in wanted.items()}
    for path in sorted(saved.keys() | here.keys()):
        if saved.get(path) != here.get(path):
            raise UserError(
                f"checkpoint {folder} is of another model: {path} is "
                f"{saved.get(path, 'missing')} there and {here.get(path, 'missing')} here: "
                "train the model it is of, or choose another workdir"
            )


def _check_fingerprints(saved: Mapping[str, str], read: Mapping[str, str]) -> None:
    for path, fingerprint in read.items():
        if saved[path] != fingerprint:
            raise _DamagedError(f"{path} is not as it was saved")


def _set_aside(folder: pathlib.Path) -> None:
    """Renames a damaged checkpoint: its step will be saved again, and it may yet be of use."""
    names = itertools.chain(
        [f"damaged-{folder.name}"], (f"damaged-{folder.name}-{n}" for n in itertools.count(2))
    )
    folder.rename(next(path for path in map(folder.with_name, names) if not path.exists()))
