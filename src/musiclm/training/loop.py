"""The one training loop: every model goes through it, on two cores or on a pod."""

import concurrent.futures
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tqdm

from musiclm import bundle, checkpoint, metrics, sharding
from musiclm.training import health, program

Batch = Mapping[str, np.ndarray]
# dataset(seed=, batch_size=, start_step=, host=, num_hosts=): a host's rows of each global batch,
# which is a function of (seed, step) alone.
Dataset = Callable[..., Iterator[Batch]]


def prefetch(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Makes the next batch on a thread while this one is trained on."""
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as worker:
        ahead = worker.submit(next, batches)
        while True:
            batch = ahead.result()
            ahead = worker.submit(next, batches)
            yield batch


def train(
    *,
    task: program.Task,
    dataset: Dataset,
    workdir: str | os.PathLike,
    component: str | os.PathLike,
    num_steps: int,
    batch_size: int,
    eval_dataset: Dataset | None = None,
    num_eval_batches: int = 4,
    seed: int = 0,
    mesh: sharding.MeshConfig | None = None,
    log_every: int = 20,
    eval_every: int = 500,
    checkpoint_every: int = 500,
    keep_checkpoints: int = 2,
) -> Any:
    """Trains a task, from the newest checkpoint in `workdir` if there is one.

    Args:
      task: the model.
      dataset: of training batches; see `Dataset`.
      workdir: holds the checkpoints and the curves.
      component: where the finished model goes, as a bundle's component without its suffix.
      num_steps: updates in all.
      batch_size: rows a global batch.
      eval_dataset: of batches that are not trained on.
      num_eval_batches: how many of them an evaluation averages over.
      seed: of the weights, the batches and the steps' random numbers.
      mesh: how devices are laid out; all on the data axis by default.
      log_every, eval_every, checkpoint_every: in steps.
      keep_checkpoints: how many of the newest stay.

    The curves have `steps_per_second` and `data_wait_ms`, the time a step that this host waited
    for its batch.

    Returns:
      The final state.

    Raises:
      health.HealthError: a figure left its bounds. The newest checkpoint is from before.
    """
    workdir = pathlib.Path(workdir)
    devices = (mesh or sharding.MeshConfig()).make()
    compiled = program.build(task, devices, batch_size=batch_size, seed=seed)
    stream = {
        "seed": seed,
        "batch_size": batch_size,
        "host": jax.process_index(),
        "num_hosts": jax.process_count(),
    }
    monitor = health.HealthMonitor(task.health())

    with (
        jax.sharding.set_mesh(devices),
        checkpoint.Checkpointer(workdir / "checkpoints", keep_checkpoints) as checkpoints,
        metrics.MetricWriter(workdir) as writer,
    ):
        if checkpoints.latest_step is None:
            state = compiled.init()
        else:
            state = checkpoints.restore(compiled.state)
        start = int(state.step)
        batches = prefetch(dataset(start_step=start, **stream))
        progress = tqdm.tqdm(
            range(start, num_steps), initial=start, total=num_steps, desc=workdir.name, unit="step"
        )
        clock, waited = time.perf_counter(), 0.0
        for done in progress:
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            state, scalars = compiled.step(state, sharding.to_devices(batch, devices))
            count = done + 1
            if count % log_every == 0 or count == num_steps:
                scalars = {name: float(value) for name, value in scalars.items()}
                monitor.observe(count, scalars)
                elapsed, clock = time.perf_counter() - clock, time.perf_counter()
                steps_logged = (count - start) % log_every or log_every
                rates = {
                    "steps_per_second": steps_logged / elapsed,
                    "data_wait_ms": 1_000 * waited / steps_logged,
                }
                waited = 0.0
                writer.write(count, scalars | rates)
                progress.set_postfix(loss=f"{scalars['loss']:.4g}")
            if eval_dataset and (count % eval_every == 0 or count == num_steps):
                held_out = eval_dataset(start_step=0, **stream)
                results = [
                    compiled.evaluate(state, sharding.to_devices(next(held_out), devices))
                    for _ in range(num_eval_batches)
                ]
                writer.write(count, average(results, prefix="eval/"))
            if count % checkpoint_every == 0 or count == num_steps:
                checkpoints.save(count, state)
    config, variables = jax.device_get(task.export(state))
    bundle.save_component(*os.path.split(component), bundle.Component(config, variables))
    return state


def average(results: Sequence[Mapping[str, jax.Array]], prefix: str = "") -> dict[str, float]:
    """The mean of each metric over several batches."""
    return {
        prefix + name: float(np.mean([jax.device_get(result[name]) for result in results]))
        for name in results[0]
    }
