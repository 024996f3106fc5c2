"""Intervals: how far a figure would move with other clips of the same kind.

N: items, R: resamples, G: groups.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import scipy.stats

_RESAMPLES = 4000
_BLOCK = 250  # resamples at a time: indices of 250 × N are small whatever R is


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean with its interval: `value`, from `low` to `high`, over `n` items."""

    value: float
    low: float
    high: float
    n: int


def mean(values_N: np.ndarray, *, level: float = 0.95, seed: int = 0) -> Estimate:
    """The mean of independent items and its percentile bootstrap interval.

    Args:
      values_N: one figure an item; of those that are right or wrong see `share`.
      level: how often the interval shall cover the true mean.
      seed: of the resampling; the same values and seed give the same interval.

    Raises:
      ValueError: there is no item, a value is not finite, or the level is not within (0, 1).
    """
    values_N = np.asarray(values_N, np.float64)
    if values_N.ndim != 1 or not len(values_N) or not np.isfinite(values_N).all():
        raise ValueError(f"values of shape {values_N.shape}: give one finite number an item")
    if not 0 < level < 1:
        raise ValueError(f"level is {level}: give a probability between 0 and 1")
    rng = np.random.default_rng(seed)
    means_R = np.concatenate(
        [
            values_N[rng.integers(len(values_N), size=(_BLOCK, len(values_N)))].mean(axis=1)
            for _ in range(_RESAMPLES // _BLOCK)
        ]
    )
    low, high = np.quantile(means_R, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(values_N.mean()), float(low), float(high), len(values_N))


def share(right_N: np.ndarray, *, level: float = 0.95) -> Estimate:
    """The share of items that are right, and Wilson's interval.

    Where all are right, or none is, the bootstrap of `mean` would find nothing that could move.

    Args:
      right_N: 1 and 0, or bool; what is between them, the chance of an item that ties decide,
        counts as so much, and the interval is rather too wide.
      level: how often the interval shall cover the true share.

    Raises:
      ValueError: there is no item, or a value is not from 0 to 1.
    """
    right_N = np.asarray(right_N, np.float64)
    if right_N.ndim != 1 or not len(right_N) or not ((right_N >= 0) & (right_N <= 1)).all():
        raise ValueError(f"values of shape {right_N.shape}: give one from 0 to 1 an item")
    return wilson(float(right_N.sum()), len(right_N), level=level)


def wilson(successes: float, trials: int, *, level: float = 0.95) -> Estimate:
    """A share and Wilson's interval, which stays within 0 and 1 and has a width at both ends.

    Raises:
      ValueError: there is no trial, or more successes than trials.
    """
    if not 0 <= successes <= trials or not trials:
        raise ValueError(f"{successes} successes of {trials}: give 0 to all of one or more")
    z = scipy.stats.norm.ppf((1 + level) / 2)
    share, weight = successes / trials, z**2 / trials
    centre = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt(share * (1 - share) / trials + weight / (4 * trials)) / (1 + weight)
    return Estimate(share, float(max(0.0, centre - half)), float(min(1.0, centre + half)), trials)


def jackknife(
    statistic: Callable[[np.ndarray], float], n: int, *, groups: int = 20, level: float = 0.95
) -> Estimate:
    """A statistic of all items and its interval by leaving out one group of items after another.

    For statistics that items drawn twice would bend, such as those of a covariance, where the
    bootstrap is no help.

    Args:
      statistic: of the items of the given indices, int64.
      n: items; the i-th belongs to group i modulo `groups`.
      groups: at most as many as items.
      level: how often the interval, a normal one, shall cover the true value.

    Raises:
      ValueError: there are fewer than three items.
    """
    if n < 3:
        raise ValueError(f"{n} items: give three or more, to leave some out")
    groups = min(groups, n)
    every_N = np.arange(n)
    left_G = np.array([statistic(every_N[every_N % groups != group]) for group in range(groups)])
    deviation = np.sqrt((groups - 1) * left_G.var())
    reach = float(scipy.stats.norm.ppf((1 + level) / 2) * deviation)
    value = float(statistic(every_N))
    return Estimate(value, value - reach, value + reach, n)
