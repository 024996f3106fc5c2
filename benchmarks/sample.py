"""How fast music is sampled, on a CPU: one JSON line a figure.

    python -m venv PEERS && PEERS/bin/pip install torch==2.13.0 transformers
    python benchmarks/sample.py --peer-python PEERS/bin/python

A stage of MusicLM's size (24 layers, d 1024, 16 heads, plain feed-forward of 4096, f32, random
weights) makes 250 tokens with its cache, beside Hugging Face's MusicGen small and a loop written
by hand in PyTorch, in turns as in `train.py`; and beside the rate at which this machine reads
memory, since every step reads every weight. Then gm-mini from text to samples, everything compiled:
whole clips, and how long a listener waits for the first piece of a stream.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
import train

from musiclm import api
from musiclm.bin import sample_meter
from musiclm.models import token_lm
from musiclm.nn import transformer
from musiclm.sampler import decode, logits
from musiclm.token_spec import TokenSpec
from musiclm.tokens import layout

STEPS = 250
STAGE = token_lm.TokenLMConfig(
    layout=layout.StageLayout.semantic(TokenSpec(semantic_window_seconds=10.0)),
    transformer=transformer.TransformerConfig(gated=False, remat=False),
)
PROMPT = "a slow sad piano melody in A minor"


def weights(*, int8: bool = False) -> dict:
    """Random ones, as decoding wants them."""
    ids_BS = jnp.zeros((1, STAGE.layout.sequence_length), jnp.int32)
    variables = jax.jit(token_lm.TokenLM(STAGE).init)(jax.random.key(0), ids_BS)
    return decode.unroll(STAGE, variables["params"], int8_weights=int8)


def turn_of(stage: dict, rows: int, *, int8_cache: bool = False) -> train.Turn:
    """Seconds a step of the compiled loop, the prefix included."""
    mesh = decode.make_mesh()
    ids_BS = jnp.zeros((rows, STAGE.layout.sequence_length), jnp.int32)
    keys_B = jax.random.split(jax.random.key(0), rows)
    given_B = jnp.zeros(rows, jnp.int32)
    settings = logits.by_row([logits.Sampling()] * rows)
    prefix = STAGE.layout.prefix_length

    def turn(count: int) -> float:
        begun = time.perf_counter()
        for _ in range(count):
            state = decode.start(
                STAGE, mesh, stage, ids_BS, prefix, guided=False, int8_cache=int8_cache
            )
            state = decode.advance(
                STAGE, mesh, stage, state, keys_B, given_B, STEPS, settings, filtered=False
            )
            jax.block_until_ready(state)
        return (time.perf_counter() - begun) / count / STEPS

    turn(1)
    return turn


def stage_figures(args: argparse.Namespace) -> None:
    """Steps a second of one stage."""
    stage = weights()
    sizes = {"steps": STEPS, "layers": 24, "dim": 1024, "heads": 16, "mlp": 4096, "codes": 1024}
    reaches = {(1, "musicgen"): 3.0, (1, "loop"): 1.7, (8, "loop"): 2.0}
    for (rows, name), reach in reaches.items():
        ours = turn_of(stage, rows)
        with train.Peer(
            args.peer_python, name, sizes | {"rows": rows}, script="sample_peers.py"
        ) as peer:
            spent = train.in_turns(f"decode_{rows}_{name}", ours, peer, args.turns, 1)
        unit = {"musicgen": "x the steps/s of MusicGen small", "loop": "x the steps/s of PyTorch"}
        train.report(
            f"decode_batch_{rows}_{name}",
            spent.speedup,
            unit[name],
            reach=reach,
            ok=spent.speedup >= reach,
            **spent.medians(),
        )
    read = sum(leaf.nbytes for leaf in jax.tree.leaves(stage)) - stage["tokens"].nbytes
    bandwidth = sample_meter.read_bytes_per_second() / 1e9
    seconds = min(turn_of(stage, 1)(1) for _ in range(args.turns))
    share = read / seconds / 1e9 / bandwidth
    unit = f"of the {bandwidth:.1f} GB/s that a sum reads"
    train.report("decode_batch_1_bandwidth", share, unit, reach=0.85, ok=share >= 0.85)


def music_figures(args: argparse.Namespace) -> None:
    """gm-mini, 10 s clips, everything compiled."""
    model = api.MusicLM.from_pretrained()
    for rows, reach in ((1, 1.0), (8, 3.0)):
        spent = []
        for turn in range(args.turns + 1):
            begun = time.perf_counter()
            model.generate([PROMPT] * rows, seconds=10, seed=turn * rows)
            spent.append(time.perf_counter() - begun)
        value = 10 * rows / float(np.median(spent[1:]))
        train.report(f"gm_mini_batch_{rows}", value, "x real time", reach=reach, ok=value >= reach)


def stream_figures(args: argparse.Namespace) -> None:
    """Seconds until the first piece of gm-mini's stream is there, everything compiled."""
    model = api.MusicLM.from_pretrained()
    spent = []
    for turn in range(args.turns + 1):
        begun = time.perf_counter()
        next(model.stream(PROMPT, seed=turn))
        spent.append(time.perf_counter() - begun)
    value = float(np.median(spent[1:]))
    train.report("gm_mini_first_piece", value, "s", reach=3.0, ok=value < 3, first=spent[0])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer-python", required=True, help="an interpreter that has torch")
    parser.add_argument("--turns", type=int, default=3, help="of each side (%(default)s)")
    figures = {"stage": stage_figures, "gm_mini": music_figures, "stream": stream_figures}
    parser.add_argument("--only", nargs="+", choices=figures, default=list(figures))
    args = parser.parse_args()
    for name in args.only:
        figures[name](args)


if __name__ == "__main__":
    main()
