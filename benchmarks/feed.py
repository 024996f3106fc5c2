"""How many examples a second one core feeds to training, beside what seqio and tf.data do.

Writes data sets of the paper's shapes (tokens of 30 s with 12 levels, sound of 10 s at 24 kHz as
`musiclm pack` cuts it, and of 30 s) to a temporary folder and reads them as training does. Counts
processor time of all threads, so other work on the machine does not count against it. One JSON line
a figure.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import seqio
import tensorflow as tf

from data_pipelines import shards
from data_pipelines.feed import batches, tasks
from musiclm.token_spec import TokenSpec
from musiclm.tokens.layout import STAGES, StageLayout

SPEC = TokenSpec()
SECONDS = 30
CROP_SECONDS = 10
REACH = {"semantic": 5_000, "coarse": 3_000, "fine": 3_000, "audio": 1_500}
TOKENS = {
    "semantic": shards.Stream(
        dtype="uint16", shape=(SPEC.semantic_frames(SECONDS),), rate=SPEC.semantic_frame_rate
    ),
    "acoustic": shards.Stream(
        dtype="uint16",
        shape=(SPEC.acoustic_frames(SECONDS), SPEC.num_acoustic_codebooks),
        rate=SPEC.acoustic_frame_rate,
    ),
    "mulan": shards.Stream(dtype="uint16", shape=(SECONDS - 9, SPEC.num_mulan_codebooks), rate=1),
}


def sound(seconds: int) -> dict[str, shards.Stream]:
    """The stream of a data set of sound."""
    length = seconds * SPEC.sample_rate
    return {"audio": shards.Stream(dtype="int16", shape=(length,), rate=SPEC.sample_rate)}


def write(
    folder: Path, streams: dict[str, shards.Stream], seconds: int, records: int, num_shards: int
) -> str:
    """A data set of noise."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    files = {
        name: [
            shards.write_shard(
                folder / shards.shard_name(name, shard, num_shards),
                [
                    stream.encode(rng.integers(0, 1024, stream.shape, np.uint16))
                    for _ in range(records // num_shards)
                ],
            )
            for shard in range(num_shards)
        ]
        for name, stream in streams.items()
    }
    data_set = shards.DataSet(
        encoder="", corpora="", window_seconds=seconds, streams=streams, shards=files
    )
    shards.save(folder, data_set)
    return str(folder)


