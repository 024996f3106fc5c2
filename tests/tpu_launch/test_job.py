"""A job's description says what is wrong with it, on one line, before any cluster is asked."""

import argparse
import ast
import itertools
import pathlib
import subprocess

import pytest
import yaml

from tpu_launch import job as job_lib
from tpu_launch import jobset
from tpu_launch.errors import JobError

EXAMPLES = sorted((pathlib.Path(job_lib.__file__).parent / "examples").glob("*.yaml"))
GOOD = {
    "name": "semantic",
    "model": {"gin_files": ["a.gin", "b.gin"], "gin_bindings": ["NUM_STEPS = 7"]},
    "data": {"TRAIN": 'gs://b/"t"'},
    "workdir": "gs://b/w",
    "cluster": {"accelerator": "v5e-256", "slices": 2, "spot": True, "queue": "q"},
    "image": "image",
    "retries": 3,
}


def _load(tmp_path, tree):
    path = tmp_path / "job.yaml"
    path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree))
    return job_lib.load(path)


def test_what_is_written_is_loaded(tmp_path):
    job = _load(tmp_path, GOOD)
    assert (job.name, job.retries, job.cluster.spot) == ("semantic", 3, True)
    assert job.model.gin_files == ("a.gin", "b.gin")
    assert job.cluster.hosts == 2 * 64


def test_places_become_gin_strings_and_bindings_come_last(tmp_path):
    command = _load(tmp_path, GOOD).command
    assert command[:6] == ["musiclm", "train", "--gin_file", "a.gin", "--gin_file", "b.gin"]
    assert command[-1] == "--distributed"
    bindings = [b for a, b in itertools.pairwise(command) if a == "--gin_bindings"]
    values = {name: ast.literal_eval(v) for name, v in (line.split("=", 1) for line in bindings)}
    assert values == {"TRAIN": '/mnt/gs/b/"t"', "WORKDIR": "/mnt/gs/b/w", "NUM_STEPS ": 7}
    assert bindings[-1] == "NUM_STEPS = 7"  # it overrides the others


def test_buckets_are_found_by_either_name(tmp_path):
    data = GOOD["data"] | {"X": "/data/mnt/gs/e/t"}
    job = _load(tmp_path, GOOD | {"data": data, "workdir": "/mnt/gs/c/w"})
    assert job.buckets == {f"gs://{name}": f"/mnt/gs/{name}" for name in "bc"}
    assert 'WORKDIR="/mnt/gs/c/w"' in job.command
    job = _load(tmp_path, GOOD | {"workdir": "/mnt/gs/c/w"})
    assert "/mnt/gs/c/w" in jobset.BACKEND(job)


def test_buckets_are_mounted_before_the_command_takes_the_shells_place(
    tmp_path, programs, monkeypatch
):
    monkeypatch.setattr(job_lib, "MOUNTS", str(tmp_path / "mnt"))
    programs(gcsfuse='#bash\necho gcsfuse "${@: -2}"; [ -d "${@: -1}" ]', musiclm="#bash\necho $$")
    tree = GOOD | {"data": {"TRAIN": "gs://b/t", "VALIDATION": "gs://c/v"}}
    job = _load(tmp_path, tree)
    with subprocess.Popen(job.mounting_command, stdout=subprocess.PIPE, text=True) as process:
        told = process.communicate(timeout=60)[0].splitlines()
    mounts = [f"gcsfuse {name} {tmp_path}/mnt/{name}" for name in ("b", "c")]
    assert told == [*mounts, str(process.pid)]  # signals reach it
    programs(gcsfuse="#bash\nexit 3")
    done = subprocess.run(job.mounting_command, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (3, b"")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_load_and_name_runs_that_can_be_made(path):
    """With the files and bindings of their own command."""
    from musiclm.bin import configuration
    from musiclm.training import loop

    parser = argparse.ArgumentParser()
    configuration.add_arguments(parser)
    _, _, *arguments, _ = job_lib.load(path).command
    args = parser.parse_args(arguments)
    configuration.parse([str(path.parents[2] / file) for file in args.gin_file], args.gin_bindings)
    run = configuration.resolve_some(loop.train, ("task", "mesh", "batch_size"))
    assert {"task", "batch_size"} <= set(run)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"retrys": 3}, ["retrys = 3", "did you mean retries?"]),
        ({"zzz": 3}, ["zzz = 3", "name, model"]),
        ({"cluster": {"accelerator": "v5e-256", "slice": 2}}, ["cluster.slice", "slices?"]),
        ({"cluster": {"slices": 2}}, ["cluster.accelerator is missing"]),
        ({"cluster": {"accelerator": "v5e-255"}}, ["v5e-255", "v5e-256"]),
        ({"cluster": {"accelerator": "v5e"}}, ["'v5e' has no size"]),
        ({"cluster": {"accelerator": "a100-8"}}, ["a100-8", "h100"]),
        ({"cluster": {"accelerator": "cpu-0"}}, ["cpu-0"]),
        ({"cluster": {"accelerator": "v5e-16", "slices": 0}}, ["cluster.slices = 0"]),
        ({"cluster": "v5e-16"}, ["cluster = 'v5e-16'", "mapping"]),
        ({"retries": True}, ["retries = True", "bool", "whole number"]),
        ({"retries": "3"}, ["retries = '3'", "str", "whole number"]),
        ({"retries": -1}, ["retries = -1"]),
        ({"name": 7}, ["name = 7", "string"]),
        ({"name": "Semantic_1"}, ["Semantic_1", "lower-case"]),
        ({"workdir": ""}, ["workdir = ''"]),
        ({"data": ["x"]}, ["data = ['x']", "mapping"]),
        ({"data": {"TRAIN": 1}}, ["data.TRAIN = 1", "string"]),
        ({"data": {"a.b": "x"}}, ["'a.b'", "macro"]),
        ({"model": {"gin_files": "a.gin"}}, ["model.gin_files = 'a.gin'", "list"]),
        ({"model": {"gin_files": []}}, ["model.gin_files = []"]),
        ({"model": {"gin_files": [1]}}, ["model.gin_files[0] = 1"]),
        ({"model": {"gin_files": ["a"], "gin_bindings": ["x"]}}, ["'x'", "NAME = VALUE"]),
    ],
)
def test_mistakes_are_told_with_field_value_and_mend(tmp_path, change, words):
    with pytest.raises(JobError) as error:
        _load(tmp_path, GOOD | change)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: [", "can't be read"),
        ("a: *b", "can't be read"),
        ("- 1", "the job = .1. is no mapping"),
        ("", "the job = None is no mapping"),
    ],
)
def test_what_is_no_mapping_is_refused(tmp_path, text, told):
    with pytest.raises(JobError, match=told):
        _load(tmp_path, text)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(JobError, match=r"none\.yaml"):
        job_lib.load(tmp_path / "none.yaml")
