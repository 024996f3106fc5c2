"""How many times faster than real time tokenizing is on JAX's first device, decoding left out.

With a bundle, as `musiclm tokenize` calls it; and in the papers' sizes (gin/models/*/base.gin) with
random weights, without captions, where the operations of an hour of sound are told as well. One
JSON line each; run it from the root of the repository.
"""

import argparse
import dataclasses
import functools
import json
import time
from collections.abc import Callable
from typing import Any

import gin
import jax
import numpy as np

from data_pipelines.beam.encoders import TokenEncoder
from data_pipelines.beam.windows import Window
from musiclm.flops import forward_flops
from musiclm.models.mulan import MuLan, MuLanConfig
from musiclm.models.soundstream import SoundStream, SoundStreamConfig
from musiclm.models.w2v_bert import W2vBert, W2vBertConfig


def base_encoders(window_seconds: float) -> list[tuple[Callable, Any, np.ndarray]]:
    """The papers' tokenizers: functions of variables and a waveform, and what gives both."""
    for model in ("soundstream", "w2v_bert", "mulan"):
        gin.parse_config_file(f"gin/models/{model}/base.gin")
    codec, semantic, mulan = (
        config(**gin.get_bindings(config))
        for config in (SoundStreamConfig, W2vBertConfig, MuLanConfig)
    )
    # As its training exports it: without the blocks above the features.
    semantic = dataclasses.replace(semantic, mlm_blocks=semantic.feature_layer)
    rng = np.random.default_rng(0)

    def encoder(module, init_args, method, sample_rate, **options):
        keys = {name: jax.random.key(0) for name in ("params", "dropout", "mask", "gumbel")}
        init = jax.jit(lambda: module.init(keys, *init_args, **options))
        length = round(window_seconds * sample_rate)
        waveform_BT = rng.normal(scale=0.1, size=(1, length)).astype(np.float32)
        return functools.partial(module.apply, method=method), init, waveform_BT

    frames = semantic.frame_rate
    return [
        encoder(SoundStream(codec), [np.zeros((1, codec.hop_length))], "encode", codec.sample_rate),
        encoder(
            W2vBert(semantic),
            [np.zeros((1, frames * semantic.hop_length)), np.zeros((1, frames), bool), 1.0],
            "features",
            semantic.sample_rate,
            deterministic=True,
        ),
        encoder(
            MuLan(mulan),
            [np.zeros((1, mulan.window_samples)), np.zeros((1, 8), np.int32)],
            "embed_windows",
            mulan.sample_rate,
            train=False,
        ),
    ]


def fastest(run: Callable[[], Any], repeats: int) -> float:
    """Seconds of the fastest of some calls, after one that compiles."""
    jax.block_until_ready(run())
    spent = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        spent.append(time.perf_counter() - start)
    return min(spent)


def report(name: str, value: float, unit: str, **more: Any) -> None:
    """Prints a figure, to four digits."""
    line = {"name": name, "value": float(f"{value:.4g}"), "unit": unit, **more}
    print(json.dumps(line | {"device": jax.devices()[0].device_kind}), flush=True)


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
    seconds = fastest(lambda: encode(windows), args.repeats)
    sound = args.batch_size * args.window_seconds
    report("tokenize", sound / seconds, "x real time", bundle=args.bundle)

    seconds, flops = 0.0, 0
    for function, init, waveform_BT in base_encoders(args.window_seconds):
        variables = init()
        flops += forward_flops(function, variables, waveform_BT)
        compiled = jax.jit(function)
        seconds += fastest(lambda: compiled(variables, waveform_BT), args.repeats)  # noqa: B023
    report("tokenize_base", args.window_seconds / seconds, "x real time")
    an_hour = 3600 / args.window_seconds
    report("tokenize_base_operations", flops * an_hour, "FLOP an hour of sound")


if __name__ == "__main__":
    main()
