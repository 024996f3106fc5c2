"""How fast training steps are beside PyTorch's, on a CPU: one JSON line a figure.

    python -m venv PEERS && PEERS/bin/pip install torch==2.13.0 audiolm-pytorch==2.4.0
    python benchmarks/train.py --peer-python PEERS/bin/python

Same sizes, batch, f32 and AdamW; two threads each. Both sides live in processes of their own and
step in turns, so that other work on the machine meets both; a figure is the median over the turns
of the ratio of neighbours. A stage is compared with a plain decoder (`train_peers.py`) in the
faster of two forms; dropout and `remat` are off, and the small one has its blocks in one turn of
the loop, as gin/train/mini has them. The codec is compared with audiolm-pytorch's of our sizes,
without its attention and gradient penalty, which we don't have.
`make bench-train` lets both sides keep freed memory (GLIBC_TUNABLES). The peer's threads sleep
while they wait: spinning slows them several times on a machine with other work.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from musiclm import sharding
from musiclm.models import discriminators, soundstream, token_lm
from musiclm.nn import attention, transformer
from musiclm.token_spec import TokenSpec
from musiclm.tokens import layout
from musiclm.training import health, loop, optim, program
from musiclm.training import soundstream as codec_training
from musiclm.training import token_lm as stage_training

Turn = Callable[[int], float]  # steps -> seconds a step
OPTIMIZER = optim.OptimizerConfig(weight_decay=0.01)
MINI_SPEC = TokenSpec(
    semantic_vocab_size=512, mulan_codebook_size=256, semantic_window_seconds=20.0
)
MINI = token_lm.TokenLMConfig(
    layout=layout.StageLayout.semantic(MINI_SPEC),
    transformer=transformer.TransformerConfig(
        num_layers=6,
        model_dim=256,
        num_heads=4,
        mlp_dim=1024,
        dropout=0.0,
        remat=False,
        scan_unroll=6,
    ),
    tied_embedding=True,
)
BASE = token_lm.TokenLMConfig(
    layout=layout.StageLayout.semantic(TokenSpec(semantic_window_seconds=20.0)),
    transformer=transformer.TransformerConfig(dropout=0.0, remat=False),
)
CODEC = codec_training.SoundStreamTask(
    config=soundstream.SoundStreamConfig(),
    optimizer=dataclasses.replace(OPTIMIZER, b1=0.5, b2=0.9),
    discriminator=discriminators.DiscriminatorConfig(),
    discriminator_optimizer=dataclasses.replace(OPTIMIZER, b1=0.5, b2=0.9),
)
LOG_EVERY = 20


def log(*words: Any) -> None:
    """Progress."""
    print(*words, file=sys.stderr, flush=True)


def report(name: str, value: float, unit: str, reach: float, ok: bool, **more: Any) -> None:
    """Prints a figure, to four digits."""
    record = {"name": name, "value": value, "unit": unit, **more, "reach": reach, "ok": ok}
    short = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in record.items()}
    print(json.dumps(short), flush=True)


def steps_of(task: program.Task, batch: Any, start: int = 0) -> Turn:
    """The compiled step, without the loop, from a state that counts `start` steps."""
    mesh = sharding.MeshConfig().make()
    (rows,) = {len(array) for array in batch.values()}
    built = program.build(task, mesh, batch_size=rows)
    with jax.sharding.set_mesh(mesh):
        run = built.step.lower(built.state, built.batch).compile()
        state = built.init(built.read_start())
        batch = sharding.to_devices(batch, mesh)
    counted = jax.device_put(jnp.full_like(state.step, start), state.step.sharding)
    state = state.replace(step=counted)

    def turn(count: int) -> float:
        nonlocal state
        begun = time.perf_counter()
        for _ in range(count):
            state, scalars = run(state, batch)
            jax.block_until_ready(scalars)
        jax.block_until_ready(state)
        return (time.perf_counter() - begun) / count

    turn(1)
    return turn


class Peer:
    """A script beside this one, with its own interpreter."""

    def __init__(
        self, python: str, name: str, sizes: dict[str, Any], script: str = "train_peers.py"
    ):
        self._script = script
        command = [python, Path(__file__).with_name(script), name, json.dumps(sizes)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"OMP_WAIT_POLICY": "passive"} | os.environ,
        )
        self._answer()

    def __enter__(self) -> Turn:
        return self._turn

    def __exit__(self, *_) -> None:
        self._process.stdin.close()
        self._process.wait()

    def _turn(self, count: int) -> float:
        print(count, file=self._process.stdin, flush=True)
        return float(self._answer())

    def _answer(self) -> str:
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._script} ended with {self._process.wait()}: see above")
        return line


@dataclasses.dataclass(frozen=True)
class Turns:
    """Seconds a step of both sides, turn by turn."""

    ours: list[float]
    peer: list[float]

    def add(self, name: str, ours: float, peer: float) -> None:
        """Takes one turn of each."""
        self.ours.append(ours)
        self.peer.append(peer)
        load = os.getloadavg()[0]
        log(f"{name}: {ours:.3f} s a step, the peer {peer:.3f} s; load {load:.1f}")

    @property
    def speedup(self) -> float:
        """How many times faster we are."""
        return statistics.median(b / a for a, b in zip(self.ours, self.peer, strict=True))

    def medians(self, amount: float = 1.0) -> dict[str, float]:
        """Both sides' own rates, of so much a step."""
        return {side: amount / statistics.median(getattr(self, side)) for side in ("ours", "peer")}


def in_turns(name: str, ours: Turn, peer: Turn, turns: int, steps: int) -> Turns:
    """Ours, the peer, ours, the peer …

    A step of each before does not count: a virtual machine may take memory from who only waits.
    """
    spent = Turns([], [])
    for _ in range(turns):
        ours(1)
        mine = ours(steps)
        peer(1)
        spent.add(name, mine, peer(steps))
    return spent


