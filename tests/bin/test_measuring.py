"""Studies that train nothing: planned, made and compared as those that do."""

import json
import os
import pathlib
import sys

import numpy as np
import pytest

from musiclm import errors, exit_codes
from musiclm.bin import ablation_plan, ablation_runs, measuring

STUDY = """
from __gin__ import dynamic_registration

import tiny_measurement
from musiclm.bin import fit
from musiclm.bin import measuring
from musiclm.evaluation import ablation

fit.fit.what = @measuring.measure
measuring.measure.measurement = @tiny_measurement.Draws()

ablation.Study.question = 'How far?'
ablation.Study.variants = [@here/ablation.Variant(), @there/ablation.Variant()]
ablation.Study.metrics = [@mean/ablation.Metric(), @spread/ablation.Metric()]
mean/ablation.Metric.name = 'eval/mean'
spread/ablation.Metric.name = 'eval/spread'
here/ablation.Variant.name = 'here'
here/ablation.Variant.expected = '0'
there/ablation.Variant.name = 'there'
there/ablation.Variant.expected = '3'
there/ablation.Variant.overrides = ('tiny_measurement.Draws.place = 3.0',)
"""


@pytest.fixture
def make_study(tmp_path, monkeypatch):
    """Writes the study, with lines of its own."""
    monkeypatch.syspath_prepend(str(pathlib.Path(__file__).parent))

    def make(lines=""):
        path = tmp_path / "study.gin"
        path.write_text(STUDY + lines)
        return str(path)

    return make


def test_figures_and_items_are_written(tmp_path):
    class Measurement:
        def measure(self, folder, cache, seed):
            return {"share": np.array([0.0, 1.0, 1.0]), "distance": 2.5}

    measuring.measure(measurement=Measurement(), workdir=tmp_path, cache=tmp_path / "cache")
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line == {"step": 0, "eval/share": pytest.approx(2 / 3), "eval/distance": 2.5}
    assert json.loads((tmp_path / "items.json").read_text()) == {"eval/share": [0.0, 1.0, 1.0]}


def test_what_decides_is_in_the_digest(make_study):
    def digests(lines=""):
        return [run.digest for run in ablation_plan.plan([make_study(lines)], [], 2)[1]]

    first = digests()
    assert len(set(first)) == 4
    assert digests("tiny_measurement.Draws.place = 0.0") == first
    assert not set(digests("tiny_measurement.Draws.material = 'stone'")) & set(first)


TRAINING = """
import tiny_job
from musiclm.training import loop
from musiclm.training import optim

include '{tiny_job}'

WORKDIR = ''
tiny_measurement.Draws.train = @{scope}loop.train
tiny_job.Perceptron.optimizer = @optim.OptimizerConfig()
optim.OptimizerConfig.learning_rate = 0.01
optim.OptimizerConfig.total_steps = 5
optim.OptimizerConfig.warmup_steps = {warmup_steps}
"""


BARE = """
from musiclm.training import loop

tiny_measurement.Draws.train = @loop.train
"""


def test_a_training_that_a_measurement_calls_is_planned_with_it(make_study, monkeypatch):
    folder = pathlib.Path(__file__).parents[1] / "multi_process"
    monkeypatch.syspath_prepend(str(folder))

    def plan(warmup_steps, scope="", more=""):
        told = {"tiny_job": folder / "tiny_job.gin", "warmup_steps": warmup_steps, "scope": scope}
        return ablation_plan.plan([make_study(TRAINING.format(**told) + more)], [], 1)

    assert plan(4)
    with pytest.raises(errors.UserError, match=r"^variant 'here': .*warmup_steps is 9 of 5 steps"):
        plan(9)
    # In the scope that it is referred to by.
    good = "\nscoped/optim.OptimizerConfig.warmup_steps = 4"
    assert plan(9, "scoped/", good)
    bad = "\nscoped/optim.OptimizerConfig.warmup_steps = 8"
    with pytest.raises(errors.UserError, match="warmup_steps is 8 of 5 steps"):
        plan(4, "scoped/", bad)
    with pytest.raises(errors.UserError, match=r"missing a required .*'task'"):
        ablation_plan.plan([make_study(BARE)], [], 1)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("mean/ablation.Metric.name = 'eval/meen'", "its evaluations have eval/mean, eval/spread"),
        ("tiny_measurement.Draws.plac = 1", "'plac'"),
        ("tiny_measurement.Draws.place = 'here'", "place is 'here': give a number"),
    ],
)
def test_a_mistake_is_told_before_anything_is_measured(make_study, lines, told):
    with pytest.raises(errors.UserError) as raised:
        ablation_plan.plan([make_study(lines)], [], 1)
    assert told in str(raised.value)


@pytest.mark.slow
def test_a_study_that_trains_nothing(make_study, tmp_path, monkeypatch):
    """By processes of their own, each once; what two seeds can't separate, twenty draws can."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    file, out = make_study(), tmp_path / "out"
    study, runs = ablation_plan.plan([file], [], 2)
    make = ablation_runs.Maker([file], [])
    assert ablation_runs.ablate(study, runs, out, "study", make, only=["there"]) == exit_codes.DONE
    assert ablation_runs.ablate(study, runs, out, "study", make) == exit_codes.DONE
    assert (out / "cache/seeds").read_text() == "0\n1\n0\n1\n"
    record = json.loads((out / "study.json").read_text())
    there = {name: rows[1] for name, rows in record["figures"].items()}
    assert there["eval/mean"]["over"] == "items"
    assert there["eval/mean"]["difference"]["value"] == pytest.approx(3)
    assert there["eval/mean"]["verdict"] == "worse"
    assert there["eval/spread"]["over"] == "seeds"
    assert there["eval/spread"]["verdict"] == "not separated"
    assert (out / "study.png").read_bytes().startswith(b"\x89PNG")
