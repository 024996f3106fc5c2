"""Flash attention with rows and heads over four devices, against the same on one."""

import os
import subprocess
import sys

import numpy as np
import pytest

PROGRAM = """
import functools, sys
import jax, jax.numpy as jnp, numpy as np
from musiclm import sharding
from musiclm.nn import attention, flash_attention

flash_attention.attend = functools.partial(flash_attention.attend, interpret=True)
jax.default_backend = lambda: "gpu"
rng = np.random.default_rng(0)
vectors = [rng.normal(size=(4, 2, 128, 8)).astype(np.float32) for _ in range(3)]
table = rng.normal(size=(8, 2)).astype(np.float32)
buckets = attention.relative_buckets(128, 8, 40)

def loss(query, key, value, table):
    bias_HS = table[buckets].T
    return jnp.sum(jnp.sin(attention.fused_attention(query, key, value, bias_HS, 40)))

value_and_gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3)))
found = {}
for name, mesh in {"one": {}, "four": {"data": 2, "tensor": 2}}.items():
    config = sharding.MeshConfig(**mesh)
    devices = jax.devices()[: 1 if name == "one" else 4]
    with jax.sharding.set_mesh(config.make(devices)):
        value, gradients = value_and_gradients(*vectors, table)
    found |= {f"{name} {i}": np.asarray(x) for i, x in enumerate((value, *gradients))}
np.savez(sys.argv[1], **found)
"""


@pytest.mark.slow
def test_four_devices_equal_one(tmp_path):
    out = tmp_path / "found.npz"
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=4"
    environment = os.environ | {"XLA_FLAGS": flags}
    command = [sys.executable, "-c", PROGRAM, str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert not done.returncode, done.stderr
    found = np.load(out)
    for i in range(5):
        assert found[f"four {i}"] == pytest.approx(found[f"one {i}"], rel=1e-5, abs=1e-5)
