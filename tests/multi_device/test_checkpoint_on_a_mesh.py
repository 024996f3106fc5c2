"""Checkpoints move between meshes and process counts, in processes of their own."""

import json
import os
import socket
import subprocess
import sys

import pytest

PROGRAM = """
import hashlib, json, os, re, sys
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec as P
from musiclm import checkpoint, sharding

directory, data, fsdp, processes, index, port, fails_on, save_at = json.loads(sys.argv[1])
if processes > 1:
    jax.distributed.initialize(f"localhost:{port}", processes, index)
mesh = sharding.MeshConfig(data=data, fsdp=fsdp).make()

def make():
    key = jax.random.key(0)
    return {
        "kernel": jax.random.normal(key, (64, 16)),
        "deep": {"kernel": jax.random.normal(key, (3, 8, 24)).astype(jnp.bfloat16)},
        "odd": {"kernel": jax.random.normal(key, (7, 5))},
        "scale": jnp.arange(9.0),
        "key": key,
    }

where = sharding.state_sharding(jax.eval_shape(make), mesh)
if fails_on == index:
    # As when one host's file system fails for a moment.
    read_arrays = checkpoint._read_arrays
    def fail_once(*arguments):
        checkpoint._read_arrays = read_arrays
        raise OSError("stale file handle")
    checkpoint._read_arrays = fail_once

with checkpoint.Checkpointer(directory, keep=3) as checkpoints:
    if checkpoints.latest_step is None:
        state = jax.jit(make, out_shardings=where)()
    else:
        state = checkpoints.restore(sharding.abstract(jax.eval_shape(make), where))
    restored = checkpoints.latest_step
    for step in save_at:
        checkpoints.save(step, state, facts={"seed": 0})

def digest(array):
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    whole = multihost_utils.process_allgather(array, tiled=True)
    return hashlib.sha256(np.asarray(whole).tobytes()).hexdigest()

arrays = checkpoint._by_path(state)
compiled = jax.jit(checkpoint._fingerprints).lower(arrays).compile().as_text()
moved = re.findall(r"= \\w+\\[([\\d,]*)\\]\\S* (?:all-|collective-)", compiled)
print(json.dumps({
    "restored": restored,
    "latest": checkpoints.latest_step,
    "facts": checkpoints.facts,
    "shards": len(state["kernel"].sharding.device_set),
    "fingerprints": checkpoint.fingerprints(arrays),
    "digests": {path: digest(array) for path, array in arrays.items()},
    "moved": max([int(np.prod([int(n) for n in shape.split(",") if n])) for shape in moved] or [0]),
}))
"""


def run(directory, devices, *, data=1, fsdp=1, processes=1, fails_on=None, save_at=()):
    """What each process of a job reports."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    per_process = devices // processes
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={per_process}"
    environment = os.environ | {"XLA_FLAGS": flags}
    jobs = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                PROGRAM,
                json.dumps([str(directory), data, fsdp, processes, index, port, fails_on, save_at]),
            ],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(processes)
    ]
    try:
        outputs = [job.communicate(timeout=200) for job in jobs]
    finally:
        for job in jobs:
            job.kill()
    for job, (_, errors) in zip(jobs, outputs, strict=True):
        assert job.returncode == 0, errors
    return [json.loads(out.splitlines()[-1]) for out, _ in outputs]


def same(a, b):
    return a["digests"] == b["digests"] and a["fingerprints"] == b["fingerprints"]


@pytest.mark.slow
def test_from_eight_devices_to_one_and_back(tmp_path):
    (eight,) = run(tmp_path, 8, data=2, fsdp=4, save_at=[1])
    # Nothing but partial sums moved between devices.
    assert 0 < eight["moved"] <= 2 * 8
    (one,) = run(tmp_path, 1, save_at=[2])
    (two,) = run(tmp_path, 2, fsdp=2, save_at=[3])
    (again,) = run(tmp_path, 8, data=2, fsdp=4)
    assert [r["restored"] for r in (eight, one, two, again)] == [None, 1, 2, 3]
    assert [r["shards"] for r in (eight, one, two, again)] == [8, 1, 2, 8]
    assert again["facts"] == {"seed": 0}
    assert all(same(eight, other) for other in (one, two, again))


@pytest.mark.slow
def test_from_two_processes_to_one_and_back(tmp_path):
    first = run(tmp_path, 4, data=2, fsdp=2, processes=2, save_at=[1])
    (alone,) = run(tmp_path, 4, fsdp=4, save_at=[2])
    again = run(tmp_path, 4, data=1, fsdp=4, processes=2)
    assert (alone["restored"], alone["latest"]) == (1, 2)
    assert [r["restored"] for r in again] == [2, 2]
    assert all(same(first[0], other) for other in (first[1], alone, *again))


@pytest.mark.slow
@pytest.mark.parametrize("fails_on", [0, 1])
def test_all_processes_skip_what_one_could_not_read(tmp_path, fails_on):
    run(tmp_path, 2, fsdp=2, save_at=[1, 2])
    reports = run(tmp_path, 2, fsdp=2, processes=2, fails_on=fails_on, save_at=[2])
    assert [(r["restored"], r["latest"]) for r in reports] == [(1, 2), (1, 2)]
    assert same(*reports)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2", "damaged-2"]
