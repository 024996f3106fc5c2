"""What ends a run from outside: being asked to stop, and standing still."""

import faulthandler
import os
import signal
import sys
import threading
import time

from jax.experimental import multihost_utils

from musiclm import exit_codes, processes


class Preempted(Exception):
    """The run was asked to stop; the message says at which step it saved, or that it need not."""


class StopRequest:
    """Turns SIGTERM, sent to any process of the job, into a step at which all of them stop.

    Use it as a context manager around all that a run does, once the processes have joined. One
    that is entered within another knows if that one was asked before.
    """

    def __init__(self):
        # With several processes JAX's coordination service takes the signal, and has all agree on
        # a step. It takes it from a single one that joined as well, and there nobody asks it.
        self._alone = processes.count() == 1
        self._asked = False

    def __enter__(self) -> "StopRequest":
        if self._alone:
            self._before = signal.signal(signal.SIGTERM, self._ask)
            outer = getattr(self._before, "__self__", None)
            if isinstance(outer, StopRequest):
                self._asked |= outer._asked
        return self

    def __exit__(self, *_) -> None:
        if self._alone:
            signal.signal(signal.SIGTERM, self._before)

    def _ask(self, signum, frame) -> None:
        self._asked = True

    def reached(self, step: int) -> bool:
        """Whether to save and stop after this step: alike on all processes; ask at every step."""
        if self._alone:
            return self._asked
        return multihost_utils.reached_preemption_sync_point(step)

    def check_before_steps(self) -> None:
        """Ends a run that has taken no step yet; several processes agree at their first ones.

        Raises:
          Preempted: it was asked to stop.
        """
        if self._asked:
            raise Preempted("asked to stop before a step was taken, so there is nothing to save")


class Watchdog:
    """Ends the process when the run stands still, with the stacks of all threads on stderr.

    A collective waits for a frozen process for ever; nobody else can tell. Use as a context
    manager, and call `beat` with every step.
    """

    def __init__(self, stall_seconds: float):
        """Takes the longest time that may lie between two beats."""
        self._stall_seconds = stall_seconds
        self._left = threading.Event()

    def __enter__(self) -> "Watchdog":
        self.beat()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._left.set()

    def beat(self) -> None:
        """Says that the run goes on."""
        self._last = time.monotonic()

    def _watch(self) -> None:
        while not self._left.wait(min(1.0, self._stall_seconds / 4)):
            stood = time.monotonic() - self._last
            if stood > self._stall_seconds:
                print(
                    f"musiclm: the run has stood still for {stood:.0f} s (loop.train.stall_seconds "
                    f"is {self._stall_seconds:g}); all threads:",
                    file=sys.stderr,
                )
                faulthandler.dump_traceback(all_threads=True)
                sys.stderr.flush()
                os._exit(exit_codes.STALLED)
