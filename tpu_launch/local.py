"""This machine: one process a slice, each with CPU devices, under the supervisor."""

import pathlib
import shlex
import sys

from tpu_launch import job as job_lib
from tpu_launch.backend import Backend, Place


def _render(job: job_lib.Job) -> str:
    supervise = [sys.executable, "-m", "tpu_launch", "supervise"]
    supervise += [
        f"--processes={job.cluster.slices}",
        f"--devices={job.cluster.slice.size}",
        f"--retries={job.retries}",
        f"--logs={pathlib.Path(job.workdir, 'logs')}",
        "--",
        *job.command,
    ]
    return f"#!/usr/bin/env bash\nexec {shlex.join(supervise)}\n"


BACKEND = Backend(
    summary="processes on this machine (CPU devices)",
    render=_render,
    submit=("bash", "-s"),
    kinds=frozenset({"cpu"}),
    places=Place.PATH,
)
