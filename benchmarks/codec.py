"""How fast SoundStream encodes and decodes beside EnCodec, on a CPU: one JSON line a figure.

    python -m venv PEERS && PEERS/bin/pip install torch==2.13.0 encodec==0.1.1
    python benchmarks/codec.py --peer-python PEERS/bin/python

MusicLM's codec (24 kHz, 12 codes at 50 Hz, 6 kbps) against the 24 kHz model of the package
`encodec` at 6 kbps, both with random weights, in f32, 10 s at once, on all cores that the process
may use. The two take turns, as in `train.py`. The peer has three quarters more weights.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import train

from musiclm.models import soundstream

SECONDS = 10


def ours() -> dict[str, train.Turn]:
    """Seconds that our codec takes, by what it does."""
    config = soundstream.SoundStreamConfig()
    model = soundstream.SoundStream(config)
    shape = (1, SECONDS * config.sample_rate)
    waveform_BT = np.random.default_rng(0).normal(scale=0.1, size=shape).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), waveform_BT)
    encode = jax.jit(lambda v, x_BT: model.apply(v, x_BT, method="encode"))
    decode = jax.jit(lambda v, codes_BTQ: model.apply(v, codes_BTQ, method="decode"))
    codes_BTQ = encode(variables, waveform_BT)
    return {
        "encode": turn_of(lambda: encode(variables, waveform_BT)),
        "decode": turn_of(lambda: decode(variables, codes_BTQ)),
    }


def turn_of(run: Callable[[], Any]) -> train.Turn:
    """Times a compiled function."""

    def turn(count: int) -> float:
        begun = time.perf_counter()
        for _ in range(count):
            jax.block_until_ready(run())
        return (time.perf_counter() - begun) / count

    turn(1)
    return turn


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer-python", required=True, help="an interpreter that has encodec")
    parser.add_argument("--turns", type=int, default=9, help="of each side (%(default)s)")
    args = parser.parse_args()
    sizes = {"seconds": SECONDS}
    for name, turn in ours().items():
        with train.Peer(args.peer_python, name, sizes, script="codec_peers.py") as peer:
            spent = train.in_turns(f"codec_{name}", turn, peer, args.turns, 3)
        value, medians = spent.speedup, spent.medians(SECONDS)
        unit = "x the speed of encodec; ours and peer: x real time"
        train.report(f"codec_{name}", value, unit, reach=1.0, ok=value >= 1, **medians)


if __name__ == "__main__":
    main()
