"""What commands say when there is too little memory."""

import contextlib
from collections.abc import Iterator

from musiclm import errors

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
