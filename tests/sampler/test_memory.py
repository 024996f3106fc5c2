"""A stage that finds too little memory says so, also where its program fails after its call."""

import os
import subprocess
import sys

import pytest

# In a process of its own: the limit stays, and what waits for ever can only be killed.
PROGRAM = """
import pathlib, resource, sys
import jax
import numpy as np
from musiclm import api
from musiclm.sampler.logits import Sampling

bundle, call = sys.argv[1:]
stage = api.MusicLM.from_pretrained(bundle)._chain.semantic
used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))
rows = 400_000
try:
    if call == "compile":
        stage.compile(rows, 0, False, False)
    else:
        (mulan,) = stage.layout.prefix
        condition = {"mulan": np.zeros((rows, mulan.num_levels), np.int32)}
        keys = jax.random.split(jax.random.key(0), rows)
        stage.generate(condition, keys, [Sampling()] * rows)
except jax.errors.JaxRuntimeError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
@pytest.mark.parametrize("call", ["compile", "generate"])
def test_full_memory_is_raised_and_not_waited_for(tiny_bundle, call):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tiny_bundle), call],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.stdout.startswith("RESOURCE_EXHAUSTED"), done.stderr
