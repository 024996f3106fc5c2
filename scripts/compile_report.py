"""Compiles base runs for several pods and writes docs/compile_report.{json,md}.

    nice .venv/bin/python scripts/compile_report.py

All but SoundStorm's. Takes a few minutes a program. Each is written when it is done: a second
start goes on with what lacks, and compiles again what an edit of the JSON took out.
"""

import argparse
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
REPORT = ROOT / "docs" / "compile_report.json"
MODELS = ("semantic", "coarse", "fine", "w2v_bert", "bert", "mulan", "soundstream")
PODS = (("v5e:16x16", 1), ("v5e:16x16", 2), ("v5p:4x4x4", 1), ("v6e:16x16", 1), ("tpu7x:4x4x4", 1))

HEAD = """\
# What the base runs need on pods

Made by `scripts/compile_report.py` from `compile_report.json`: the real training steps, compiled by
libtpu for chips that were not there. Nothing here was run: memory and traffic are those of the
compiled programs, times the least that the chips' published figures allow. GB are 10⁹ bytes, a
device's; FLOP are the model's, three times those of its forward pass.

MuLan's step on v6e:16x16 and on tpu7x:4x4x4 overflows the stacks that libtpu 0.0.42 gives its own
threads (a segmentation fault in MigrateInstructionUsers, after a quarter of an hour or so). These rows
come of processes whose `pthread_create` was made, by a library in LD_PRELOAD, to give 6 GB to each; so
may have to do who trains there with that libtpu.

"In a loop" is the largest array that one all-reduce sums within the loop over layers. It stays under
1 MB where libtpu sums the gradients of a layer's weights by reduce-scatter; for tpu7x it makes of each
layer's one all-reduce over all chips, on the SparseCores, and twice the bytes.

| run | pod | mesh | rows | fits | state GB | temporaries GB | limit GB | TFLOP a step | sent GB | between slices GB | in a loop MB | ms at least | bound by | MFU at most |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|
"""  # noqa: E501


def main() -> None:
    """Compiles what lacks, one program after the other."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    reports = json.loads(REPORT.read_text()) if REPORT.exists() else []
    done = {(r["gin_file"], r["topology"], r["slices"]) for r in reports}
    for topology, slices in PODS:
        for model in MODELS:
            gin_file = f"gin/train/{model}.gin"
            if (gin_file, topology, slices) in done:
                continue
            print(f"{gin_file} on {slices} × {topology} …", flush=True)
            command = [
                *(sys.executable, "-m", "musiclm.bin.main", "compile", "--json"),
                *("--gin_file", gin_file, "--topology", topology, "--slices", str(slices)),
            ]
            result = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
            if not result.stdout:
                sys.exit(f"{gin_file} on {topology} could not be compiled: see the line above")
            reports = sorted([*reports, json.loads(result.stdout)], key=_place)
            REPORT.write_text(json.dumps(reports, indent=1) + "\n")
            REPORT.with_suffix(".md").write_text(page(reports))


def page(reports: list[dict]) -> str:
    """The report for people."""
    return HEAD + "".join(map(_row, reports))


def _place(report: dict) -> tuple[int, int]:
    """Where a program stands in the table."""
    pod = report["topology"], report["slices"]
    return PODS.index(pod), MODELS.index(pathlib.Path(report["gin_file"]).stem)


def _row(report: dict) -> str:
    """A line of the table."""
    mesh = " × ".join(str(size) for size in report["mesh"].values())
    cells = [
        pathlib.Path(report["gin_file"]).stem,
        f"{report['slices']} × {report['topology']}",
        mesh,
        f"{report['batch_size']:,}",
        "yes" if report["fits"] else "no",
    ]
    limit = f"{report['bytes_limit'] / 1e9:.1f}"
    if "bytes_arguments" not in report:
        cells += ["", "", limit, f"{report['model_flops'] / 1e12:,.0f}"]
        cells += [""] * 6
    else:
        cells += [
            f"{report['bytes_arguments'] / 1e9:.2f}",
            f"{report['bytes_temporaries'] / 1e9:.2f}",
            limit,
            f"{report['model_flops'] / 1e12:,.0f}",
            f"{report['bytes_sent_within_slices'] / 1e9:.2f}",
            f"{report['bytes_sent_across_slices'] / 1e9:.3f}",
            f"{report['largest_all_reduced_in_a_loop'] / 1e6:.2f}",
            f"{1e3 * report['step_seconds_at_least']:,.1f}",
            report["bound_by"].replace("_", " "),
            f"{report['mfu_at_most']:.0%}",
        ]
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    main()
