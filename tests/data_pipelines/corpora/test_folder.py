"""A folder of anything: what is audio is found, in a fixed order, and what is not is counted."""

import hashlib
import json
import os

import hypothesis
import pytest
from hypothesis import strategies as st

from data_pipelines import manifest
from data_pipelines.corpora import corpus
from musiclm.bin import main


def test_walks_in_a_fixed_order_and_reads_headers(make, sound, tmp_path):
    music = tmp_path / "music"
    sound(music / "b" / "2.FLAC", seconds=2, rate=22_050, channels=2)
    sound(music / "a.ogg", rate=16_000)
    sound(music / "b" / "10.wav", seconds=0.5)
    (music / "cover.jpg").write_bytes(b"not audio")
    (music / "._a.wav").write_bytes(b"left by a Mac")
    _, made = make("folder", "--audio", music, "--licence", "CC0-1.0", out=music)
    clips = manifest.read(music)
    assert [clip.file for clip in clips] == ["a.ogg", "b/10.wav", "b/2.FLAC"]  # relative
    assert [(c.seconds, c.sample_rate, c.channels) for c in clips] == [
        (1.0, 16_000, 1),
        (0.5, 8_000, 1),
        (2.0, 22_050, 2),
    ]
    for clip in clips:
        data = (music / clip.file).read_bytes()
        assert clip.sha256 == hashlib.sha256(data).hexdigest()
        assert (clip.licence, clip.split) == ("CC0-1.0", manifest.split_of(clip.file))
    assert not made.left_out


def test_bad_files_are_counted_with_their_reason(make, sound, tmp_path):
    music = tmp_path / "music"
    sound(music / "good.wav")
    (music / "empty.wav").write_bytes(b"")
    (music / "page.mp3").write_text("<html>404</html>")
    sound(music / "nothing.wav", seconds=0)
    whole = sound(music / "cut.flac").read_bytes()
    (music / "cut.flac").write_bytes(whole[:20])
    clips, made = make("folder", "--audio", music)
    assert set(clips) == {"good.wav"}
    reasons = {one.name: one.reason for one in made.left_out}
    assert reasons.pop("nothing.wav") == "holds no sound"
    assert set(reasons) == {"empty.wav", "page.mp3", "cut.flac"}
    assert all(reason.startswith("cannot be read: ") for reason in reasons.values())


def test_a_name_that_is_not_unicode_is_left_out_and_told(sound, tmp_path, capsys):
    music = tmp_path / "music"
    sound(music / "a.wav")
    os.rename(sound(music / "b.wav"), os.fsencode(music) + b"/caf\xe9.wav")
    argv = ["data", "folder", "--audio", str(music), "--out", str(music)]
    assert main.main(argv) == 0
    assert [clip.file for clip in manifest.read(music)] == ["a.wav"]
    report = (music / "report.html").read_text()
    assert r"its name is not UTF-8 (1)" in report
    assert r"caf\udce9.wav" in report
    capsys.readouterr()
    assert main.main([*argv, "--licence", "\udce9"]) == 2
    assert "--licence" in capsys.readouterr().err.splitlines()[-1]


def test_a_null_licence_is_none(make, sound, tmp_path):
    sound(tmp_path / "music" / "a.wav")
    (tmp_path / "music" / "a.json").write_text('{"licence": null}')
    clips, _ = make("folder", "--audio", tmp_path / "music", "--licence", "own")
    assert clips["a.wav"].licence == "own"


def test_words_from_a_json_beside(make, sound, tmp_path):
    music = tmp_path / "music"
    for name in ("a", "b", "c"):
        sound(music / f"{name}.wav")
    words = {
        "captions": [{"kind": "long", "text": "Ein ruhiges Stück."}],
        "artist": "Ann",
        "bpm": 80,
        "licence": "CC-BY-4.0",
    }
    (music / "a.json").write_text(json.dumps(words))
    (music / "b.json").write_text(json.dumps({"split": "test"}))
    clips, _ = make("folder", "--audio", music, "--licence", "own")
    assert clips["a.wav"].captions == (manifest.Caption(kind="long", text="Ein ruhiges Stück."),)
    assert clips["a.wav"].attributes == {"artist": "Ann", "bpm": 80}
    assert clips["a.wav"].split == manifest.split_of("Ann")
    assert clips["b.wav"].split == "test"
    assert [clips[f"{name}.wav"].licence for name in "abc"] == ["CC-BY-4.0", "own", "own"]
    assert clips["c.wav"].captions == ()


def test_words_from_one_csv(make, sound, tmp_path):
    sound(tmp_path / "music" / "x" / "a.wav")
    sound(tmp_path / "music" / "b.wav")
    table = tmp_path / "captions.csv"
    table.write_text(
        'file,kind,text,artist\nx/a.wav,short,a tune,Ann\nx/a.wav,tags,"slow, piano",Ann\n'
        "gone.wav,short,not there,Bob\n"
    )
    out = tmp_path / "mine.parquet"
    clips, made = make("folder", "--audio", tmp_path / "music", "--csv", table, out=out)
    assert made.manifest == out
    assert [caption.text for caption in clips["a.wav"].captions] == ["a tune", "slow, piano"]
    assert clips["a.wav"].attributes == {"artist": "Ann"}
    assert clips["b.wav"].captions == ()
    assert made.left_out == [corpus.LeftOut(name="gone.wav", reason=corpus.MISSING)]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("{", "is no JSON"),
        ("[]", "holds no object"),
        ('{"captions": [{"kind": "sung", "text": "la"}]}', "kind is 'sung'"),
        ('{"captions": ["la"]}', "the words of a.wav are not as they should be"),
        ('{"captions": [{"kind": "long", "text": null}]}', "the words of a.wav .* is None"),
        ('{"licence": 5}', "the words of a.wav .* licence is 5"),
        (r'{"artist": "\ud800"}', "the words of a.wav .* give text in UTF-8"),
        ("[" * 100_000, "is no JSON"),
        ('{"split": "dev"}', "split is 'dev'"),
        ('{"seconds": 3}', r"attributes named \['seconds'\]: rename"),
    ],
)
def test_spoilt_words(make, sound, tmp_path, words, told):
    sound(tmp_path / "music" / "a.wav")
    (tmp_path / "music" / "a.json").write_text(words)
    with pytest.raises(corpus.CorpusError, match=told):
        make("folder", "--audio", tmp_path / "music")
    assert not (tmp_path / "out").exists()


def test_folders_without_audio(make, tmp_path):
    with pytest.raises(corpus.CorpusError, match="is no folder"):
        make("folder", "--audio", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(corpus.CorpusError, match="holds no audio"):
        make("folder", "--audio", tmp_path / "empty")
    (tmp_path / "empty" / "a.wav").write_bytes(b"no audio either")
    with pytest.raises(corpus.CorpusError, match=r"none of the 1 clips can be used \(a\.wav: "):
        make("folder", "--audio", tmp_path / "empty")
    assert not (tmp_path / "out").exists()


@hypothesis.given(
    artists=st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=2, max_size=6)
)
@hypothesis.settings(max_examples=40)
def test_no_artist_is_torn_apart(artists):
    from data_pipelines.corpora import folder

    listed = [
        folder._listed(f"{i}.wav", None, {"artist": artist}) for i, artist in enumerate(artists * 3)
    ]
    splits = {(one.attributes["artist"], one.split) for one in listed}
    assert len(splits) == len(set(artists))
