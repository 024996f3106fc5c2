"""How many times faster than real time a bundle's three tokenizers are, on JAX's first device.

As `musiclm tokenize` calls them, decoding left out. One JSON line.
"""

import argparse
import json
import time

import jax
import numpy as np

from data_pipelines.beam.encoders import TokenEncoder
from data_pipelines.beam.windows import Window


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", default="gm-mini", help="name or folder (%(default)s)")
    parser.add_argument("--window-seconds", type=float, default=30.0, help="(%(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="windows (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="of which the best counts")
    args = parser.parse_args()
    encoder = TokenEncoder.of(args.bundle, batch_size=args.batch_size)
    rng = np.random.default_rng(0)
    windows = [
        Window(
            key=str(index),
            waveforms={
                rate: rng.normal(scale=0.1, size=round(args.window_seconds * rate)).astype("f4")
                for rate in encoder.sample_rates
            },
            captions=(),
        )
        for index in range(args.batch_size)
    ]
    encode = encoder.load()
    encode(windows)  # compiles
    spent = []
    for _ in range(args.repeats):
        start = time.perf_counter()
        encode(windows)
        spent.append(time.perf_counter() - start)
    value = args.batch_size * args.window_seconds / min(spent)
    line = {"name": "tokenize", "value": round(value, 1), "unit": "x real time"}
    print(json.dumps(line | {"device": jax.devices()[0].device_kind, "bundle": args.bundle}))


if __name__ == "__main__":
    main()
