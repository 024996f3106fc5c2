"""`musiclm evaluate` on an untrained bundle and a corpus of tones."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from musiclm import audio, bundle
from musiclm.bin import evaluate, main
from musiclm.errors import UserError
from musiclm.evaluation import report, suite

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
            "tonic": 2 * number,
            "mode": ("minor", "major")[number % 2],
            "register": ("low", "high")[number % 2],
            "density": ("sparse", "dense")[number % 2],
            "bass": number % 2 == 0,
            "chords": number < 3,
        }
        lines.append(json.dumps(entry) + "\n")
    (folder / "manifest.jsonl").write_text("".join(lines))
    return folder


@pytest.mark.slow
def test_a_report_is_written_down_the_same_twice(soundstorm_bundle, corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("musiclm.evaluation.memorization.PERMUTED_PAIRS", 10_000)
    readme = tmp_path / "README.md"
    readme.write_text(f"# Title\n{report.BEGIN}\n{report.END}\nend\n")
    out = tmp_path / "out"
    judge = tmp_path / "judge"
    shutil.copytree(soundstorm_bundle, judge)
    bundle.seal(judge, "judge", bundle.load(soundstorm_bundle).token_spec)
    songs = tmp_path / "songs"
    songs.mkdir()
    lines = []
    for entry in evaluate.read_manifest(corpus, 3):  # the real clips, as another model's
        prompt = suite.long_caption(entry)
        lines.append(json.dumps({"prompt": prompt, "file": str(entry["path"])}) + "\n")
    (songs / "manifest.jsonl").write_text("".join(lines))
    arguments = [
        *("evaluate", "--model", soundstorm_bundle, "--train", corpus, "--held-out", corpus),
        *("--out", out, "--clips", 3, "--pairs", 6, "--fit-clips", 6, "--best-of", 2),
        *("--judge", judge, "--folder", f"copies={songs}", "--readme", readme),
    ]
    arguments = [str(argument) for argument in arguments]
    assert main.main(arguments) == 0
    written = [*(out / f"report.{kind}" for kind in ("json", "md", "html")), readme]
    first = [path.read_text() for path in written]
    record = json.loads(first[0])
    figures = {table["title"]: table["figures"] for table in record["tables"]}
    adherence = figures["Clips made from text"]
    assert {"copies", "generated", "generated, parallel", "best of 2", "real"} <= set(adherence)
    assert adherence["generated"]["tempo"]["n"] == 3
    assert adherence["chance"]["instrument"] == 0.5
    for name in ("Clips made from text", "Fréchet audio distance", "KLD", "MCC"):
        assert figures[name]["copies"] == figures[name]["real"]
    # The judge is a copy of the model's own MuLan.
    heard = list(figures["MCC"]["generated"].values())
    assert len(heard) == 4
    assert heard[2:] == heard[:2]
    assert figures["KLD"]["real"]["KL(real ‖ clip)"]["value"] == 0
    assert figures["MuLan's retrieval"]["long"]["text → audio R@10"]["value"] == 1
    assert list(figures["Codec"]) == ["1", "2", "3"]
    assert figures["Memorization"]["0"]["exact"]["n"] == 6
    assert set(figures["Stages on real clips"]) == {"semantic", "coarse", "fine"}
    for title in evaluate.README_TABLES:
        (table,) = [part for part in first[1].split("\n\n**") if part.startswith(title)]
        assert table.strip() in first[3]
    assert "Memorization" not in first[3]
    assert first[3].startswith("# Title\n")
    assert first[3].endswith("end\n")
    clips = sorted((out / "clips").iterdir())
    assert len(clips) == 9
    assert "soundstorm" in figures["Size"]
    assert all(f"clips/{clip.name}" in first[2] for clip in clips)

    # The second run finds the clips and their descriptions: it needs no chain, and writes the same.
    monkeypatch.setattr("musiclm.api.MusicLM.generate", None)
    monkeypatch.setattr("musiclm.evaluation.descriptors.describe", None)
    assert main.main(arguments) == 0
    assert [path.read_text() for path in written] == first
    assert sorted((out / "clips").iterdir()) == clips


def test_another_seed_prompt_or_bundle_is_another_file(tmp_path, monkeypatch):
    made = []

    class Model:
        def __init__(self, bundle):
            pass

        def generate(self, prompts, *, seconds, seed, best_of, decoding):
            made.append((prompts, seed, best_of, decoding))
            return [audio.Waveform(np.zeros(round(seconds * RATE)), RATE) for _ in prompts]

    class Bundle:
        digest = "one"
        components = ("soundstorm",)

    def generate(what):
        options = evaluate.ways(Bundle, 4)[what]
        return evaluate.generate(Bundle, ["a", "a", "b"], tmp_path, what, **options)

    monkeypatch.setattr("musiclm.api.MusicLM", Model)
    monkeypatch.setattr(evaluate, "BATCH", 2)
    files = generate("generated")
    assert len(set(files)) == 3
    assert made == [(["a", "a"], 0, 1, "autoregressive"), (["b"], 2, 1, "autoregressive")]
    files[2].unlink()
    assert generate("generated") == files
    assert made[2:] == [(["b"], 2, 1, "autoregressive")]
    files += generate("best of 4")
    assert made[3:] == [(["a", "a"], 0, 4, "autoregressive"), (["b"], 8, 4, "autoregressive")]
    files += generate("generated, parallel")
    assert made[5:] == [(["a", "a"], 0, 1, "parallel"), (["b"], 2, 1, "parallel")]
    assert len(set(files)) == 9
    Bundle.digest = "two"
    assert not set(generate("generated")) & set(files)


def test_a_bundle_without_a_soundstorm_is_measured_without():
    class Bundle:
        components = ("semantic",)

    assert evaluate.ways(Bundle, 1) == {"generated": {}}
    assert list(evaluate.ways(Bundle, 4)) == ["generated", "best of 4"]


def test_a_missing_or_short_corpus_is_told_in_one_line(corpus, tmp_path):
    with pytest.raises(UserError, match="make the corpus"):
        evaluate.read_manifest(tmp_path, 3)
    with pytest.raises(UserError, match="has 6 clips: 7 are needed"):
        evaluate.read_manifest(corpus, 7)


def test_the_caption_with_every_attribute_is_the_prompt():
    captions = [{"kind": "tags", "text": "t"}, {"kind": "long", "text": "l"}]
    assert suite.long_caption({"caption": "c", "captions": captions}) == "l"
    assert suite.long_caption({"caption": "c", "captions": captions[:1]}) == "c"


def test_what_a_folder_lacks_is_told(tmp_path):
    (tmp_path / "manifest.jsonl").write_text('{"prompt": "a", "file": "0.wav"}\n')
    assert evaluate.choose(tmp_path, ["a"]) == [tmp_path / "0.wav"]
    with pytest.raises(UserError, match="lacks clips of 1 of 2 captions, such as 'b'"):
        evaluate.choose(tmp_path, ["a", "b"])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--clips", "2"], "3 clips or more"),
        (["--clips", "7", "--pairs", "6"], "as many pairs at least"),
        (["--best-of", "0"], "1 or more to choose from"),
        (["--folder", "songs"], "write it like"),
        (["--readme", "missing.md"], "missing.md"),
        (["--judge", "same"], "is the model itself"),
    ],
)
def test_mistakes_are_told_before_anything_is_made(
    tiny_bundle, corpus, tmp_path, capsys, options, told
):
    given = ["--model", tiny_bundle, "--held-out", corpus, "--train", corpus]
    sizes = ["--clips", "3", "--pairs", "6", "--fit-clips", "6"]
    options = [str(tiny_bundle) if option == "same" else option for option in options]
    command = ["evaluate", *map(str, given), *sizes, "--out", str(tmp_path / "out"), *options]
    assert main.main(command) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
