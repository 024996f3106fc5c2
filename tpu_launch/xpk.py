"""xpk, which makes a JobSet of its own on clusters that it made: the command as a script."""

import shlex

from musiclm import exit_codes
from tpu_launch import job as job_lib
from tpu_launch.backend import Backend


def _render(job: job_lib.Job) -> str:
    cluster = job.cluster
    options = {
        "workload": job.name,
        "cluster": cluster.name,
        "zone": cluster.zone,
        "tpu-type": cluster.slice.cloud_tpu,
        "num-slices": str(cluster.slices),
        "docker-image": job.image,
        "max-restarts": str(job.retries),
        # xpk starts again on 42 and on signals by itself, and never on a code that is not named.
        "restart-on-exit-codes": f"{exit_codes.FAULT},{exit_codes.STALLED}",
        "termination-grace-period-seconds": str(job_lib.GRACE_SECONDS),
        # xpk's shell hands SIGTERM to the job only if the job takes the place of its subshell.
        "command": f"exec {shlex.join(job.mounting_command)}",
    }
    arguments = [f"--{name}={value}" for name, value in options.items()]
    # One container a host, not two: each process holds all chips of its host.
    arguments.append("--no-use-parallel-containers")
    arguments += [f"--env={name}={value}" for name, value in cluster.environment.items()]
    lines = ["exec xpk workload create", *(f"  {shlex.quote(word)}" for word in arguments)]
    return "#!/usr/bin/env bash\n" + " \\\n".join(lines) + "\n"


BACKEND = Backend(
    summary="xpk on GKE (TPUs)",
    render=_render,
    submit=("bash", "-s"),
    kinds=frozenset({"tpu"}),
    needs=("image", "cluster.name", "cluster.zone"),
)
