"""Progress bars of a job's processes, for somebody at a terminal; elsewhere they are silent."""

import functools

import tqdm


@functools.cache
def bar(what: str, unit: str, total: int | None = None) -> tqdm.tqdm:
    """The bar of this process for a kind of work: the same at every call."""
    return tqdm.tqdm(desc=what, unit=unit, total=total, disable=None)
