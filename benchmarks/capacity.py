"""What so many hours of music take, from measured figures: a Markdown table.

python benchmarks/feed.py > figures.jsonl; python benchmarks/capacity.py figures.jsonl

Reads the JSON lines of the benchmarks. What was not measured, the table says so. The rate at which
accelerators train is no figure of this repository: it follows from the options.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from musiclm.token_spec import TokenSpec
from musiclm.tokens.layout import STAGES, StageLayout

SPEC = TokenSpec()
TOKEN_STREAMS = ("semantic", "acoustic", "mulan")
Figures = Mapping[str, float]


def read(paths: list[Path]) -> dict[str, float]:
    """The benchmarks' figures by name; later ones stand for earlier ones."""
    lines = [line for path in paths for line in path.read_text().splitlines() if line.strip()]
    return {record["name"]: record["value"] for record in map(json.loads, lines)}


def tokens_an_hour() -> int:
    """Semantic and acoustic tokens of an hour."""
    return 3600 * (
        SPEC.semantic_frame_rate + SPEC.acoustic_frame_rate * SPEC.num_acoustic_codebooks
    )


def storage(figures: Figures, hours: float, num_shards: int) -> dict[str, str]:
    """Tokens and bytes."""
    tokens = hours * tokens_an_hour()
    rows = {
        "semantic and acoustic tokens": f"{tokens:.2g}",
        "the same as bare uint16": f"{2 * tokens / 1e12:.3g} TB",
    }
    sizes = [figures.get(f"stored_{name}") for name in TOKEN_STREAMS]
    total = None if None in sizes else hours * sum(sizes)
    rows["token shards, with MuLan's codes and the format's own bytes"] = _or_not(
        total, lambda x: f"{x / 1e12:.3g} TB"
    )
    rows[f"a shard of {num_shards}, all streams"] = _or_not(
        total, lambda x: f"{x / num_shards / 1e6:.0f} MB"
    )
    rows["packed sound, 16 bit at 24 kHz"] = _or_not(
        figures.get("stored_audio"), lambda x: f"{hours * x / 1e12:.3g} TB"
    )
    return rows


def work(figures: Figures, options: argparse.Namespace) -> dict[str, str]:
    """Hours of cores and devices to decode and tokenize once."""
    hours = options.hours
    names = {
        "decode and resample": ("decode_flac_to_24k", "core-hours"),
        "tokenize with the bundle, on the benchmark's device": ("tokenize", "hours"),
        "tokenize in the papers' sizes, on the benchmark's device": ("tokenize_base", "hours"),
    }
    rows = {
        label: _or_not(figures.get(name), lambda x, unit=unit: f"{hours / x:,.0f} {unit}")
        for label, (name, unit) in names.items()
    }
    flops_an_hour = options.chip_tflops * 1e12 * options.utilisation * 3600
    rows[
        f"the same on an accelerator, at {options.utilisation:.0%} of {options.chip_tflops:g} "
        "TFLOP/s (operations counted, their speed assumed)"
    ] = _or_not(
        figures.get("tokenize_base_operations"),
        lambda x: f"{hours * x / flops_an_hour:,.0f} accelerator-hours",
    )
    return rows


def feeding(figures: Figures, options: argparse.Namespace) -> dict[str, str]:
    """What a host must feed, and how many cores that takes."""
    hosts = options.chips / options.chips_a_host
    flops = options.chips * options.chip_tflops * 1e12 * options.utilisation
    wanted = flops / (6 * options.parameters) / hosts
    rows = {
        f"a host's chips take ({options.chips_a_host} of {options.chip_tflops:g} TFLOP/s at "
        f"{options.utilisation:.0%}, {options.parameters:.3g} parameters)": f"{wanted / 1e3:.0f} k "
        "tokens/s"
    }
    for stage in STAGES:
        length = StageLayout.of(stage, SPEC).sequence_length
        rate = figures.get(f"feed_{stage}")
        rows[f"the {stage} stage: a core feeds"] = _or_not(
            rate,
            lambda x, length=length: (
                f"{x * length / 1e3:,.0f} k tokens/s: {wanted / (x * length):.2g} cores a host"
            ),
        )
    return rows


def _or_not(value, show) -> str:
    return "not measured" if value is None else show(value)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("figures", nargs="+", type=Path, help="JSON lines of the benchmarks")
    parser.add_argument("--hours", type=float, default=280_000, help="of music (%(default)s)")
    parser.add_argument("--shards", type=int, default=4096, help="of a stream (%(default)s)")
    parser.add_argument("--chips", type=int, default=256, help="accelerators (%(default)s)")
    parser.add_argument("--chips_a_host", type=int, default=4, help="(%(default)s)")
    parser.add_argument("--chip_tflops", type=float, default=275, help="bf16 peak (%(default)s)")
    parser.add_argument("--utilisation", type=float, default=0.5, help="of it (%(default)s)")
    parser.add_argument("--parameters", type=float, default=4.3e8, help="(%(default)s)")
    options = parser.parse_args()
    figures = read(options.figures)
    table = {
        **storage(figures, options.hours, options.shards),
        **work(figures, options),
        **feeding(figures, options),
    }
    print(f"| {options.hours:,.0f} h, {options.chips} chips | |\n| --- | --- |")
    for label, value in table.items():
        print(f"| {label} | {value} |")


if __name__ == "__main__":
    main()
