"""Tiny data sets that the tests of the feed share."""

import pathlib
import sys

import pytest

sys.path.append(str(pathlib.Path(__file__).parent))  # tiny_data_sets, which tests import as well

import tiny_data_sets as tiny


@pytest.fixture(scope="session")
def tokens(tmp_path_factory):
    """Twenty windows of tokens in three shards."""
    folder = tmp_path_factory.mktemp("data") / "tokens"
    return tiny.write_data_set(folder, tiny.TOKEN_STREAMS, tiny.token_record)


@pytest.fixture(scope="session")
def other_tokens(tmp_path_factory):
    """Seven more windows, of another corpus: records 100 … 106."""
    folder = tmp_path_factory.mktemp("data") / "other"
    return tiny.write_data_set(
        folder, tiny.TOKEN_STREAMS, lambda record: tiny.token_record(100 + record), num_records=7
    )


@pytest.fixture(scope="session")
def sound(tmp_path_factory):
    """Twenty windows of sound in three shards."""
    folder = tmp_path_factory.mktemp("data") / "sound"
    return tiny.write_data_set(folder, tiny.AUDIO_STREAMS, tiny.audio_record)
