"""The one training loop: every model goes through it, on two cores or on a pod."""

import concurrent.futures
import itertools
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tqdm

from musiclm import bundle, checkpoint, errors, metrics, processes, sharding
from musiclm.training import health, interruption, meter, profiling, program

Batch = Mapping[str, np.ndarray]
# dataset(seed=, batch_size=, start_step=, places=, num_places=): a process's rows of each global
# batch, which is a function of (seed, step) alone; for its places see `sharding.places_of_rows`.
Dataset = Callable[..., Iterator[Batch]]


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
    data: str = "",
    mesh: sharding.MeshConfig | None = None,
    rules: sharding.Rules = sharding.RULES,
    log_every: int = 20,
    eval_every: int = 500,
    checkpoint_every: int = 500,
    keep_checkpoints: int = 2,
    keep_best: str | None = None,
    stall_seconds: float = 600.0,
    ready_seconds: float = 1_800.0,
    profile_steps: tuple[int, int] | None = None,
    check_only: bool = False,
) -> Any:
    """Trains a task, from the newest whole checkpoint in `workdir` if there is one.

    Every process of a job calls this with the same arguments.

    Args:
      task: the model.
      dataset: of training batches; see `Dataset`.
      workdir: holds the checkpoints, the curves and the profiles.
      component: where the finished model goes, as a bundle's component without its suffix.
      num_steps: updates in all.
      batch_size: rows a global batch.
      eval_dataset: of batches that are not trained on.
      num_eval_batches: how many of them an evaluation averages over.
      seed: of the weights, the batches and the steps' random numbers.
      data: a digest of what is trained on; a run does not go on with other data or another seed.
      mesh: how devices are laid out; all on the data axis by default.
      rules: where parameters lie, see `sharding.RULES`.
      log_every, eval_every, checkpoint_every: in steps.
      keep_checkpoints: how many of the newest stay.
      keep_best: a metric such as "eval/loss"; of the steps that are evaluated and saved, the one
        where it is lowest stays as well.
      stall_seconds: how long a step, an evaluation or a save may take before the process ends
        itself.
      ready_seconds: how long the processes wait for one another to have built the model, and then
        to have checked their data and compiled.
      profile_steps: the first step to trace and the one after the last.
      check_only: returns once everything is found in order, before anything is compiled.

    The curves tell where time goes as well: see `meter.Meter.rates`.

    Returns:
      The final state; with `check_only` its shapes.

    Raises:
      UserError: a number is out of range; the mesh, the batch, the data, the checkpoint or
        `keep_best` don't fit; or a checkpoint could not be written.
      interruption.Preempted: SIGTERM came; the state is saved, if a step was taken.
      health.HealthError: a figure left its bounds, or the state is not finite. The newest
        checkpoint is from before.
    """
    check_counts(
        num_steps=num_steps,
        batch_size=batch_size,
        num_eval_batches=num_eval_batches,
        log_every=log_every,
        eval_every=eval_every,
        checkpoint_every=checkpoint_every,
        keep_checkpoints=keep_checkpoints,
        stall_seconds=stall_seconds,
        ready_seconds=ready_seconds,
    )
    check_profile_steps(profile_steps)
    workdir = pathlib.Path(workdir)
    if isinstance(task, program.Phased):
        task.check_steps(num_steps)
    devices = (mesh or sharding.MeshConfig()).make()
    built = program.build(task, devices, batch_size=batch_size, seed=seed, rules=rules)
    places, num_places = sharding.places_of_rows(devices)
    stream = {"seed": seed, "batch_size": batch_size, "places": places, "num_places": num_places}
    own_rows = batch_size // num_places * len(places)
    monitor = health.HealthMonitor(task.health())
    origin = {"seed": seed, "data": data}
    # Some hosts start minutes after others; the checkpointer's collectives do not wait that long.
    processes.barrier("start", ready_seconds)
    with (
        interruption.StopRequest() as stop,
        jax.sharding.set_mesh(devices),
        checkpoint.Checkpointer(
            workdir / "checkpoints", keep=keep_checkpoints, best=keep_best
        ) as checkpoints,
    ):
        state, facts, start = None, {}, 0
        if checkpoints.latest_step is not None:
            state = checkpoints.restore(built.state)
            facts, start = checkpoints.facts, checkpoints.latest_step
            check_origin(facts, origin, workdir)
            if start > num_steps:
                raise errors.UserError(
                    f"num_steps is {num_steps}, and {workdir} has taken {start}: give at least as "
                    "many, or another workdir"
                )
        stop.check_before_steps()
        batches = dataset(start_step=start, **stream)
        first = next(batches)
        check_batch(first, built.batch, own_rows)
        batches = prefetch(itertools.chain([first], batches))
        if eval_dataset:
            check_batch(next(eval_dataset(start_step=0, **stream)), built.batch, own_rows)
        if keep_best:
            check_metric(keep_best, built if eval_dataset else None)
        # Not for a run that goes on from a checkpoint, which need not have the file.
        read = built.read_start() if state is None else {}
        initialize = built.init.lower(read) if state is None else None
        if check_only:
            return built.state
        stop.check_before_steps()
        run_step = built.step.lower(built.state, built.batch).compile()
        if eval_dataset:
            stop.check_before_steps()
            evaluate = built.evaluate.lower(built.state, built.batch, 0).compile()
        initialize = initialize and initialize.compile()
        # Some hosts check their data and compile for minutes more than others; a collective does
        # not wait that long.
        processes.barrier("ready", ready_seconds)
        if initialize:
            state = initialize(read)
            del read
        stop.check_before_steps()
        measured = meter.Meter(
            built,
            started=facts.get("started"),
            productive_seconds=facts.get("productive_seconds", 0.0),
        )

        def evaluation(count: int) -> dict[str, float]:
            held_out = eval_dataset(start_step=0, **stream)
            results = []
            for index in range(num_eval_batches):
                batch = sharding.to_devices(next(held_out), devices)
                results.append(evaluate(state, batch, index))
                watchdog.beat()
            averages = average(results, prefix="eval/")
            writer.write(count, averages)
            if built.sounds:
                writer.write_sounds(count, built.sounds(state, batch), task.sample_rate)
            writer.publish()
            return averages

        progress = tqdm.tqdm(
            range(start, num_steps),
            initial=start,
            total=num_steps,
            desc=workdir.name,
            unit="step",
            disable=not processes.is_first(),
        )
        logged, scalars = start, None
        with (
            metrics.MetricWriter(workdir) as writer,
            interruption.Watchdog(stall_seconds) as watchdog,
            profiling.Profiler(workdir / "profile", profile_steps) as profiler,
        ):
            for done in progress:
                count = done + 1
                profiler.before(done)
                with measured.measure("data_wait"):
                    batch = sharding.to_devices(next(batches), devices)
                with measured.measure("step"):
                    before = scalars
                    state, scalars = run_step(state, batch)
                    # One step ahead of the devices and no more: what is measured is theirs, and
                    # who must stop has little to wait for.
                    jax.block_until_ready(before)
                watchdog.beat()
                if count % log_every == 0 or count == num_steps:
                    with measured.measure("step"):
                        values = {name: float(value) for name, value in scalars.items()}
                    monitor.observe(count, values)
                    writer.write(count, values | measured.rates(count - logged))
                    progress.set_postfix(loss=f"{values['loss']:.4g}")
                    logged = count
                evaluated = {}
                if eval_dataset and (count % eval_every == 0 or count == num_steps):
                    evaluated = evaluation(count)
                stopping = stop.reached(count)
                if stopping or count % checkpoint_every == 0 or count == num_steps:
                    with measured.measure("checkpoint"):
                        health.check_finite(count, jax.device_get(built.finite(state)))
                        facts = origin | measured.facts()
                        checkpoints.save(count, state, facts=facts, metrics=evaluated)
                    watchdog.beat()
                if stopping and count < num_steps:
                    # Until it is written nobody may say so.
                    checkpoints.finish()
                    raise interruption.Preempted(f"saved at step {count} of {num_steps}")
        export(task, state, devices, component)
    return state


