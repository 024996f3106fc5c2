"""The manifest is what JobSet's own schema allows, and its rules read Kubernetes' messages."""

import gzip
import json
import pathlib
import re

import jsonschema
import pytest
import yaml

from musiclm import exit_codes
from tpu_launch import jobset
from tpu_launch.errors import JobError

# The schema of JobSet's custom resource; the file names its origin.
SCHEMA = json.loads(
    gzip.decompress((pathlib.Path(__file__).parent / "jobset-v0.12.0.json.gz").read_bytes())
)["schema"]


def _strict(schema):
    """The same with unknown fields forbidden everywhere, as `kubectl --validate=strict` has it."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: _strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        schema.setdefault("additionalProperties", False)
    return schema


VALIDATOR = jsonschema.Draft202012Validator(_strict(SCHEMA))
# Kubernetes knows the metadata itself; its schema leaves them open.
METADATA = {"name", "labels", "annotations"}


def _manifest(job):
    return yaml.safe_load(jobset.BACKEND(job))


@pytest.mark.parametrize("accelerator", ["v4-64", "v5e-256", "v5p-128", "v6e-64", "tpu7x-128"])
@pytest.mark.parametrize("spot", [True, False])
def test_the_manifest_fits_the_strict_schema(make_job, accelerator, spot):
    manifest = _manifest(make_job(accelerator, spot=spot))
    VALIDATOR.validate(manifest)
    assert set(manifest["metadata"]) <= METADATA


@pytest.mark.parametrize(
    "path",
    [
        ("spec", "failurePolicy"),
        ("spec", "replicatedJobs", 0, "template", "spec"),
        ("spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "containers", 0),
    ],
)
def test_the_schema_sees_a_misspelt_field(make_job, path):
    manifest = part = _manifest(make_job("v5e-256"))
    for step in path:
        part = part[step]
    part["misspelt"] = 1
    with pytest.raises(jsonschema.ValidationError, match="misspelt"):
        VALIDATOR.validate(manifest)


def test_every_slice_gets_its_hosts_chips_and_place(make_job):
    job = make_job("v5p-128", slices=3, spot=True)
    manifest = _manifest(job)
    assert manifest["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "queue"
    assert "alpha.jobset.sigs.k8s.io/exclusive-topology" in manifest["metadata"]["annotations"]
    (replicated,) = manifest["spec"]["replicatedJobs"]
    template = replicated["template"]["spec"]
    assert (replicated["replicas"], template["parallelism"], template["completions"]) == (3, 16, 16)
    pod = template["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] >= 300
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "4x4x4",
        "cloud.google.com/gke-spot": "true",
    }
    (container,) = pod["containers"]
    assert container["command"] == job.mounting_command
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    pools = "3, each with --num-nodes=16 --machine-type=ct5p-hightpu-4t --tpu-topology=4x4x4\n"
    assert jobset.BACKEND(job).startswith(f"# Node pools that it needs: {pools}")


def _message(rules, code, disrupted):
    """What Kubernetes says of a Job with a failed Pod: the first rule that fits decides.

    As pkg/controller/job/pod_failure_policy.go words it.
    """
    pod = "ns/semantic-slice-0-3-x7kqz"
    for index, rule in enumerate(rules):
        end = f"matching {rule['action']} rule at index {index}"
        if "onExitCodes" in rule and code not in rule["onExitCodes"]["values"]:
            return f"Container train for pod {pod} failed with exit code {code} {end}"
        if "onPodConditions" in rule and disrupted:
            return f"Pod {pod} has condition {rule['onPodConditions'][0]['type']} {end}"
    raise AssertionError("no rule fits")


@pytest.mark.parametrize(
    ("code", "disrupted", "action"),
    [
        (exit_codes.CONFIGURATION, False, "FailJobSet"),
        (exit_codes.UNHEALTHY, False, "FailJobSet"),
        (exit_codes.PREEMPTED, False, "RestartJobSetAndIgnoreMaxRestarts"),
        # The machine was taken away: whether there was time to save, or to end at all.
        (exit_codes.PREEMPTED, True, "RestartJobSetAndIgnoreMaxRestarts"),
        (137, True, "RestartJobSetAndIgnoreMaxRestarts"),
        # No rule: JobSet starts again and counts.
        (exit_codes.STALLED, False, None),
        (exit_codes.FAULT, False, None),
        (142, False, None),
        (137, False, None),
    ],
)
def test_exit_codes_decide(make_job, code, disrupted, action):
    spec = _manifest(make_job("v5e-16"))["spec"]
    (replicated,) = spec["replicatedJobs"]
    rules = replicated["template"]["spec"]["podFailurePolicy"]["rules"]
    message = _message(rules, code, disrupted)
    policy = spec["failurePolicy"]
    assert policy["maxRestarts"] == 2
    actions = [
        rule["action"]
        for rule in policy["rules"]
        if any(re.search(pattern, message) for pattern in rule["onJobFailureMessagePatterns"])
    ]
    assert actions == ([action] if action else [])


def test_any_failure_reaches_the_rules(make_job):
    (replicated,) = _manifest(make_job("v5e-16"))["spec"]["replicatedJobs"]
    template = replicated["template"]["spec"]
    pod = template["template"]["spec"]
    disruption, exits = template["podFailurePolicy"]["rules"]
    assert exits["onExitCodes"] == {
        "containerName": pod["containers"][0]["name"],
        "operator": "NotIn",
        "values": [exit_codes.DONE],
    }
    assert disruption["onPodConditions"][0]["type"] == "DisruptionTarget"
    assert (template["backoffLimit"], pod["restartPolicy"]) == (0, "Never")


def test_what_gke_can_not_run_is_refused(make_job):
    with pytest.raises(JobError, match="gpu"):
        jobset.BACKEND(make_job("h100-8"))
    with pytest.raises(JobError, match=r"cluster\.queue is missing"):
        jobset.BACKEND(make_job("v5e-16", queue=""))
    with pytest.raises(JobError, match="give a bucket's gs://NAME"):
        jobset.BACKEND(make_job("v5e-16", places="/shared"))
