"""A task's compiled functions on a mesh: what the loop runs, and `musiclm compile` looks at."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from musiclm import flops, sharding
from musiclm.training import health

# name -> global array, the rows first.
BatchSpec = Mapping[str, jax.ShapeDtypeStruct]


class Task(Protocol):
    """A trainable model: pure functions that are compiled, one file a model."""

    def batch_spec(self, batch_size: int) -> BatchSpec:
        """What a batch of that many rows holds."""

    def init(self, key: jax.Array, batch: Any) -> Any:
        """The first state, a pytree with an int32 scalar `step`; of the batch the shape is read."""

    def step(self, state: Any, batch: Any, key: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
        """One update: the next state and scalar metrics."""

    def evaluate(self, state: Any, batch: Any, key: jax.Array) -> dict[str, jax.Array]:
        """Scalar metrics on a batch that is not trained on."""

    def forward(self, state: Any, batch: Any, key: jax.Array) -> Any:
        """What a step differentiates, once through: of it the operations are counted."""

    def export(self, state: Any) -> tuple[Any, dict[str, Any]]:
        """The config and the variables that a bundle keeps."""

    def health(self) -> Sequence[health.HealthCheck]:
        """What must hold while it trains."""


@runtime_checkable
class Audible(Protocol):
    """A task whose model makes sound."""

    @property
    def sample_rate(self) -> int:
        """Of the sounds, in Hz."""

    def sounds(self, state: Any, batch: Any) -> dict[str, jax.Array]:
        """A few waveforms [N, T] by name, to be listened to as training goes on."""


@runtime_checkable
class Started(Protocol):
    """A task whose training may start from what is in a file."""

    def read_start(self) -> Any:
        """The file's arrays, on the host; `{}` if there is no file."""

    def begin(self, state: Any, start: Any) -> Any:
        """The state of `init` with what was read."""


@runtime_checkable
class Phased(Protocol):
    """A task whose model is not whole before some step."""

    def check_steps(self, num_steps: int) -> None:
        """Raises UserError where a run of so many steps ends before."""


@dataclasses.dataclass(frozen=True)
class Program:
    """A task on a mesh.

    Attributes:
      mesh: of devices, which need not be there.
      state: the state as shape structs with shardings.
      batch: the global batch likewise.
      read_start: () -> what the task's file has, on the host; `{}` without one.
      init: (what was read) -> state, jitted.
      step: (state, batch) -> (state, metrics), jitted; the state given is used up.
      evaluate: (state, batch, the batch's number) -> metrics, jitted. Every evaluation draws the
        same, and each of its batches something else.
      finite: state -> by path of each array of floats whether all of it is finite, jitted.
      forward: (state, batch) -> what a step differentiates; only ever traced.
      sounds: (state, batch) -> waveforms by name, jitted; None unless the task is `Audible`.
    """

    mesh: jax.sharding.Mesh
    state: Any
    batch: BatchSpec
    read_start: Callable[[], Any]
    init: Callable[[Any], Any]
    step: Callable[[Any, Any], tuple[Any, dict[str, jax.Array]]]
    evaluate: Callable[[Any, Any, int], dict[str, jax.Array]]
    finite: Callable[[Any], dict[str, jax.Array]]
    forward: Callable[[Any, Any], Any]
    sounds: Callable[[Any, Any], dict[str, jax.Array]] | None

    def training_flops(self) -> int:
        """Operations that the model asks of a step, on all devices together; see `flops`."""
        with jax.sharding.set_mesh(self.mesh):
            return flops.TRAINING_PASSES * flops.forward_flops(self.forward, self.state, self.batch)


def build(
    task: Task,
    mesh: jax.sharding.Mesh,
    *,
    batch_size: int,
    seed: int = 0,
    rules: sharding.Rules = sharding.RULES,
) -> Program:
    """The program of a task; nothing is compiled or allocated yet.

    A step's random numbers follow from the seed and the state's own step: a resumed run draws what
    an uninterrupted one would.

    Args:
      task: the model.
      mesh: where it runs.
      batch_size: rows of the global batch.
      seed: of the weights and the steps' random numbers.
      rules: where parameters lie, see `sharding.state_sharding`.

    Raises:
      UserError: the batch does not divide over the mesh.
    """
    rows = sharding.batch_sharding(mesh)
    batch = {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=rows)
        for name, array in task.batch_spec(batch_size).items()
    }
    sharding.check_rows(batch_size, mesh)
    # The third, since `fold_in(key, 0)` is the first of them.
    init_key, step_key, eval_key = jax.random.split(jax.random.key(seed), 3)

    def init():
        return task.init(init_key, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), batch))

    started = isinstance(task, Started)

    # An argument: what is closed over becomes a part of the program, which a BERT would swell.
    def begin(start):
        return task.begin(init(), start) if started else init()

    def step(state, batch):
        return task.step(state, batch, jax.random.fold_in(step_key, state.step))

    def evaluate(state, batch, index):
        return task.evaluate(state, batch, jax.random.fold_in(eval_key, index))

    def finite(state):
        return {
            sharding.path_name(path): jnp.isfinite(leaf).all()
            for path, leaf in jax.tree.leaves_with_path(state)
            if jnp.issubdtype(leaf.dtype, jnp.floating)
        }

    def forward(state, batch):
        return task.forward(state, batch, step_key)

    shapes = jax.eval_shape(init)
    where = sharding.state_sharding(shapes, mesh, rules)
    whole = NamedSharding(mesh, PartitionSpec())
    return Program(
        mesh=mesh,
        state=sharding.abstract(shapes, where),
        batch=batch,
        read_start=task.read_start if started else dict,
        init=jax.jit(begin, in_shardings=whole, out_shardings=where),
        step=jax.jit(step, donate_argnums=0, out_shardings=(where, None)),
        evaluate=jax.jit(evaluate),
        finite=jax.jit(finite, out_shardings=whole),
        forward=forward,
        sounds=jax.jit(task.sounds, out_shardings=whole) if isinstance(task, Audible) else None,
    )
