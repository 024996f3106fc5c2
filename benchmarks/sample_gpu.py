"""How near sampling comes to what a GPU's memory allows: one JSON line a stage and batch.

    python benchmarks/sample_gpu.py

The stages of gin/models/*/base.gin (430 M parameters, 30, 10 and 3 s windows) in bfloat16 with
random weights, through the compiled loop of `musiclm.sampler.decode`. Every step must read all
weights and the keys and values of all tokens so far; that, over the bandwidth of a large copy
within the device's memory, is the least time it could take, and a figure is that time's share of
the time it took. Measured are the last steps of a window, from its last multiple of 512 on, where
the cache is fullest: times real time is of these too, and lower than a whole window's. Without a
GPU it says so and does nothing.
"""

import argparse
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
import train
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from musiclm.bin import configuration
from musiclm.models import token_lm
from musiclm.sampler import decode, logits
from musiclm.token_spec import TokenSpec

MODELS = pathlib.Path(__file__).parents[1] / "gin/models"
STAGES = ("semantic", "coarse", "fine")
# (batch size) -> the share that it must reach.
REACHES = {16: 0.6, 64: 0.6}
COPIED_BYTES = 4 * 2**30
MEASURED_FROM_MULTIPLE_OF = 512


def config_of(stage: str) -> token_lm.TokenLMConfig:
    """The paper's model."""
    configuration.parse([str(MODELS / stage / "base.gin")])
    return token_lm.TokenLMConfig(**configuration.resolve(token_lm.TokenLMConfig))


def random_weights(config: token_lm.TokenLMConfig, mesh: jax.sharding.Mesh) -> dict:
    """As decoding wants them, of the size that they start from."""
    ids_BS = jax.ShapeDtypeStruct((1, config.layout.sequence_length), jnp.int32)
    shapes = jax.eval_shape(token_lm.TokenLM(config).init, jax.random.key(0), ids_BS)["params"]

    def draw(key):
        leaves, tree = jax.tree.flatten(shapes)
        keys = jax.random.split(key, len(leaves))
        drawn = [0.02 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
        return jax.tree.unflatten(tree, drawn)

    weights = decode.unroll(config, jax.jit(draw)(jax.random.key(0)))
    return jax.device_put(weights, NamedSharding(mesh, P()))


def bytes_a_second() -> float:
    """Read and written by the fastest of some large copies within the device's memory."""
    array = jax.random.bits(jax.random.key(0), (COPIED_BYTES // 4,))
    copy = jax.jit(jnp.copy).lower(array).compile()
    spent = []
    for _ in range(10):
        begun = time.perf_counter()
        copy(array).block_until_ready()
        spent.append(time.perf_counter() - begun)
    return 2 * COPIED_BYTES / min(spent)


def first_token(config: token_lm.TokenLMConfig) -> int:
    """How many tokens are known where the measured steps of a window begin."""
    multiple = MEASURED_FROM_MULTIPLE_OF
    return (config.layout.sequence_length - 1) // multiple * multiple + 1


def last_steps(
    config: token_lm.TokenLMConfig, mesh: jax.sharding.Mesh, weights: dict, rows: int
) -> train.Turn:
    """Takes a window's last steps, as many as are asked for: seconds a step."""
    layout, cfg = config.layout, config.transformer
    shape = (cfg.num_layers, rows, cfg.num_heads, layout.sequence_length, cfg.head_dim)
    by_rows, whole = NamedSharding(mesh, P(decode.ROWS)), NamedSharding(mesh, P())
    draw = jax.jit(
        lambda key: jax.random.normal(key, shape, cfg.dtype),
        out_shardings=NamedSharding(mesh, P(None, decode.ROWS)),
    )
    arguments = (
        jnp.zeros((rows, layout.sequence_length), jnp.int32),
        jax.random.split(jax.random.key(0), rows),
        jnp.zeros(rows, jnp.int32),
        logits.by_row([logits.Sampling()] * rows),
    )
    ids_BS, keys_B, given_B, settings = jax.device_put(arguments, by_rows)
    cache = decode.Cache(draw(jax.random.key(1)), draw(jax.random.key(2)))
    state = decode.State(cache, ids_BS, jnp.int32(0))
    del cache, ids_BS  # the state is given up at every turn

    def turn(count: int) -> float:
        nonlocal state
        known = jax.device_put(jnp.int32(layout.sequence_length - count), whole)
        state = jax.block_until_ready(state._replace(known=known))
        begun = time.perf_counter()
        state = decode.advance(
            config, mesh, weights, state, keys_B, given_B, count, settings, filtered=False
        )
        jax.block_until_ready(state)
        return (time.perf_counter() - begun) / count

    turn(layout.sequence_length - first_token(config))  # compiles
    return turn


def tokens_a_second_of_music(config: token_lm.TokenLMConfig) -> float:
    """Of the stage's target."""
    layout = config.layout
    seconds = getattr(TokenSpec(), f"{layout.stage}_window_seconds")
    return layout.target.num_frames * layout.target_levels / seconds


def stage_figures(stage: str, batch_sizes: list[int], turns: int, bandwidth: float) -> None:
    """Reports each batch size; one that the memory does not hold is left out."""
    config, mesh = config_of(stage), decode.make_mesh(jax.devices()[:1])
    weights = random_weights(config, mesh)
    first, end = first_token(config), config.layout.sequence_length
    steps = end - first
    for rows in batch_sizes:
        try:
            turn = last_steps(config, mesh, weights, rows)
            seconds = statistics.median(turn(steps) for _ in range(turns))
            del turn  # and its cache
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            train.log(f"{stage}, batch {rows}: the device's memory does not hold it")
            continue
        read = decode.bytes_read(config, weights, rows, first, end) / steps
        share = read / bandwidth / seconds
        reach = REACHES.get(rows, 0.0)
        train.report(
            f"decode_{stage}_batch_{rows}",
            share,
            f"of the {bandwidth / 1e12:.2f} TB/s that a copy moves",
            reach=reach,
            ok=share >= reach,
            milliseconds=1e3 * seconds,
            real_time=rows / seconds / tokens_a_second_of_music(config),
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=3, help="measured (%(default)s)")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 16, 64, 256])
    args = parser.parse_args()
    if jax.default_backend() != "gpu":
        train.log("sample_gpu: there is no GPU here, nothing is measured")
        return
    bandwidth = bytes_a_second()
    for stage in args.stages:
        stage_figures(stage, args.batch_sizes, args.turns, bandwidth)
        jax.clear_caches()


if __name__ == "__main__":
    main()
