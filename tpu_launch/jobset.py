"""JobSet and Kueue on GKE: https://jobset.sigs.k8s.io. Needs JobSet 0.10 or newer.

One Job a slice, one Pod a host. GKE tells the processes of their slice and their place in it; JAX
reads that. When any Pod fails, its Job fails; the JobSet's rules then look at the exit code, which
the Job's message names, and start all slices again or none.
"""

from collections.abc import Sequence
from typing import Any

import yaml

from musiclm import exit_codes
from tpu_launch import job as job_lib
from tpu_launch.backend import Backend

_CONTAINER = "train"


def _render(job: job_lib.Job) -> str:
    slices, one = job.cluster.slices, job.cluster.slice
    pools = (
        f"# Node pools that it needs: {slices}, each with --num-nodes={one.hosts} "
        f"--machine-type={one.spec.machine} --tpu-topology={one.topology}\n"
    )
    return pools + yaml.safe_dump(_manifest(job), sort_keys=False, width=100)


def _manifest(job: job_lib.Job) -> dict[str, Any]:
    labels = {"kueue.x-k8s.io/queue-name": job.cluster.queue}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": job.name,
            "labels": labels,
            # One slice, one node pool: hosts of two slices never mix.
            "annotations": {
                "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
            },
        },
        "spec": {
            "failurePolicy": {
                "maxRestarts": job.retries,
                # The old Pods hold the chips until they are gone.
                "restartStrategy": "BlockingRecreate",
                "rules": [
                    _rule("final", "FailJobSet", _exited(job_lib.FINAL)),
                    _rule("free", "RestartJobSetAndIgnoreMaxRestarts", _exited(job_lib.FREE)),
                    # The machine was taken away.
                    _rule(
                        "disrupted",
                        "RestartJobSetAndIgnoreMaxRestarts",
                        "has condition DisruptionTarget ",
                    ),
                ],
            },
            "replicatedJobs": [
                {
                    "name": "slice",
                    "replicas": job.cluster.slices,
                    "template": {"spec": _slice(job)},
                }
            ],
        },
    }


def _exited(codes: Sequence[int]) -> str:
    """A pattern of Kubernetes' message on a Job that its Pod failure policy has failed."""
    return f"failed with exit code ({'|'.join(map(str, codes))}) "


def _rule(name: str, action: str, pattern: str) -> dict[str, Any]:
    return {
        "name": name,
        "action": action,
        "onJobFailureReasons": ["PodFailurePolicy"],
        "onJobFailureMessagePatterns": [pattern],
    }


def _slice(job: job_lib.Job) -> dict[str, Any]:
    hosts = job.cluster.slice.hosts
    return {
        "parallelism": hosts,
        "completions": hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        # Any failure fails the Job at once, in words that the JobSet's rules can read. The first
        # rule that fits speaks: a Pod whose machine is taken away has an exit code as well.
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                },
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": _CONTAINER,
                        "operator": "NotIn",
                        "values": [exit_codes.DONE],
                    },
                },
            ]
        },
        "template": {"spec": _pod(job)},
    }


def _pod(job: job_lib.Job) -> dict[str, Any]:
    accelerator = job.cluster.slice
    selector = {
        "cloud.google.com/gke-tpu-accelerator": accelerator.spec.gke,
        "cloud.google.com/gke-tpu-topology": accelerator.topology,
    }
    tolerations = [{"key": "google.com/tpu", "operator": "Exists", "effect": "NoSchedule"}]
    if job.cluster.spot:
        selector["cloud.google.com/gke-spot"] = "true"
        tolerations.append(
            {
                "key": "cloud.google.com/gke-spot",
                "operator": "Equal",
                "value": "true",
                "effect": "NoSchedule",
            }
        )
    chips = {"google.com/tpu": accelerator.spec.chips_per_host}
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": job_lib.GRACE_SECONDS,
        # The slices talk over the hosts' own network cards.
        "hostNetwork": True,
        "dnsPolicy": "ClusterFirstWithHostNet",
        "nodeSelector": selector,
        "tolerations": tolerations,
        "containers": [
            {
                "name": _CONTAINER,
                "image": job.image,
                "command": job.mounting_command,
                "env": [
                    {"name": name, "value": value}
                    for name, value in job.cluster.environment.items()
                ],
                "securityContext": {"privileged": True},  # for chips and buckets
                "resources": {"limits": chips},
            }
        ],
    }


BACKEND = Backend(
    summary="JobSet and Kueue on GKE (TPUs)",
    render=_render,
    submit=("kubectl", "create", "--filename", "-"),
    kinds=frozenset({"tpu"}),
    needs=("image", "cluster.queue"),
)
