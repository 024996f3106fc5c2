"""Studies: what is refused, what is trained once, and what a kill leaves."""

import collections
import contextlib
import errno
import fcntl
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from musiclm import errors, exit_codes
from musiclm.bin import ablate as command
from musiclm.bin import ablation_plan, ablation_runs, main
from musiclm.evaluation import sources

ROOT = pathlib.Path(__file__).parents[2]
TINY_JOB = ROOT / "tests/multi_process/tiny_job.gin"
STUDIES = sorted((ROOT / "gin/ablations").glob("*.gin"))

THIRD = """
ablation.Study.variants = [
    @base/ablation.Variant(), @slow/ablation.Variant(), @third/ablation.Variant()]
third/ablation.Variant.name = 'third'
third/ablation.Variant.expected = '?'
third/ablation.Variant.overrides = ({!r},)
"""

PACE = "PACE=0.03"  # at which a test can get between


class Stub:
    """Trains nothing, and leaves what a training leaves; counts, and fails if it is told to."""

    def __init__(self, failing=()):
        self.failing = dict(failing)
        self.trained = collections.Counter()

    def __call__(self, run, folder, lock):
        self.trained[run.variant, run.seed] += 1
        if code := self.failing.get((run.variant, run.seed)):
            return code
        loss = run.seed + len(run.variant) / 10
        line = json.dumps({"step": 10, "eval/loss": loss})
        (folder / "metrics.jsonl").write_text(line + "\n")
        (folder / "model.safetensors").write_bytes(b"")
        return exit_codes.DONE


def ablate(file, out, train, seeds=2, bindings=(), **options):
    study, runs = ablation_plan.plan([file], bindings, seeds)
    return ablation_runs.ablate(study, runs, out, "study", train, **options)


@pytest.mark.slow
@pytest.mark.parametrize("file", STUDIES, ids=[path.stem for path in STUDIES])
def test_the_studies_of_the_repository_resolve(file, monkeypatch, tiny_bundle, corpus):
    """Every variant differs from the first, and can be made; no data set needs to be there."""
    monkeypatch.chdir(ROOT)
    text = file.read_text()
    names = ("TRAIN", "VALIDATION", "TOKENIZERS", "VOCABULARY", "START")
    macros = [name for name in names if name in text]
    bindings = [f"{name}='nowhere'" for name in macros]
    if macros:
        bindings.append("loop.train.data=''")
    if "CORPUS" in text:
        bindings.append(f"CORPUS={str(corpus)!r}")
    if "sampled_clips" in text:
        bindings.append(f"MODEL={str(tiny_bundle)!r}")
        bindings += [f"sampled_clips.SampledClips.num_{of} = 3" for of in ("clips", "fit_clips")]
    if "trained_clips" in text:
        bindings.append("trained_clips.TrainedClips.trained_on=''")
        bindings.append(f"TOKENIZERS={str(tiny_bundle)!r}")
    if "fitted_clusters" in text:
        bindings.append("fitted_clusters.FittedClusters.fitted_on=''")
        bindings.append("fitted_clusters.FittedClusters.num_clips = 3")
    if "trained_clusters" in text:
        bindings.append("trained_clusters.TrainedClusters.trained_on=''")
    elif "fitted_clusters" in text:
        bindings.append("MODEL='nowhere'")
    study, runs = ablation_plan.plan([str(file.relative_to(ROOT))], bindings, 2)
    assert len({run.digest for run in runs}) == 2 * len(study.variants)
    assert f"--gin_file {file.relative_to(ROOT)} " in text
    assert f"{len(study.variants)} variants;" in text


@pytest.mark.parametrize(
    ("macros", "studies"),
    [
        (("TOKENIZERS",), ("conditioning", "mulan_levels", "positions")),
        (("VOCABULARY", "START"), ("mulan_loss", "chromagram", "text_tower")),
    ],
)
def test_studies_share_the_runs_of_their_base(macros, studies, monkeypatch):
    monkeypatch.chdir(ROOT)
    bindings = [f"{name}='x'" for name in ("TRAIN", "VALIDATION", *macros)]
    bindings.append("loop.train.data=''")
    plans = [ablation_plan.plan([f"gin/ablations/{name}.gin"], bindings, 1)[1] for name in studies]
    assert len({runs[0].digest for runs in plans}) == 1


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("optim.OptimizerConfig.learning_rat = 1", "'learning_rat'"),
        ("optim.OptimizerConfig.schedule = 'lin'", "schedule is 'lin'"),
        ("tiny_job.Perceptron.dim = 'wide'", "'wide'"),
        ("loop.train.num_steps = 'many'", "num_steps is 'many': give a whole number"),
        ("NUM_STEP = 3", "the macro NUM_STEP is set, and nothing uses it"),
        ("junk", "parse"),
    ],
)
def test_a_mistake_in_an_override_names_the_variant(make_study, override, told):
    with pytest.raises(errors.UserError, match=r"^variant 'third': ") as raised:
        ablation_plan.plan([make_study(THIRD.format(override))], [], 1)
    assert told in str(raised.value)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("ablation.Metric.name = 'eval/los'", "'eval/los': its evaluations have eval/loss"),
        ("ablation.Metric.name = 'loss'", "give one of an evaluation"),
        ("ablation.Study.variants = [@base/ablation.Variant()]", "give two or more"),
        ("ablation.Study.qestion = ''", "'qestion'"),
        ("loop.train.eval_dataset = None", "eval_dataset is not bound"),
    ],
)
def test_a_mistake_in_the_study_is_told(make_study, lines, told):
    with pytest.raises(errors.UserError) as raised:
        ablation_plan.plan([make_study(lines)], [], 1)
    assert told in str(raised.value)


