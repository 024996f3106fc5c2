"""The supervisor against tiny programs that end, fail, freeze, refuse to end, and are orphaned."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from musiclm import exit_codes

ROOT = pathlib.Path(__file__).parents[2]

# Every program starts with these.
PRELUDE = """
import os, pathlib, signal, subprocess, sys, time
me = int(os.environ["JAX_PROCESS_ID"])
here = pathlib.Path(sys.argv[1])
attempt = len(list((here / "logs").iterdir()))
def tell_pid(pid, name):
    (here / f"{name}.part").write_text(str(pid))
    (here / f"{name}.part").rename(here / f"{name}.pid")
"""


@pytest.fixture
def supervise(tmp_path):
    """Starts the supervisor on a program; it is killed after the test, should it still be there."""
    started = []

    def supervise(program, *, processes=2, retries=0, grace=0.5):
        file = tmp_path / "program.py"
        file.write_text(PRELUDE + program)
        command = [sys.executable, "-m", "tpu_launch", "supervise", f"--logs={tmp_path}/logs"]
        command += [f"--processes={processes}", f"--retries={retries}", "--devices=3"]
        command += [f"--grace-seconds={grace}", "--", sys.executable, str(file), str(tmp_path)]
        started.append(
            subprocess.Popen(
                command, cwd=ROOT, env=os.environ | {"XLA_FLAGS": "--mine"}, start_new_session=True
            )
        )
        return started[-1]

    yield supervise
    for process in started:
        process.kill()
        process.wait()


def _attempts(folder):
    return sorted(path.name for path in (folder / "logs").iterdir())


def _pid(path):
    """The number that a program writes there, once it has."""
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"nobody wrote {path}"
        time.sleep(0.02)
    return int(path.read_text())


def _alive(pid):
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_all_end_well(supervise, tmp_path):
    program = 'for name in sorted(os.environ): print(f"{name}={os.environ[name]}")'
    assert supervise(program, processes=3).wait(timeout=30) == 0
    assert _attempts(tmp_path) == ["attempt-1"]
    logs = [tmp_path / "logs" / "attempt-1" / f"process-{i}.log" for i in range(3)]
    settings = [dict(line.split("=", 1) for line in log.read_text().splitlines()) for log in logs]
    assert [row["JAX_PROCESS_ID"] for row in settings] == ["0", "1", "2"]
    assert len({row["JAX_COORDINATOR_ADDRESS"] for row in settings}) == 1
    for row in settings:
        assert row["JAX_NUM_PROCESSES"] == "3"
        assert row["JAX_PLATFORMS"] == "cpu"
        assert row["JAX_CPU_COLLECTIVES_IMPLEMENTATION"] == "gloo"
        assert row["XLA_FLAGS"] == "--mine --xla_force_host_platform_device_count=3"


def test_when_one_fails_the_others_are_ended_and_all_start_again(supervise, tmp_path):
    program = """
if attempt == 1:
    if me != 1:
        tell_pid(os.getpid(), f"blocked-{me}")
        time.sleep(60)
    while len(list(here.glob("blocked-*.pid"))) < 2: time.sleep(0.02)
    sys.exit(1)
"""
    assert supervise(program, processes=3, retries=1).wait(timeout=30) == 0
    assert _attempts(tmp_path) == ["attempt-1", "attempt-2"]
    assert not any(_alive(_pid(tmp_path / f"blocked-{i}.pid")) for i in (0, 2))


def test_logs_of_an_earlier_supervisor_stay(supervise, tmp_path):
    (tmp_path / "logs" / "attempt-7.bak").mkdir(parents=True)
    for _ in range(2):
        assert supervise("").wait(timeout=30) == 0
    assert _attempts(tmp_path) == ["attempt-1", "attempt-2", "attempt-7.bak"]


@pytest.mark.parametrize(
    ("logs", "program", "words"),
    [
        ("logs", "no-such-program", "command = no-such-program --x can't be started, No such file"),
        ("file", sys.executable, "file can't be written, Not a directory"),
    ],
)
def test_what_can_not_be_started_is_told(tmp_path, logs, program, words):
    (tmp_path / "file").touch()
    command = [sys.executable, "-m", "tpu_launch", "supervise", f"--logs={tmp_path / logs}"]
    done = subprocess.run(
        [*command, "--", program, "--x"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == exit_codes.CONFIGURATION
    *_, error = done.stderr.splitlines()
    assert error.startswith("tpu_launch: error: ")
    assert words in error
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("code", [exit_codes.UNHEALTHY, exit_codes.CONFIGURATION])
def test_what_would_fail_again_is_not_started_again(supervise, tmp_path, code):
    assert supervise(f"sys.exit({code})", retries=5).wait(timeout=30) == code
    assert _attempts(tmp_path) == ["attempt-1"]


def test_a_preempted_job_starts_again_for_nothing(supervise, tmp_path):
    program = f"sys.exit({exit_codes.PREEMPTED} if attempt < 4 else 0)"
    assert supervise(program, retries=0).wait(timeout=30) == 0
    assert len(_attempts(tmp_path)) == 4


def test_faults_use_up_the_retries(supervise, tmp_path):
    program = f"sys.exit({exit_codes.PREEMPTED} if attempt == 2 else {exit_codes.STALLED})"
    assert supervise(program, retries=2).wait(timeout=30) == exit_codes.STALLED
    assert len(_attempts(tmp_path)) == 4


def test_the_first_failure_decides(supervise, tmp_path):
    program = f"""
