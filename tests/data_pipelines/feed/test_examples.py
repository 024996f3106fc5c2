"""Crops, conditions and captions of rows, and what takes the place of an unreadable one."""

import dataclasses
import shutil
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_data_sets import (
    AUDIO_STREAMS,
    MELODY_STREAMS,
    SAMPLE_RATE,
    SPEC,
    TOKEN_STREAMS,
    WINDOW_SECONDS,
    audio_record,
    melody_record,
    token_record,
    write_data_set,
)

from data_pipelines import manifest, shards
from data_pipelines.feed import examples, records, rows
from data_pipelines.feed.examples import AudioExamples, TextExamples, TokenExamples
from musiclm.token_spec import TokenSpec
from musiclm.tokens.layout import StageLayout
from musiclm.tokens.wordpiece import WordPiece

ROWS = np.arange(4_000)


def make(data, rows_R=ROWS, **options):
    return data.make(rows_R, seed=3, shuffle=options.get("shuffle", True))


def test_crops_are_aligned_and_start_at_every_semantic_frame(tokens):
    batch = make(TokenExamples(tokens, StageLayout.coarse(SPEC)))
    assert batch["semantic"].shape == (4_000, 100)
    assert batch["acoustic"].shape == (4_000, 200, 2)  # the fine level is left out
    assert (np.diff(batch["semantic"].astype(int)) == 1).all()
    starts_R = batch["semantic"][:, 0]
    assert set(starts_R) == set(range(12 * 25 + 1))
    np.testing.assert_array_equal(batch["acoustic"][:, 0, 0], 2 * starts_R)
    np.testing.assert_array_equal(batch["acoustic"][:, :, 1], batch["mulan"][:, 1:].repeat(200, 1))


def test_the_fine_stage_reads_all_levels_and_nothing_else(tokens):
    batch = make(TokenExamples(tokens, StageLayout.fine(SPEC)))
    assert {name: array.shape for name, array in batch.items()} == {"acoustic": (4_000, 100, 3)}
    assert (batch["acoustic"][:, 0, 0] % 2 == 0).all()


def test_an_epoch_holds_every_window_once(tokens):
    batch = make(TokenExamples(tokens, StageLayout.fine(SPEC)), np.arange(60))
    for epoch in np.split(batch["acoustic"][:, 0, 1], 3):
        assert sorted(epoch) == list(range(20))


def test_mulan_windows_are_those_that_overlap_most(tokens):
    batch = make(TokenExamples(tokens, StageLayout.coarse(SPEC)))
    starts_R, windows_R = batch["semantic"][:, 0] / 25, batch["mulan"][:, 0].astype(int)
    for start in (0.0, 1.44, 6.0, 12.0):
        inside = {w for w in range(7) if w <= start and start + 4 <= w + 10}
        assert set(windows_R[starts_R == start]) <= inside
    assert set(windows_R[starts_R == 6.0]) > {2, 5}


@given(st.integers(0, 500), st.sampled_from([25, 75, 250, 750]), st.integers(1, 40))
def test_no_window_overlaps_a_crop_more_than_the_chosen(start, frames, windows):
    """In whole frames, where sums are exact."""
    draws = np.linspace(0, 0.999, 50)
    chosen = examples.choose_window(np.full(50, start / 25), frames / 25, windows, draws)
    first = 25 * np.arange(windows)
    overlap = np.minimum(start + frames, first + 250) - np.maximum(start, first)
    best = set(np.flatnonzero(overlap == overlap.max()))
    assert set(chosen) <= best
    if len(best) <= 20:
        assert set(chosen) == best


def test_captions_are_drawn_by_kind():
    kinds = np.tile([1, 1, 0, 3, 2], 6_000)  # long, long, short, tags, playlist
    draws = rows.uniform(0, np.arange(6_000), rows.Purpose.CAPTION)
    chosen = examples.choose_captions(kinds, np.full(6_000, 5), draws)
    assert (chosen // 5 == np.arange(6_000)).all()
    np.testing.assert_allclose(np.bincount(chosen % 5) / 1_000, [1, 1, 2, 1, 1], atol=0.15)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.floats(0, 1, exclude_max=True))
