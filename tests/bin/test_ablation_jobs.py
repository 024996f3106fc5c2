"""Runs of a study that engines make."""

import json
import os
import pathlib
import re
import signal
import sys
import threading
import time

import pytest
import yaml

from musiclm import errors, exit_codes
from musiclm.bin import ablation_jobs, ablation_plan, ablation_runs, main

SHARED = {"cluster": {"accelerator": "h100-8", "slices": 2}, "image": "ghcr.io/OWNER/I:1"}


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """Stands in for SLURM's: keeps what it is handed, and takes it or not."""
    folder, kept = tmp_path / "bin", tmp_path / "kept"
    folder.mkdir()
    kept.mkdir()
    program = folder / "sbatch"
    program.write_text(
        f'#!/bin/sh\ncat >"$(mktemp -p {kept})"\n'
        '[ "$SBATCH_WAITS" ] && exec sleep 60\nexit ${SBATCH_CODE:-0}\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return lambda: [path.read_text() for path in kept.iterdir()]


@pytest.fixture
def ablate(make_study, tmp_path):
    """Hands the study's runs of one seed to SLURM; gives the exit code."""

    def ablate(shared=SHARED):
        bindings = ["PACE = 0.0"]
        study, runs = ablation_plan.plan([make_study()], bindings, 1)
        make = ablation_jobs.Maker(["gin/study.gin"], bindings, "slurm", shared)
        make.check(runs[0], tmp_path / "out")
        return ablation_runs.ablate(study, runs, tmp_path / "out", "study", make)

    return ablate


def test_each_run_is_handed_over_once(ablate, sbatch, tmp_path, capsys):
    assert ablate() == exit_codes.DONE
    fast, slow = sorted(sbatch(), key=lambda text: "learning_rate = 1e-5" in text)
    page = (tmp_path / "out/study.md").read_text()
    assert page.count("handed over") == 2
    assert "handed over and not done: 2 of 2 runs" in capsys.readouterr().err
    for run in (tmp_path / "out/runs").iterdir():
        text = slow if run.name in slow else fast
        assert f"#SBATCH --job-name=ablation-{run.name}\n" in text
        assert "musiclm train --gin_file gin/study.gin" in text
        assert f"""WORKDIR="{run}"'""" in text
        assert "'loop.train.workdir = %WORKDIR'" in text
        assert f"{run}/model" in text
        assert "'PACE = 0.0'" in text
        assert yaml.safe_load((run / "job.yaml").read_text())["cluster"] == SHARED["cluster"]
    # Started again it hands nothing over, and takes what is done into the table.
    (run / "metrics.jsonl").write_text('{"step": 10, "eval/loss": 0.25}\n')
    (run / "model.safetensors").write_bytes(b"")
    assert ablate() == exit_codes.DONE
    assert len(sbatch()) == 2
    page = (tmp_path / "out/study.md").read_text()
    assert page.count("handed over") == 1
    assert "0.2500" in page
    # Without its file it is handed over anew.
    for path in (tmp_path / "out/runs").glob("*/job.yaml"):
        path.unlink()
    assert ablate() == exit_codes.DONE
    assert len(sbatch()) == 3


def test_what_an_engine_does_not_take_is_handed_over_again(ablate, sbatch, tmp_path, monkeypatch):
    monkeypatch.setenv("SBATCH_CODE", "3")
    assert ablate() == 3
    assert "failed with code 3" in (tmp_path / "out/study.md").read_text()
    monkeypatch.setenv("SBATCH_CODE", "0")
    assert ablate() == exit_codes.DONE
    assert len(sbatch()) == 4


def test_what_was_stopped_on_the_way_is_not_handed_over_twice(ablate, sbatch, monkeypatch):
    """An engine may have a job before its program returns."""
    monkeypatch.setenv("SBATCH_WAITS", "1")
    # As `main` has it of SIGTERM, which would end the tests.
    before = signal.signal(signal.SIGALRM, lambda *_: sys.exit())
    stopping = threading.Thread(target=_stop_when, args=(sbatch,), daemon=True)
    stopping.start()
    try:
        assert ablate() == exit_codes.PREEMPTED
        stopping.join()
    finally:
        signal.signal(signal.SIGALRM, before)
    monkeypatch.delenv("SBATCH_WAITS")
    assert ablate() == exit_codes.DONE
    first, second = (re.search("job-name=(.*)", text)[1] for text in sbatch())
    assert first != second


def _stop_when(handed_over):
    while not any(handed_over()):
        time.sleep(0.05)
    signal.pthread_kill(threading.main_thread().ident, signal.SIGALRM)  # interrupts its waiting


def test_places_that_bindings_name_are_those_of_the_job(make_study, tmp_path):
    bindings = ["TRAIN='/data/t'", 'START = "/models/s"', "NAME = 'gm-mini'", "A = @b/c", "B = 1"]
    run = ablation_plan.Run(ablation_plan.TRAINING, "fast", 0, ("x.y = '/z'",), {})
    make = ablation_jobs.Maker(["a.gin"], bindings, "slurm", SHARED)
    make.check(run, tmp_path)
    job = yaml.safe_load(make.job(run, tmp_path))
    assert job["data"] == {"TRAIN": "/data/t", "START": "/models/s"}
    assert job["model"]["gin_bindings"][:4] == [
        "NAME = 'gm-mini'",
        "A = @b/c",
        "B = 1",
        "x.y = '/z'",
    ]
    make = ablation_jobs.Maker(["a.gin"], ["TRAIN='runs/t'"], "slurm", SHARED)
    with pytest.raises(errors.UserError, match="TRAIN = 'runs/t' is out of reach"):
        make.check(run, tmp_path)


@pytest.mark.parametrize(
    ("shared", "told"),
    [
        (
            {"cluster": {"accelerator": "v5e-16"}, "image": "i"},
            "slurm refuses the jobs: cluster.acc",
        ),
        (SHARED | {"imag": "i"}, "did you mean image?"),
        ({"image": "i"}, "cluster is missing"),
    ],
)
def test_the_launcher_refuses_before_a_run(ablate, sbatch, tmp_path, shared, told):
    with pytest.raises(errors.UserError) as raised:
        ablate(shared)
    assert told in str(raised.value)
    assert not (tmp_path / "out").exists()
    assert not sbatch()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: x", "gives name: leave it out"),
        ("workdir: x", "gives workdir: leave it out"),
        ("- x", "is no mapping"),
        ("a: [", "can't be read"),
        (None, "can't be read"),
    ],
)
def test_a_file_that_is_none_is_told(tmp_path, text, told):
    path = tmp_path / "job.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(errors.UserError) as raised:
        ablation_jobs.load(path)
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