def tokens(config: token_lm.TokenLMConfig, rows: int, seed: int = 0) -> np.ndarray:
    """Sequences of random codes: int32 [B, S]."""
    rng, shape = np.random.default_rng(seed), config.layout
    segments = (*shape.prefix, shape.target)
    codes = {
        part.source: rng.integers(0, part.codebook_size, (rows, part.num_frames, part.num_levels))
        for part in segments
    }
    codes = {"mulan": codes["mulan"][:, 0], "semantic": codes["semantic"][..., 0]}
    return np.asarray(shape.flatten(codes), np.int32)


def stage(
    name: str, config: token_lm.TokenLMConfig, rows: int, steps: int, args: argparse.Namespace
) -> None:
    """A stage's tokens a second."""
    task = stage_training.TokenLMTask(config=config, optimizer=OPTIMIZER)
    sizes = dataclasses.asdict(config.transformer) | {
        "vocab_size": config.layout.vocab_size,
        "codebook_size": config.layout.target_codebook_size,
        "prefix_length": config.layout.prefix_length,
        "sequence_length": config.layout.sequence_length,
        "tied": config.tied_embedding,
    }
    num_distances = config.layout.sequence_length - 1
    model = config.transformer
    buckets = attention.relative_buckets(num_distances, model.num_buckets, model.max_distance)
    ids = tokens(config, rows)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tokens.npy"
        np.save(file, ids)
        sizes |= {"buckets": buckets.tolist(), "tokens": str(file)}
        with Peer(args.peer_python, "stage", sizes) as peer:
            spent = in_turns(name, steps_of(task, {"tokens": ids}), peer, args.turns, steps)
    value, unit = spent.speedup, "x the tokens/s of PyTorch"
    report(name, value, unit, reach=1.0, ok=value >= 1, **spent.medians(ids.size))


def codec(args: argparse.Namespace) -> None:
    """Generator and discriminators, 4 × 1 s at 24 kHz, with quantisation."""
    config = CODEC.config
    shape = (4, config.sample_rate)
    arguments = {
        "channels": config.encoder_channels,
        "strides": config.strides,
        "codebook_dim": config.latent_dim,
        "codebook_size": config.codebook_size,
        "rq_num_quantizers": config.num_codebooks,
        "target_sample_hz": config.sample_rate,
        "use_local_attn": False,
    }
    sizes = {"arguments": arguments, "batch_size": shape[0], "num_samples": shape[1]}
    waveform = np.random.default_rng(0).normal(scale=0.1, size=shape).astype(np.float32)
    ours = steps_of(CODEC, {"waveform": waveform}, start=CODEC.quantize_from_step + 1)
    with Peer(args.peer_python, "soundstream", sizes) as peer:
        spent = in_turns("soundstream", ours, peer, args.turns, 1)
    value, unit = spent.speedup, "x the steps/s of audiolm-pytorch"
    report("soundstream", value, unit, reach=2.0, ok=value >= 2, **spent.medians())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Watched(stage_training.TokenLMTask):
    """Calls `at_log` whenever the loop looks at what it logs, when nothing is under way."""

    at_log: Callable[[], None]

    def health(self) -> tuple[health.HealthCheck, ...]:
        check = health.HealthCheck(
            metric="loss", breached=lambda _: bool(self.at_log()), bound="", advice=""
        )
        return (check,)


def overhead(args: argparse.Namespace) -> None:
    """What `loop.train` adds to the compiled step, logs and one checkpoint included."""
    task = stage_training.TokenLMTask(config=MINI, optimizer=OPTIMIZER)
    bare = steps_of(task, {"tokens": tokens(MINI, 8)})
    spent, mark = Turns([], []), None

    def at_log() -> None:
        nonlocal mark
        if mark is not None:
            looped = (time.perf_counter() - mark) / LOG_EVERY
            spent.add("train_loop", looped, bare(LOG_EVERY))
        mark = time.perf_counter()

    def dataset(*, seed: int, batch_size: int, start_step: int, **_) -> Iterator[dict]:
        while True:
            yield {"tokens": tokens(MINI, batch_size, seed=start_step)}
            start_step += 1

    with tempfile.TemporaryDirectory() as folder:
        loop.train(
            task=Watched(config=MINI, optimizer=OPTIMIZER, at_log=at_log),
            dataset=dataset,
            workdir=folder,
            component=Path(folder) / "stage",
            num_steps=(args.turns + 1) * LOG_EVERY,
            batch_size=8,
            log_every=LOG_EVERY,
            checkpoint_every=(args.turns // 2 + 1) * LOG_EVERY,
        )
    percents = [100 * (a / b - 1) for a, b in zip(spent.ours, spent.peer, strict=True)]
    middle, high = statistics.quantiles(percents, n=4)[1:]
    # By the upper quartile: on a busy machine noise must not pass for speed.
    report("train_loop", middle, "% over the step alone", reach=3.0, ok=high <= 3, quartile=high)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer-python", required=True, help="an interpreter that has torch")
    parser.add_argument("--turns", type=int, default=7, help="of each side (%(default)s)")
    figures = {
        "stage_6_layers": lambda args: stage("stage_6_layers", MINI, 8, 2, args),
        "stage_24_layers": lambda args: stage("stage_24_layers", BASE, 1, 1, args),
        "soundstream": codec,
        "train_loop": overhead,
    }
    parser.add_argument("--only", nargs="+", choices=figures, default=list(figures))
    args = parser.parse_args()
    for name in args.only:
        figures[name](args)
        jax.clear_caches()


if __name__ == "__main__":
    main()
