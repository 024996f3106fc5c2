"""TPU queued resources: a script that asks for the slices, runs the job on them and watches it.

It runs where it is started, for as long as the job does: start it in tmux or on a small machine.
Asked to stop, it has the job save and gives the slices back. Where its machine was lost, it finds
the slices that it asked for when it is started again, and starts the job anew on them.
"""

import re
import shlex

from musiclm import exit_codes
from tpu_launch import job as job_lib
from tpu_launch.backend import Backend
from tpu_launch.errors import JobError

_SCRIPT = """\
#!/usr/bin/env bash
set -uo pipefail

# bash reads this script from its standard input: what ssh took of it would be lost.
tpus() {{ gcloud compute tpus queued-resources "$@" --zone={zone} </dev/null; }}
# The slices' state, empty where there are none; asks until gcloud knows.
state() {{
  local error
  until error=$(tpus describe {name} --format='value(state.state)' 2>&1 >&3); do
    case $error in *NOT_FOUND*) return ;; esac
    echo "tpu_launch: asking again in 30 s: $error" >&2
    sleep 30
  done
}} 3>&1
give_back() {{ tpus delete {name} --force --quiet; }}
leave() {{ until give_back || [ -z "$(state)" ]; do sleep 30; done; }}
on_all_hosts() {{ tpus ssh {name} --node=all --worker=all --batch-size=all --command="$1"; }}
stop() {{
  trap '' TERM INT
  on_all_hosts 'sudo docker stop -t {grace} musiclm'
  wait
  leave
  exit {preempted}
}}

trap stop TERM INT
hash gcloud || exit {missing}
failures=0
while true; do
  case $(state) in
    ACTIVE) ;;
    '')
      tpus create {name} {request} || exit
      continue
      ;;
    SUSPENDED | FAILED)  # taken away, or never given: ask again
      give_back
      sleep 30
      continue
      ;;
    *)
      sleep 30
      continue
      ;;
  esac

  # A container that an earlier attempt left behind still holds the chips; it may save first.
  on_all_hosts '(sudo docker stop -t {grace} musiclm; sudo docker rm -f musiclm) &>/dev/null; true'
  # Behind the shell, which hears signals while it waits.
  on_all_hosts {run} &
  wait "$!"
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
leave
exit "$code"
"""


def _render(job: job_lib.Job) -> str:
    accelerator, slices = job.cluster.slice, job.cluster.slices
    if not accelerator.spec.runtime:
        raise JobError(
            f"cluster.accelerator = {job.cluster.accelerator!r} comes through GKE only: "
            "choose another with --backend"
        )
    # A fresh TPU VM's docker knows nothing of its service account.
    registry = re.match(r"([a-z0-9-]+-docker\.pkg\.dev|([a-z]+\.)?gcr\.io)/", job.image)
    log_in = f"sudo gcloud auth configure-docker {registry[1]} --quiet && " if registry else ""
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
        run=shlex.quote(log_in + shlex.join(run)),
        grace=job_lib.GRACE_SECONDS,
        missing=exit_codes.CONFIGURATION,
        preempted=exit_codes.PREEMPTED,
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
