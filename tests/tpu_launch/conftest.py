"""Jobs for every back end, and programs that stand in for those of clusters."""

import os
import pathlib
import stat
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def make_job():
    """A job on an accelerator, whose gin carries all that a shell could stumble over."""
    from tpu_launch import job as job_lib

    def make_job(
        accelerator: str, *, places: str = "gs://BUCKET", image="ghcr.io/OWNER/I:1", **row
    ):
        cluster = {"slices": 2, "queue": "queue", "name": "cluster", "zone": "us-west4-b"} | row
        return job_lib.Job(
            name="semantic",
            model=job_lib.Model(
                gin_files=("gin/run.gin",),
                gin_bindings=("""NOTE = "it's $HOME, `id` & \\\\ {x}";  x.y = (1, @z)""",),
            ),
            data={"TRAIN": f"{places}/tokens/train"},
            workdir=f"{places}/runs/semantic",
            cluster=job_lib.Cluster(accelerator=accelerator, **cluster),
            image=image,
            retries=2,
        )

    return make_job


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Puts programs first in the PATH: `programs(srun="bash …")`, of bash or of Python."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def programs(**texts: str) -> None:
        for name, text in texts.items():
            first = "#!/usr/bin/env bash" if text.startswith("#bash\n") else f"#!{sys.executable}"
            file = folder / name
            file.write_text(f"{first}\n{text}")
            file.chmod(file.stat().st_mode | stat.S_IXUSR)

    return programs
