"""What int8 costs the bundled model."""

import importlib
import pathlib

import pytest

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_a_stage_of_gm_mini_kept_as_int8_chooses_as_in_floats(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    script = importlib.import_module("sample_int8")
    monkeypatch.setattr(script, "PROMPTS", script.PROMPTS[:2])
    # The first of the stages: the others take the benchmark's time.
    stage, _, shares = next(script.agreements(["weights_and_cache"]))
    assert stage == "semantic"
    assert shares["greedy"] >= 0.99
    assert shares["after_drawn"] >= 0.96