if me == 1: sys.exit({exit_codes.CONFIGURATION})
signal.signal(signal.SIGTERM, lambda *_: sys.exit({exit_codes.PREEMPTED}))
time.sleep(60)
"""
    assert supervise(program, retries=3).wait(timeout=30) == exit_codes.CONFIGURATION


def test_a_frozen_process_is_killed(supervise, tmp_path):
    program = f"""
if me == 0:
    tell_pid(os.getpid(), "frozen")
    os.kill(os.getpid(), signal.SIGSTOP)
while not (here / "frozen.pid").exists(): time.sleep(0.02)
sys.exit({exit_codes.STALLED})
"""
    assert supervise(program).wait(timeout=30) == exit_codes.STALLED
    assert not _alive(_pid(tmp_path / "frozen.pid"))


def test_a_process_that_ends_well_alone_is_a_fault_of_those_that_stay(supervise, tmp_path):
    program = "if me == 0 and attempt == 1: time.sleep(60)"
    assert supervise(program, retries=1).wait(timeout=30) == 0
    assert len(_attempts(tmp_path)) == 2


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_reaches_all_as_sigterm(supervise, tmp_path, signum):
    program = f"""
def stop(signum, frame):
    time.sleep(0.2)  # writes a checkpoint
    sys.exit({exit_codes.PREEMPTED})
signal.signal(signal.SIGTERM, stop)
tell_pid(os.getpid(), f"ready-{{me}}")
time.sleep(60)
"""
    supervisor = supervise(program, retries=5, grace=20)
    for i in range(2):
        _pid(tmp_path / f"ready-{i}.pid")
    os.killpg(supervisor.pid, signum)  # as a terminal does
    assert supervisor.wait(timeout=30) == exit_codes.PREEMPTED
    assert _attempts(tmp_path) == ["attempt-1"]


def test_who_does_not_stop_is_killed_with_all_it_started(supervise, tmp_path):
    program = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
tell_pid(subprocess.Popen(["sleep", "60"]).pid, f"grandchild-{me}")
time.sleep(60)
"""
    supervisor = supervise(program, retries=5)
    grandchildren = [_pid(tmp_path / f"grandchild-{i}.pid") for i in range(2)]
    supervisor.terminate()
    assert supervisor.wait(timeout=30) == 128 + signal.SIGKILL
    assert not any(map(_alive, grandchildren))


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone ends orphans")
def test_processes_die_with_the_supervisor(supervise, tmp_path):
    supervisor = supervise('tell_pid(os.getpid(), f"child-{me}")\ntime.sleep(60)')
    children = [_pid(tmp_path / f"child-{i}.pid") for i in range(2)]
    supervisor.kill()
    supervisor.wait()
    deadline = time.monotonic() + 30
    while any(map(_alive, children)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_jax_forms_a_group(supervise, tmp_path):
    program = """
del os.environ["XLA_FLAGS"]  # one device is enough
import jax
address, count, me = (os.environ[f"JAX_{name}"]
    for name in ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID"))
jax.distributed.initialize(address, int(count), int(me))
from jax.experimental import multihost_utils
ids = multihost_utils.process_allgather(jax.numpy.array([jax.process_index()]))
assert sorted(ids.ravel().tolist()) == [0, 1], ids
"""
    assert supervise(program, grace=30).wait(timeout=60) == 0
