"""SkyPilot's task: what its documentation asks for, and its own parser where it is installed."""

import os
import subprocess

import pytest
import yaml

from musiclm import exit_codes
from tpu_launch import skypilot
from tpu_launch.errors import JobError


def _task(job):
    return yaml.safe_load(skypilot.BACKEND(job))


def test_machines_with_gpus_learn_of_each_other(make_job, programs, tmp_path):
    task = _task(make_job("h100-8", slices=4, spot=True, zone=""))
    assert task["num_nodes"] == 4
    assert task["resources"] == {
        "accelerators": "H100:8",
        "use_spot": True,
        "image_id": "docker:ghcr.io/OWNER/I:1",
        "job_recovery": {
            "max_restarts_on_errors": 2,
            "recover_on_exit_codes": [exit_codes.PREEMPTED],
        },
    }
    assert task["file_mounts"] == {"/mnt/gs/BUCKET": {"source": "gs://BUCKET", "mode": "MOUNT"}}
    programs(musiclm="#bash\nenv | grep ^JAX_ | sort")
    done = subprocess.run(
        ["bash", "-c", task["run"].replace("/opt/musiclm", str(tmp_path))],
        env={name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
        | {
            "SKYPILOT_NODE_IPS": "10.0.0.7\n10.0.0.8",
            "SKYPILOT_NUM_NODES": "2",
            "SKYPILOT_NODE_RANK": "1",
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.split() == [
        "JAX_COORDINATOR_ADDRESS=10.0.0.7:8476",
        "JAX_NUM_PROCESSES=2",
        "JAX_PROCESS_ID=1",
    ]


def test_one_slice_of_tpus(make_job):
    task = _task(make_job("v5e-16", slices=1))
    assert task["num_nodes"] == 1
    assert task["resources"]["accelerators"] == "tpu-v5litepod-16"
    assert task["resources"]["accelerator_args"] == {"runtime_version": "v2-alpha-tpuv5-lite"}
    assert task["resources"]["infra"] == "gcp/*/us-west4-b"
    assert "JAX_" not in task["run"]  # JAX asks the TPU VM itself
    with pytest.raises(JobError, match=r"cluster\.slices = 2"):
        skypilot.BACKEND(make_job("v5e-16", slices=2))
    with pytest.raises(JobError, match="GKE only"):
        skypilot.BACKEND(make_job("tpu7x-128", slices=1))


@pytest.mark.parametrize(
    ("accelerator", "slices"), [("h100-8", 4), ("h200-8", 1), ("v5e-16", 1), ("v5p-128", 1)]
)
def test_skypilot_itself_takes_the_task(make_job, tmp_path, accelerator, slices):
    """Skipped where SkyPilot is not installed. It needs no cloud, but an environment of its own:

    pip install skypilot pytest
    PYTHONPATH=src:. python -m pytest --confcutdir=tests/tpu_launch tests/tpu_launch -k itself
    """
    sky = pytest.importorskip("sky")
    path = tmp_path / "task.yaml"
    path.write_text(skypilot.BACKEND(make_job(accelerator, slices=slices, spot=True)))
    task = sky.Task.from_yaml(str(path))
    assert task.num_nodes == slices
    (resources,) = task.resources
    assert resources.use_spot
    assert resources.job_recovery["recover_on_exit_codes"] == [exit_codes.PREEMPTED]
    assert task.run == yaml.safe_load(path.read_text())["run"]
