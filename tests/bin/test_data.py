"""`musiclm data`: every corpus has help with examples, and every mistake is one line."""

import errno

import numpy as np
import pytest
import soundfile

from data_pipelines import corpora, manifest
from data_pipelines.corpora import folder
from musiclm.bin import main


@pytest.mark.parametrize("name", corpora.NAMES)
def test_help_has_examples(capsys, name):
    assert main.main(["data", name, "--help"]) == 0
    told = capsys.readouterr().out
    assert f"musiclm data {name} " in told.partition("examples:")[2]
    assert "--out" in told


@pytest.fixture
def music(tmp_path):
    audio = tmp_path / "music"
    audio.mkdir()
    soundfile.write(audio / "a.wav", np.full(8_000, 0.1), 8_000)
    (audio / "b.mp3").write_text("<html>")
    return audio


@pytest.mark.parametrize("name", ["corpus/manifest.jsonl", "mine.parquet"])
def test_makes_a_manifest_and_a_report(capsys, music, tmp_path, name):
    out = tmp_path / name
    asked = out.parent if out.name == manifest.NAME else out
    assert main.main(["data", "folder", "--audio", str(music), "--out", str(asked)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == str(out)
    assert told[1].endswith("report.html")
    assert [clip.file for clip in manifest.read(out)] == [
        str(music / "a.wav") if out.name == manifest.NAME else "music/a.wav"
    ]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["folder", "--out", "x"], "--audio"),
        (["folder", "--audio", "nowhere", "--out", "x"], "nowhere is no folder"),
        (["folder", "--audio", "music", "--csv", "no.csv", "--out", "x"], "cannot read no.csv"),
        (["folder", "--audio", "music", "--out", "file"], "cannot read or write"),
        (["musiccaps", "--csv", "file", "--audio", "music", "--out", "x"], "lacks the columns"),
        (["fma", "--metadata", "music", "--audio", "music", "--out", "x"], "genres.csv"),
        (["tfds", "--prepared", "nowhere", "--out", "x", "--tags"], "dataset_info.json"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(capsys, music, tmp_path, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("a,b\n1,2\n")
    assert main.main(["data", *arguments]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("musiclm: error: ")
    assert told in last
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "music"]


def test_a_full_disk_is_told(capsys, music, tmp_path, monkeypatch):
    def full(args):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "x"))

    monkeypatch.setattr(folder, "make", full)
    assert main.main(["data", "folder", "--audio", str(music), "--out", "x"]) == 2
    assert "No space left on device" in capsys.readouterr().err
