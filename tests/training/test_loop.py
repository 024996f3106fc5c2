"""The loop on a model small enough to check by hand."""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from musiclm import bundle, errors
from musiclm.training import health, interruption, loop, optim, program
from musiclm.training.state import TrainState

WEIGHTS_D = np.array([1.0, -2.0, 0.5], np.float32)


@dataclasses.dataclass(frozen=True)
class Regression:
    """y = xᵀw with noise from the step's key, so that a wrong key shows."""

    optimizer: optim.OptimizerConfig = optim.OptimizerConfig(
        learning_rate=0.2, warmup_steps=0, total_steps=50, schedule="cosine"
    )
    poison_at: int | None = None
    spoil_from: int = 10**9

    def batch_spec(self, batch_size):
        shapes = {"x": (batch_size, 3), "y": (batch_size,)}
        return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}

    def init(self, key, batch):
        params = {"w": jax.random.normal(key, (batch["x"].shape[1],))}
        return TrainState.create({"params": params}, self.optimizer.make())

    def loss(self, params, batch):
        return jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2)

    def forward(self, state, batch, key):
        return self.loss(state.params, batch)

    def step(self, state, batch, key):
        loss, gradients = jax.value_and_grad(self.loss)(state.params, batch)
        gradients = jax.tree.map(lambda g: g + 1e-3 * jax.random.normal(key, g.shape), gradients)
        gradients = jax.tree.map(
            lambda g: jnp.where(state.step < self.spoil_from, g, -g), gradients
        )
        if self.poison_at is not None:
            poison = jnp.where(state.step == self.poison_at, jnp.nan, 0.0)
            gradients = jax.tree.map(lambda g: g + poison, gradients)
        return state.apply_gradients(gradients, self.optimizer.make()), {"loss": loss}

    def evaluate(self, state, batch, key):
        return {"loss": self.loss(state.params, batch), "draw": jax.random.uniform(key)}

    def export(self, state):
        return {}, {"params": state.params}

    def health(self):
        return (
            health.HealthCheck(
                metric="loss", breached=lambda x: x > 1e3, bound="above 1000", advice="Try less."
            ),
        )


def points(*, seed, batch_size, start_step, places, num_places):
    step = start_step
    while True:
        x = np.random.default_rng((seed, step)).normal(size=(batch_size, 3)).astype(np.float32)
        yield {"x": x, "y": x @ WEIGHTS_D}
        step += 1


def run(workdir, num_steps=50, task=None, **options):
    return loop.train(
        task=task or Regression(),
        dataset=points,
        eval_dataset=options.pop("eval_dataset", points),
        workdir=workdir,
        component=workdir / "bundle" / "regression",
        num_steps=num_steps,
        batch_size=options.pop("batch_size", 16),
        log_every=options.pop("log_every", 5),
        eval_every=options.pop("eval_every", 25),
        checkpoint_every=options.pop("checkpoint_every", 10),
        **options,
    )


def test_it_learns_writes_curves_and_exports(tmp_path):
    state = run(tmp_path)
    np.testing.assert_allclose(state.params["w"], WEIGHTS_D, atol=0.05)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(5, 51, 5))
    logged = [line for line in lines if "loss" in line]
    assert all(line["data_wait_ms"] >= 0 and 0 < line["goodput"] < 1 for line in logged)
    # 16 rows of 3 numbers, multiplied and added, three times.
    flops = 3 * 2 * 16 * 3
    assert all(
        line["model_tflops_per_second"] * 1e12 == pytest.approx(flops * line["steps_per_second"])
        for line in logged
    )
    held_out = [line["eval/loss"] for line in lines if "eval/loss" in line]
    assert held_out[-1] < 0.01
    assert list(tmp_path.glob("events.out.tfevents*"))
    exported = bundle.load_component(tmp_path / "bundle", "regression")
    np.testing.assert_allclose(exported.variables["params"]["w"], state.params["w"], rtol=1e-3)


