"""Tells the size of the models in gin files: parameters, rates, sequence lengths, bytes."""

import argparse
import contextlib
import functools
import json
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from musiclm import errors
from musiclm.bin import configuration

HELP = "tell the size of the models in gin files"
EPILOG = """\
examples:
  musiclm describe gin/models/*/base.gin
  musiclm describe --json gin/models/semantic/mini.gin

Nothing is allocated: the shapes come from jax.eval_shape, so any size fits any machine.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `musiclm describe`."""
    parser.add_argument("gin_files", nargs="+", metavar="GIN_FILE", help="read one by one")
    parser.add_argument("--json", action="store_true", help="print a JSON list of objects")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    described = [model for path in map(pathlib.Path, args.gin_files) for model in describe(path)]
    if args.json:
        print(json.dumps(described, indent=2))
    else:
        print("\n".join(_as_text(model) for model in described))
    return 0


def describe(path: pathlib.Path) -> list[dict[str, Any]]:
    """Describes the models whose configs a gin file binds.

    Args:
      path: read by itself, with what it includes; what gin knew before is forgotten.

    Returns:
      One JSON-ready dict a model, in the order of the chain; none for a file that only says what
      tokens there are, such as gin/models/token_spec/base.gin.

    Raises:
      UserError: the file can't be parsed, binds what is not there, or describes no model.
    """
    from musiclm import token_spec

    with _parsed(path):
        models = [model for look in _MODELS for model in look()]
        is_for_models = bool(models) or _bound(token_spec.TokenSpec) is not None
    if not is_for_models:
        raise errors.UserError(
            f"{path}: no model's config is bound here: give a file such as gin/models/*/base.gin"
        )
    return [{"gin_file": str(path), **model} for model in models]


@contextlib.contextmanager
def _parsed(path: pathlib.Path) -> Iterator[None]:
    """The gin state of one file; every error that the file causes becomes a `UserError`."""
    import gin

    try:
        with configuration.mistakes_told():
            configuration.parse([str(path)])
            yield
    except errors.UserError as error:
        raise errors.UserError(f"{path}: {error}") from error
    finally:
        gin.clear_config()


def _bound(config_class: type) -> Any:
    """The config that the gin file binds, None where it does not mention the class."""
    import gin

    try:
        bindings = gin.get_bindings(config_class)
    except ValueError:  # gin has never heard of the class
        return None
    return config_class(**bindings) if bindings else None


def _sizes(*trees: Any) -> dict[str, int]:
    """Number of parameters in trees of shapes and their bytes in two types."""
    import jax

    count = sum(math.prod(leaf.shape) for tree in trees for leaf in jax.tree.leaves(tree))
    return {"parameters": count, "bytes_f32": 4 * count, "bytes_bf16": 2 * count}


def _shapes(module: Any, *arguments: Any, **options: Any) -> Any:
    """Shapes of a module's variables. `arguments` are ShapeDtypeStructs, `options` are static."""
    import jax

    streams = ("params", "dropout", "mask", "gumbel", "spec_augment")
    key = jax.eval_shape(lambda: jax.random.key(0))
    init = functools.partial(module.init, **options)
    return jax.eval_shape(
        lambda key, *arguments: init(
            dict(zip(streams, jax.random.split(key, len(streams)), strict=True)), *arguments
        ),
        key,
        *arguments,
    )


def _array(*shape: int, dtype: str = "float32") -> Any:
    import jax

    return jax.ShapeDtypeStruct(shape, dtype)


def _soundstream() -> Iterator[dict[str, Any]]:
    from musiclm.models import soundstream

    config = _bound(soundstream.SoundStreamConfig)
    if config is None:
        return
    shapes = _shapes(soundstream.SoundStream(config), _array(1, config.hop_length))
    bits = config.num_codebooks * math.log2(config.codebook_size)
    yield {
        "model": "soundstream",
        **_sizes(shapes["params"]),
        "codebook_values": _sizes(shapes["codebooks"])["parameters"],
        "sample_rate": config.sample_rate,
        "hop_length": config.hop_length,
        "frame_rate": config.frame_rate,
        "num_codebooks": config.num_codebooks,
        "codebook_size": config.codebook_size,
        "tokens_per_second": config.frame_rate * config.num_codebooks,
        "bits_per_second": round(config.frame_rate * bits),
    }


