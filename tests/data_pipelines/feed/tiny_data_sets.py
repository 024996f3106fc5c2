"""Data sets small enough to write in a test, whose records tell which they are."""

import numpy as np

from data_pipelines import shards
from musiclm.token_spec import TokenSpec

# Of the windows that the tests write; rates are the paper's.
WINDOW_SECONDS = 16
SPEC = TokenSpec(
    num_acoustic_codebooks=3,
    num_coarse_codebooks=2,
    acoustic_codebook_size=2048,
    semantic_vocab_size=2048,
    num_mulan_codebooks=2,
    mulan_codebook_size=256,
    semantic_window_seconds=12,
    coarse_window_seconds=4,
    fine_window_seconds=2,
)
SAMPLE_RATE = 100

TOKEN_STREAMS = {
    "key": shards.Stream(dtype=shards.JSON),
    "semantic": shards.Stream(dtype="uint16", shape=(WINDOW_SECONDS * 25,), rate=25),
    "acoustic": shards.Stream(dtype="uint16", shape=(WINDOW_SECONDS * 50, 3), rate=50),
    "mulan": shards.Stream(dtype="uint16", shape=(WINDOW_SECONDS - 9, 2), rate=1),
    "text": shards.Stream(dtype="uint16", shape=(-1, 3)),
}
# What a data set has besides where a melody model was at work: two embeddings a MuLan window.
MELODY_STREAMS = TOKEN_STREAMS | {
    "melody": shards.Stream(dtype="uint16", shape=(WINDOW_SECONDS - 9, 2, 3), rate=1)
}
AUDIO_STREAMS = {
    "key": shards.Stream(dtype=shards.JSON),
    "audio": shards.Stream(dtype="int16", shape=(WINDOW_SECONDS * SAMPLE_RATE,), rate=SAMPLE_RATE),
    "captions": shards.Stream(dtype=shards.JSON),
}


def token_record(record):
    """Codes that tell their record (in MuLan's and the acoustic ones) and their frame."""
    frames = np.arange(WINDOW_SECONDS * 50)
    return {
        "key": shards.key_of(f"{record:064x}", 0),
        "semantic": frames[: WINDOW_SECONDS * 25],
        "acoustic": np.stack([frames, np.full_like(frames, record), frames % 7], axis=1),
        "mulan": np.stack([[window, record] for window in range(WINDOW_SECONDS - 9)]),
        # Two long captions and one of tags; every fifth window has none.
        "text": np.array([[kind, 200 + place, record] for place, kind in enumerate((1, 1, 3))])[
            : 0 if record % 5 == 4 else None
        ].reshape(-1, 3),
    }


def melody_record(record):
    """The same with melody codes that tell window, record and embedding."""
    melody = [[[w, record, embedding] for embedding in (0, 1)] for w in range(WINDOW_SECONDS - 9)]
    return token_record(record) | {"melody": np.array(melody)}


def audio_record(record):
    """Sample t of record i is 2000 i + t, less 20,000."""
    return {
        "key": shards.key_of(f"{record:064x}", 0),
        "audio": 2_000 * record + np.arange(WINDOW_SECONDS * SAMPLE_RATE) - 20_000,
        "captions": [
            {"kind": "short", "text": f"short words on {record}"},
            {"kind": "playlist", "text": f"list {record}"},
        ],
    }


def write_data_set(folder, streams, make_record, *, num_records=20, num_shards=3, encoder="a" * 64):
    """Writes records 0 … as a finished data set: the first shards have one more than the last."""
    folder.mkdir(parents=True)
    parts = np.array_split(np.arange(num_records), num_shards)
    files = {
        name: [
            shards.write_shard(
                folder / shards.shard_name(name, shard, num_shards),
                [stream.encode(make_record(int(record))[name]) for record in part],
            )
            for shard, part in enumerate(parts)
        ]
        for name, stream in streams.items()
    }
    data_set = shards.DataSet(
        encoder=encoder,
        corpora="c" * 64,
        window_seconds=WINDOW_SECONDS,
        streams=streams,
        shards=files,
    )
    shards.save(folder, data_set)
    return folder
