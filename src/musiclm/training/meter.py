"""Where a run's time goes: waiting for data, steps, checkpoints; and what comes of it."""

import collections
import contextlib
import time
from collections.abc import Iterator, Mapping

from musiclm import chips
from musiclm.training import program


class Meter:
    """Measures a run, restarts included.

    Goodput is the time of the steps that the state has behind it, over all the time since the run
    was first started: waiting for data, evaluating, saving, steps that a kill undid, and waiting
    for a machine and compiling again lower it. Of the time that is spent on a step's data none
    counts, though devices may be at work on the step before: goodput is not overstated.
    """

    def __init__(self, built: program.Program, *, started: float | None, productive_seconds: float):
        """Goes on from what a checkpoint recorded.

        Args:
          built: the program, whose rows, tokens and operations are counted.
          started: when the run was first started, in seconds since 1970; None is now.
          productive_seconds: of the steps behind the state.
        """
        batch, devices = built.batch, built.mesh.devices
        self._rows = next(iter(batch.values())).shape[0]
        self._tokens = batch["tokens"].size if "tokens" in batch else 0
        self._flops = built.training_flops()
        peak = chips.peak_flops(devices.flat[0].device_kind)
        self._peak = None if peak is None else peak * devices.size
        self._started = started or time.time()
        self._productive = productive_seconds
        self._spent = collections.Counter()
        self._since = time.perf_counter()

    @contextlib.contextmanager
    def measure(self, what: str) -> Iterator[None]:
        """Books the time within under "data_wait", "step" or "checkpoint"; steps are goodput."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self._spent[what] += spent
            if what == "step":
                self._productive += spent

    def facts(self) -> dict[str, float]:
        """What a checkpoint records: the constructor's arguments."""
        return {"started": self._started, "productive_seconds": self._productive}

    def rates(self, num_steps: int) -> Mapping[str, float]:
        """Figures of the last `num_steps` steps, those since the last call."""
        now = time.perf_counter()
        steps_per_second = num_steps / (now - self._since)
        rates = {
            "steps_per_second": steps_per_second,
            "rows_per_second": steps_per_second * self._rows,
            "data_wait_ms": 1_000 * self._spent["data_wait"] / num_steps,
            "step_ms": 1_000 * self._spent["step"] / num_steps,
            "checkpoint_ms": 1_000 * self._spent["checkpoint"] / num_steps,
            "goodput": self._productive / max(time.time() - self._started, 1e-9),
        }
        flops = steps_per_second * self._flops
        rates["model_tflops_per_second"] = flops / 1e12
        if self._peak is not None:
            rates["mfu"] = flops / self._peak
        if self._tokens:
            rates["tokens_per_second"] = steps_per_second * self._tokens
        self._since = now
        self._spent.clear()
        return rates