def test_every_variants_job_is_looked_at_before_the_first(make_study, sbatch, tmp_path, capsys):
    job, study = tmp_path / "job.yaml", pathlib.Path(make_study())
    job.write_text(yaml.safe_dump(SHARED))
    text = study.read_text()
    study.write_text(text.replace("1e-5'", r"(\n1e-5)'"))
    assert study.read_text() != text
    arguments = ["--gin_file", str(study), "--out", str(tmp_path / "out"), "--seeds", "1"]
    arguments += ["--backend", "slurm", "--job", str(job)]
    assert main.main(["ablate", *arguments]) == exit_codes.CONFIGURATION
    assert "binds nothing: write NAME = VALUE" in capsys.readouterr().err
    assert not sbatch()


def test_what_does_not_train_is_made_here():
    run = ablation_plan.Run(ablation_plan.MEASURING, "here", 0, (), {})
    make = ablation_jobs.Maker(["a.gin"], [], "slurm", SHARED)
    with pytest.raises(errors.UserError, match=r"`musiclm fit`: jobs train, leave --backend out"):
        make.check(run, pathlib.Path("/out"))


def test_an_engine_without_a_job_is_refused(tmp_path, capsys):
    arguments = ["--gin_file", "study.gin", "--out", str(tmp_path), "--backend", "slurm"]
    assert main.main(["ablate", *arguments]) == exit_codes.CONFIGURATION
    assert "give both, or none" in capsys.readouterr().err


@pytest.mark.slow
def test_a_study_on_two_processes(make_study, tmp_path, monkeypatch):
    """By the engine that needs no cluster, from the command to the table."""
    paths = [pathlib.Path(sys.executable).parent, os.environ["PATH"]]
    monkeypatch.setenv("PATH", os.pathsep.join(map(str, paths)))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    job, out = tmp_path / "job.yaml", tmp_path / "out"
    job.write_text("cluster: {accelerator: cpu-1, slices: 2}\nretries: 0\n")
    arguments = ["--gin_file", make_study(), "--gin_bindings", "FSDP = 2", "--only", "slow"]
    arguments += ["--seeds", "1", "--out", str(out), "--backend", "local", "--job", str(job)]
    assert main.main(["ablate", *arguments]) == exit_codes.DONE
    assert len(list(out.glob("runs/*/logs/attempt-1/process-1.log"))) == 1
    record = json.loads((out / "study.json").read_text())
    curves = {run["variant"]: run.get("curves") for run in record["runs"]}
    assert list(curves["slow"]["eval/loss"]) == ["10", "20", "30", "40"]
