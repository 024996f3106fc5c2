"""The same for one item after the other, on all cores."""

import collections
import concurrent.futures
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import threadpoolctl


def each(
    compute: Callable[[Any], Any],
    items: Iterable[Any],
    progress: Callable[[int], None] | None = None,
) -> Iterator[Any]:
    """What comes of every item, in order.

    Few items are taken ahead, for they may be many and large.

    Args:
      compute: of one item; called by as many threads as there are cores. It gains where NumPy,
        SciPy or XLA do the work, and let other threads run meanwhile.
      items: taken by the thread that asks for the results.
      progress: called with 1 after each item.
    """
    ahead = 8 * os.cpu_count()  # so that threads have enough to do while an item is being made
    waiting = collections.deque()

    def done() -> Any:
        result = waiting.popleft().result()
        if progress:
            progress(1)
        return result

    with (
        # Products are small here: shared out among threads of their own they take longer.
        threadpoolctl.threadpool_limits(1, "blas"),
        concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        for item in items:
            waiting.append(pool.submit(compute, item))
            if len(waiting) > ahead:
                yield done()
        while waiting:
            yield done()
