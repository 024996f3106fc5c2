"""The runs of a study: each made in a process and a folder of its own, and read again."""

import contextlib
import dataclasses
import fcntl
import json
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

from musiclm import errors, exit_codes
from musiclm.bin import ablation_picture, staging
from musiclm.bin.ablation_plan import Run
from musiclm.evaluation import ablation, sources

# make(run, folder, lock): makes it there, with the file that locks the folder; an exit code.
Make = Callable[[Run, pathlib.Path, int], int]
# In the folder of a run that an engine has, or may have, been given to make: the job. While it is
# there nobody starts the run again.
HANDED_OVER = "job.yaml"


@dataclasses.dataclass(frozen=True)
class Maker:
    """Makes runs by a `musiclm` command, with a study's own files and bindings."""

    gin_files: Sequence[str]
    gin_bindings: Sequence[str]

    def __call__(self, run: Run, folder: pathlib.Path, lock: int) -> int:
        """Makes a run in its folder, and waits for the exit code."""
        places = {
            "workdir": folder,
            "component": folder / "model",
            "cache": folder.parent.with_name("cache"),  # that runs share
        }
        where = [run.kind.binding(place, str(places[place])) for place in run.kind.places]
        bindings = [*self.gin_bindings, *run.bindings, *where]
        command = [sys.executable, "-m", "musiclm.bin.main", run.kind.command]
        command += [f"--gin_file={file}" for file in self.gin_files]
        command += [f"--gin_bindings={binding}" for binding in bindings]
        return ended(subprocess.Popen(command, pass_fds=[lock]))


def ended(process: subprocess.Popen) -> int:
    """Waits for the exit code of a process; asked to stop, asks it to, and waits all the same."""
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise


def ablate(
    study: ablation.Study,
    runs: Sequence[Run],
    out: pathlib.Path,
    name: str,
    make: Make,
    *,
    only: Sequence[str] | None = None,
    dry_run: bool = False,
) -> int:
    """Makes the runs that are not done, and writes the study down after each.

    Args:
      study, runs: see `ablation_plan.plan`.
      out: folder of runs and tables.
      name: of the study's files there.
      make: of one run.
      only: variants to make; None takes all.
      dry_run: lists the runs instead.

    Returns:
      The exit code.

    Raises:
      UserError: there is no such variant, or `out` can't be written.
    """
    names = [variant.name for variant in study.variants]
    if strangers := sorted(set(only or ()) - set(names)):
        raise errors.UserError(f"--only is {strangers[0]!r}: the variants are {', '.join(names)}")
    folder = out / "runs"
    if dry_run:
        for run in runs:
            place = folder / run.digest
            print(f"{run.variant}, seed {run.seed}: {_state(run, place)}, {place}")
        return exit_codes.DONE
    codes: dict[str, int] = {}
    _write(study, _outcomes(study, runs, folder, codes), out, name)  # whether it can is known early
    try:
        chosen = [run for run in runs if only is None or run.variant in only]
        for run, code in _made(chosen, folder, make):
            codes[run.digest] = code
            _write(study, _outcomes(study, runs, folder, codes), out, name)
    except SystemExit:  # SIGTERM, see `main`
        print("musiclm: asked to stop: start again to go on", file=sys.stderr)
        return exit_codes.PREEMPTED
    _write(study, _outcomes(study, runs, folder, codes), out, name)
    for run in runs:
        if code := codes.get(run.digest):
            print(f"musiclm: {run.variant}, seed {run.seed}: {_failure(code)}", file=sys.stderr)
    print(f"musiclm: wrote {out / name}.md, .json and .png", file=sys.stderr)
    handed = [run for run in runs if _state(run, folder / run.digest) == "handed over"]
    if handed:
        print(
            f"musiclm: handed over and not done: {len(handed)} of {len(runs)} runs: start again to "
            f"see what has become of them; a run without its {HANDED_OVER} is handed over anew",
            file=sys.stderr,
        )
    first_failed = next(filter(None, codes.values()), exit_codes.DONE)
    return exit_codes.FAULT if first_failed < 0 else first_failed


