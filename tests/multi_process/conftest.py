"""Real processes that train together on this machine, and what they wrote."""

import dataclasses
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from musiclm import exit_codes

HERE = pathlib.Path(__file__).parent


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def address():
    """Of a coordinator to be."""
    return free_address()


@dataclasses.dataclass
class Job:
    """Processes of one job, started together."""

    processes: list[subprocess.Popen]
    workdir: pathlib.Path

    def wait(self, timeout=150) -> list[int]:
        """The exit codes of all."""
        deadline = time.monotonic() + timeout
        return [p.wait(max(1, deadline - time.monotonic())) for p in self.processes]

    def losses(self) -> dict[int, float]:
        """By step; of a step that was taken twice, the later."""
        return {line["step"]: line["loss"] for line in self.lines() if "loss" in line}

    def lines(self) -> list[dict]:
        path = self.workdir / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]

    def wait_for_step(self, step, timeout=120) -> None:
        """Returns once the curves have come to a step."""
        deadline = time.monotonic() + timeout
        while not (
            (self.workdir / "metrics.jsonl").exists() and max(self.losses(), default=0) >= step
        ):
            ended = [p.returncode for p in self.processes if p.poll() is not None]
            assert not ended, f"ended early with {ended}:\n{self.stderr(0)}"
            assert time.monotonic() < deadline, self.stderr(0)
            time.sleep(0.05)

    def wait_until_told(self, line, index=0, timeout=60) -> None:
        """Returns once a process has written a line to stderr."""
        deadline = time.monotonic() + timeout
        while line not in self.stderr(index).splitlines():
            assert time.monotonic() < deadline, self.stderr(index)
            time.sleep(0.05)

    def stderr(self, index) -> str:
        return (self.workdir.parent / f"{self.workdir.name}.{index}.stderr").read_text()

    def kill(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
        for process in self.processes:
            process.wait(10)


class Starter:
    """Starts jobs of tiny_job.gin; none outlives the test."""

    def __init__(self, folder: pathlib.Path, cache: pathlib.Path):
        self._folder, self._cache, self._jobs = folder, cache, []

    def __call__(
        self, name, processes=2, devices=2, bindings=(), bindings_of_last=(), **macros
    ) -> Job:
        """Some processes, each its own child of the test; the last may be bound otherwise."""
        address = free_address()
        started = []
        for index in range(processes):
            environment = {
                "JAX_PLATFORMS": "cpu",
                "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
                "XLA_FLAGS": os.environ["XLA_FLAGS"]
                + f" --xla_force_host_platform_device_count={devices}",
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(index),
            }
            own = bindings_of_last if index == processes - 1 else ()
            command = self._command(name, [*bindings, *own], macros)
            started.append(self._popen(command, f"{name}.{index}.stderr", environment))
        return self._keep(started, name)

    def launch(self, name, processes=2, devices=2, bindings=(), **macros) -> Job:
        """The same under the launcher's supervisor, which is the job's only process here."""
        command = [sys.executable, "-m", "tpu_launch", "supervise", f"--processes={processes}"]
        command += [f"--devices={devices}", "--retries=3", f"--logs={self._folder / 'logs'}"]
        command += ["--grace-seconds=1", "--", *self._command(name, bindings, macros)]
        return self._keep([self._popen(command, f"{name}.0.stderr", {})], name)

    def stop(self) -> None:
        for job in self._jobs:
            job.kill()

    def _keep(self, started, name) -> Job:
        self._jobs.append(Job(started, self._folder / name))
        return self._jobs[-1]

    def _command(self, name, bindings, macros) -> list[str]:
        macros = {"WORKDIR": str(self._folder / name)} | macros
        command = [sys.executable, "-m", "musiclm.bin.main", "train", "--distributed"]
        command += [f"--gin_file={HERE / 'tiny_job.gin'}"]
        command += [f"--gin_bindings={name}={value!r}" for name, value in macros.items()]
        return command + [f"--gin_bindings={binding}" for binding in bindings]

    def _popen(self, command, stderr, environment) -> subprocess.Popen:
        environment = os.environ | environment
        environment["PYTHONPATH"] = os.pathsep.join([str(HERE), *filter(None, sys.path)])
        environment["JAX_COMPILATION_CACHE_DIR"] = str(self._cache)
        with (self._folder / stderr).open("a") as out:
            return subprocess.Popen(command, env=environment, cwd=self._folder, stderr=out)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """What all jobs compile is nearly the same."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def start(tmp_path, cache):
    starter = Starter(tmp_path, cache)
    yield starter
    starter.stop()


@pytest.fixture(scope="module")
def unharmed(tmp_path_factory, cache):
    """A job of two processes to which nothing happened."""
    starter = Starter(tmp_path_factory.mktemp("unharmed"), cache)
    job = starter("unharmed")
    assert job.wait() == [exit_codes.DONE] * 2
    yield job
    starter.stop()
