"""Runs the processes of one job on this machine, as a cluster would: starts, watches, restarts.

The processes find each other on the loopback interface through JAX's environment variables. What
process i says in attempt k goes to LOGS/attempt-k/process-i.log.

Once one process has ended, the others are doomed: in JAX they block in a collective for ever, or
find out and end by themselves. They have some time for that, as long again after SIGTERM, and get
SIGKILL then, which ends stopped processes too. The process that failed first decides what is next.
"""

import contextlib
import ctypes
import dataclasses
import math
import os
import pathlib
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from musiclm import exit_codes
from tpu_launch import job as job_lib

_POLL_SECONDS = 0.05
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What to run, and how patiently.

    Attributes:
      command: the program and its arguments.
      logs: folder of the processes' output.
      processes: how many processes run it together.
      devices: CPU devices of each.
      retries: how often it is started again after a fault.
      grace_seconds: how long processes may take to end.
    """

    command: tuple[str, ...]
    logs: pathlib.Path
    processes: int = 1
    devices: int = 1
    retries: int = 0
    grace_seconds: float = job_lib.GRACE_SECONDS

    def __post_init__(self) -> None:
        if not self.command:
            raise job_lib.JobError("command = () runs nothing: give one after --")
        for name, least in (("processes", 1), ("devices", 1), ("retries", 0), ("grace_seconds", 0)):
            value = getattr(self, name)
            if value < least:
                raise job_lib.JobError(f"{name} = {value} is too few: give {least} or more")


def supervise(plan: Plan) -> int:
    """Runs a plan to its end. SIGTERM and SIGINT end it: all processes get SIGTERM, to save.

    Args:
      plan: what to run.

    Returns:
      0, or the exit code of the process that failed first in the last attempt; 128 and the
      signal's number for one that a signal ended.

    Raises:
      JobError: the logs can't be written, or the command can't be started.
    """
    earlier = (re.fullmatch(r"attempt-(\d+)", path.name) for path in plan.logs.glob("attempt-*"))
    attempt = 1 + max((int(match[1]) for match in earlier if match), default=0)
    failures = 0
    with _stop_requests() as requests:
        while True:
            logs = plan.logs / f"attempt-{attempt}"
            _say(f"attempt {attempt}, processes write to {logs}/process-*.log")
            code = _attempt(plan, logs, requests)
            if code == exit_codes.DONE or code in job_lib.FINAL or requests:
                _say(f"ended with {code}")
                return code
            if code not in job_lib.FREE:
                failures += 1
                if failures > plan.retries:
                    _say(f"ended with {code}, no retry is left")
                    return code
            _say(f"ended with {code}, starting again ({failures} of {plan.retries} retries used)")
            attempt += 1


def _say(line: str) -> None:
    print(f"tpu_launch: {line}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Collects the signals that ask this process to stop, instead of being ended by them."""
    requests: list[int] = []
    before = {
        signum: signal.signal(signum, lambda received, _: requests.append(received))
        for signum in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield requests
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _attempt(plan: Plan, logs: pathlib.Path, requests: Sequence[int]) -> int:
    """Runs all processes once; none is left when it returns."""
    try:
        logs.mkdir(parents=True)
    except OSError as error:
        raise job_lib.JobError(
            f"logs = {plan.logs} can't be written, {error.strerror}: give another folder"
        ) from error
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # free again in a moment
    children: list[subprocess.Popen[bytes]] = []
    try:
        for index in range(plan.processes):
            children.append(_start(plan, index, port, logs / f"process-{index}.log"))
        return _watch(children, plan.grace_seconds, requests)
    finally:
        for child in children:
            _kill(child)


def _start(plan: Plan, index: int, port: int, log: pathlib.Path) -> "subprocess.Popen[bytes]":
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count="
    environment = os.environ | {
        # `musiclm` is beside this Python, in the PATH or not.
        "PATH": f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(plan.processes),
        "JAX_PROCESS_ID": str(index),
        "JAX_PLATFORMS": "cpu",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "XLA_FLAGS": f"{flags}{plan.devices}".strip(),
        "PYTHONUNBUFFERED": "1",  # what a killed process said last must be in its log
    }
    with log.open("wb") as output:
        try:
            return subprocess.Popen(
                plan.command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,  # the terminal's Ctrl-C is for the supervisor alone
                preexec_fn=_die_with_parent,
            )
        except OSError as error:
            raise job_lib.JobError(
                f"command = {shlex.join(plan.command)} can't be started, {error.strerror}: "
                "give a program, by its path or as the PATH has it"
            ) from error


def _die_with_parent() -> None:
    """In a new process: asks Linux to end it with the supervisor, should that be killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _watch(
    children: "Sequence[subprocess.Popen[bytes]]", grace_seconds: float, requests: Sequence[int]
) -> int:
    """Waits for all processes, and drives out those that stay; returns the first failure's code."""
    code = exit_codes.DONE
    deadline = math.inf
    remedy = signal.SIGTERM  # what the deadline brings
    while running := [child for child in children if child.poll() is None]:
        code = code or _failure(children)
        if requests and remedy is signal.SIGTERM:
            _say(f"asked to stop: SIGTERM to all processes, SIGKILL in {grace_seconds:g} s")
            for child in running:
                child.terminate()
            remedy, deadline = signal.SIGKILL, time.monotonic() + grace_seconds
        elif deadline == math.inf and len(running) < len(children):
            deadline = time.monotonic() + grace_seconds
        if time.monotonic() >= deadline:
            _say(f"{len(running)} of {len(children)} processes stay: {remedy.name} to them")
            for child in running:
                child.send_signal(remedy)
            remedy, deadline = signal.SIGKILL, time.monotonic() + grace_seconds
        time.sleep(_POLL_SECONDS)
    return code or _failure(children)


def _failure(children: "Sequence[subprocess.Popen[bytes]]") -> int:
    """The exit code of a process that has failed, as a shell would tell it; 0 if none has."""
    for index, child in enumerate(children):
        if child.returncode:
            code = child.returncode if child.returncode > 0 else 128 - child.returncode
            _say(f"process {index} ended with {code}, first of all: see its log")
            return code
    return exit_codes.DONE


def _kill(child: "subprocess.Popen[bytes]") -> None:
    """Ends a process and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