def test_a_run_that_is_no_study_is_told(make_study):
    with pytest.raises(errors.UserError, match=r"the ablation.Study of .*tiny_job.gin: missing"):
        ablation_plan.plan([str(TINY_JOB)], [], 1)


def digests(file, bindings=()):
    return [run.digest for run in ablation_plan.plan([file], bindings, 1)[1]]


def test_equal_runs_have_equal_digests(make_study, tmp_path):
    """Whatever way it is said, wherever it is written; and nothing that decides is left out."""
    base, slow = digests(make_study())
    for same in (
        "optim.OptimizerConfig.weight_decay = 0.0",  # the default
        "tiny_job.Perceptron.dim = %DIM\nDIM = 16",
        "eval/tiny_job.rows.dim = 16",
        "base/tiny_job.rows.dim = 99",  # a scope that nothing calls
    ):
        assert digests(make_study(same)) == [base, slow], same
    for other in ("eval/tiny_job.rows.seconds_a_step = 0.1", "loop.train.data = 'other'"):
        assert not set(digests(make_study(other))) & {base, slow}, other


def test_a_files_content_decides_and_not_its_place(make_study, tmp_path):
    for name, text in (("a", "same"), ("b", "same"), ("c", "other")):
        (tmp_path / f"{name}.safetensors").write_text(text)
    found = [digests(make_study(), [f"loop.train.keep_best='{tmp_path / name}'"]) for name in "abc"]
    assert found[0] == found[1]
    assert not set(found[0]) & set(found[2])


def test_what_is_done_is_not_trained_again(make_study, tmp_path, capsys):
    train = Stub()
    assert ablate(make_study(), tmp_path / "out", train) == exit_codes.DONE
    assert list(train.trained) == [("fast", 0), ("slow", 0), ("fast", 1), ("slow", 1)]
    page = (tmp_path / "out/study.md").read_text()
    assert "| slow | 0.4000 | 1.4000 | 0.9000 |" in page
    assert (tmp_path / "out/study.png").read_bytes().startswith(b"\x89PNG")
    # A third seed, and another study with the same base and an equal variant.
    assert ablate(make_study(), tmp_path / "out", train, seeds=3) == exit_codes.DONE
    equal = THIRD.format("optim.OptimizerConfig.weight_decay = 0.0")
    assert ablate(make_study(equal), tmp_path / "out", train, seeds=3) == exit_codes.DONE
    assert sum(train.trained.values()) == 6
    assert max(train.trained.values()) == 1
    page = (tmp_path / "out/study.md").read_text()
    assert page.count("the same runs") == 1


def test_a_failed_run_is_told_and_the_others_go_on(make_study, tmp_path, capsys):
    train = Stub({("fast", 0): exit_codes.UNHEALTHY, ("slow", 1): -signal.SIGKILL})
    out = tmp_path / "out"
    assert ablate(make_study(), out, train) == exit_codes.UNHEALTHY
    assert len(train.trained) == 4
    told = capsys.readouterr().err
    assert "fast, seed 0: failed with code 44" in told
    assert "slow, seed 1: killed by signal 9" in told
    page = (out / "study.md").read_text()
    assert "| fast | failed with code 44 | 1.4000 | 1.4000 |" in page
    assert "| slow | 0.4000 | killed by signal 9 | 0.4000 |" in page
    assert ablate(make_study(), out, Stub()) == exit_codes.DONE
    assert "failed" not in (out / "study.md").read_text()


def test_a_kill_alone_is_a_fault(make_study, tmp_path):
    train = Stub({("slow", 1): -signal.SIGKILL})
    assert ablate(make_study(), tmp_path / "out", train) == exit_codes.FAULT


