"""Timbre vectors, and what is kept of clips."""

import os
import threading

import numpy as np
import pytest

from musiclm.evaluation import embeddings

RATE = 16_000


def tone(hertz, seconds=3.0, partials=1):
    time_T = np.arange(round(seconds * RATE)) / RATE
    waves = [np.sin(2 * np.pi * hertz * n * time_T) / n for n in range(1, partials + 1)]
    return (0.3 * np.sum(waves, axis=0)).astype(np.float32)


def test_timbre_hears_partials_more_than_loudness():
    plain_WD, loud_WD = (embeddings.timbre(gain * tone(220), RATE) for gain in (1.0, 0.1))
    rich_WD = embeddings.timbre(tone(220, partials=8), RATE)
    assert plain_WD.shape == (3, 40)
    assert plain_WD.dtype == np.float32
    np.testing.assert_allclose(loud_WD, plain_WD, atol=0.02)
    assert np.linalg.norm(rich_WD - plain_WD) > 20 * np.linalg.norm(loud_WD - plain_WD)


def test_timbre_of_silence_is_finite():
    assert np.isfinite(embeddings.timbre(np.zeros(2 * RATE, np.float32), RATE)).all()


@pytest.mark.parametrize(
    "clip", [np.zeros(RATE // 2), np.zeros((2, RATE)), np.full(RATE, np.nan), np.zeros(0)]
)
def test_what_is_no_clip_is_told(clip):
    with pytest.raises(ValueError, match=r"0\.96 s or more of finite mono samples"):
        embeddings.timbre(clip, RATE)


def test_the_content_of_a_clip_decides_what_is_computed(tmp_path):
    looked = []

    def compute(waveform_T):
        looked.append(waveform_T[0])
        return {"first": waveform_T[:1], "sum": waveform_T.sum()}

    clips = np.arange(6, dtype=np.float32).reshape(3, 2)
    cache, moved = [], []
    first = embeddings.Cache(tmp_path / "here").each({"sum": compute}, clips, moved.append)
    assert sorted(looked) == [0, 2, 4]  # by threads, in any order
    assert [clip["first"] for clip in first] == [0, 2, 4]
    assert moved == [1, 1, 1]
    (tmp_path / "here").rename(tmp_path / "there")
    cache = embeddings.Cache(tmp_path / "there")
    again = cache.each({"sum": compute}, clips[::-1])
    assert len(looked) == 3
    for one, other in zip(first, again[::-1], strict=True):
        np.testing.assert_array_equal(one["first"], other["first"])
        assert one["sum"] == other["sum"]
    cache.each({"another sum": compute}, clips[:1])
    cache.each({"sum": compute}, clips[:1] + np.float32(1e-6))
    assert len(looked) == 5
    more = cache.each({"sum": compute, "size": lambda clip_T: {"size": clip_T.size}}, clips)
    assert len(looked) == 5
    assert [(clip["first"], clip["size"]) for clip in more] == [(0, 2), (2, 2), (4, 2)]
    assert again[0]["first"].dtype == np.float32


def test_equal_clips_may_be_kept_at_once(tmp_path):
    together = threading.Barrier(os.cpu_count())

    def compute(waveform_T):
        together.wait(timeout=60)
        return {"samples": waveform_T}

    clips = np.zeros((os.cpu_count(), 2), np.float32)
    for what in map(str, range(50)):
        made = embeddings.Cache(tmp_path).each({what: compute}, clips)
        assert all((one["samples"] == 0).all() for one in made)
