"""An audio data set that TensorFlow Datasets has prepared on disk, such as NSynth or GTZAN."""

import argparse
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import tqdm

from data_pipelines import manifest
from data_pipelines.corpora import corpus

EXAMPLES = """\
  tfds build gtzan --file_format=array_record
  musiclm data tfds --prepared ~/tensorflow_datasets/gtzan/1.0.0 --out corpora/gtzan --tags label
  musiclm data tfds --prepared ~/tensorflow_datasets/nsynth/full/2.3.3 --out corpora/nsynth \\
      --tags instrument/family instrument/source

The audio is written as WAV below OUT/audio, without loss. What --tags names becomes a caption of
the kind tags; all labels, numbers and words are kept as attributes. The split is the published
one; where train is the only one, it is told by the hash of the clip's place in it.
"""
_SPLITS = {"train": "train", "validation": "validation", "valid": "validation", "test": "test"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the corpus's arguments to a parser."""
    parser.add_argument(
        "--prepared",
        required=True,
        type=Path,
        metavar="DIR",
        help="folder of a version of the data set: the one with dataset_info.json",
    )
    parser.add_argument(
        "--tags", nargs="*", default=[], metavar="FEATURE", help="features to make captions of"
    )
    corpus.add_arguments(parser, audio=None)


def make(args: argparse.Namespace) -> corpus.Made:
    """Writes the audio and the manifest; see `EXAMPLES`."""
    if not (args.prepared / "dataset_info.json").is_file():
        raise corpus.CorpusError(
            f"{args.prepared} has no dataset_info.json: give the folder of a prepared version, "
            "such as ~/tensorflow_datasets/gtzan/1.0.0"
        )
    import tensorflow_datasets as tfds  # here: it takes seconds

    builder = tfds.builder_from_directory(args.prepared)
    feature = _audio_feature(tfds, builder)
    leaves = _flat(dict(builder.info.features))
    single = sorted(name for name, of in leaves.items() if of.shape == ())
    if lacking := [tag for tag in args.tags if tag not in single]:
        raise corpus.CorpusError(
            f"--tags {lacking[0]}: {builder.name} has no such feature of one value; it has "
            f"{', '.join(single) or 'none'}"
        )
    if strange := sorted(set(builder.info.splits) - set(_SPLITS)):
        raise corpus.CorpusError(
            f"{builder.name} has splits {', '.join(strange)}: only {', '.join(_SPLITS)} are known"
        )
    try:
        sources = builder.as_data_source()
    except NotImplementedError:
        raise corpus.CorpusError(
            f"{args.prepared} is not prepared as ArrayRecord: prepare it with `tfds build "
            f"{builder.name} --file_format=array_record`"
        ) from None
    folder = manifest.path_of(args.out).parent / "audio"
    if folder.is_dir() and any(folder.iterdir()):
        raise corpus.CorpusError(f"{folder} is not empty: move it away, or choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    return corpus.write(list(_export(builder, sources, feature, folder, args.tags)), args)


def _audio_feature(tfds, builder) -> str:
    """The name of the one feature that holds audio of a known rate."""
    features = builder.info.features
    names = [name for name in features if isinstance(features[name], tfds.features.Audio)]
    if len(names) != 1 or not features[names[0]].sample_rate:
        raise corpus.CorpusError(
            f"{builder.name} has {len(names)} features of audio, and one with a sample rate is "
            "needed: choose another data set"
        )
    return names[0]


def _export(
    builder, sources: Mapping[str, Any], feature: str, folder: Path, tags: list[str]
) -> Iterator[corpus.Listed]:
    """Writes the audio of all examples, and lists them."""
    features = _flat(dict(builder.info.features))
    total = sum(len(source) for source in sources.values())
    with tqdm.tqdm(total=total, unit="clip", desc=builder.name) as bar:
        for split, source in sources.items():
            for index in range(len(source)):
                example = _flat(source[index])
                name = f"{split}-{index:06d}"
                path = folder / f"{name}.wav"
                _write_wav(path, example.pop(feature), features[feature].sample_rate)
                told = {
                    key: _plain(value, features[key])
                    for key, value in example.items()
                    if np.ndim(value) == 0
                }
                yield corpus.Listed(
                    name=name,
                    path=path,
                    split=_SPLITS[split] if len(sources) > 1 else manifest.split_of(name),
                    captions=corpus.tag_captions([str(told[tag]) for tag in tags]),
                    attributes=told,
                )
                bar.update()


def _write_wav(path: Path, samples: np.ndarray, sample_rate: int) -> None:
    """Float samples as 32-bit float, whole ones, which tfds stores as int64, as 16-bit."""
    whole = np.issubdtype(samples.dtype, np.integer)
    if whole and np.abs(samples).max(initial=0) > 32_768:
        raise corpus.CorpusError(f"{path.stem} has samples of more than 16 bits")
    beside = path.with_name(f".{path.name}")
    soundfile.write(
        beside,
        samples.astype(np.int16 if whole else np.float32),
        sample_rate,
        format="WAV",
        subtype="PCM_16" if whole else "FLOAT",
    )
    os.replace(beside, path)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested dicts, by path."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        if hasattr(value, "items"):
            leaves |= _flat(dict(value.items()), f"{prefix}{name}/")
        else:
            leaves[f"{prefix}{name}"] = value
    return leaves


def _plain(value: Any, feature: Any) -> str | int | float | bool:
    """A JSON value; of a label, its name."""
    if hasattr(feature, "int2str"):
        return feature.int2str(int(value))
    if isinstance(value, bytes):
        return value.decode()
    return value.item() if hasattr(value, "item") else value
