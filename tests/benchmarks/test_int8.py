"""What int8 costs the bundled model."""

import importlib
import pathlib

import pytest

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_gm_mini_kept_as_int8_chooses_as_in_floats(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    script = importlib.import_module("sample_int8")
    monkeypatch.setattr(script, "PROMPTS", script.PROMPTS[:2])
    shares = {stage: shares for stage, _, shares in script.agreements(["weights_and_cache"])}
    assert list(shares) == ["semantic", "coarse", "fine"]
    for name, floor in (("greedy", 0.99), ("after_drawn", 0.96)):
        assert min(stage[name] for stage in shares.values()) >= floor
