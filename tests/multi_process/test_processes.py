"""Who takes a signal once a process has joined a job, and how one ends without the others."""

import os
import subprocess
import sys

import jax
import pytest

from musiclm import errors, processes

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
PROGRAM = """\
import os, signal, sys, time
from musiclm import errors, exit_codes, processes

def stop(signum, frame):
    raise SystemExit(exit_codes.TERMINATED)

signal.signal(signal.SIGTERM, stop)
processes.join(agree_to_stop=sys.argv[1] == "agree")
with processes.failing_alone(exit_codes.USAGE):
    if sys.argv[2] == "asked":
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(2)
    elif sys.argv[2] == "mistaken":
        raise errors.UserError("told by main")
    processes.barrier("done", 60)
"""


@pytest.fixture
def start(address):
    """Starts a job's processes, each with its own arguments."""
    started = []

    def start(*arguments):
        for index, own in enumerate(arguments):
            joined = {
                "JAX_PLATFORMS": "cpu",
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(len(arguments)),
                "JAX_PROCESS_ID": str(index),
            }
            command = [sys.executable, "-c", PROGRAM, *own]
            environment = os.environ | joined | {"PYTHONPATH": os.pathsep.join(sys.path)}
            started.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE))
        return started

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("agrees", "code"), [("alone", 143), ("agree", 0)])
def test_a_signal_is_the_programs_unless_all_agree_on_it(start, agrees, code):
    (process,) = start((agrees, "asked"))
    assert process.wait(60) == code, process.stderr.read()


@pytest.mark.parametrize(("what", "code"), [("asked", 143), ("mistaken", 2)])
def test_who_fails_does_not_wait_for_the_others(start, what, code):
    # At the barrier the other waits for 60 s.
    _, failing = start(("alone", "waits"), ("alone", what))
    assert failing.wait(45) == code, failing.stderr.read()


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        (("host:1", "2", None), "and JAX_PROCESS_ID is not set"),
        (("host:1", "two", "0"), "JAX_NUM_PROCESSES=two"),
        (("host:1", "2", "2"), "JAX_PROCESS_ID=2, and no such process"),
        (("host", "2", "1"), "JAX_COORDINATOR_ADDRESS=host, .*or address"),
        ((None, None, None), "nothing tells .*who knows.*leave --distributed out"),
    ],
)
def test_what_can_be_no_job_is_told(monkeypatch, variables, told):
    def initialize(*_, **__):
        raise ValueError("who knows")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    for name, value in zip(VARIABLES, variables, strict=True):
        monkeypatch.setenv(name, value or "")
        if value is None:
            monkeypatch.delenv(name)
    with pytest.raises(errors.UserError, match=told):
        processes.join()
