"""What of a run's time counts, by a clock that the test sets."""

import types

import numpy as np
import pytest

from musiclm.training import meter


class Clock:
    """Stands still but for `pass_`."""

    def __init__(self):
        self.now = 1_000.0

    def pass_(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    times = types.SimpleNamespace(time=lambda: clock.now, perf_counter=lambda: clock.now)
    monkeypatch.setattr(meter, "time", times)
    return clock


@pytest.fixture
def built():
    """Four rows of ten tokens on one CPU."""
    return types.SimpleNamespace(
        batch={"tokens": np.zeros((4, 10))},
        mesh=types.SimpleNamespace(devices=np.array([types.SimpleNamespace(device_kind="cpu")])),
        training_flops=lambda: 2e12,
    )


def test_only_steps_are_goodput(clock, built):
    measured = meter.Meter(built, started=None, productive_seconds=0.0)
    for what, seconds in (("data_wait", 3), ("step", 4), ("checkpoint", 1)):
        with measured.measure(what):
            clock.pass_(seconds)
    clock.pass_(2)  # an evaluation
    rates = measured.rates(num_steps=2)
    assert rates["goodput"] == pytest.approx(4 / 10)
    assert (rates["data_wait_ms"], rates["step_ms"], rates["checkpoint_ms"]) == (1500, 2000, 500)
    assert rates["steps_per_second"] == pytest.approx(0.2)
    assert rates["tokens_per_second"] == pytest.approx(8)
    assert rates["model_tflops_per_second"] == pytest.approx(0.4)


def test_goodput_goes_on_over_restarts(clock, built):
    """What was done since the checkpoint is undone, and the machine was away."""
    first = meter.Meter(built, started=None, productive_seconds=0.0)
    with first.measure("step"):
        clock.pass_(5)
    facts = first.facts()
    with first.measure("step"):
        clock.pass_(3)
    clock.pass_(10)
    second = meter.Meter(built, **facts)
    with second.measure("step"):
        clock.pass_(2)
    assert second.rates(num_steps=1)["goodput"] == pytest.approx(7 / 20)