def test_every_version_that_was_at_a_run_is_told(make_study, tmp_path, monkeypatch):
    """Version a fails in one run and makes the others; b makes that one."""
    out, told = tmp_path / "out", "made by different versions of the program"
    monkeypatch.setattr(sources, "digest", lambda: "a")
    ablate(make_study(), out, Stub({("slow", 1): exit_codes.PREEMPTED}))
    assert told not in (out / "study.md").read_text()
    monkeypatch.setattr(sources, "digest", lambda: "b")
    ablate(make_study(), out, Stub())
    assert told in (out / "study.md").read_text()
    record = json.loads((out / "study.json").read_text())
    codes = {(run["variant"], run["seed"]): run["codes"] for run in record["runs"]}
    assert codes.pop(("slow", 1)) == ["a", "b"]
    assert all(of_run == ["a"] for of_run in codes.values())


def test_one_run_by_two_versions_is_told_as_well(make_study, tmp_path, monkeypatch):
    out = tmp_path / "out"
    every = [(variant, seed) for variant in ("fast", "slow") for seed in (0, 1)]
    for version, failing in (("a", dict.fromkeys(every, exit_codes.PREEMPTED)), ("b", ())):
        monkeypatch.setattr(sources, "digest", lambda version=version: version)
        ablate(make_study(), out, Stub(failing))
    assert "made by different versions of the program" in (out / "study.md").read_text()


@pytest.mark.parametrize("taken", ["out", "out/runs", "parent"])
def test_an_out_that_cannot_be_written_is_told_before_a_run(make_study, tmp_path, taken):
    out = tmp_path / ("parent/out" if taken == "parent" else "out")
    (tmp_path / taken).parent.mkdir(exist_ok=True)
    (tmp_path / taken).write_text("a file")
    train = Stub()
    with pytest.raises(errors.UserError, match=r"cannot write to .*choose another folder"):
        ablate(make_study(), out, train)
    assert not train.trained


@pytest.mark.parametrize("name", ["run.json", "study.md"])
def test_a_full_disk_ends_a_study_in_one_line(make_study, tmp_path, monkeypatch, name):
    write = pathlib.Path.write_text

    def full(path, text, **options):
        if path.name == name and (name == "run.json" or "0.4" in text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, text, **options)

    monkeypatch.setattr(pathlib.Path, "write_text", full)
    told = r"writing to .* failed \(No space left on device\): make room"
    with pytest.raises(errors.UserError, match=told):
        ablate(make_study(), tmp_path / "out", Stub())


def test_only_some_variants(make_study, tmp_path):
    train, out = Stub(), tmp_path / "out"
    assert ablate(make_study(), out, train, only=["slow"]) == exit_codes.DONE
    assert set(train.trained) == {("slow", 0), ("slow", 1)}
    assert "| fast | not made yet | not made yet | – |" in (out / "study.md").read_text()
    with pytest.raises(errors.UserError, match="'quick': the variants are fast, slow"):
        ablate(make_study(), out, train, only=["quick"])


def test_a_dry_run_writes_nothing(make_study, tmp_path, capsys):
    train, out = Stub(), tmp_path / "out"
    assert ablate(make_study(), out, train, dry_run=True) == exit_codes.DONE
    assert not train.trained
    assert not out.exists()
    assert capsys.readouterr().out.count("to do, ") == 4


def test_what_waits_for_days_is_small():
    """The process that starts the runs takes neither the devices nor their memory."""
    code = (
        "import sys; from musiclm.bin import ablate, ablation_runs; "
        "sys.exit(', '.join({'jax', 'tensorflow', 'gin'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_asked_to_stop_it_says_so(make_study, tmp_path):
    def stopped(run, folder, lock):
        raise SystemExit(143)

    assert ablate(make_study(), tmp_path / "out", stopped) == exit_codes.PREEMPTED


def test_asked_to_stop_the_run_saves_first(tmp_path, monkeypatch):
    """The process is one that says when it was asked to, and takes its time."""
    program = tmp_path / "python"
    program.write_text(
        f"#!/bin/sh\ncd '{tmp_path}'\ntrap 'sleep 0.3; touch saved; exit 42' TERM\ntouch started\n"
        "while :; do sleep 0.05; done\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))

    def stop(signum, frame):
        raise SystemExit(143)

    def ask():
        while not (tmp_path / "started").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGUSR2)

    before = signal.signal(signal.SIGUSR2, stop)
    try:
        threading.Thread(target=ask, daemon=True).start()
        run = ablation_plan.Run(ablation_plan.TRAINING, "fast", 0, (), {})
        with (tmp_path / "lock").open("a") as lock, pytest.raises(SystemExit):
            ablation_runs.Maker([], [])(run, tmp_path, lock.fileno())
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert (tmp_path / "saved").exists()


def test_what_another_trains_is_waited_for_and_not_trained(
    make_study, tmp_path, monkeypatch, capsys
):
    """The other is here a process that outlived its parent, with the lock that it was handed."""
    out, asked = tmp_path / "out", tmp_path / "asked"
    _, runs = ablation_plan.plan([make_study()], [], 2)
    folder = out / "runs" / runs[0].digest
    folder.mkdir(parents=True)
    (folder / "run.json").write_text('{"code": "other"}')
    (folder / "metrics.jsonl").write_text('{"step": 10, "eval/loss": 0.5}\n')
    ends = f"until [ -e '{asked}' ]; do sleep 0.05; done; touch '{folder}/model.safetensors'"
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        other = subprocess.Popen(["sh", "-c", ends], pass_fds=[lock.fileno()])
    lock_file = fcntl.flock

    def flock(file, how):
        if how == fcntl.LOCK_EX:  # no longer content with what is free
            asked.touch()
        lock_file(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    train = Stub()
    assert ablate(make_study(), out, train) == exit_codes.DONE
    assert other.wait() == 0
    assert set(train.trained) == {("slow", 0), ("fast", 1), ("slow", 1)}
    assert "waiting for another process" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--seeds", "0"], "--seeds is 0: give 1 or more"),
        ([], "there is no gin file 'no/such.gin'"),
    ],
)
def test_mistakes_of_the_command_are_code_78(arguments, told, tmp_path, capsys):
    arguments = ["--gin_file", "no/such.gin", "--out", str(tmp_path / "out"), *arguments]
    assert main.main(["ablate", *arguments]) == exit_codes.CONFIGURATION
    assert told in capsys.readouterr().err.splitlines()[-1]