def _made(runs: Sequence[Run], folder: pathlib.Path, make: Make) -> Iterator[tuple[Run, int]]:
    """Makes every run that is not done, equal ones once, and gives it with its exit code."""
    pending: dict[str, Run] = {}
    for run in runs:
        pending.setdefault(run.digest, run)
    total = len(pending)
    for wait in (False, True):  # those that others are at come last
        for digest, run in list(pending.items()):
            with _locked(folder / digest, wait=wait) as lock:
                if lock is None:
                    continue
                del pending[digest]
                if _state(run, folder / digest) in ("done", "handed over"):
                    continue
                print(
                    f"musiclm: run {total - len(pending)} of {total}: {run.variant}, seed "
                    f"{run.seed}, in {folder / digest}",
                    file=sys.stderr,
                )
                _describe(run, folder / digest)
                code = make(run, folder / digest, lock)
            yield run, code


@contextlib.contextmanager
def _locked(folder: pathlib.Path, *, wait: bool) -> Iterator[int | None]:
    """A run's folder, for this process and those that it hands the file to; None if others have it.

    So a process that outlives a killed `musiclm ablate` has it until it ends.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("a")
    except OSError as error:
        raise errors.UserError(
            f"cannot write to {str(folder)!r} ({error.strerror}): choose another folder with --out"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                yield None
                return
            print(f"musiclm: waiting for another process, which makes {folder}", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def _state(run: Run, folder: pathlib.Path) -> str:
    if (folder / run.kind.last).is_file():
        return "done"
    if (folder / HANDED_OVER).is_file():
        return "handed over"
    return "begun" if folder.is_dir() else "to do"


def _failure(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"failed with code {code}"


def _describe(run: Run, folder: pathlib.Path) -> None:
    """Writes down what the run is, and the version of the program that is at it now.

    Versions stand in the order in which they began to work on it, with spaces between them.
    """
    codes = _codes(folder) if (folder / "run.json").is_file() else ()
    told = {
        "code": " ".join(dict.fromkeys([*codes, sources.digest()])),
        "configuration": run.configuration,
    }
    with staging.staged(folder, last="run.json") as unfinished:
        (unfinished / "run.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def _codes(folder: pathlib.Path) -> tuple[str, ...]:
    """The versions of the program that were at a run."""
    return tuple(json.loads((folder / "run.json").read_text(encoding="utf-8"))["code"].split())


def _outcomes(
    study: ablation.Study, runs: Sequence[Run], folder: pathlib.Path, codes: Mapping[str, int]
) -> dict[tuple[str, int], ablation.Outcome]:
    """What came of every run so far, by variant and seed."""
    names = [metric.name for metric in study.metrics]
    outcomes = {}
    for run in runs:
        place, code = folder / run.digest, codes.get(run.digest)
        state = _state(run, place)
        if state == "done":
            curves = ablation.read_curves(place / "metrics.jsonl", names)
            items = ablation.read_items(place / "items.json", names)
            outcome = ablation.Outcome(
                run=run.digest, codes=_codes(place), curves=curves, items=items
            )
        else:
            waiting = state if state == "handed over" else "not made yet"
            missing = _failure(code) if code else waiting
            outcome = ablation.Outcome(run=run.digest, missing=missing)
        outcomes[run.variant, run.seed] = outcome
    return outcomes


def _write(
    study: ablation.Study,
    outcomes: Mapping[tuple[str, int], ablation.Outcome],
    out: pathlib.Path,
    name: str,
) -> None:
    """The study as it stands: NAME.json, NAME.md and NAME.png."""
    record = json.dumps(ablation.record(study, outcomes), indent=2, ensure_ascii=False) + "\n"
    page = ablation.markdown(study, outcomes, name)
    with staging.staged(out, last=f"{name}.md") as unfinished:
        (unfinished / f"{name}.json").write_text(record, encoding="utf-8")
        (unfinished / f"{name}.md").write_text(page, encoding="utf-8")
        (unfinished / f"{name}.png").write_bytes(ablation_picture.draw(study, outcomes))
