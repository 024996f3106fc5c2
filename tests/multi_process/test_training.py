"""A job of several processes trains as one does, and comes back from what happens to it."""

import os
import pathlib
import re
import shutil
import signal
import time

import numpy as np
import pytest

from musiclm import bundle, exit_codes

pytestmark = pytest.mark.slow


def exported(job):
    return bundle.load_component(job.workdir.parent / "out", "perceptron").variables["params"]


def test_two_processes_equal_one(start, unharmed):
    """The same batches and losses, though rows and kernels lie elsewhere."""
    one = start("one", processes=1, devices=1, FSDP=1)
    assert one.wait() == [exit_codes.DONE]
    assert one.losses().keys() == unharmed.losses().keys() == set(range(1, 61))
    np.testing.assert_allclose(
        list(unharmed.losses().values()), list(one.losses().values()), rtol=1e-5, atol=1e-6
    )
    expected = exported(one)
    for name, layer in exported(unharmed).items():
        np.testing.assert_allclose(layer["kernel"], expected[name]["kernel"], atol=2e-3)
    # A tensor axis over both processes: they read the same rows.
    shared = start("shared", FSDP=1, TENSOR=4, bindings=["loop.train.num_steps=20"])
    assert shared.wait() == [exit_codes.DONE] * 2
    np.testing.assert_allclose(
        list(shared.losses().values()), list(one.losses().values())[:20], rtol=1e-5, atol=1e-6
    )
    last = [line for line in unharmed.lines() if "loss" in line][-1]
    assert 0 < last["goodput"] < 1
    assert last["step_ms"] > 0


def test_killed_at_any_moment_it_goes_on_to_the_same_losses(start, unharmed):
    """On its layout bit for bit, on another to 1e-5; only steps after the last save are lost."""
    expected = unharmed.losses()
    for step in (12, 30):  # in the middle, and as a save begins
        job = start("killed", PACE=0.05)
        job.wait_for_step(step)
        job.processes[step % 2].kill()
        time.sleep(0.5)
        job.kill()
    before = len(job.lines())
    shutil.copytree(job.workdir, job.workdir.with_name("moved"))
    job = start("killed", PACE=0.0)
    assert job.wait() == [exit_codes.DONE] * 2
    resumed = [line["step"] for line in job.lines()[before:] if "loss" in line]
    assert resumed[0] > 20  # from the save at 20 at the oldest
    assert job.losses() == expected

    job = start("moved", processes=1, devices=4, FSDP=4)
    assert job.wait() == [exit_codes.DONE]
    np.testing.assert_allclose(
        list(job.losses().values()), list(expected.values()), rtol=1e-5, atol=1e-6
    )


def test_asked_to_stop_all_save_at_one_step(start):
    job = start("asked", PACE=0.1)
    job.wait_for_step(5)
    job.processes[1].send_signal(signal.SIGTERM)
    assert job.wait(30) == [exit_codes.PREEMPTED] * 2
    last = max(job.losses())
    assert f"saved at step {last} of 60" in job.stderr(0)
    assert f"saved at step {last} of 60" in job.stderr(1)
    before = len(job.lines())
    job = start("asked")
    assert job.wait() == [exit_codes.DONE] * 2
    assert job.lines()[before]["step"] == last + 1


def test_one_process_alone_saves_when_asked_to(start):
    job = start("alone", processes=1, PACE=0.1)
    job.wait_for_step(5)
    job.processes[0].send_signal(signal.SIGTERM)
    assert job.wait(30) == [exit_codes.PREEMPTED]
    assert f"saved at step {max(job.losses())} of 60" in job.stderr(0)


def test_one_process_that_is_asked_before_its_first_step_has_nothing_to_save(start):
    job = start("early", processes=1, bindings=["tiny_job.rows.seconds_to_open=3.0"])
    job.wait_until_told("opened")
    job.processes[0].send_signal(signal.SIGTERM)
    assert job.wait(30) == [exit_codes.PREEMPTED]
    assert "before a step was taken, so there is nothing to save" in job.stderr(0)
    assert not (job.workdir / "checkpoints").exists()


