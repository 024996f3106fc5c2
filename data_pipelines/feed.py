"""How corpora become batches: each batch is a function of (seed, step) alone.

Row r = step · batch_size + j of the endless stream is record `permutation(epoch)[r mod N]`, and
its random crop is drawn from (seed, r). So a run that resumes, at any step, sees the batches that
it would have seen, and nothing about the stream has to be saved.

B: rows, T: samples, L: text tokens, Q: levels.
"""

import functools
import json
import pathlib
from collections.abc import Callable, Iterator

import numpy as np
import soundfile

from data_pipelines import manifest
from musiclm.tokens import wordpiece

Batch = dict[str, np.ndarray]
# MuLan's mix of caption kinds (section 4.1 there): short-form, long-form, playlist, tags.
CAPTION_WEIGHTS = {"short": 2.0, "long": 2.0, "playlist": 1.0, "tags": 1.0}


@functools.lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, num_records: int) -> np.ndarray:
    """The order of an epoch."""
    return np.random.default_rng((seed, epoch, 0)).permutation(num_records)


def rows(
    make_row: Callable[[int, np.random.Generator], Batch],
    num_records: int,
    *,
    seed: int,
    batch_size: int,
    start_step: int,
) -> Iterator[Batch]:
    """Batches of `make_row(record, rng)`, from a step on, without end."""
    if num_records == 0:
        raise ValueError("the data set is empty: check its manifest or its split")
    step = start_step
    while True:
        batch = []
        for row in range(step * batch_size, (step + 1) * batch_size):
            epoch, place = divmod(row, num_records)
            record = int(permutation(seed, epoch, num_records)[place])
            batch.append(make_row(record, np.random.default_rng((seed, row, 1))))
        yield {name: np.stack([row[name] for row in batch]) for name in batch[0]}
        step += 1


def read_crop(path: pathlib.Path, num_samples: int, rng: np.random.Generator) -> np.ndarray:
    """A random crop of a mono file, f32 [num_samples]; a shorter file is padded with silence."""
    with soundfile.SoundFile(path) as file:
        start = int(rng.integers(max(0, file.frames - num_samples) + 1))
        file.seek(start)
        return file.read(num_samples, dtype="float32", fill_value=0.0)


def split(records: list, validation: int, part: str) -> list:
    """The records of a part: the last `validation` of a manifest are "validation"."""
    if part not in ("train", "validation"):
        raise ValueError(f"part is {part!r}: choose 'train' or 'validation'")
    cut = len(records) - validation
    return records[:cut] if part == "train" else records[cut:]


def audio_crops(
    *,
    corpus: str,
    seconds: float,
    sample_rate: int,
    validation: int = 200,
    part: str = "train",
    seed: int,
    batch_size: int,
    start_step: int,
) -> Iterator[Batch]:
    """Random crops: {"waveform": f32 [B, T]}."""
    root = pathlib.Path(corpus)
    records = split(manifest.read(root), validation, part)

    def make_row(index, rng):
        return {
            "waveform": read_crop(root / records[index]["file"], int(seconds * sample_rate), rng)
        }

    return rows(make_row, len(records), seed=seed, batch_size=batch_size, start_step=start_step)


def captions(*, corpus: str) -> list[str]:
    """All captions of a corpus."""
    return [c["text"] for record in manifest.read(corpus) for c in record["captions"]]


def draw_caption(captions: list[dict], rng: np.random.Generator) -> int:
    """Index of a caption, by kind 2:2:1:1 and evenly within a kind."""
    kinds = [caption["kind"] for caption in captions]
    weights = np.array([CAPTION_WEIGHTS[kind] / kinds.count(kind) for kind in kinds])
    return int(rng.choice(len(captions), p=weights / weights.sum()))


def audio_text_pairs(
    *,
    corpus: str,
    vocabulary: str,
    max_text_tokens: int,
    seconds: float,
    sample_rate: int,
    validation: int = 500,
    part: str = "train",
    seed: int,
    batch_size: int,
    start_step: int,
) -> Iterator[Batch]:
    """Clips and one of their captions: {"waveform": f32 [B, T], "text_ids": int32 [B, L]}."""
    root = pathlib.Path(corpus)
    records = split(manifest.read(root), validation, part)
    tokenizer = wordpiece.WordPiece.load(vocabulary)

    def make_row(index, rng):
        record = records[index]
        caption = record["captions"][draw_caption(record["captions"], rng)]["text"]
        return {
            "waveform": read_crop(root / record["file"], int(seconds * sample_rate), rng),
            "text_ids": tokenizer.encode([caption], max_text_tokens)[0],
        }

    return rows(make_row, len(records), seed=seed, batch_size=batch_size, start_step=start_step)


def token_windows(
    *,
    tokens: str,
    seconds: float,
    conditioning: str = "audio",
    semantic_frame_rate: int = 25,
    acoustic_frame_rate: int = 50,
    validation: int = 200,
    part: str = "train",
    seed: int,
    batch_size: int,
    start_step: int,
) -> Iterator[Batch]:
    """Aligned windows of the three token streams, as `data_pipelines.tokenize_corpus` stored them.

    Args:
      conditioning: where the MuLan tokens come from: "audio" (the paper), "text" (of a drawn
        caption) or "mixed" (either, evenly).

    Returns:
      Batches {"mulan": int32 [B, Q], "semantic": int32 [B, T], "acoustic": int32 [B, T, Q]}.
    """
    if conditioning not in ("audio", "text", "mixed"):
        raise ValueError(f"conditioning is {conditioning!r}: choose 'audio', 'text' or 'mixed'")
    clips = split(load_tokens(tokens), validation, part)
    length = round(seconds * semantic_frame_rate)
    ratio = acoustic_frame_rate // semantic_frame_rate

    def make_row(index, rng):
        clip = clips[index]
        start = int(rng.integers(max(0, len(clip["semantic"]) - length) + 1))
        from_text = {"audio": False, "text": True, "mixed": rng.random() < 0.5}[conditioning]
        if from_text:
            mulan = clip["mulan_text"][draw_caption(clip["captions"], rng)]
        else:
            mulan = clip["mulan_audio"]
        return {
            "mulan": mulan.astype(np.int32),
            "semantic": clip["semantic"][start : start + length].astype(np.int32),
            "acoustic": clip["acoustic"][start * ratio : (start + length) * ratio].astype(np.int32),
        }

    return rows(make_row, len(clips), seed=seed, batch_size=batch_size, start_step=start_step)


@functools.lru_cache(maxsize=1)
def load_tokens(directory: str) -> list[dict]:
    """All clips of a token directory, in the manifest's order."""
    clips = []
    for path in sorted(pathlib.Path(directory).glob("tokens-*.npz")):
        with np.load(path) as shard:
            arrays = {name: shard[name] for name in shard.files}
        captions = json.loads(str(arrays.pop("captions")))
        for i in range(len(captions)):
            clip = {name: array[i] for name, array in arrays.items()}
            clips.append(clip | {"captions": captions[i]})
    return clips
