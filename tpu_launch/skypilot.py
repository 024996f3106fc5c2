"""SkyPilot's managed jobs: one slice of TPUs, or any number of machines with GPUs.

On TPU VMs JAX finds its peers by itself; machines with GPUs learn of them from SkyPilot.
"""

import shlex

import yaml

from tpu_launch import job as job_lib
from tpu_launch.backend import Backend
from tpu_launch.errors import JobError

_PEERS = """\
JAX_COORDINATOR_ADDRESS="$(head -n 1 <<<"$SKYPILOT_NODE_IPS"):8476"
export JAX_COORDINATOR_ADDRESS
export JAX_NUM_PROCESSES="$SKYPILOT_NUM_NODES"
export JAX_PROCESS_ID="$SKYPILOT_NODE_RANK"
"""


def _render(job: job_lib.Job) -> str:
    accelerator = job.cluster.slice
    gpus = accelerator.spec.kind == "gpu"
    if not gpus and not accelerator.spec.runtime:
        raise JobError(
            f"cluster.accelerator = {job.cluster.accelerator!r} comes through GKE only: "
            "choose another with --backend"
        )
    if not gpus and job.cluster.slices > 1:
        raise JobError(
            f"cluster.slices = {job.cluster.slices} is too many: SkyPilot starts one slice of "
            "TPUs, choose another with --backend"
        )
    resources = {
        "accelerators": accelerator.skypilot,
        "use_spot": job.cluster.spot,
        "image_id": f"docker:{job.image}",
        # A preempted machine is replaced for nothing as well.
        "job_recovery": {
            "max_restarts_on_errors": job.retries,
            "recover_on_exit_codes": list(job_lib.FREE),
        },
    }
    if job.cluster.zone:
        resources["infra"] = f"gcp/*/{job.cluster.zone}"
    if accelerator.spec.runtime:
        resources["accelerator_args"] = {"runtime_version": accelerator.spec.runtime}
    task = {
        "name": job.name,
        "num_nodes": job.cluster.slices,
        "resources": resources,
        "file_mounts": {
            folder: {"source": bucket, "mode": "MOUNT"} for bucket, folder in job.buckets.items()
        },
        "envs": job.cluster.environment,
        "run": (_PEERS if gpus else "")
        + f"cd {job_lib.IMAGE_FOLDER}\nexec {shlex.join(job.command)}\n",
    }
    return yaml.safe_dump(task, sort_keys=False, width=100)


BACKEND = Backend(
    summary="SkyPilot's managed jobs (a slice of TPUs, machines with GPUs)",
    render=_render,
    submit=("sky", "jobs", "launch", "--yes", "--detach-run", "/dev/stdin"),
    kinds=frozenset({"tpu", "gpu"}),
    needs=("image",),
)
