"""The arithmetic of global rows: which record each row is, and what is drawn for it.

Training reads one endless stream of rows. Row r of it is the same on any number of hosts and from
any step on: it depends on the seed and on r alone, by closed formulas, so that nothing about the
stream has to be saved and a run may start anywhere in it.

  row     = step · batch_size + place · batch_size / num_places + j
  epoch   = row div num_records, place = row mod num_records
  record  = permute(place, of (seed, epoch))
  draws   = uniform(seed, row, purpose)

NumPy alone, over whole batches of rows. R: rows.
"""

import dataclasses
import enum
from collections.abc import Sequence

import numpy as np

from musiclm import errors

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = 8
# Slots of a mixture's pattern: weights are kept to one part in so many.
_BLOCK = 4096


class Purpose(enum.IntEnum):
    """What a number is drawn for: draws for different ends are independent."""

    ORDER = 0
    MIXTURE = 1
    CROP = 2
    MULAN = 3
    SOURCE = 4
    CAPTION = 5
    COMPONENT = 6


def hash64(*parts: np.ndarray | int) -> np.ndarray:
    """A random-looking number for each tuple of parts, uint64 of their common shape.

    Each part goes through the finalizer of SplitMix64 (Steele et al., 2014), which is a bijection:
    tuples that differ in one part alone never collide.
    """
    mixed = np.zeros(1, np.uint64)
    for part in parts:
        part = np.asarray(part)
        if part.dtype != np.uint64:
            part = part.astype(np.int64).view(np.uint64)
        mixed = _finalize(mixed ^ part) + _GOLDEN
    return mixed


def _finalize(x: np.ndarray) -> np.ndarray:
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniform(seed: int, rows_R: np.ndarray, purpose: Purpose) -> np.ndarray:
    """Draws evenly from [0, 1) for each row, f64 [R]."""
    return (hash64(seed, purpose, rows_R) >> np.uint64(11)) * 2.0**-53


def integers(seed: int, rows_R: np.ndarray, purpose: Purpose, high: np.ndarray | int) -> np.ndarray:
    """Draws evenly from 0 … high − 1 for each row, int64 [R]; `high` may differ by row."""
    return (uniform(seed, rows_R, purpose) * high).astype(np.int64)


def permute(places_R: np.ndarray, keys_R: np.ndarray, size: int) -> np.ndarray:
    """Where a keyed permutation of 0 … size − 1 takes each place, int64 [R].

    A Feistel network over the numbers of as many bits as `size` needs; a result that is `size` or
    more goes through it again until it is less, which keeps it a permutation (Black & Rogaway,
    2002: "cycle walking"). Takes no memory beyond its arguments', however large `size` is.

    Args:
      places_R: int64, each in 0 … size − 1.
      keys_R: uint64, one a place: places of one key are permuted among themselves.
      size: up to 2^62.
    """
    low_bits = (size - 1).bit_length() // 2
    high_bits = (size - 1).bit_length() - low_bits
    low_mask, high_mask = np.uint64((1 << low_bits) - 1), np.uint64((1 << high_bits) - 1)
    result_R = places_R.astype(np.uint64)
    todo = np.arange(len(result_R))
    while len(todo):
        x, keys = result_R[todo], keys_R[todo]
        low, high = x & low_mask, x >> np.uint64(low_bits)
        for index in range(0, _ROUNDS, 2):
            # The round's number stays clear of the halves' bits: no two rounds share an input.
            low ^= _finalize(high ^ keys ^ np.uint64(index << 40)) & low_mask
            high ^= _finalize(low ^ keys ^ np.uint64((index + 1) << 40)) & high_mask
        result_R[todo] = x = (high << np.uint64(low_bits)) | low
        todo = todo[x >= size]
    return result_R.astype(np.int64)


def records_of(rows_R: np.ndarray, num_records: int, *, seed: int, shuffle: bool) -> np.ndarray:
    """The record of each row, int64 [R]: every epoch holds each record once.

    Args:
      rows_R: int64.
      num_records: of the data set.
      seed: of the order.
      shuffle: anew each epoch; without it, epochs go through the records in order.
    """
    epochs_R, places_R = np.divmod(rows_R, num_records)
    if not shuffle:
        return places_R
    return permute(places_R, hash64(seed, Purpose.ORDER, epochs_R), num_records)


def rows_of(
    step: int,
    *,
    batch_size: int,
    start_step: int = 0,
    places: Sequence[int] = (0,),
    num_places: int = 1,
) -> np.ndarray:
    """The global rows that a host makes at a step, int64 [batch_size / num_places · its places].

    Args:
      step: counted from `start_step`.
      batch_size: rows of all hosts together.
      start_step: where the stream is entered.
      places: which of the `num_places` equal parts of the batch the host makes, one after another.
      num_places: of all hosts.

    Raises:
      ValueError: the places can't share the batch evenly, or there is no such place.
    """
    if batch_size % num_places:
        raise ValueError(
            f"batch_size is {batch_size} for {num_places} places: make it a multiple of them"
        )
    if not all(0 <= place < num_places for place in places):
        raise ValueError(f"places are {tuple(places)} of {num_places}: count them from 0")
    first_PR = (start_step + step) * batch_size + np.arange(batch_size).reshape(num_places, -1)
    return first_PR[list(places)].ravel()


@dataclasses.dataclass(frozen=True)
class Pattern:
    """How a mixture's rows are dealt to its components: in blocks, each in an order of its own.

    Every block deals each component the same number of rows, so that how many rows a component has
    had is a closed formula, and each is walked through epoch by epoch.

    Attributes:
      slots: rows of a block, by component.
    """

    slots: tuple[int, ...]

    @classmethod
    def of(cls, weights: Sequence[float]) -> "Pattern":
        """The pattern whose shares come nearest to the weights.

        Raises:
          UserError: a weight is not positive, or too small beside the others.
        """
        if not all(weight > 0 for weight in weights):
            raise errors.UserError(f"the mixture's weights are {list(weights)}: give positive ones")
        exact = np.asarray(weights, float) / sum(weights) * _BLOCK
        slots = np.floor(exact).astype(int)
        # The largest remainders get what is left over.
        for component in np.argsort(slots - exact, kind="stable")[: _BLOCK - slots.sum()]:
            slots[component] += 1
        if not slots.all():
            raise errors.UserError(
                f"the mixture's weights are {list(weights)}: one is less than 1/{_BLOCK} of all, "
                "raise it or leave that corpus out"
            )
        divisor = np.gcd.reduce(slots)
        return cls(tuple(int(count // divisor) for count in slots))

    def deal(self, rows_R: np.ndarray, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Each row's component, and its row within that component's own stream: int64 [R] both."""
        blocks_R, places_R = np.divmod(rows_R, sum(self.slots))
        keys_R = hash64(seed, Purpose.MIXTURE, blocks_R)
        slots_R = permute(places_R, keys_R, sum(self.slots))
        ends = np.cumsum(self.slots)
        components_R = np.searchsorted(ends, slots_R, side="right")
        counts = np.asarray(self.slots)
        first_R = (ends - counts)[components_R]
        return components_R, blocks_R * counts[components_R] + slots_R - first_R
