"""The runs of a study as jobs of `tpu_launch`, which hands them to an engine.

It is started as a program: the library does not know the launcher.
"""

import contextlib
import dataclasses
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from musiclm import errors, exit_codes
from musiclm.bin import ablation_runs, staging
from musiclm.bin.ablation_plan import TRAINING, Run

# Fields of a job that a run decides.
_OWN = ("name", "model", "data", "workdir")


def load(path: pathlib.Path) -> dict[str, Any]:
    """Reads what the jobs of all runs share: `cluster`, `image` and `retries` of a job's file.

    Raises:
      UserError: it can't be read, or says what the runs decide.
    """
    try:
        shared = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        told = " ".join(str(error).split())
        raise errors.UserError(f"--job is {str(path)!r}, which can't be read: {told}") from error
    if not isinstance(shared, Mapping):
        raise errors.UserError(
            f"--job is {str(path)!r}, which is no mapping: write `field: value` lines"
        )
    if own := [name for name in _OWN if name in shared]:
        raise errors.UserError(
            f"--job is {str(path)!r}, which gives {own[0]}: leave it out, a study's runs have "
            "their own"
        )
    return dict(shared)


def _place(binding: str) -> tuple[str, str] | None:
    """The macro and the path of a binding that names one, which a job's machines must reach."""
    match = re.fullmatch(r"""\s*(\w+)\s*=\s*(["'])([^"']*/[^"']*)\2\s*""", binding)
    return (match[1], match[3]) if match else None


@dataclasses.dataclass(frozen=True)
class Maker:
    """Hands runs over; an engine may answer long before a run is done.

    Attributes:
      gin_files, gin_bindings: of the study, as the job's machines find them.
      backend: the engine, see `python -m tpu_launch render --help`.
      shared: see `load`.
    """

    gin_files: Sequence[str]
    gin_bindings: Sequence[str]
    backend: str
    shared: Mapping[str, Any]

    def check(self, run: Run, folder: pathlib.Path) -> None:
        """Has a run's job made, as if it were for this folder, and hands nothing over.

        Raises:
          UserError: the run trains nothing, or `tpu_launch` refuses its job.
        """
        if run.kind != TRAINING:
            raise errors.UserError(
                f"--backend is {self.backend!r}, and the study's runs are those of `musiclm "
                f"{run.kind.command}`: jobs train, leave --backend out to make these here"
            )
        with self._rendering(self.job(run, folder), "--dry-run") as command:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != exit_codes.DONE:
            told = done.stderr.strip().rpartition("\n")[2]
            mistake = told.partition("error: ")[2] or told
            raise errors.UserError(f"--backend {self.backend} refuses the jobs: {mistake}")

    def __call__(self, run: Run, folder: pathlib.Path, lock: int) -> int:
        """Hands a run over, and waits for the exit code of the engine's own program."""
        job = self.job(run, folder)
        # Before: two jobs of a run would spoil each other's checkpoints.
        with staging.staged(folder, last=ablation_runs.HANDED_OVER) as unfinished:
            (unfinished / ablation_runs.HANDED_OVER).write_text(job, encoding="utf-8")
        with self._rendering(job) as command:
            process = subprocess.Popen(command, pass_fds=[lock])
            try:
                return ablation_runs.ended(process)
            finally:
                # Refused, or over and to go on. Killed by a signal, the engine may have the job.
                if process.returncode and process.returncode > 0:
                    (folder / ablation_runs.HANDED_OVER).unlink()

    def job(self, run: Run, folder: pathlib.Path) -> str:
        """The description of a run's job, for `tpu_launch`."""
        places = dict(filter(None, map(_place, self.gin_bindings)))
        bindings = [binding for binding in self.gin_bindings if not _place(binding)]
        bindings += [*run.bindings, "loop.train.workdir = %WORKDIR"]
        bindings.append(run.kind.binding("component", str(folder / "model")))
        return yaml.safe_dump(
            {
                "name": f"ablation-{run.digest}",
                "model": {"gin_files": list(self.gin_files), "gin_bindings": bindings},
                "data": places,
                "workdir": str(folder),
                **self.shared,
            },
            sort_keys=False,
            allow_unicode=True,
        )

    @contextlib.contextmanager
    def _rendering(self, job: str, *options: str) -> Iterator[list[str]]:
        """The program that takes a job, which lies in a file as long."""
        with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
            file.write(job)
            file.flush()
            program = [sys.executable, "-m", "tpu_launch", "render"]
            yield [*program, f"--backend={self.backend}", *options, file.name]