def test_a_study_is_named_by_its_own_file(make_study, tmp_path, monkeypatch):
    """Which is the first: what follows all studies may share."""
    (tmp_path / "shared.gin").write_text("loop.train.eval_every = 20\n")
    names = []
    monkeypatch.setattr(ablation_runs, "ablate", lambda *args, **_: names.append(args[3]) or 0)
    files = [make_study(name="widths"), str(tmp_path / "shared.gin")]
    options = [option for file in files for option in ("--gin_file", file)]
    assert main.main(["ablate", *options, "--out", str(tmp_path / "out")]) == exit_codes.DONE
    assert names == ["widths"]


def test_the_examples_have_what_must_be_given():
    examples = [line for line in command.EPILOG.splitlines() if line.startswith("  musiclm")]
    assert len(examples) == 4
    assert all("--gin_file" in line and "--out" in line for line in examples)


@pytest.fixture
def start(tmp_path):
    """Starts `musiclm ablate` in a session of its own, so that a kill reaches its children too."""
    started = []

    def start(file, out):
        command = [sys.executable, "-m", "musiclm.bin.main", "ablate", f"--gin_file={file}"]
        command += [f"--out={out}", f"--gin_bindings={PACE}"]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(TINY_JOB.parent), *filter(None, sys.path)]),
            "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        }
        with (tmp_path / "stderr").open("a") as stderr:
            job = subprocess.Popen(command, env=environment, stderr=stderr, start_new_session=True)
        started.append(job)
        return job

    yield start
    for job in started:
        kill(job)


def kill(job):
    """Ends a session without a warning."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(job.pid, signal.SIGKILL)
    job.wait(10)


def steps(folder):
    """The training steps of a run's curves, in the order in which they were written."""
    found = []
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            found += [record["step"]] if "loss" in record else []
    return found


@pytest.mark.slow
def test_a_study_killed_in_the_middle_goes_on(make_study, start, tmp_path):
    """In the second of four runs: the first is left alone, the second goes on from a save."""
    file, out = make_study(), tmp_path / "out"
    _, runs = ablation_plan.plan([file], [PACE], 2)
    first, second = (out / "runs" / run.digest for run in runs[:2])
    job = start(file, out)
    deadline = time.monotonic() + 600
    while not (second / "checkpoints/10").is_dir():
        assert job.poll() is None, (tmp_path / "stderr").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    kill(job)
    kept = (first / "metrics.jsonl").read_text(), (first / "model.safetensors").stat().st_mtime_ns
    before = len(steps(second))

    assert start(file, out).wait(600) == exit_codes.DONE, (tmp_path / "stderr").read_text()
    assert (first / "metrics.jsonl").read_text() == kept[0]
    assert (first / "model.safetensors").stat().st_mtime_ns == kept[1]
    assert steps(second)[before] > 10
    record = json.loads((out / "study.json").read_text())
    fast, slow = record["figures"]["eval/loss"]
    assert set(fast["values"]) == set(slow["values"]) == {"0", "1"}
    assert slow["mean"] > 1.2 * fast["mean"]
    assert slow["difference"]["n"] == 2
    evaluated = record["runs"][0]["curves"]["eval/loss"]
    assert list(evaluated) == ["10", "20", "30", "40"]
    assert fast["values"]["0"] == min(evaluated.values())
    written = {"runs", "study.json", "study.md", "study.png"}
    assert {path.name for path in out.iterdir()} == written