def test_captions_stay_in_their_rows(counts, draw):
    counts = np.array(counts)
    kinds = np.arange(counts.sum()) % 4
    chosen = examples.choose_captions(kinds, counts, np.full(len(counts), draw))
    ends = counts.cumsum()
    some = counts > 0
    assert ((chosen >= ends - counts) & (chosen < ends))[some].all()
    assert (chosen[~some] == -1).all()


@pytest.mark.parametrize(
    ("conditioning", "from_text"), [("audio", 0), ("text", 0.8), ("mixed", 0.4)]
)
def test_conditions_come_from_sound_or_words(tokens, conditioning, from_text):
    data = TokenExamples(tokens, StageLayout.coarse(SPEC), conditioning=conditioning)
    mulan_RQ = make(data)["mulan"].astype(int)
    text_R = mulan_RQ[:, 0] >= 200
    assert text_R.mean() == pytest.approx(from_text, abs=0.03)  # every fifth window has no words
    assert (mulan_RQ[text_R, 1] % 5 != 4).all()
    if from_text:
        drawn = np.bincount(mulan_RQ[text_R, 0] - 200) / text_R.sum()
        np.testing.assert_allclose(drawn, [1 / 3, 1 / 3, 1 / 3], atol=0.04)


def test_captions_are_drawn_by_their_weights(tokens):
    weights = {"short": 1, "long": 6, "playlist": 2, "tags": 1}
    data = TokenExamples(
        tokens, StageLayout.coarse(SPEC), conditioning="text", caption_weights=weights
    )
    codes_R = make(data)["mulan"].astype(int)[:, 0]
    drawn = np.bincount(codes_R[codes_R >= 200] - 200)
    np.testing.assert_allclose(drawn / drawn.sum(), [3 / 7, 3 / 7, 1 / 7], atol=0.04)


@pytest.mark.parametrize("weights", [{"long": 1}, dict.fromkeys(manifest.CAPTION_KINDS, 0)])
def test_caption_weights_are_checked(tokens, weights):
    with pytest.raises(ValueError, match="caption_weights"):
        TokenExamples(tokens, StageLayout.coarse(SPEC), caption_weights=weights)


@pytest.fixture(scope="module")
def melodies(tmp_path_factory):
    return write_data_set(tmp_path_factory.mktemp("m") / "m", MELODY_STREAMS, melody_record)


TUNED = dataclasses.replace(
    SPEC, num_melody_codebooks=2, melody_codebook_size=20, num_melody_embeddings=2
)


@pytest.mark.parametrize("conditioning", ["audio", "mixed"])
def test_a_melody_is_that_of_the_window_whatever_the_words(melodies, conditioning):
    layout, rows_R = StageLayout.semantic(TUNED), ROWS[:400]
    batch = make(TokenExamples(melodies, layout, conditioning=conditioning), rows_R)
    mulan_RQ, melody_REQ = batch["mulan"].astype(int), batch["melody"]
    assert melody_REQ.shape == (400, 2, 2)  # a level is left out
    assert (melody_REQ[:, 0] == melody_REQ[:, 1]).all()
    np.testing.assert_array_equal(melody_REQ[:, 0, 1], mulan_RQ[:, 1])
    of_sound_R = mulan_RQ[:, 0] < 200
    assert of_sound_R.all() == (conditioning == "audio")
    np.testing.assert_array_equal(melody_REQ[of_sound_R, 0, 0], mulan_RQ[of_sound_R, 0])
    np.testing.assert_array_equal(layout.unflatten(layout.flatten(batch))["melody"], melody_REQ)
    # What else a row has is what it has without.
    layout = StageLayout.semantic(SPEC)
    plain = make(TokenExamples(melodies, layout, conditioning=conditioning), rows_R)
    assert plain.keys() == {"mulan", "semantic"}
    for source, codes in plain.items():
        np.testing.assert_array_equal(codes, batch[source])


