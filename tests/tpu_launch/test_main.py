"""The command: renders, submits by becoming the engine's program, tells mistakes on one line."""

import pathlib
import re
import subprocess
import sys

import pytest
import yaml

from musiclm import exit_codes
from tpu_launch import __main__ as command

ROOT = pathlib.Path(__file__).parents[2]
EXAMPLES = ROOT / "tpu_launch" / "examples"
PAIRS = [
    ("jobset", "semantic_v5e.yaml"),
    ("xpk", "semantic_v5e.yaml"),
    ("queued-resources", "semantic_v5e.yaml"),
    ("slurm", "semantic_h100.yaml"),
    ("local", "semantic_mini.yaml"),
]


def _run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "tpu_launch", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(("backend", "example"), PAIRS)
def test_a_dry_run_prints_and_submits_nothing(programs, capsys, backend, example):
    programs(**dict.fromkeys(("kubectl", "bash", "sbatch"), "#bash\nexit 99"))
    argv = ["render", "--backend", backend, "--dry-run", str(EXAMPLES / example)]
    assert command.main(argv) == 0
    output = capsys.readouterr().out
    assert "musiclm" in output
    assert "WORKDIR=" in output


def test_skypilot_is_handed_a_task(programs, tmp_path):
    tree = yaml.safe_load((EXAMPLES / "semantic_v5e.yaml").read_text())
    tree["cluster"]["slices"] = 1
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump(tree))
    # SkyPilot opens the file that it is told of, twice.
    programs(sky='import sys; [print(open(sys.argv[-1]).read(), end="") for _ in range(2)]')
    shown = _run("render", "--backend", "skypilot", "--dry-run", job).stdout
    assert "musiclm train" in shown
    submitted = _run("render", "--backend", "skypilot", job)
    assert (submitted.returncode, submitted.stdout) == (0, 2 * shown)


@pytest.mark.parametrize(
    ("backend", "example", "program", "arguments"),
    [
        ("jobset", "semantic_v5e.yaml", "kubectl", "create --filename -"),
        ("slurm", "semantic_h100.yaml", "sbatch", ""),
        ("xpk", "semantic_v5e.yaml", "bash", "-s"),
    ],
)
def test_submitting_becomes_the_engines_program(programs, backend, example, program, arguments):
    text = "import sys; print(*sys.argv[1:]); print(sys.stdin.read(), end=''); sys.exit(7)"
    programs(**{program: text})
    shown = _run("render", "--backend", backend, "--dry-run", EXAMPLES / example).stdout
    submitted = _run("render", "--backend", backend, EXAMPLES / example)
    assert submitted.stdout == f"{arguments}\n{shown}"
    assert submitted.returncode == 7


def test_a_local_job_runs_to_its_end(programs, tmp_path):
    programs(musiclm="print(open(0).read())")
    tree = yaml.safe_load((EXAMPLES / "semantic_mini.yaml").read_text())
    tree["workdir"] = str(tmp_path / "run")
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump(tree))
    # The supervisor puts its own Python's programs first: here there is a `musiclm` already.
    shown = _run("render", "--backend", "local", "--dry-run", job).stdout
    script = shown.replace("-- musiclm", f"-- {tmp_path}/bin/musiclm")
    done = subprocess.run(
        ["bash", "-s"], input=script, cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "run" / "logs" / "attempt-1").iterdir())) == 2


def test_a_missing_program_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    done = _run("render", "--backend", "slurm", EXAMPLES / "semantic_h100.yaml")
    assert done.returncode == exit_codes.CONFIGURATION
    assert done.stderr.startswith("tpu_launch: error: sbatch is not installed here")
    assert done.stderr.count("\n") == 1


def test_a_job_that_can_not_be_used_exits_78(tmp_path):
    job = tmp_path / "job.yaml"
    job.write_text("name: x\nmodle: {}\n")
    done = _run("render", "--backend", "jobset", "--dry-run", job)
    assert done.returncode == exit_codes.CONFIGURATION
    assert "did you mean model?" in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_shows_engines_and_examples():
    for name in ("render", "supervise"):
        assert f"python -m tpu_launch {name} --" in _run(name, "--help").stdout
    assert re.search("slurm  +SLURM with pyxis", _run("render", "--help").stdout)