def bytes_an_hour(folder: Path, stream: shards.Stream, seconds: int) -> float:
    """What an hour of a stream adds to a shard, beyond what any shard has."""
    record = stream.encode(np.zeros(stream.shape))
    count = -(-16_000_000 // len(record))
    once, twice = (
        shards.write_shard(folder / "size.array_record", [record] * n).bytes
        for n in (count, 2 * count)
    )
    return (twice - once) / count / seconds * 3600


def examples_per_second(stream: Iterator, batch_size: int, num_batches: int) -> float:
    """Of processor time, once the first batches have opened files and compiled graphs."""
    for _ in range(3):
        next(stream)
    start = time.process_time()
    for _ in range(num_batches):
        next(stream)
    return batch_size * num_batches / (time.process_time() - start)


def stock_mixture(folder: Path, records: int, batch_size: int) -> Iterator:
    """The semantic stage as seqio does it: two tasks of `tf.Example`s, mixed one by one."""
    layout = StageLayout.semantic(SPEC)
    rng = np.random.default_rng(0)
    features = {
        name: seqio.Feature(seqio.PassThroughVocabulary(SPEC.semantic_vocab_size), add_eos=False)
        for name in ("inputs", "targets")
    }
    lengths = {"inputs": layout.prefix_length, "targets": layout.target_length}
    for name in ("stock_a", "stock_b"):
        path = str(folder / f"{name}.tfrecord")
        with tf.io.TFRecordWriter(path) as writer:
            for _ in range(records):
                example = tf.train.Example()
                for feature, length in lengths.items():
                    codes = rng.integers(1, 1024, length)
                    example.features.feature[feature].int64_list.value.extend(codes)
                writer.write(example.SerializeToString())
        seqio.TaskRegistry.add(
            name,
            source=seqio.TFExampleDataSource(
                {"train": path},
                {feature: tf.io.FixedLenFeature([n], tf.int64) for feature, n in lengths.items()},
            ),
            preprocessors=[
                seqio.map_over_dataset(
                    lambda example: {name: tf.cast(x, tf.int32) for name, x in example.items()}
                )
            ],
            output_features=features,
        )
    seqio.MixtureRegistry.add("stock", [("stock_a", 3), ("stock_b", 1)])
    data = seqio.get_dataset(
        "stock",
        lengths,
        seqio.EncDecFeatureConverter(pack=False),
        shuffle=True,
        num_epochs=None,
        seed=0,
        batch_size=batch_size,
        verbose=False,
    )
    return data.as_numpy_iterator()


def float_lists(folder: Path, records: int, batch_size: int) -> Iterator:
    """Crops of sound as `tf.Example`s of floats."""
    length, path = CROP_SECONDS * SPEC.sample_rate, str(folder / "floats.tfrecord")
    rng = np.random.default_rng(0)
    with tf.io.TFRecordWriter(path) as writer:
        for _ in range(records):
            example = tf.train.Example()
            samples = rng.normal(size=length).astype(np.float32)
            example.features.feature["audio"].float_list.value.extend(samples)
            writer.write(example.SerializeToString())
    parse = {"audio": tf.io.FixedLenFeature([length], tf.float32)}
    data = tf.data.TFRecordDataset(path).repeat()
    data = data.map(lambda record: tf.io.parse_single_example(record, parse)).batch(batch_size)
    return data.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()


def report(name: str, value: float, unit: str, **more) -> None:
    """Prints a figure, to four digits."""
    record = {"name": name, "value": value, "unit": unit, **more}
    short = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in record.items()}
    print(json.dumps(short), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=40, help="of each figure (%(default)s)")
    parser.add_argument("--windows", type=int, default=2_000, help="of tokens (%(default)s)")
    parser.add_argument("--sounds", type=int, default=128, help="windows of sound (%(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        peers = {
            "semantic": examples_per_second(
                stock_mixture(folder, options.windows, 128), 128, options.batches
            ),
            "audio": examples_per_second(
                float_lists(folder, options.sounds, 32), 32, options.batches
            ),
        }
        tokens = write(folder / "tokens", TOKENS, SECONDS, options.windows, 8)
        corpora = [
            tasks.Corpus(name=name, splits={"train": tokens}, weight=weight)
            for name, weight in (("a", 3), ("b", 1))
        ]

        def sequences(stage: str, start_step: int) -> Iterator:
            layout = StageLayout.of(stage, SPEC)
            return batches.token_sequences(
                corpora=corpora, layout=layout, seed=0, batch_size=128, start_step=start_step
            )

        def crops(seconds: int) -> Iterator:
            data = write(folder / f"sound{seconds}", sound(seconds), seconds, options.sounds, 4)
            return batches.audio_crops(
                corpora=[tasks.Corpus(name=f"sound{seconds}", splits={"train": data})],
                seconds=CROP_SECONDS,
                sample_rate=SPEC.sample_rate,
                seed=0,
                batch_size=32,
                start_step=0,
            )

        rates = {
            stage: examples_per_second(sequences(stage, 0), 128, options.batches)
            for stage in STAGES
        }
        rates["audio"] = examples_per_second(crops(10), 32, options.batches)
        for name, value in rates.items():
            more = {"peer": peers[name]} if name in peers else {}
            reach = REACH[name]
            report(
                f"feed_{name}", value, "examples/s a core", **more, reach=reach, ok=value >= reach
            )
        of_long = examples_per_second(crops(SECONDS), 32, options.batches)
        report("feed_audio_of_30_s_windows", of_long, "examples/s a core", peer=peers["audio"])

        start = time.process_time()
        next(sequences("semantic", 10**7))
        seconds = time.process_time() - start
        report("feed_seek_step_10_million", seconds, "s of a core", reach=1, ok=seconds < 1)

        for name, stream in TOKENS.items():
            report(f"stored_{name}", bytes_an_hour(folder, stream, SECONDS), "bytes an hour")
        (stream,) = sound(10).values()
        report("stored_audio", bytes_an_hour(folder, stream, 10), "bytes an hour")


if __name__ == "__main__":
    main()