def test_melodies_that_do_not_fit_are_refused(tokens, melodies):
    def layout(**sizes):
        return StageLayout.semantic(dataclasses.replace(TUNED, **sizes))

    with pytest.raises(shards.ShardError, match=r"lacks the streams \['melody'\]"):
        TokenExamples(tokens, layout())
    with pytest.raises(shards.ShardError, match="by 2 embeddings, and the stage needs 3"):
        TokenExamples(melodies, layout(num_melody_embeddings=3))
    with pytest.raises(shards.ShardError, match="3 levels of melody codes, and the stage needs 4"):
        TokenExamples(melodies, layout(num_melody_codebooks=4))
    with pytest.raises(shards.ShardError, match="melody code 19, and the run's codebooks have 9"):
        make(TokenExamples(melodies, layout(melody_codebook_size=9)))


def test_sound_is_cropped_anywhere(sound):
    data = AudioExamples(sound, seconds=4, sample_rate=SAMPLE_RATE)
    audio_RT = make(data, np.arange(400))["audio"]
    assert audio_RT.dtype == np.int16
    assert audio_RT.shape == (400, 400)
    assert (np.diff(audio_RT.astype(int)) == 1).all()
    records_R, starts_R = np.divmod(audio_RT[:, 0].astype(int) + 20_000, 2_000)
    assert (np.bincount(records_R, minlength=20) == 20).all()
    assert starts_R.min() < 100
    assert 1_100 < starts_R.max() <= 1_200


def test_captions_belong_to_their_sound(sound):
    vocabulary = WordPiece.train(["short words on 0123456789", "list"], 120)
    data = AudioExamples(
        sound, seconds=1, sample_rate=SAMPLE_RATE, vocabulary=vocabulary, max_text_tokens=12
    )
    batch = make(data, np.arange(40))
    records_R = (batch["audio"][:, 0].astype(int) + 20_000) // 2_000
    texts = vocabulary.decode(batch["text_ids"])
    named = [int("".join(c for c in text if c.isdigit())) for text in texts]
    assert named == records_R.tolist()
    assert {text.split()[0] for text in texts} == {"short", "list"}


