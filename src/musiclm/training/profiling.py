"""Traces of some steps for XProf: those that the configuration names, or the next on a signal."""

import pathlib
import signal

import jax

_STEPS_A_SIGNAL = 10


class Profiler:
    """Writes traces to a folder: of a range of steps, and of the 10 steps after a SIGUSR1.

    Use as a context manager, and call `before` with every step.
    """

    def __init__(self, folder: pathlib.Path, steps: tuple[int, int] | None):
        """Takes where traces go, and the first step of the range and the one after its last."""
        self._folder, self._range = folder, steps
        self._tracing, self._asked = False, False

    def __enter__(self) -> "Profiler":
        self._before = signal.signal(signal.SIGUSR1, self._ask)
        return self

    def __exit__(self, *_) -> None:
        signal.signal(signal.SIGUSR1, self._before)
        if self._tracing:
            jax.profiler.stop_trace()

    def _ask(self, signum, frame) -> None:
        self._asked = True

    def before(self, step: int) -> None:
        """Starts or ends a trace before a step is run."""
        if self._asked:
            self._asked, self._range = False, (step, step + _STEPS_A_SIGNAL)
        if self._range is None:
            return
        first, end = self._range
        if not self._tracing and first <= step < end:
            jax.profiler.start_trace(str(self._folder))
            self._tracing = True
        elif self._tracing and step >= end:
            jax.profiler.stop_trace()
            self._tracing, self._range = False, None
