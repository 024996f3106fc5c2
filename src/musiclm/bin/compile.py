"""Compiles a training step for TPUs that are not here, and tells what it would take there.

Memory and collectives are those of the compiled program; times are what the chips' published
figures allow at best, the slowest of arithmetic, memory and wires alone.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import re
import time
from collections.abc import Iterator
from typing import Any

from musiclm import errors, exit_codes
from musiclm.bin import configuration

MISTAKE = exit_codes.CONFIGURATION
HELP = "compile a training step for TPUs that are not here: does it fit, how fast can it be"
EPILOG = """\
examples:
  musiclm compile --gin_file gin/train/semantic.gin --topology v5e:16x16
  musiclm compile --gin_file gin/train/coarse.gin --topology v5e:16x16 --slices 2 --json
  musiclm compile --quick --gin_file gin/train/fine.gin --gin_bindings FSDP=8 --topology v6e:4x4

The file is one of `musiclm train`; only loop.train's task, mesh, rules and batch_size are read, so
macros of data need no value. Nothing runs, and no TPU is needed: libtpu alone compiles. Exit codes:
0 it fits, 78 it does not, or something given can't be used.
"""

_GIGA = 1e9
_ENVIRONMENT = {
    # Else libtpu asks the cloud where it is, and holds a lock that other programs wait for.
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    # What it would have found out, of no consequence to a compiler.
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    # What libtpu and TensorFlow say of hardware that is not here helps nobody.
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}

# What --quick leaves out beside: convolutions of few channels as ones of many rows. On these libtpu
# spends more than half of what SoundStream's convolutions take it.
_QUICKER = {
    "xla_tpu_run_space_to_batch": "false",
    "xla_tpu_run_space_to_batch_on_new_platforms": "false",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `musiclm compile`."""
    configuration.add_arguments(parser)
    parser.add_argument(
        "--topology", required=True, help="chip and shape of a slice, such as v5e:16x16"
    )
    parser.add_argument("--slices", type=int, default=1, help="of that shape (default: 1)")
    parser.add_argument(
        "--quick", action="store_true", help="let XLA optimise less: sooner, and more memory"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    report = compile_run(
        args.gin_file, args.gin_bindings, args.topology, slices=args.slices, quick=args.quick
    )
    print(json.dumps(report, indent=2) if args.json else _as_text(report))
    return exit_codes.DONE if report["fits"] else exit_codes.CONFIGURATION


def compile_run(
    gin_files: list[str],
    gin_bindings: list[str],
    topology: str,
    *,
    slices: int = 1,
    quick: bool = False,
) -> dict[str, Any]:
    """Compiles the step of a training run, and looks at the program.

    Args:
      gin_files, gin_bindings: of the run.
      topology: such as "v5e:16x16".
      slices: of that topology.
      quick: with XLA's least optimisation.

    Returns:
      A JSON-ready report; bytes and seconds are a device's in one step.

    Raises:
      UserError: the files, the topology or the mesh can't be used, or libtpu is missing.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import jax

    from musiclm import chips, collectives, sharding
    from musiclm.training import loop, program

    chip = chips.of_topology(topology)
    devices = _devices(topology, slices, chip.config_name)
    configuration.parse(gin_files, gin_bindings, whole=False)
    run_of = configuration.resolve_some(loop.train, ("task", "mesh", "rules", "batch_size", "seed"))
    for name in ("task", "batch_size"):
        if name not in run_of:
            raise errors.UserError(
                f"{gin_files}: loop.train.{name} is not bound: give a run's file"
            )
    task = run_of.pop("task")
    mesh = (run_of.pop("mesh", None) or sharding.MeshConfig()).make(devices)
    built = program.build(task, mesh, **run_of)

    report = {
        "gin_file": gin_files[-1],
        "gin_bindings": list(gin_bindings),
        "topology": topology,
        "slices": slices,
        "devices": mesh.size,
        "mesh": dict(mesh.shape),
        "batch_size": run_of["batch_size"],
        "jax": jax.__version__,
        "quick": quick,
        "model_flops": built.training_flops(),
        "bytes_limit": round(chip.hbm_bytes / chip.devices),
    }
    started = time.monotonic()
    with jax.sharding.set_mesh(mesh), _optimisation("O0" if quick else None):
        lowered = built.step.lower(built.state, built.batch)
        try:
            compiled = lowered.compile(_QUICKER if quick else None)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return report | {"fits": False, "why": errors.first_line(error)}
    report["compile_seconds"] = round(time.monotonic() - started)

    memory = compiled.memory_analysis()
    found = collectives.of_program(compiled.as_text(), mesh, num_slices=slices)
    all_reduced = [
        max(item.array_bytes) for item in found if item.in_loop and item.kind == "all-reduce"
    ]
    report |= {
        # The next state takes the place of the last one: results need no room of their own.
        "fits": memory.argument_size_in_bytes + memory.temp_size_in_bytes <= report["bytes_limit"],
        "bytes_arguments": memory.argument_size_in_bytes,
        "bytes_temporaries": memory.temp_size_in_bytes,
        "collectives": collectives.totals(found),
        "bytes_sent_within_slices": sum(c.sent_bytes for c in found if not c.crosses_slices),
        "bytes_sent_across_slices": sum(c.sent_bytes for c in found if c.crosses_slices),
        "largest_all_reduced_in_a_loop": max(all_reduced, default=0),
    }
    return report | _roofline(report, chip)


def _roofline(report: dict[str, Any], chip: Any) -> dict[str, Any]:
    """The least that a step can take, and what is then left of the peak."""
    # Arguments are read, results take their place; temporaries are written and read.
    memory = 2 * report["bytes_arguments"] + 2 * report["bytes_temporaries"]
    flops = report["model_flops"] / report["devices"]
    seconds = {
        "compute": flops / (chip.flops / chip.devices),
        "memory": memory / (chip.hbm_bandwidth / chip.devices),
        "within_slices": report["bytes_sent_within_slices"] / (chip.ici_bandwidth / chip.devices),
        "across_slices": report["bytes_sent_across_slices"] / (chip.dcn_bandwidth / chip.devices),
    }
    slowest = max(seconds, key=seconds.get)
    return {
        "arithmetic_intensity": flops / memory,
        "seconds_at_least": seconds,
        "step_seconds_at_least": seconds[slowest],
        "bound_by": slowest,
        "mfu_at_most": seconds["compute"] / seconds[slowest],
    }


def _devices(topology: str, slices: int, config_name: str | None) -> list[Any]:
    """The devices of slices that are not here.

    Raises:
      UserError: libtpu is missing or does not know the topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise errors.UserError("libtpu is not installed: pip install 'jax[tpu]'")
    if slices < 1:
        raise errors.UserError(f"--slices is {slices}: give 1 or more")
    import jax
    from jax.experimental import topologies

    jax.config.update("jax_platforms", "cpu")
    options = {"num_slices": slices} if slices > 1 else {}
    if config_name:
        options["chip_config_name"] = config_name
    try:
        return topologies.get_topology_desc(
            platform="tpu", topology_name=topology, **options
        ).devices
    except (jax.errors.JaxRuntimeError, ValueError, NotImplementedError) as error:
        raise errors.UserError(
            f"topology {topology!r}: {errors.first_line(error)}: give a shape of whole hosts, such "
            "as v5e:16x16"
        ) from error


@contextlib.contextmanager
def _optimisation(level: str | None) -> Iterator[None]:
    import jax

    before = jax.config.jax_optimization_level
    jax.config.update("jax_optimization_level", level or before)
    try:
        yield
    finally:
        jax.config.update("jax_optimization_level", before)


def _as_text(report: dict[str, Any]) -> str:
    """A page for people."""
    mesh = " × ".join(f"{axis} {size}" for axis, size in report["mesh"].items())
    rows = [
        f"{report['gin_file']} on {report['slices']} × {report['topology']}: {mesh}, "
        f"{report['batch_size']} rows",
    ]

    def row(label: str, text: str) -> None:
        rows.append(f"  {label:<34}{text:>20}")

    row("fits", "yes" if report["fits"] else "no")
    row("memory, GB a device", f"{report['bytes_limit'] / _GIGA:.2f}")
    if "why" in report:
        return "\n".join([*rows, f"  {_shortened(report['why'])}"])
    for name in ("arguments", "temporaries"):
        row(f"{name}, GB", f"{report[f'bytes_{name}'] / _GIGA:.2f}")
    row("model, TFLOP a step", f"{report['model_flops'] / 1e12:,.1f}")
    row("FLOP a byte of memory", f"{report['arithmetic_intensity']:,.0f}")
    for name, seconds in report["seconds_at_least"].items():
        row(f"{name.replace('_', ' ')}, ms at least", f"{1e3 * seconds:,.1f}")
    row("MFU at most", f"{report['mfu_at_most']:.0%}")
    rows.append("  sent by a device in a step")
    for item in report["collectives"]:
        where = "+".join(item["axes"]) + (" between slices" if item["crosses_slices"] else "")
        row(
            f"  {item['kind']}, {where}",
            f"{item['turns']:,} × {item['sent_bytes'] / _GIGA:10.3f} GB",
        )
    return "\n".join(rows)


def _shortened(why: str) -> str:
    return re.sub(r"^RESOURCE_EXHAUSTED: ", "", why)
