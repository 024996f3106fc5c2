"""How much of a GPU's peak a training step of MusicLM's semantic stage uses: one JSON line.

    python benchmarks/train_gpu.py [--attention blocks] [--batch-size 32] [--profile]

The recipe of gin/train/semantic.gin with gin/train/gpu.gin (430 M parameters, 30 s windows,
bfloat16 compute over float32 parameters, dropout) on one GPU: random tokens, the compiled step
without the loop. As in the loop, the next step is given to the device before one is done; measured
are fives of steps, and their median counts. Model FLOPs utilisation (MFU) is what the model asks
for (`musiclm.flops`: recomputation is no work) over the maker's dense bfloat16 peak. `--profile`
adds the ten kernels that take most of a step. Without a GPU it says so and does nothing.
"""

import argparse
import dataclasses
import pathlib
import statistics
import time
from collections.abc import Callable

import gpu_profile
import jax
import train

from musiclm import chips, sharding
from musiclm.bin import configuration
from musiclm.models import token_lm
from musiclm.nn import transformer
from musiclm.training import optim, program
from musiclm.training import token_lm as stage_training

GIN = pathlib.Path(__file__).parents[1] / "gin"
# As in gin/train/semantic.gin.
OPTIMIZER = optim.OptimizerConfig(
    learning_rate=3e-4, warmup_steps=5_000, total_steps=250_000, weight_decay=0.01, clip_norm=1.0
)
REACH = 0.45
STEPS_A_TURN = 5


def task_of(config: token_lm.TokenLMConfig) -> stage_training.TokenLMTask:
    """The recipe's task around a model."""
    return stage_training.TokenLMTask(config=config, optimizer=OPTIMIZER, condition_dropout=0.1)


def base_config(attention: str) -> token_lm.TokenLMConfig:
    """The model of the recipe for GPUs, with an attention."""
    configuration.parse(
        [str(GIN / "models/semantic/base.gin"), str(GIN / "train/gpu.gin")],
        [f"TransformerConfig.attention = {attention!r}"],
    )
    return token_lm.TokenLMConfig(**configuration.resolve(token_lm.TokenLMConfig))


@dataclasses.dataclass(frozen=True)
class Step:
    """A compiled step on its own batch.

    Attributes:
      run: makes as many as are asked for, one of itself, and waits for the last.
      text: the compiled program.
      flops: what the model asks of it.
      tokens: in its batch.
      compile_seconds: that it took.
    """

    run: Callable[..., None]
    text: str
    flops: int
    tokens: int
    compile_seconds: float


def compiled(task: stage_training.TokenLMTask, rows: int) -> Step:
    """The step of the loop, on the first device alone."""
    mesh = sharding.MeshConfig().make(jax.devices()[:1])
    built = program.build(task, mesh, batch_size=rows)
    flops = built.training_flops()
    ids_BS = train.tokens(task.config, rows)
    with jax.sharding.set_mesh(mesh):
        lowered = built.step.lower(built.state, built.batch)
        begun = time.perf_counter()
        executable = lowered.compile()
        spent = time.perf_counter() - begun
        state = built.init(built.read_start())
        batch = sharding.to_devices({"tokens": ids_BS}, mesh)

    def run(count: int = 1) -> None:
        nonlocal state
        for _ in range(count):
            state, _ = executable(state, batch)
        jax.block_until_ready(state)

    return Step(run, executable.as_text(), flops, ids_BS.size, spent)


def seconds_a_step(run: Callable[..., None], turns: int) -> float:
    """The median of turns, after one that is not counted."""
    run(STEPS_A_TURN)
    spent = []
    for _ in range(turns):
        begun = time.perf_counter()
        run(STEPS_A_TURN)
        spent.append((time.perf_counter() - begun) / STEPS_A_TURN)
    return statistics.median(spent)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--attention", choices=transformer.ATTENTIONS, default="flash")
    parser.add_argument("--batch-size", type=int, default=64, help="rows (%(default)s)")
    parser.add_argument("--turns", type=int, default=7, help="measured (%(default)s)")
    parser.add_argument("--profile", action="store_true", help="the ten costliest kernels too")
    args = parser.parse_args()
    if jax.default_backend() != "gpu":
        train.log("train_gpu: there is no GPU here, nothing is measured")
        return
    device = jax.devices()[0]
    step = compiled(task_of(base_config(args.attention)), args.batch_size)
    seconds = seconds_a_step(step.run, args.turns)
    mfu = step.flops / seconds / chips.peak_flops(device.device_kind)
    train.report(
        "train_semantic_mfu",
        mfu,
        f"of the bfloat16 peak of one {device.device_kind}",
        reach=REACH,
        ok=mfu >= REACH,
        attention=args.attention,
        batch_size=args.batch_size,
        milliseconds=1e3 * seconds,
        tokens_a_second=step.tokens / seconds,
        compile_seconds=step.compile_seconds,
        gigabytes=device.memory_stats()["peak_bytes_in_use"] / 1e9,
    )
    if args.profile:
        for kernel in gpu_profile.costliest(step.run, step.text)[:10]:
            milliseconds = 1e3 * kernel.seconds
            train.log(
                f"{milliseconds:8.2f} ms {kernel.share:6.1%} {kernel.launches:5.0f} x "
                f"{kernel.name[:60]} {kernel.source[-70:]}"
            )


if __name__ == "__main__":
    main()
