"""The kernels of a GPU that take the time of a step: JAX's own trace, read without TensorFlow.

XLA names a kernel after the instruction that it computes, with `_` for `.`; those of libraries
have names of their own. The compiled program's text says which line of the model an instruction
came from.
"""

import collections
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax

_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = .*?op_name=\"([^\"]*)\"", re.MULTILINE)


class Kernel(NamedTuple):
    """What all launches of one kernel cost together.

    Attributes:
      name: the kernel's.
      source: the model's operation, "" where it isn't known.
      seconds: a step.
      share: of all kernels' seconds.
      launches: a step.
    """

    name: str
    source: str
    seconds: float
    share: float
    launches: float


def costliest(step: Callable[[], object], program: str, *, steps: int = 3) -> list[Kernel]:
    """Traces a few steps: all kernels, the costliest first.

    Args:
      step: runs one and waits for it.
      program: its `compiled.as_text()`.
      steps: how many are traced.
    """
    options = jax.profiler.ProfileOptions()
    options.host_tracer_level, options.python_tracer_level = 1, 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            for _ in range(steps):
                step()
        (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
        trace = jax.profiler.ProfileData.from_file(str(path))
    return ranked(_launches(trace), _sources(program), steps)


def ranked(
    launches: Iterable[tuple[str, float]], sources: dict[str, str], steps: int
) -> list[Kernel]:
    """Sums launches (name, seconds) by name, the most seconds first."""
    spent = collections.defaultdict(list)
    for name, seconds in launches:
        spent[name].append(seconds)
    total = sum(map(sum, spent.values()))
    kernels = [
        Kernel(name, sources.get(name, ""), sum(each) / steps, sum(each) / total, len(each) / steps)
        for name, each in spent.items()
    ]
    return sorted(kernels, key=lambda kernel: -kernel.seconds)


def _launches(trace: jax.profiler.ProfileData) -> Iterable[tuple[str, float]]:
    # Lines of a device that are no streams repeat what the streams hold.
    for plane in trace.planes:
        if plane.name.startswith("/device:GPU"):
            for line in plane.lines:
                if line.name.startswith("Stream"):
                    for event in line.events:
                        yield event.name, event.duration_ns * 1e-9


def _sources(program: str) -> dict[str, str]:
    """The operation of every instruction, by the kernel's name."""
    return {
        re.sub(r"[.\-]", "_", name): source.removeprefix("jit(step)/")
        for name, source in _INSTRUCTION.findall(program)
    }