def test_evaluations_draw_the_same_and_their_batches_do_not(tmp_path):
    """Else a mean over batches averages no draws, and curves tell of draws as well."""

    def draws(num_eval_batches):
        folder = tmp_path / str(num_eval_batches)
        run(folder, num_eval_batches=num_eval_batches)
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        return [line["eval/draw"] for line in lines if "eval/draw" in line]

    (one, same), (two, _) = draws(1), draws(2)
    assert one == same
    assert abs(two - one) > 1e-4


def test_resuming_equals_not_stopping(tmp_path):
    whole = run(tmp_path / "whole")
    run(tmp_path / "halves", num_steps=23)
    halves = run(tmp_path / "halves")
    np.testing.assert_array_equal(whole.params["w"], halves.params["w"])
    assert int(halves.step) == 50


@dataclasses.dataclass(frozen=True, kw_only=True)
class Started(Regression):
    """Starts from the weights in a file."""

    start: pathlib.Path

    def read_start(self):
        return {"w": np.load(self.start)}

    def begin(self, state, start):
        return TrainState.create({"params": start}, self.optimizer.make())


def test_what_a_run_starts_from_is_read_where_it_starts_alone(tmp_path):
    task = Started(start=tmp_path / "start.npy")
    np.save(task.start, 3 * WEIGHTS_D)
    whole = run(tmp_path / "whole", task=task)
    run(tmp_path / "stopped", task=task, num_steps=20)
    task.start.unlink()
    resumed = run(tmp_path / "stopped", task=task)
    np.testing.assert_array_equal(resumed.params["w"], whole.params["w"])
    assert not np.array_equal(whole.params["w"], run(tmp_path / "random").params["w"])
    with pytest.raises(FileNotFoundError):
        run(tmp_path / "again", task=task)


def test_a_check_changes_nothing_on_disk(tmp_path):
    run(tmp_path / "new", check_only=True)
    assert not (tmp_path / "new").exists()
    run(tmp_path, num_steps=20)
    unfinished = tmp_path / "checkpoints" / "30.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "checkpoints" / "20", unfinished)
    os.truncate(tmp_path / "checkpoints" / "20" / "record" / "metadata", 3)
    before = sorted(tmp_path.rglob("*"))
    assert run(tmp_path, check_only=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_finished_run_only_exports(tmp_path):
    run(tmp_path, num_steps=10)
    before = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "bundle" / "regression.safetensors").unlink()
    run(tmp_path, num_steps=10)
    assert (tmp_path / "metrics.jsonl").read_text() == before
    assert (tmp_path / "bundle" / "regression.safetensors").is_file()
    with pytest.raises(errors.UserError, match=r"num_steps is 5, and .* has taken 10: give"):
        run(tmp_path, num_steps=5)


@pytest.mark.parametrize(
    ("poison_at", "stop_at", "told"),
    [
        (12, None, "step 15: loss is nan"),
        (19, None, "step 20: .* is not finite"),  # its loss is of the weights before
        (16, 17, "step 17: .* is not finite"),
    ],
)
def test_nan_stops_the_run_and_the_checkpoint_is_from_before(
    tmp_path, monkeypatch, poison_at, stop_at, told
):
    monkeypatch.setattr(interruption.StopRequest, "reached", lambda _, step: step == stop_at)
    with pytest.raises(health.HealthError, match=rf"{told}.*learning_rate"):
        run(tmp_path, task=Regression(poison_at=poison_at))
    monkeypatch.undo()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["10"]
    state = run(tmp_path)
    assert int(state.step) == 50
    assert np.isfinite(state.params["w"]).all()


