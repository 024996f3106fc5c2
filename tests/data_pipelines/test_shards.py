"""A data set is what dataset.json says, or it is refused by the name of the file."""

import dataclasses
import json
import os

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from array_record.python import array_record_module

from data_pipelines import shards

STREAMS = {
    "semantic": shards.Stream(dtype="<u2", shape=(5,), rate=25),
    "text": shards.Stream(dtype="<u2", shape=(-1, 3)),
    "key": shards.Stream(dtype=shards.JSON),
}


def write_data_set(folder, num_shards=3, records=20, encoder="a" * 64):
    rng = np.random.default_rng(0)
    keys = sorted(shards.key_of(f"{i:064x}", i % 2) for i in range(records))
    values = {
        "semantic": [rng.integers(65_536, size=5) for _ in keys],
        "text": [rng.integers(9, size=(i % 3, 3)) for i in range(records)],
        "key": keys,
    }
    files = {
        name: [
            shards.write_shard(
                folder / shards.shard_name(name, shard, num_shards),
                [
                    stream.encode(value)
                    for key, value in zip(keys, values[name], strict=True)
                    if shards.shard_of(key, num_shards) == shard
                ],
            )
            for shard in range(num_shards)
        ]
        for name, stream in STREAMS.items()
    }
    data_set = shards.DataSet(
        encoder=encoder, corpora="c", window_seconds=0.2, streams=STREAMS, shards=files
    )
    shards.save(folder, data_set)
    return values


def test_what_was_written_is_read(tmp_path):
    values = write_data_set(tmp_path)
    data_set = shards.check(tmp_path, encoder="a" * 64, streams=["semantic", "key"])
    assert sum(data_set.records) == 20
    assert dict(data_set.streams) == STREAMS
    read = {}
    for name, stream in STREAMS.items():
        read[name] = []
        for shard in data_set.shards[name]:
            reader = array_record_module.ArrayRecordReader(str(tmp_path / shard.name))
            assert reader.num_records() == shard.records
            read[name] += [stream.decode(record) for record in reader.read_all()]
    order = [values["key"].index(key) for key in read["key"]]
    for name in ("semantic", "text"):
        for place, array in zip(order, read[name], strict=True):
            np.testing.assert_array_equal(array, values[name][place])
    assert not list(tmp_path.glob(".*"))


def test_two_writes_have_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_data_set(tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_shard_without_records_can_be_read(tmp_path):
    write_data_set(tmp_path, num_shards=50)
    data_set = shards.check(tmp_path)
    assert 0 in data_set.records
    empty = data_set.shards["key"][data_set.records.index(0)]
    assert array_record_module.ArrayRecordReader(str(tmp_path / empty.name)).num_records() == 0


SHARD = shards.shard_name("semantic", 1, 3)


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "deleted": (lambda f: (f / SHARD).unlink(), f"{SHARD} is missing"),
    "truncated": (lambda f: os.truncate(f / SHARD, 1_000), f"{SHARD} has 1000 bytes"),
    "a byte": (lambda f: _flip(f / SHARD), f"{SHARD} is damaged"),
    "a stranger": (
        lambda f: (f / "semantic-00000-of-00009.array_record").touch(),
        "semantic-00000-of-00009.array_record is not in dataset.json",
    ),
    "unfinished": (lambda f: (f / shards.NAME).unlink(), "dataset.json is missing"),
    "no json": (lambda f: (f / shards.NAME).write_text("{"), "dataset.json is damaged"),
    "another format": (
        lambda f: (f / shards.NAME).write_text(
            json.dumps(json.loads((f / shards.NAME).read_text()) | {"format": 9})
        ),
        "has format 9",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_told_by_the_file(tmp_path, damage):
    write_data_set(tmp_path)
    harm, told = DAMAGES[damage]
    harm(tmp_path)
    with pytest.raises(shards.ShardError, match=told):
        shards.check(tmp_path)


def test_another_encoder_and_other_streams_are_refused(tmp_path):
    write_data_set(tmp_path)
    with pytest.raises(shards.ShardError, match="made by the tokenizers aaaaaaaaaaaa"):
        shards.check(tmp_path, encoder="b" * 64)
    with pytest.raises(shards.ShardError, match=r"lacks the streams \['audio'\]"):
        shards.check(tmp_path, streams=["key", "audio"])


def test_hosts_share_the_checksums(tmp_path):
    write_data_set(tmp_path)
    _flip(tmp_path / SHARD)
    damaged = 0
    for part in range(4):
        try:
            shards.check(tmp_path, parts=(part,), num_parts=4)
        except shards.ShardError:
            damaged += 1
    assert damaged == 1


@hypothesis.given(st.lists(st.integers(0, 999_999), min_size=1, max_size=50, unique=True))
def test_keys_sort_by_file_then_time(windows):
    keys = [shards.key_of("f" * 64, window) for window in windows]
    assert [int(key.split("-")[1]) for key in sorted(keys)] == sorted(windows)


def test_keys_spread_evenly():
    counts = np.bincount(
        [shards.shard_of(shards.key_of(f"{i:064x}", 0), 8) for i in range(8_000)], minlength=8
    )
    assert abs(counts - 1_000).max() < 150


@pytest.mark.parametrize("value", [np.zeros(4), np.zeros((5, 1)), np.zeros((6,))])
def test_a_record_of_another_shape_is_refused(value):
    with pytest.raises(ValueError, match="give"):
        STREAMS["semantic"].encode(value)


def test_a_data_set_is_its_json(tmp_path):
    write_data_set(tmp_path)
    data_set = shards.load(tmp_path)
    assert shards.dumps(data_set) == (tmp_path / shards.NAME).read_text()
    other = dataclasses.replace(data_set, corpora="d")
    shards.save(tmp_path, other)
    assert shards.load(tmp_path) == other
