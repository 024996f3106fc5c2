"""What commands say when there is too little memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from musiclm import errors

if TYPE_CHECKING:
    from musiclm.api import MusicLM
    from musiclm.sampler.generate import Plan

# How programs fail for want of memory. YNNPACK, which multiplies on a CPU, tells only the log that
# it got no room to work in.
_SIGNS = ("RESOURCE_EXHAUSTED", "YNNPACK operation failed")


def is_full(error: Exception) -> bool:
    """Whether it tells of too little memory, of a device or of the process."""
    import jax

    if isinstance(error, jax.errors.JaxRuntimeError):
        return any(sign in str(error) for sign in _SIGNS)
    return isinstance(error, MemoryError)


@contextlib.contextmanager
def telling(message: str) -> Iterator[None]:
    """Tells of full memory in one line.

    Args:
      message: says that it is full, and what to do about it.

    Raises:
      UserError: memory is full.
    """
    try:
        yield
    except Exception as error:
        if not is_full(error):
            raise
        raise errors.UserError(message) from error


def rows_that_fit(model: MusicLM, plans: Sequence[Plan], rows: int) -> int:
    """Of `rows`, their half, its half and so on the first that memory holds; 0 if it holds none.

    Args:
      model: whose stages are compiled, which takes the memory once.
      plans: clips to be made.
      rows: that a stage decodes at once on each device.
    """
    while rows:
        try:
            model.compile(plans, rows)
        except Exception as error:
            if not is_full(error):
                raise
            rows //= 2
        else:
            break
    return rows
