"""SLURM with pyxis containers (https://github.com/NVIDIA/pyxis), for clusters of GPUs.

One task a GPU, as JAX's detection of SLURM has it. `srun` reports a signal rather than an exit
code, and ends the other tasks by signals when one has failed: hence each task notes its own code
in a file of the folder that the job was submitted from, and the first one decides.
"""

import pathlib
import re
import shlex

from musiclm import exit_codes
from tpu_launch import job as job_lib
from tpu_launch.backend import Backend, Place

_SCRIPT = """\
#!/usr/bin/env bash
#SBATCH --job-name={name}
#SBATCH --nodes={hosts}
#SBATCH --ntasks-per-node={gpus}
#SBATCH --gpus-per-node={gpus}
#SBATCH --exclusive
#SBATCH --output={name}-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@{grace}
{partition}set -uo pipefail
{exports}
codes="$SLURM_SUBMIT_DIR/{name}-$SLURM_JOB_ID.codes"
failures=0
while true; do
  : >"$codes"
  # SIGTERM reaches the whole task: its shell stays to note what becomes of the job.
  srun --kill-on-bad-exit=1 --container-image={image} \\
    --container-workdir={workdir} --container-mounts="$SLURM_SUBMIT_DIR"{mounts} \\
    bash -c 'trap : TERM; "${{@:2}}" || {{ code=$?; echo "$code" >>"$1"; exit "$code"; }}' \\
    task "$codes" {command}
  code=$?
  if [ -s "$codes" ]; then read -r code <"$codes"; fi
  case $code in
    {done} | {final})
      break
      ;;
    {free})  # asked to stop: the time limit is near, or others need the machines
      rm -f "$codes"
      exec scontrol requeue "$SLURM_JOB_ID"
      ;;
    *)
      failures=$((failures + 1))
      if [ "$failures" -gt {retries} ]; then break; fi
      ;;
  esac
  echo "tpu_launch: ended with $code, starting again" >&2
done
rm -f "$codes"
exit "$code"
"""


def _render(job: job_lib.Job) -> str:
    # The shared file systems that data and checkpoints lie on, whole: /shared of /shared/runs/x.
    places = (pathlib.PurePath(place) for place in (*job.data.values(), job.workdir))
    mounts = sorted({f"/{place.parts[1]}" for place in places})
    exports = [
        f"export {name}={shlex.quote(value)}" for name, value in job.cluster.environment.items()
    ]
    return _SCRIPT.format(
        name=job.name,
        hosts=job.cluster.hosts,
        gpus=job.cluster.slice.spec.chips_per_host,
        grace=job_lib.GRACE_SECONDS,
        partition=f"#SBATCH --partition={job.cluster.queue}\n" if job.cluster.queue else "",
        exports="\n".join(exports),
        # pyxis sets the registry apart by a #.
        image=shlex.quote(re.sub(r"^([^/]*[.:][^/]*)/", r"\1#", job.image)),
        workdir=job_lib.IMAGE_FOLDER,
        mounts="".join(f",{shlex.quote(mount)}" for mount in mounts),
        command=shlex.join(job.command),
        done=exit_codes.DONE,
        final=" | ".join(map(str, job_lib.FINAL)),
        free=" | ".join(map(str, job_lib.FREE)),
        retries=job.retries,
    )


BACKEND = Backend(
    summary="SLURM with pyxis containers (GPUs)",
    render=_render,
    submit=("sbatch",),
    kinds=frozenset({"gpu"}),
    needs=("image",),
    places=Place.ABSOLUTE_PATH,
)
