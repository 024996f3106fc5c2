import functools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musiclm.errors import UserError
from musiclm.tokens.wordpiece import WordPiece

CAPTIONS = [
    "A slow, sad piano melody in F# minor at 72 bpm, without drums.",
    "Upbeat trumpet tune with drums and bass",
    "church organ, C major, 120 bpm, staccato",
    "Calm flute for a rainy evening",
    "a fast violin piece in Bb major with chords but no bass",
] * 4


@functools.cache
def trained():
    return WordPiece.train(CAPTIONS, 256)


@pytest.fixture
def wordpiece():
    return trained()


def test_rows_are_cls_pieces_sep_and_zeros(wordpiece):
    ids_BL = wordpiece.encode(["calm flute", "Upbeat trumpet tune"], 8)
    assert ids_BL.shape == (2, 8)
    assert ids_BL.dtype == np.int32
    assert [wordpiece.vocab[i] for i in ids_BL[0]] == [
        "[CLS]", "calm", "flute", "[SEP]", *["[PAD]"] * 4
    ]  # fmt: skip
    assert wordpiece.vocab_size == len(wordpiece.vocab) <= 256


def test_decode_gives_the_normalised_text_back(wordpiece):
    texts = ["Church ORGAN at 120 bpm", "a sad pianó"]
    # Digits are pieces of their own.
    assert wordpiece.decode(wordpiece.encode(texts, 32)) == [
        "church organ at 1 2 0 bpm",
        "a sad piano",
    ]


@given(st.text("abcdefghijklmnopqrstuvwxyz0123456789 ", min_size=1, max_size=150).filter(str.strip))
def test_plain_english_is_always_spelled_out(text):
    ids_BL = trained().encode([text], 200)
    assert trained().vocab.index("[UNK]") not in ids_BL
    assert "".join(trained().decode(ids_BL)[0].split()) == "".join(text.split())


def test_foreign_script_is_unknown_not_an_error(wordpiece):
    ids_BL = wordpiece.encode(["piano 音"], 8)
    assert [wordpiece.vocab[i] for i in ids_BL[0, :4]] == ["[CLS]", "piano", "[UNK]", "[SEP]"]
    assert wordpiece.decode(ids_BL) == ["piano [UNK]"]


def test_training_is_deterministic_across_processes(wordpiece):
    program = (
        "from musiclm.tokens.wordpiece import WordPiece\n"
        f"print(WordPiece.train({CAPTIONS!r}, 256).vocab)"
    )
    for _ in range(2):
        out = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
        assert out.stdout.decode().strip() == str(wordpiece.vocab)


def test_save_and_load(wordpiece, tmp_path):
    wordpiece.save(tmp_path / "vocab.json")
    loaded = WordPiece.load(tmp_path / "vocab.json")
    assert loaded.vocab == wordpiece.vocab
    np.testing.assert_array_equal(loaded.encode(CAPTIONS, 48), wordpiece.encode(CAPTIONS, 48))
    assert [path.name for path in tmp_path.iterdir()] == ["vocab.json"]


def test_foreign_files_are_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match="nowhere holds no WordPiece vocabulary"):
        WordPiece.load(tmp_path / "nowhere")
    for content in (b"{}", b"not json", b"[1, 2]", b"\xff\xfe", b'{"wordpiece": ["a"]}'):
        (tmp_path / "vocab.json").write_bytes(content)
        with pytest.raises(UserError, match="holds no WordPiece vocabulary"):
            WordPiece.load(tmp_path / "vocab.json")


def test_overlong_text_is_refused_or_cut_with_a_warning(wordpiece):
    text = "slow sad piano melody in a minor"
    with pytest.raises(UserError, match="7 word pieces, 4 fit"):
        wordpiece.encode([text], 6)
    with pytest.warns(UserWarning, match="cut off"):
        ids_BL = wordpiece.encode([text], 6, overlong="truncate")
    assert wordpiece.decode(ids_BL) == ["slow sad piano melody"]
    assert wordpiece.vocab[ids_BL[0, -1]] == "[SEP]"


def test_empty_text_is_refused(wordpiece):
    with pytest.raises(UserError, match="empty"):
        wordpiece.encode(["piano", "  "], 8)


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(ValueError, match="vocab_size is 40"):
        WordPiece.train(CAPTIONS, 40)