def damage(folder, stream, record):
    """Flips a byte in the middle of a record of the second shard."""
    path = folder / shards.shard_name(stream, 1, 3)
    data = bytearray(path.read_bytes())
    encoded = TOKEN_STREAMS[stream].encode(token_record(record)[stream])
    data[data.index(encoded) + len(encoded) // 2] ^= 0xFF
    path.write_bytes(data)


def test_a_row_whose_record_cannot_be_read_gets_the_next_rows(tokens, tmp_path):
    """The start would refuse this; a disk may also fail later."""
    layout = StageLayout.fine(SPEC)
    whole = make(TokenExamples(tokens, layout), np.arange(200))["acoustic"]
    lost = 9
    folder = shutil.copytree(tokens, tmp_path / "tokens")
    damage(folder, "acoustic", lost)
    data = TokenExamples(folder, layout)
    damaged = make(data, np.arange(200))["acoustic"]
    assert set(damaged[:, 0, 1]) == set(range(20)) - {lost}
    lost_R = np.flatnonzero(whole[:, 0, 1] == lost)
    kept_R = np.setdiff1d(np.arange(200), lost_R)
    np.testing.assert_array_equal(damaged[kept_R], whole[kept_R])
    follow_R = lost_R[lost_R < 199]
    assert (damaged[follow_R, 0, 1] == whole[follow_R + 1, 0, 1]).all()
    # Its own draws stay: the batch holds no crop twice.
    assert (damaged[follow_R, 0, 0] == whole[follow_R, 0, 0]).all()
    assert data.records.unreadable == len(lost_R) == 10
    again = make(data, np.arange(200))["acoustic"]
    np.testing.assert_array_equal(again, damaged)


def test_a_shard_that_vanishes_costs_its_rows_and_all_of_them_the_run(tokens, tmp_path):
    layout = StageLayout.fine(SPEC)
    folder = shutil.copytree(tokens, tmp_path / "tokens")
    data = TokenExamples(folder, layout)
    (folder / shards.shard_name("acoustic", 0, 3)).unlink()
    assert set(make(data, np.arange(100))["acoustic"][:, 0, 1]) == set(range(7, 20))
    for shard in (1, 2):
        (folder / shards.shard_name("acoustic", shard, 3)).unlink()
    with pytest.raises(shards.ShardError, match="records of 100 rows on end can't be read"):
        make(TokenExamples(str(folder), layout), np.arange(4))


def test_open_files_are_asked_for_of_all_data_sets_together(tokens, other_tokens, monkeypatch):
    asked = []
    monkeypatch.setattr(records, "_held", weakref.WeakKeyDictionary())
    monkeypatch.setattr(records.resource, "getrlimit", lambda _: (520, 10_000))
    monkeypatch.setattr(records.resource, "setrlimit", lambda _, limits: asked.append(limits))
    first, second = (
        records.Records(folder, ("acoustic", "mulan")) for folder in (tokens, other_tokens)
    )
    first.check()
    first.check((0,), 2)  # its six files are the same
    assert not asked
    second.check()
    assert asked == [(512 + 6 + 6, 10_000)]


def test_what_does_not_fit_the_stage_is_refused(tokens, sound, tmp_path):
    layout = StageLayout.coarse(SPEC)
    longer = StageLayout.semantic(TokenSpec())  # the paper's 30 s
    with pytest.raises(shards.ShardError, match=r"windows of 16 s, too short for the semantic"):
        TokenExamples(tokens, dataclasses.replace(longer, prefix=()))
    with pytest.raises(shards.ShardError, match=r"2 levels of mulan codes, and the stage needs 12"):
        TokenExamples(tokens, longer)
    with pytest.raises(shards.ShardError, match=r"lacks the streams \['acoustic', 'mulan'"):
        TokenExamples(sound, layout)
    with pytest.raises(ValueError, match="conditioning is 'both'"):
        TokenExamples(tokens, layout, conditioning="both")
    with pytest.raises(shards.ShardError, match="100 Hz, and the run's is at 16000 Hz"):
        AudioExamples(sound, seconds=1, sample_rate=16_000)
    with pytest.raises(shards.ShardError, match="crops are to be of 20 s"):
        AudioExamples(sound, seconds=20, sample_rate=SAMPLE_RATE)
    with pytest.raises(shards.ShardError, match=r"dataset\.json is missing"):
        TokenExamples(tmp_path / "nothing", layout)
    empty = write_data_set(tmp_path / "e", TOKEN_STREAMS, token_record, num_records=0)
    with pytest.raises(shards.ShardError, match="has no records"):
        TokenExamples(empty, layout)


def test_codes_beyond_the_codebook_are_another_tokenizers(tmp_path):
    foreign = write_data_set(
        tmp_path / "f",
        TOKEN_STREAMS,
        lambda record: token_record(record) | {"mulan": np.full((WINDOW_SECONDS - 9, 2), 256)},
    )
    with pytest.raises(shards.ShardError, match="mulan code 256, and the run's codebooks have 256"):
        make(TokenExamples(foreign, StageLayout.coarse(SPEC)))


def test_windows_without_captions_are_refused_where_words_are_needed(tmp_path):
    mute = write_data_set(
        tmp_path / "m", AUDIO_STREAMS, lambda record: audio_record(record) | {"captions": []}
    )
    vocabulary = WordPiece.train(["words"], 120)
    data = AudioExamples(
        mute, seconds=1, sample_rate=SAMPLE_RATE, vocabulary=vocabulary, max_text_tokens=8
    )
    with pytest.raises(shards.ShardError, match="windows without captions"):
        make(data, np.arange(2))
    with pytest.raises(shards.ShardError, match="windows without captions"):
        make(TextExamples(mute, vocabulary=vocabulary, max_text_tokens=8), np.arange(2))
