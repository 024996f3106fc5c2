"""What tokenizing costs: with a bundle, in time; in the papers' sizes, in operations.

How many times faster than real time a bundle's three tokenizers are on JAX's first device, as
`musiclm tokenize` calls them, decoding left out. And the floating-point operations of an hour of
sound in those of gin/models/*/base.gin, by their jaxprs: nothing of that size is computed. One JSON
line each; run it from the root of the repository.
"""

import argparse
import dataclasses
import json
import time

import gin
import jax
import numpy as np

from data_pipelines.beam.encoders import TokenEncoder
from data_pipelines.beam.windows import Window
from musiclm.flops import forward_flops
from musiclm.models.mulan import MuLan, MuLanConfig
from musiclm.models.soundstream import SoundStream, SoundStreamConfig
from musiclm.models.w2v_bert import W2vBert, W2vBertConfig


def base_flops_an_hour(window_seconds: float) -> float:
    """Operations of the base tokenizers on an hour of sound in windows; of captions nothing."""
    for model in ("soundstream", "w2v_bert", "mulan"):
        gin.parse_config_file(f"gin/models/{model}/base.gin")
    codec, semantic, mulan = (
        config(**gin.get_bindings(config))
        for config in (SoundStreamConfig, W2vBertConfig, MuLanConfig)
    )
    # As its training exports it: without the blocks above the features.
    semantic = dataclasses.replace(semantic, mlm_blocks=semantic.feature_layer)

    def cost(module, init_args, method, sample_rate, **options):
        streams = ("params", "dropout", "mask", "gumbel")
        keys = {name: jax.random.key(0) for name in streams}
        variables = jax.eval_shape(lambda: module.init(keys, *init_args, **options))
        waveform = jax.ShapeDtypeStruct((1, round(window_seconds * sample_rate)), np.float32)
        return forward_flops(lambda v, x: module.apply(v, x, method=method), variables, waveform)

    frames = semantic.frame_rate
    of_a_window = (
        cost(SoundStream(codec), [np.zeros((1, codec.hop_length))], "encode", codec.sample_rate),
        cost(
            W2vBert(semantic),
            [np.zeros((1, frames * semantic.hop_length)), np.zeros((1, frames), bool), 1.0],
            "features",
            semantic.sample_rate,
            deterministic=True,
        ),
        cost(
            MuLan(mulan),
            [np.zeros((1, mulan.window_samples)), np.zeros((1, 8), np.int32)],
            "embed_windows",
            mulan.sample_rate,
            train=False,
        ),
    )
    return sum(of_a_window) * 3600 / window_seconds


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
    flops = base_flops_an_hour(args.window_seconds)
    print(json.dumps({"name": "tokenize_base", "value": flops, "unit": "FLOP an hour of sound"}))


if __name__ == "__main__":
    main()
