"""The whole script on an untrained bundle and a corpus of tones."""

import json
import pathlib

import numpy as np
import pytest

from musiclm import audio
from musiclm.bin import figures
from musiclm.errors import UserError
from musiclm.evaluation import adherence, report

RATE = 1_600


@pytest.fixture
def corpus(tmp_path) -> pathlib.Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    lines = []
    for number in range(6):
        instrument = ("flute", "piano")[number % 2]
        tempo = ("slow", "medium", "fast")[number % 3]
        time_T = np.arange(10 * RATE) / RATE
        beats_T = np.exp(-4 * (time_T * (1, 2, 3)[number % 3] % 1))
        samples_T = 0.5 * np.sin(2 * np.pi * (200 + 20 * number) * time_T) * beats_T
        audio.write_wav(folder / f"{number}.wav", samples_T, RATE)
        caption = f"{tempo} {instrument}"
        entry = {
            "file": f"{number}.wav",
            "caption": caption,
            "captions": [{"kind": "tags", "text": tempo}, {"kind": "long", "text": caption}],
            "instrument": instrument,
            "drums": number >= 3,
            "tempo": tempo,
            "tonic": number,
            "mode": ("major", "minor")[number % 2],
            "register": ("low", "mid", "high")[number // 2],
            "density": ("sparse", "moderate", "dense")[number % 3],
            "bass": number % 2 == 0,
            "chords": number % 3 == 0,
        }
        lines.append(json.dumps(entry) + "\n")
    (folder / "manifest.jsonl").write_text("".join(lines))
    return folder


@pytest.mark.slow
def test_figures_are_written_down_the_same_twice(tiny_bundle, corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    readme = tmp_path / "README.md"
    readme.write_text(f"# Title\n{report.BEGIN}\n{report.END}\nend\n")
    arguments = [
        *("--bundle", tiny_bundle, "--train", corpus, "--held_out", corpus),
        *("--out", tmp_path / "out", "--clips", 3, "--pairs", 6, "--fit_clips", 6),
        *("--best_of", 2),
        *("--readme", readme),
    ]
    arguments = [str(argument) for argument in arguments]
    figures.main(arguments)
    written = [tmp_path / "out" / "figures.json", tmp_path / "out" / "figures.md", readme]
    first = [path.read_text() for path in written]
    record = json.loads(first[0])
    assert set(record) == {"bundle", "sizes", "codec", "mulan", "adherence", "cosine"}
    assert list(record["codec"]) == ["1", "2", "3"]
    for source in ("generated", "best of 2"):
        assert record["adherence"]["tempo"][source]["n"] == 3
    assert set(record["adherence"]) == set(adherence.QUESTIONS)
    assert record["adherence"]["instrument"]["chance"] == 0.5
    assert record["adherence"]["key"]["chance"] == 1 / 24
    assert record["mulan"]["long captions"]["text_to_audio/recall_at_10"]["value"] == 1
    assert first[1].strip() in first[2]
    assert first[2].startswith("# Title\n")
    assert first[2].endswith("end\n")

    # The second run finds the clips: it needs no chain, and writes the same.
    clips = sorted((tmp_path / "out" / "clips").iterdir())
    assert len(clips) == 6
    monkeypatch.setattr("musiclm.api.MusicLM.generate", None)
    figures.main(arguments)
    assert [path.read_text() for path in written] == first
    assert sorted((tmp_path / "out" / "clips").iterdir()) == clips


def test_another_seed_prompt_or_bundle_is_another_file(tmp_path, monkeypatch):
    made = []

    class Model:
        def __init__(self, bundle):
            pass

        def generate(self, prompts, *, seconds, seed, best_of):
            made.append((prompts, seed, best_of))
            return [audio.Waveform(np.zeros(round(seconds * RATE)), RATE) for _ in prompts]

    class Bundle:
        digest = "one"

    monkeypatch.setattr("musiclm.api.MusicLM", Model)
    monkeypatch.setattr(figures, "BATCH", 2)
    files = figures.generate(Bundle, ["a", "a", "b"], tmp_path)
    assert len(set(files)) == 3
    assert made == [(["a", "a"], 0, 1), (["b"], 2, 1)]
    files[2].unlink()
    assert figures.generate(Bundle, ["a", "a", "b"], tmp_path) == files
    assert made[2:] == [(["b"], 2, 1)]
    assert not set(figures.generate(Bundle, ["a", "a", "b"], tmp_path, 4)) & set(files)
    assert made[3:] == [(["a", "a"], 0, 4), (["b"], 8, 4)]
    Bundle.digest = "two"
    assert not set(figures.generate(Bundle, ["a", "a", "b"], tmp_path)) & set(files)


def test_a_missing_or_short_corpus_is_told_in_one_line(corpus, tmp_path):
    with pytest.raises(UserError, match="make the corpus"):
        figures.read_manifest(tmp_path, 3)
    with pytest.raises(UserError, match="has 6 clips: 7 are needed"):
        figures.read_manifest(corpus, 7)


def test_the_caption_with_every_attribute_is_the_prompt():
    captions = [{"kind": "tags", "text": "t"}, {"kind": "long", "text": "l"}]
    assert figures.long_caption({"caption": "c", "captions": captions}) == "l"
    assert figures.long_caption({"caption": "c", "captions": captions[:1]}) == "c"