def prefetch(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Makes the next batch on a thread while this one is trained on."""
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as worker:
        ahead = worker.submit(next, batches)
        while True:
            batch = ahead.result()
            ahead = worker.submit(next, batches)
            yield batch


def check_counts(**counts: float) -> None:
    """Sees that each of `train`'s arguments that counts something, or seconds, is one or more.

    Raises:
      UserError: one is not.
    """
    for name, value in counts.items():
        if value < 1:
            raise errors.UserError(f"loop.train.{name} is {value}: give 1 or more")


def check_profile_steps(steps: Any) -> None:
    """Sees that the steps to trace are two numbers in order, or None.

    Raises:
      UserError: they are not.
    """
    match steps:
        case None:
            return
        case (int(first), int(end)) if 0 <= first < end:
            return
    raise errors.UserError(
        f"loop.train.profile_steps is {steps!r}: give the first step to trace and the one after "
        "the last, such as (10, 15)"
    )


def check_batch(batch: Batch, spec: program.BatchSpec, num_rows: int) -> None:
    """Holds a process's batch to what the task expects.

    Raises:
      UserError: arrays lack, or have other shapes or types.
    """
    for name, array in spec.items():
        expected = (num_rows, *array.shape[1:]), array.dtype
        found = (batch[name].shape, batch[name].dtype) if name in batch else (None, None)
        if found != expected:
            raise errors.UserError(
                f"batch[{name!r}] has the shape {found[0]} and type {found[1]}, and the task takes "
                f"{expected[0]} of {expected[1]} a host: make the dataset's sizes those of the task"
            )


def check_metric(name: str, built: program.Program | None) -> None:
    """Sees that evaluations know a metric; without a program there are none.

    Raises:
      UserError: they don't.
    """
    metrics = jax.eval_shape(built.evaluate, built.state, built.batch, 0) if built else {}
    known = sorted(f"eval/{metric}" for metric in metrics)
    if name not in known:
        raise errors.UserError(
            f"loop.train.keep_best is {name!r}: give one of {', '.join(known)}"
            if known
            else f"loop.train.keep_best is {name!r}, and nothing is evaluated: give an eval_dataset"
        )


def check_origin(
    facts: Mapping[str, Any], origin: Mapping[str, Any], workdir: pathlib.Path
) -> None:
    """Sees that a checkpoint is of this run: what follows would be no run of either.

    Raises:
      UserError: it was made with another seed or other data.
    """
    for name, value in origin.items():
        if facts.get(name) != value:
            raise errors.UserError(
                f"{workdir} has checkpoints of a run whose {name} is {facts.get(name)!r}, and this "
                f"run's is {value!r}: give another workdir, or the {name} it was started with"
            )


def average(results: Sequence[Mapping[str, jax.Array]], prefix: str = "") -> dict[str, float]:
    """The mean of each metric over several batches."""
    return {
        prefix + name: float(np.mean([jax.device_get(result[name]) for result in results]))
        for name in results[0]
    }


def export(
    task: program.Task, state: Any, mesh: jax.sharding.Mesh, component: str | os.PathLike
) -> None:
    """Writes the finished model as a bundle's component, from the first process."""
    config = None

    def variables(state):
        nonlocal config
        config, tree = task.export(state)
        return tree

    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    gathered = jax.jit(variables, out_shardings=whole)(state)
    if processes.is_first():
        folder, name = os.path.split(component)
        bundle.save_component(folder, name, bundle.Component(config, jax.device_get(gathered)))
