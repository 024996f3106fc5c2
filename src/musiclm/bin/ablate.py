"""Makes the variants of a run from several seeds, and tells how far they lie apart.

A run trains, or measures something that needs no training. Every run is a process of its own, in
OUT/runs/<digest of all that decides it>: equal runs of any study are made once. Started again it
goes on where it was, also beside others that make the same: each takes runs that nobody is at. OUT
gets NAME.json, NAME.md and NAME.png after each run, NAME being that of the first gin file.

With --backend and --job, runs that train are handed to an engine instead, each as a job of
`python -m tpu_launch`; started again it takes what is done into the table.

Exit codes: as `musiclm train`, of the first run that failed if any did. The others are made anyway.
"""

import argparse
import concurrent.futures
import multiprocessing
import os
import pathlib
from typing import Any

from musiclm import errors, exit_codes
from musiclm.bin import configuration

MISTAKE = exit_codes.CONFIGURATION
HELP = "make variants of a run from several seeds, and compare them"
EPILOG = """\
examples:
  musiclm ablate --gin_file gin/ablations/positions.gin --gin_bindings 'TRAIN="…"' … --out ablations
  musiclm ablate --dry-run --gin_file … --out ablations          # checks all, makes nothing
  musiclm ablate --only '4 levels' --seeds 3 --gin_file … --out ablations
  musiclm ablate --backend slurm --job job.yaml --gin_file … --out /shared/ablations

The top of a gin file tells which macros must be set; docs/ablations.md how to read and write one,
and what a job's file has.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `musiclm ablate`."""
    configuration.add_arguments(parser)
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder of runs and tables")
    parser.add_argument(
        "--only", nargs="+", metavar="VARIANT", help="make these; the table has all"
    )
    parser.add_argument("--seeds", type=int, default=2, help="how many, from 0 on (default: 2)")
    parser.add_argument("--dry-run", action="store_true", help="list the runs, make none")
    parser.add_argument("--backend", help="hand runs to this engine of tpu_launch, needs --job")
    parser.add_argument(
        "--job", type=pathlib.Path, metavar="YAML", help="cluster, image and retries of the jobs"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    if args.seeds < 1:
        raise errors.UserError(f"--seeds is {args.seeds}: give 1 or more")
    if (args.backend is None) != (args.job is None):
        raise errors.UserError("--backend and --job are of use together: give both, or none")

    from musiclm.bin import ablation_jobs, ablation_runs

    shared = None if args.job is None else ablation_jobs.load(args.job)
    # A process takes what it imported with it when it ends: TensorFlow, for the plan.
    with concurrent.futures.ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn"), initializer=_without_accelerator
    ) as worker:
        planned = worker.submit(_plan, args.gin_file, args.gin_bindings, args.seeds)
        study, runs = planned.result()

    name = pathlib.Path(args.gin_file[0]).stem  # what follows is added to the study
    out = args.out.absolute()
    make: ablation_runs.Make
    if shared is None:
        make = ablation_runs.Maker(args.gin_file, args.gin_bindings)
    else:
        make = ablation_jobs.Maker(args.gin_file, args.gin_bindings, args.backend, shared)
        for run in runs[: len(study.variants)]:  # a seed's, for jobs of other seeds are no others
            make.check(run, out)
    return ablation_runs.ablate(study, runs, out, name, make, only=args.only, dry_run=args.dry_run)


def _without_accelerator() -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"  # a plan is traced; the devices are for the runs


def _plan(*arguments: Any) -> Any:
    from musiclm.bin import ablation_plan

    return ablation_plan.plan(*arguments)
