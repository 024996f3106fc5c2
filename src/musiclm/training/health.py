"""Health gates: a run that has gone wrong stops early, and says what went wrong."""

import collections
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

_STEADIER = (
    "Resume from the last checkpoint with a lower learning_rate, a longer warm-up or a smaller "
    "clip_norm"
)


class HealthError(RuntimeError):
    """A figure left its bounds; the message names it and says what to try."""


def check_finite(step: int, finite: Mapping[str, bool]) -> None:
    """Sees that a state can be gone on from; metrics are of the one before it.

    Args:
      step: that the state comes from.
      finite: of each of its arrays, whether it is.

    Raises:
      HealthError: one is not.
    """
    for name, is_finite in finite.items():
        if not is_finite:
            raise HealthError(f"step {step}: {name} is not finite any more. {_STEADIER}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HealthCheck:
    """A bound on one metric.

    Attributes:
      metric: its name in the step's metrics.
      breached: tells of a value whether it is out of bounds.
      bound: the bound in words, for the message.
      advice: what to try.
      after_step: the first step at which the bound holds.
      patience: how many logged values in a row must be out of bounds before the run stops.
    """

    metric: str
    breached: Callable[[float], bool]
    bound: str
    advice: str
    after_step: int = 0
    patience: int = 3


class HealthMonitor:
    """Watches the logged metrics of a run."""

    def __init__(self, checks: Sequence[HealthCheck]):
        self._checks = tuple(checks)
        self._breaches = collections.Counter()

    def observe(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes the metrics of one logged step.

        Raises:
          HealthError: a metric is NaN or infinite, or a check has been in breach for too long.
        """
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise HealthError(f"step {step}: {name} is {value}. {_STEADIER}")
        for check in self._checks:
            if step < check.after_step or check.metric not in metrics:
                continue
            value = metrics[check.metric]
            self._breaches[check] = self._breaches[check] + 1 if check.breached(value) else 0
            if self._breaches[check] >= check.patience:
                raise HealthError(
                    f"step {step}: {check.metric} is {value:.4g} ({check.bound}), "
                    f"{check.patience} times in a row. {check.advice}"
                )