def asking(stage):
    """A function that sends this process a SIGTERM and then does what it did."""

    def asked(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return stage(*args, **kwargs)

    return asked


def test_asked_before_a_step_it_ends_with_nothing_saved(tmp_path, monkeypatch):
    """While the data is opened, or, where a caller listens already, the model is built."""
    told = "before a step was taken"
    with pytest.raises(interruption.Preempted, match=told):
        run(tmp_path, eval_dataset=asking(points))
    monkeypatch.setattr(program, "build", asking(program.build))
    with interruption.StopRequest(), pytest.raises(interruption.Preempted, match=told):
        run(tmp_path)
    assert not list(tmp_path.iterdir())


def test_asked_while_it_exports_it_ends_as_it_would(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "export", asking(loop.export))
    run(tmp_path, num_steps=5)
    assert (tmp_path / "bundle" / "regression.safetensors").is_file()


def test_who_is_asked_to_stop_says_saved_only_of_what_is_written(tmp_path, monkeypatch):
    write = ocp.AsyncCheckpointer.wait_until_finished
    monkeypatch.setattr(interruption.StopRequest, "reached", lambda _, step: step == 17)
    with pytest.raises(interruption.Preempted, match="saved at step 17 of 50"):
        run(tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["10", "17"]

    full = iter([OSError("No space left on device")])

    def fail_once_at_17(self):
        write(self)
        if (tmp_path / "full" / "checkpoints" / "17").exists():
            for error in full:
                raise error

    monkeypatch.setattr(ocp.AsyncCheckpointer, "wait_until_finished", fail_once_at_17)
    with pytest.raises(errors.UserError, match=r"17 could not be written .*No space left"):
        run(tmp_path / "full")


def test_a_breach_needs_patience():
    check = health.HealthCheck(
        metric="x", breached=lambda x: x > 1, bound="above 1", advice="Lower it.", after_step=10
    )
    monitor = health.HealthMonitor([check])
    for step, value in [(5, 9), (10, 9), (15, 9), (20, 0), (25, 9), (30, 9)]:
        monitor.observe(step, {"x": float(value)})
    with pytest.raises(health.HealthError, match=r"step 35: x is 9 \(above 1\).*Lower it"):
        monitor.observe(35, {"x": 9.0})


def test_weight_decay_leaves_biases_and_scales_alone():
    config = optim.OptimizerConfig(
        learning_rate=0.1, warmup_steps=0, schedule="constant", weight_decay=0.5
    )
    params = {
        "kernel": jnp.ones((2, 2)),
        "bias": jnp.ones(2),
        "scale": jnp.ones((3, 2)),
        "relative_bias": {"embedding": jnp.ones((8, 2))},
    }
    optimizer = config.make()
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.05, rtol=1e-5)
    np.testing.assert_array_equal(updates["bias"], 0)
    np.testing.assert_array_equal(updates["scale"], 0)
    np.testing.assert_array_equal(updates["relative_bias"]["embedding"], 0)


@pytest.mark.parametrize("check_only", [False, True])
@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("num_steps", 0, "give 1 or more"),
        ("batch_size", 0, "give 1 or more"),
        ("num_eval_batches", 0, "give 1 or more"),
        ("log_every", 0, "give 1 or more"),
        ("eval_every", -1, "give 1 or more"),
        ("checkpoint_every", 0, "give 1 or more"),
        ("keep_checkpoints", 0, "give 1 or more"),
        ("stall_seconds", 0.0, "give 1 or more"),
        ("profile_steps", 5, r"such as \(10, 15\)"),
        ("profile_steps", (5, 5), r"such as \(10, 15\)"),
        ("profile_steps", (5, "6"), r"such as \(10, 15\)"),
    ],
)
def test_numbers_out_of_range_are_told_first(tmp_path, name, value, told, check_only):
    mistake = rf"loop.train.{name} is {re.escape(repr(value))}: .*{told}"
    with pytest.raises(errors.UserError, match=mistake):
        run(tmp_path, check_only=check_only, **{name: value})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "keep_best is 'eval/los': give one of eval/draw, eval/loss"),
        ({"eval_dataset": None}, "nothing is evaluated: give an eval_dataset"),
    ],
)
def test_the_best_is_of_a_metric_there_is(tmp_path, options, told):
    with pytest.raises(errors.UserError, match=told):
        run(tmp_path, keep_best="eval/los", **options)


def test_the_best_evaluated_checkpoint_stays(tmp_path):
    """It gets worse after step 25: the weights are pushed away from where they should be."""
    run(
        tmp_path,
        checkpoint_every=25,
        keep_best="eval/loss",
        keep_checkpoints=1,
        task=Regression(spoil_from=26),
    )
    steps = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert steps == [25, 50]
