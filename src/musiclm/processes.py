"""The processes of a job on many hosts: joining them, and waiting for one another.

Waiting has a bound everywhere: a process that is gone must end the job, not hold it.
"""

import atexit
import contextlib
import os
import sys
from collections.abc import Iterator
from typing import NoReturn

import jax
from jax._src import distributed  # JAX has no public barrier that does without the devices

from musiclm import errors, exit_codes

_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def join(*, agree_to_stop: bool = True, timeout_seconds: int = 300) -> None:
    """Joins the job's other processes; before anything else touches JAX's devices.

    Who they are comes from the environment (JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES,
    JAX_PROCESS_ID) or, without it, from the cluster: SLURM, GKE, Cloud TPU.

    Args:
      agree_to_stop: whether JAX takes SIGTERM, and has all agree on a step at which they stop, as
        training asks it at every step. Else the signal stays the program's.
      timeout_seconds: how long to wait for all of them.

    Raises:
      UserError: some of the variables are set, but not all, or to what can't be; or none is set,
        and there is no such cluster.
    """
    jax.config.update("jax_enable_preemption_service", agree_to_stop)
    given = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    if not given:
        try:
            jax.distributed.initialize(initialization_timeout=timeout_seconds)
        except ValueError as error:
            raise errors.UserError(
                f"nothing tells of the job's processes ({error}): set {', '.join(_VARIABLES)}, or "
                "leave --distributed out"
            ) from error
        return
    try:
        if missing := [name for name in _VARIABLES if name not in given]:
            raise ValueError(f"{missing[0]} is not set")
        address, count, index = (given[name] for name in _VARIABLES)
        count, index = int(count), int(index)
        if not 0 <= index < count or not address.rpartition(":")[2].isdecimal():
            raise ValueError("no such process or address can be")
    except ValueError as error:
        raise errors.UserError(
            f"{', '.join(f'{name}={value}' for name, value in given.items())}, and {error}: set "
            f"{', '.join(_VARIABLES)}, such as to 10.0.0.1:1234, 2 and 0, or none"
        ) from None
    jax.distributed.initialize(address, count, index, initialization_timeout=timeout_seconds)


def barrier(name: str, timeout_seconds: float) -> None:
    """Waits until every process of the job is here.

    It goes through the coordination service and needs no collective: those of the CPU give up
    after half a minute, which a process that still compiles can take.

    Args:
      name: of the place in the program, once a run.
      timeout_seconds: after which it fails.

    Raises:
      RuntimeError: not all came in time.
    """
    client = distributed.global_state.client
    if client is not None:
        client.wait_at_barrier(name, timeout_in_ms=int(1_000 * timeout_seconds))


@contextlib.contextmanager
def failing_alone(mistake: int) -> Iterator[None]:
    """Has a process that an error ends within end without the others, see `fail_alone`.

    Args:
      mistake: the exit code of a `UserError`; others have theirs, see `exit_codes`.
    """
    try:
        yield
    except BaseException as error:
        code = exit_codes.FAULT
        if isinstance(error, errors.UserError):
            code = mistake
        elif isinstance(error, KeyboardInterrupt):
            code = exit_codes.INTERRUPTED
        elif isinstance(error, SystemExit) and isinstance(error.code, int):
            code = error.code
        fail_alone(code)
        raise


def fail_alone(code: int, *, timeout_seconds: float = 10.0) -> None:
    """Has a process that failed end without the others; call it before it exits.

    They may wait for it, in a collective or at a barrier. JAX would have it wait for them in turn,
    for minutes, and abort all: a launcher would see that and not the code. It waits for a moment
    here: where all fail alike each ends with its own code, and they part before the first process
    takes the coordination service along. What Python says of an exception comes before. Alone, it
    exits as ever.

    Args:
      code: that it ends with.
      timeout_seconds: how long it waits for others that failed.
    """
    if count() > 1:
        # What is registered last runs first: before JAX's part.
        atexit.register(_exit_alone, code, timeout_seconds)


def _exit_alone(code: int, timeout_seconds: float) -> NoReturn:
    try:
        with contextlib.suppress(Exception):  # the others go on, or the service is gone
            barrier("failed", timeout_seconds)
            jax.distributed.shutdown()
        with contextlib.suppress(OSError):  # nobody reads
            sys.stdout.flush()
            sys.stderr.flush()
    finally:
        os._exit(code)


def count() -> int:
    """How many processes have joined; touches no devices."""
    return distributed.global_state.num_processes


def is_first() -> bool:
    """Whether this process is the one that writes what a job writes once."""
    return jax.process_index() == 0
