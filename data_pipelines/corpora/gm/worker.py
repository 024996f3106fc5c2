"""The process that renders: reads a clip's index a line, answers with a JSON object a line.

FluidSynth is C code that can hang or crash; here it can be killed without harm to the build.
It ends when its standard input does.
"""

from __future__ import annotations

import dataclasses
import json
import os
import queue
import select
import subprocess
import sys
import threading
import time
from pathlib import Path

from data_pipelines import manifest
from data_pipelines.corpora.gm.clip import Job, make_clip
from data_pipelines.corpora.gm.synth import SynthError, Synthesizer
from musiclm import errors

_START = (
    # The answers' channel is taken before any import: pyfluidsynth prints while it is imported
    # where $CI is set, and that must go to stderr.
    # Ctrl-C reaches all processes of a terminal: the parent ends this one, by closing its input.
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "import json, os, sys; answers = os.dup(1); os.dup2(2, 1); "
    "from data_pipelines.corpora.gm import worker; worker.serve(json.loads(sys.argv[1]), answers)"
)


class WorkerError(errors.UserError):
    """A worker died or overran its time twice on one clip, or refused it."""


def serve(spec: dict, answers_fd: int) -> None:
    """Answers indices from standard input until it ends.

    Args:
      spec: `job` (the fields of `clip.Job`), `soundfont` and `out`.
      answers_fd: file descriptor to answer on, one JSON object a line.
    """
    answers = os.fdopen(answers_fd, "w", encoding="utf-8", buffering=1)
    job = Job(**spec["job"])
    try:
        synthesizer = Synthesizer(spec["soundfont"], job.sample_rate)
    except SynthError as error:
        print(json.dumps({"error": str(error)}), file=answers)
        return
    for line in sys.stdin:
        try:
            clip = make_clip(job, int(line), synthesizer, Path(spec["out"]))
            answer = {"clip": manifest.dumps(clip)}
        except (SynthError, OSError) as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), file=answers)


class Worker:
    """The other end: one worker process, restarted when it dies or overruns."""

    def __init__(self, job: Job, soundfont: Path, out: Path, timeout: float):
        self._spec = json.dumps(
            {"job": dataclasses.asdict(job), "soundfont": str(soundfont), "out": str(out)}
        )
        self._timeout = timeout
        self._process = None

    def _start(self):
        root = str(Path(__file__).resolve().parents[3])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        # One thread each: the workers are the parallelism.
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, self._spec],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def make(self, index: int) -> manifest.Clip:
        """The record of clip `index`, whose WAV is then in place.

        Raises:
          WorkerError: two processes in a row died or overran, or the clip failed its checks.
        """
        for attempt in (1, 2):
            if self._process is None:
                self._start()
            answer = self._ask(index)
            if answer is not None:
                if "error" in answer:
                    raise WorkerError(answer["error"])
                return manifest.loads(answer["clip"])
            self.close()
            print(f"clip {index}: worker lost or late, attempt {attempt} of 2", file=sys.stderr)
        raise WorkerError(f"clip {index}: the renderer died or took over {self._timeout} s, twice")

    def _ask(self, index: int) -> dict | None:
        deadline = time.monotonic() + self._timeout
        answer = b""
        try:
            self._process.stdin.write(f"{index}\n".encode())
            self._process.stdin.flush()
            while not answer.endswith(b"\n"):
                left = deadline - time.monotonic()
                if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                    return None
                part = os.read(self._process.stdout.fileno(), 1 << 16)
                if not part:
                    return None
                answer += part
        except (BrokenPipeError, OSError):
            return None
        return json.loads(answer)

    def close(self):
        """Kills the process, wherever it is."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()


def make_all(workers: list[Worker], indices):
    """Yields the records of many clips as they are done, in any order.

    Raises:
      WorkerError: the first clip that cannot be made; the others are stopped.
    """
    todo, done = queue.SimpleQueue(), queue.SimpleQueue()
    indices = list(indices)
    for index in indices:
        todo.put(index)
    stopped = threading.Event()

    def run(worker: Worker):
        while not stopped.is_set():
            try:
                done.put(worker.make(todo.get_nowait()))
            except queue.Empty:
                return
            except Exception as error:  # handed to the caller's thread, which raises it
                done.put(error)
                return

    threads = [threading.Thread(target=run, args=(worker,), daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    try:
        for _ in indices:
            result = done.get()
            if isinstance(result, Exception):
                raise result
            yield result
    finally:
        stopped.set()
        for thread in threads:
            thread.join()  # each finishes the clip in hand, so no file is left half-written
        for worker in workers:
            worker.close()
