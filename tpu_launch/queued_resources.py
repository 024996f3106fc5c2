"""TPU queued resources: a script that asks for the slices, runs the job on them and watches it.

It runs where it is started, for as long as the job does: start it in tmux or on a small machine.
Killed and started again, it finds the slices that it asked for and starts the job anew on them.
"""

import shlex

from musiclm import exit_codes
from tpu_launch import job as job_lib
from tpu_launch.backend import Backend
from tpu_launch.errors import JobError

_SCRIPT = """\
#!/usr/bin/env bash
set -uo pipefail

tpus() {{ gcloud compute tpus queued-resources "$@" --zone={zone}; }}
state() {{ tpus describe {name} --format='value(state.state)' 2>/dev/null; }}
give_back() {{ tpus delete {name} --force --quiet; }}
on_all_hosts() {{ tpus ssh {name} --node=all --worker=all --command="$1"; }}

failures=0
while true; do
  case $(state) in
    ACTIVE) ;;
    '')
      tpus create {name} {request} || exit
      continue
      ;;
    SUSPENDED | FAILED)  # taken away, or never given: ask again
      give_back || exit
      sleep 30
      continue
      ;;
    *)
      sleep 30
      continue
      ;;
  esac

  # A container that an earlier attempt left behind still holds the chips.
  on_all_hosts 'sudo docker rm --force musiclm >/dev/null 2>&1; true'
  on_all_hosts {run}
  code=$?
  case $code in
    {done} | {final})
      break
      ;;
    {free}) ;;
    *)
      # A slice that was taken away is no fault of the job.
      if [ "$(state)" = ACTIVE ]; then failures=$((failures + 1)); fi
      if [ "$failures" -gt {retries} ]; then break; fi
      ;;
  esac
  echo "tpu_launch: ended with $code, starting again" >&2
done
give_back
exit "$code"
"""


def _render(job: job_lib.Job) -> str:
    accelerator, slices = job.cluster.slice, job.cluster.slices
    if not accelerator.spec.runtime:
        raise JobError(
            f"cluster.accelerator = {job.cluster.accelerator!r} comes through GKE only: "
            "choose another with --backend"
        )
    request = [
        f"--accelerator-type={accelerator.cloud_tpu}",
        f"--runtime-version={accelerator.spec.runtime}",
        f"--node-count={slices}" if slices > 1 else f"--node-id={job.name}",
        *(["--spot"] if job.cluster.spot else []),
    ]
    run = ["sudo", "docker", "run", "--rm", "--name=musiclm", "--privileged", "--net=host"]
    run += [f"--env={name}={value}" for name, value in job.cluster.environment.items()]
    run += [job.image, *job.mounting_command]
    return _SCRIPT.format(
        name=job.name,
        zone=shlex.quote(job.cluster.zone),
        request=shlex.join(request),
        run=shlex.quote(shlex.join(run)),
        done=exit_codes.DONE,
        final=" | ".join(map(str, job_lib.FINAL)),
        free=" | ".join(map(str, job_lib.FREE)),
        retries=job.retries,
    )


BACKEND = Backend(
    summary="TPU queued resources, by gcloud",
    render=_render,
    submit=("bash", "-s"),
    kinds=frozenset({"tpu"}),
    needs=("image", "cluster.zone"),
)
