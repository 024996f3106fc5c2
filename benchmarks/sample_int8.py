"""What int8 gives decoding, and what it takes: one JSON line a figure.

    python benchmarks/sample_int8.py

The stage of `sample.py` with int8 weights, and with an int8 cache too, beside itself in f32, in
turns. Then how often the stages of gm-mini, kept so, find the same code the likeliest as in f32;
see `agreements` for the three ways to ask.
"""

import argparse
import statistics
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import sample
import train

from musiclm import api, bundle
from musiclm.models.token_lm import TokenLMConfig
from musiclm.sampler import decode, logits
from musiclm.sampler.stages import Stage
from musiclm.tokens import tokenizers

# What is kept as int8.
KEPT = {
    "weights": {"int8_weights": True},
    "cache": {"int8_cache": True},
    "weights_and_cache": {"int8_weights": True, "int8_cache": True},
}
PROMPTS = (
    sample.PROMPT,
    "fast bright flute, no drums",
    "loud organ with bass and drums in C major",
    "calm strings, sparse",
)
GREEDY = logits.Sampling(temperature=0.0)


def speed_figures(turns: int) -> None:
    """Steps a second of a stage of the paper's size."""
    stage = {int8: sample.weights(int8=int8) for int8 in (False, True)}
    reaches = {(1, "weights"): 1.5}
    for rows in (1, 8):
        sides = {"f32": sample.turn_of(stage[False], rows)}
        for name, kept in KEPT.items():
            int8_cache = kept.get("int8_cache", False)
            sides[name] = sample.turn_of(stage["int8_weights" in kept], rows, int8_cache=int8_cache)
        spent = [{name: side(1) for name, side in sides.items()} for _ in range(turns)]
        for name in KEPT:
            value = statistics.median(seconds["f32"] / seconds[name] for seconds in spent)
            reach = reaches.get((rows, name), 0.0)
            train.report(
                f"decode_batch_{rows}_int8_{name}",
                value,
                "x the steps/s of f32",
                reach=reach,
                ok=value >= reach,
                milliseconds=1e3 * statistics.median(seconds[name] for seconds in spent),
                f32_milliseconds=1e3 * statistics.median(seconds["f32"] for seconds in spent),
            )


def likeliest(
    config: TokenLMConfig,
    params: dict,
    ids_BS: np.ndarray,
    *,
    int8_weights: bool = False,
    int8_cache: bool = False,
) -> np.ndarray:
    """What is the likeliest at each place of the target, after what stands before it: [B, N]."""
    mesh, first = decode.make_mesh(jax.devices()[:1]), config.layout.prefix_length
    weights = decode.unroll(config, params, int8_weights=int8_weights)
    num_rows, length = ids_BS.shape
    state = decode.start(
        config, mesh, weights, jnp.array(ids_BS), first, guided=False, int8_cache=int8_cache
    )
    draw = (
        jax.random.split(jax.random.key(0), num_rows),
        jnp.zeros(num_rows, jnp.int32),
        1,
        logits.by_row([GREEDY] * num_rows),
    )
    chosen = []
    for place in range(first, length):
        state = decode.advance(config, mesh, weights, state, *draw, filtered=False)
        chosen.append(np.asarray(state.ids_GS[:, place]))
        state = state._replace(ids_GS=jnp.array(ids_BS))
    return np.stack(chosen, axis=1)


def agreements(names: Iterable[str] = tuple(KEPT)) -> Iterator[tuple[str, str, dict[str, float]]]:
    """Of a window of each of `PROMPTS` in each stage of gm-mini, beside f32.

    Yields:
      Stage, name in `KEPT`, and shares of the steps: `greedy`, that have f32's likeliest code after
      f32's likeliest codes; `after_drawn`, after codes that f32 drew; and `free_running`, whose
      codes are equal if each takes its likeliest and goes on from there.
    """
    parts = bundle.load(api.DEFAULT_MODEL).components
    codes = {"mulan": tokenizers.MuLanTokenizer.load(parts["mulan"]).encode_text(PROMPTS)}
    keys_B = jax.random.split(jax.random.key(0), len(PROMPTS))
    for name_of_stage in ("semantic", "coarse", "fine"):
        config, params = parts[name_of_stage].config, parts[name_of_stage].variables["params"]
        layout = config.layout
        condition = {
            # Windows grow shorter from stage to stage.
            part.source: codes[part.source][:, : part.num_frames if part.frames_per_time else None]
            for part in layout.prefix
        }
        drawn_BTQ, greedy_BTQ = (
            Stage(config, params).generate(condition, keys_B, [sampling] * len(PROMPTS))
            for sampling in (logits.Sampling(), GREEDY)
        )
        prefix_BP = layout.flatten_prefix(condition)
        sequences = {
            history: np.concatenate([prefix_BP, layout.flatten_target(codes_BTQ)], axis=1)
            for history, codes_BTQ in {"greedy": greedy_BTQ, "after_drawn": drawn_BTQ}.items()
        }
        expected = {name: likeliest(config, params, ids) for name, ids in sequences.items()}
        for name in names:
            shares = {
                history: np.mean(likeliest(config, params, ids, **KEPT[name]) == expected[history])
                for history, ids in sequences.items()
            }
            stage = Stage(config, params, **KEPT[name])
            free_BTQ = stage.generate(condition, keys_B, [GREEDY] * len(PROMPTS))
            shares["free_running"] = np.mean(free_BTQ == greedy_BTQ)
            yield name_of_stage, name, {key: float(share) for key, share in shares.items()}
        codes[layout.target.source] = drawn_BTQ if name_of_stage == "coarse" else drawn_BTQ[..., 0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=3, help="of each side (%(default)s)")
    args = parser.parse_args()
    speed_figures(args.turns)
    for stage, name, shares in agreements():
        value = shares.pop("greedy")
        train.report(
            f"gm_mini_{stage}_int8_{name}",
            value,
            "of the steps have f32's likeliest code",
            reach=0.99,
            ok=value >= 0.99,
            **shares,
        )


if __name__ == "__main__":
    main()
