"""`musiclm inspect`: what files say of themselves, and files that say nothing."""

import json
import os

import numpy as np
import pytest
import soundfile

from musiclm import audio
from musiclm.bin import main

PROVENANCE = {"prompt": "flûte – 笛", "seed": 7, "model": "gm-mini", "digest": "17" * 32}


@pytest.fixture
def songs(tmp_path, monkeypatch):
    """A folder with a generated file and a foreign one, to be in."""
    monkeypatch.chdir(tmp_path)
    audio.write_wav("ours.wav", np.zeros(8_000, np.float32), 16_000, PROVENANCE)
    soundfile.write("theirs.flac", np.zeros((44_100, 2)), 44_100)
    (tmp_path / "empty.wav").touch()
    (tmp_path / "page.mp3").write_text("<html>")
    return tmp_path


def test_text(songs, capsys):
    assert main.main(["inspect", "ours.wav", "theirs.flac"]) == 0
    ours, theirs = capsys.readouterr().out.split("theirs.flac\n")
    lines = [line.split(maxsplit=1) for line in ours.splitlines()]
    assert lines == [
        ["ours.wav"],
        ["sound", "0.50 s, 16000 Hz, 1 channel, WAV"],
        ["generated", "true"],
        *[[name, str(value)] for name, value in PROVENANCE.items()],
    ]
    assert "1.00 s, 44100 Hz, 2 channels, FLAC" in theirs
    assert "doesn't say" in theirs


def test_json(songs, capsys):
    assert main.main(["inspect", "--json", "ours.wav", "theirs.flac"]) == 0
    ours, theirs = map(json.loads, capsys.readouterr().out.splitlines())
    assert ours == {
        "file": "ours.wav",
        "format": "WAV",
        "sample_rate": 16_000,
        "channels": 1,
        "seconds": 0.5,
        "provenance": {"generated": True, **PROVENANCE},
    }
    assert theirs["provenance"] is None


def test_a_name_need_not_be_unicode(songs, capsys):
    name = os.fsdecode(b"caf\xe9.wav")
    os.rename("ours.wav", name)
    for options in ([], ["--json"]):
        assert main.main(["inspect", *options, name]) == 0
        out = capsys.readouterr().out
        assert r"caf\udce9.wav" in out
        out.encode()  # any terminal takes it
    assert json.loads(out)["file"] == name


@pytest.mark.parametrize(
    ("name", "told"), [("empty.wav", "0 bytes"), ("page.mp3", "page.mp3"), ("no.wav", "No such")]
)
def test_what_is_no_audio_is_one_line_and_code_2(songs, capsys, name, told):
    assert main.main(["inspect", name]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("musiclm: error: ")
    assert captured.err.count("\n") == 1
    assert name in captured.err
    assert told in captured.err


def test_a_bad_file_hides_no_good_one(songs, capsys):
    assert main.main(["inspect", "--json", "empty.wav", "ours.wav", "page.mp3"]) == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out)["file"] == "ours.wav"
    assert "empty.wav" in captured.err
    assert "page.mp3" in captured.err


def test_what_would_steer_a_terminal_is_escaped(songs, capsys):
    evil = PROVENANCE | {"prompt": "a\x1b[2Jb\u009b", "x\x1b": ["\x1b"]}
    audio.write_wav("evil.wav", np.zeros(80, np.float32), 16_000, evil)
    assert main.main(["inspect", "evil.wav"]) == 0
    out = capsys.readouterr().out
    assert out.replace("\n", "").isprintable()
    assert "a\\u001b[2Jb" in out