def test_a_frozen_process_ends_the_job(start):
    """The watchdog of the other tells where it stood."""
    job = start("frozen", PACE=0.1, bindings=["loop.train.stall_seconds=10.0"])
    job.wait_for_step(5)
    job.processes[1].send_signal(signal.SIGSTOP)
    assert job.processes[0].wait(120) == exit_codes.STALLED
    told = job.stderr(0)
    assert "loop.train.stall_seconds is 10" in told
    assert "loop.py" in told
    job.kill()


def test_all_of_an_unhealthy_job_end_with_the_code_that_starts_it_no_more(start):
    job = start("sick", bindings=["tiny_job.Perceptron.highest_loss=0.0"])
    assert job.wait(90) == [exit_codes.UNHEALTHY] * 2
    for index in range(2):
        assert re.search(r"stopped at step \d+: loss is .*\(above 0\.0\)", job.stderr(index))


@pytest.mark.parametrize(
    ("binding", "code", "told"),
    [
        ("tiny_job.rows.dim=8", exit_codes.CONFIGURATION, "musiclm: error: batch['x'] has"),
        ("tiny_job.rows.fails_at=7", exit_codes.FAULT, "RuntimeError: row 7 can't be read"),
    ],
)
def test_a_process_that_fails_ends_with_its_own_code_while_others_wait(start, binding, code, told):
    """At the barrier before the first step, or in a later one's collective."""
    job = start("alone", bindings_of_last=[binding])
    assert job.processes[1].wait(60) == code
    assert job.stderr(1).splitlines()[-1].startswith(told)
    assert "stood still" not in job.stderr(0)
    job.kill()


def test_a_process_that_is_late_is_waited_for(start):
    """Longer than a collective of the CPU does, from the first one on."""
    late = "tiny_job.Perceptron.seconds_to_build=34.0"
    job = start("late", bindings=["loop.train.num_steps=2"], bindings_of_last=[late])
    assert job.wait() == [exit_codes.DONE] * 2, job.stderr(0)


def test_where_all_fail_alike_each_ends_with_its_code(start):
    job = start("alike", bindings=["tiny_job.rows.dim=8"])
    assert job.wait(60) == [exit_codes.CONFIGURATION] * 2


@pytest.mark.parametrize(
    ("bindings", "told"),
    [
        (["FSDP=3"], "does not divide"),
        (["loop.train.batch_size=15"], "batch_size is 15"),
        (["tiny_job.Perceptron.dim=8"], "shape"),
        (["FSPD=2"], "did you mean FSDP?"),
        (["loop.train.num_steps='many'"], "num_steps is 'many': give a whole number"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_told_in_one_line(start, bindings, told):
    job = start("wrong", processes=1, bindings=bindings)
    assert job.wait() == [exit_codes.CONFIGURATION]
    last = job.stderr(0).splitlines()[-1]
    assert last.startswith("musiclm: error: ")
    assert told in last
    assert "Traceback" not in job.stderr(0)


def test_anothers_checkpoint_is_refused_before_anything_is_compiled(start):
    job = start("mine", processes=1, bindings=["loop.train.num_steps=2"])
    assert job.wait() == [exit_codes.DONE]
    for bindings, told in (
        (["tiny_job.Perceptron.dim=8", "tiny_job.rows.dim=8"], "kernel"),
        (["loop.train.seed=1"], "seed is 0"),
        (["loop.train.data='other'"], "data is ''"),
    ):
        job = start("mine", processes=1, bindings=bindings)
        assert job.wait() == [exit_codes.CONFIGURATION]
        assert told in job.stderr(0).splitlines()[-1]


def test_the_launcher_starts_a_job_again_until_it_is_done(start, unharmed):
    """A process dies of its own; the losses are those of an unharmed job."""
    job = start.launch("harmed", PACE=0.02)
    job.wait_for_step(15)
    (supervisor,) = job.processes
    children = pathlib.Path(f"/proc/{supervisor.pid}/task/{supervisor.pid}/children")
    os.kill(int(children.read_text().split()[1]), signal.SIGKILL)
    assert job.wait() == [exit_codes.DONE], job.stderr(0)
    assert job.losses() == unharmed.losses()