def _w2v_bert() -> Iterator[dict[str, Any]]:
    from musiclm.models import w2v_bert

    config = _bound(w2v_bert.W2vBertConfig)
    if config is None:
        return
    frames = config.frame_rate
    shapes = _shapes(
        w2v_bert.W2vBert(config),
        _array(1, frames * config.hop_length),
        _array(1, frames, dtype="bool"),
        _array(),
        deterministic=True,
    )
    yield {
        "model": "w2v_bert",
        **_sizes(shapes["params"]),
        "sample_rate": config.sample_rate,
        "frame_rate": config.frame_rate,
        "model_dim": config.model_dim,
        "codebook_size": config.codebook_size,
    }


def _mulan() -> Iterator[dict[str, Any]]:
    from musiclm.models import mulan

    config = _bound(mulan.MuLanConfig)
    if config is None:
        return
    shapes = _shapes(
        mulan.MuLan(config),
        _array(1, config.window_samples),
        _array(1, 8, dtype="int32"),
        train=False,
    )
    params = shapes["params"]
    yield {
        "model": "mulan",
        **_sizes(params),
        "audio_parameters": _sizes(params["audio_tower"], params["audio_projection"])["parameters"],
        "text_parameters": _sizes(params["text_tower"], params["text_projection"])["parameters"],
        "sample_rate": config.sample_rate,
        "window_seconds": config.window_seconds,
        "text_length": config.bert.max_length,
        "embedding_dim": config.embedding_dim,
    }


def _stage() -> Iterator[dict[str, Any]]:
    from musiclm.models import token_lm

    config = _bound(token_lm.TokenLMConfig)
    if config is None:
        return
    layout = config.layout
    shapes = _shapes(token_lm.TokenLM(config), _array(1, layout.sequence_length, dtype="int32"))
    yield {
        "model": layout.stage,
        **_sizes(shapes["params"]),
        "vocab_size": layout.vocab_size,
        "prefix_length": layout.prefix_length,
        **{f"prefix_{segment.source}": segment.length for segment in layout.prefix},
        "target_length": layout.sequence_length - layout.prefix_length,
        "sequence_length": layout.sequence_length,
        "target_levels": layout.target_levels,
        "target_codebook_size": layout.target_codebook_size,
    }


def _soundstorm() -> Iterator[dict[str, Any]]:
    from musiclm.models import soundstorm

    config = _bound(soundstorm.SoundStormConfig)
    if config is None:
        return
    layout = config.layout
    shapes = _shapes(
        soundstorm.SoundStorm(config),
        _array(1, layout.sequence_length, dtype="int32"),
        _array(1, layout.target.num_frames, layout.target_levels, dtype="bool"),
        _array(1, dtype="int32"),
    )
    yield {
        "model": "soundstorm",
        **_sizes(shapes["params"]),
        "vocab_size": layout.vocab_size,
        "prefix_length": layout.prefix_length,
        "num_frames": layout.target.num_frames,
        "target_levels": layout.target_levels,
        "target_codebook_size": layout.target_codebook_size,
    }


# In the order of the chain.
_MODELS: tuple[Callable[[], Iterator[dict[str, Any]]], ...] = (
    _soundstream,
    _w2v_bert,
    _mulan,
    _stage,
    _soundstorm,
)


def _as_text(model: dict[str, Any]) -> str:
    """A paragraph for people."""
    rows = [f"{model['model']}  ({model['gin_file']})"]
    for name, value in model.items():
        if name in ("model", "gin_file"):
            continue
        if name.startswith("bytes_"):
            label, text = f"bytes, {name.removeprefix('bytes_')}", f"{value / 1e6:,.1f} MB"
        else:
            label = name.replace("_", " ")
            text = f"{value:,}" if isinstance(value, int) else f"{value:g}"
        rows.append(f"  {label:<24}{text:>16}")
    return "\n".join(rows) + "\n"
