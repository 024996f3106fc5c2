"""`musiclm evaluate` on an untrained bundle and a corpus of tones."""

import errno
import json
import os

import numpy as np
import pytest
import safetensors.numpy
import soundfile

from musiclm import audio, bundle
from musiclm.bin import clips, evaluate, main
from musiclm.evaluation import codec_quality, report, suite

KLD = ("KLD", "KLD by AudioSet's classes")


@pytest.fixture
def audioset_file(tmp_path):
    """A classifier of three classes, untrained, of patches side by side."""
    tower = "audio_spectrogram_transformer."
    embeddings, layer = f"{tower}embeddings.", f"{tower}encoder.layer.0."
    shapes = {
        f"{embeddings}cls_token": (1, 1, 64),
        f"{embeddings}distillation_token": (1, 1, 64),
        f"{embeddings}position_embeddings": (1, 8 * 64 + 2, 64),
        f"{embeddings}patch_embeddings.projection.weight": (64, 1, 16, 16),
        f"{embeddings}patch_embeddings.projection.bias": (64,),
    }
    for name in ("attention.query", "attention.key", "attention.value", "output.dense"):
        shapes |= {f"{layer}attention.{name}.weight": (64, 64), f"{layer}attention.{name}.bias": 64}
    for name in ("intermediate.dense", "output.dense"):
        shapes |= {f"{layer}{name}.weight": (64, 64), f"{layer}{name}.bias": 64}
    norms = (f"{layer}layernorm_before", f"{layer}layernorm_after", f"{tower}layernorm")
    for name in (*norms, "classifier.layernorm"):
        shapes |= {f"{name}.weight": 64, f"{name}.bias": 64}
    shapes |= {"classifier.dense.weight": (3, 64), "classifier.dense.bias": 3}
    rng = np.random.default_rng(0)
    weights = {
        name: rng.normal(scale=0.3, size=shape).astype(np.float32) for name, shape in shapes.items()
    }
    path = tmp_path / "audioset.safetensors"
    safetensors.numpy.save_file(weights, path)
    return path


@pytest.mark.slow
def test_a_report_is_written_down_the_same_twice(
    soundstorm_bundle, corpus, audioset_file, tmp_path, monkeypatch
):
    monkeypatch.setattr("musiclm.evaluation.memorization.PERMUTED_PAIRS", 10_000)
    monkeypatch.setattr(codec_quality, "has_visqol", lambda: True)
    monkeypatch.setattr(codec_quality, "visqol", lambda real, *_: np.linspace(2, 4, len(real)))
    readme = tmp_path / "README.md"
    readme.write_text(f"# Title\n{report.BEGIN}\n{report.END}\nend\n")
    out = tmp_path / "out"
    judge = tmp_path / "judge"  # the same MuLan in another file
    mulan = bundle.load_component(soundstorm_bundle, "mulan")
    bundle.save_component(judge, "mulan", mulan, dtype=np.float32)
    songs = tmp_path / "songs"
    songs.mkdir()
    lines = []
    for entry in clips.read_manifest(corpus, 3):  # the real clips, as another model's
        prompt = suite.long_caption(entry)
        lines.append(json.dumps({"prompt": prompt, "file": str(entry["path"])}) + "\n")
    (songs / "manifest.jsonl").write_text("".join(lines))
    arguments = [
        *("evaluate", "--model", soundstorm_bundle, "--train", corpus, "--held-out", corpus),
        *("--out", out, "--clips", 3, "--pairs", 6, "--fit-clips", 6, "--best-of", 2),
        *(
            "--judge",
            judge,
            "--audioset",
            audioset_file,
            "--folder",
            f"copies={songs}",
            "--readme",
            readme,
        ),
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
    by_audioset = figures["KLD by AudioSet's classes"]
    assert by_audioset["real"]["KL(real ‖ clip)"]["value"] == 0
    assert by_audioset["generated"]["KL(real ‖ clip)"]["value"] > 1e-6
    for name in ("Clips made from text", "Fréchet audio distance", *KLD, "MCC"):
        assert figures[name]["copies"] == figures[name]["real"]
    heard = list(figures["MCC"]["generated"].values())
    assert len(heard) == 4
    assert heard[2:] == heard[:2]
    assert figures["KLD"]["real"]["KL(real ‖ clip)"]["value"] == 0
    own, of_judge = (list(figures["MuLan's retrieval"].values())[i : i + 2] for i in (0, 2))
    assert own[0]["text → audio R@10"]["value"] == 1
    assert of_judge == own
    assert list(figures["Codec"]) == ["1", "2", "3"]
    assert figures["Codec"]["2"]["ViSQOL"]["value"] == 3
    assert figures["Memorization"]["0"]["exact"]["n"] == 3  # the others are validation clips
    ranked = figures["Nearest and farthest clips"]
    assert list(ranked) == ["1", "2", "3"]
    assert {row["generated"] for row in ranked.values()} == {
        suite.long_caption(entry) for entry in clips.read_manifest(corpus, 3)
    }
    assert set(figures["Stages on real clips"]) == {"semantic", "coarse", "fine"}
    for title in evaluate.README_TABLES:
        (table,) = [part for part in first[1].split("\n\n**") if part.startswith(title)]
        assert table.strip() in first[3]
    assert "Memorization" not in first[3]
    assert first[3].startswith("# Title\n")
    assert first[3].endswith("end\n")
    files = sorted((out / "clips").iterdir())
    assert len(files) == 9
    assert "soundstorm" in figures["Size"]
    assert all(f"clips/{file.name}" in first[2] for file in files)

    # The second run finds the clips and their descriptions: it needs no chain, and writes the same.
    monkeypatch.setattr("musiclm.api.MusicLM.generate", None)
    monkeypatch.setattr("musiclm.evaluation.descriptors.describe", None)
    assert main.main(arguments) == 0
    assert [path.read_text() for path in written] == first
    assert sorted((out / "clips").iterdir()) == files


def test_a_bundle_without_a_soundstorm_is_measured_without():
    class Bundle:
        components = ("semantic",)

    assert evaluate.ways(Bundle, 1) == {"generated": {}}
    assert list(evaluate.ways(Bundle, 4)) == ["generated", "best of 4"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--clips", "2"], "3 clips or more"),
        (["--clips", "7", "--pairs", "6"], "as many pairs at least"),
        (["--best-of", "0"], "1 or more to choose from"),
        (["--folder", "songs"], "write it like"),
        (["--readme", "missing.md"], "missing.md"),
        (["--judge", "same"], "has the MuLan of the model itself"),
        (["--judge", "raw"], "fit its quantizer first"),
        (["--judge", "missing"], "there are no tokenizers in 'missing'"),
        (["--folder", "generated=songs"], "has clips of that name"),
        (["--audioset", "missing.safetensors"], "missing.safetensors"),
        (["--out", "taken/out"], "cannot write to 'taken/out' (Not a directory)"),
        (["--fit-clips", "1"], "have one answer to 'instrument', flute: take more"),
    ],
)
def test_mistakes_are_told_before_anything_is_made(
    tiny_bundle, corpus, tmp_path, capsys, monkeypatch, options, told
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("a file")
    mulan = bundle.load_component(tiny_bundle, "mulan")
    raw = bundle.Component(mulan.config["model"], {"params": mulan.variables["params"]})
    bundle.save_component("raw", "mulan", raw)
    monkeypatch.setattr(clips, "read_clips", None)  # told before any is read
    given = ["--model", tiny_bundle, "--held-out", corpus, "--train", corpus]
    sizes = ["--clips", "3", "--pairs", "6", "--fit-clips", "6"]
    options = [str(tiny_bundle) if option == "same" else option for option in options]
    command = ["evaluate", *map(str, given), *sizes, "--out", str(tmp_path / "out"), *options]
    assert main.main(command) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_damaged_clip_is_told_before_anything_is_made(tiny_bundle, corpus, tmp_path, capsys):
    soundfile.write(corpus / "5.wav", np.zeros(16_000), 1_600)
    given = ["--model", tiny_bundle, "--held-out", corpus, "--train", corpus]
    sizes = ["--clips", "3", "--pairs", "6", "--fit-clips", "6"]
    command = ["evaluate", *map(str, given), *sizes, "--out", str(tmp_path / "out")]
    assert main.main(command) == 2
    assert f"{corpus}/5.wav is silent" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_clips_to_fit_on_that_no_training_saw_are_told(tiny_bundle, corpus, tmp_path, capsys):
    manifest = corpus / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace('"train"', '"validation"'))
    given = ["--model", tiny_bundle, "--held-out", corpus, "--train", corpus]
    sizes = ["--clips", "3", "--pairs", "6", "--fit-clips", "6"]
    command = ["evaluate", *map(str, given), *sizes, "--out", str(tmp_path / "out")]
    assert main.main(command) == 2
    assert "none of the 6 clips" in capsys.readouterr().err


def full(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("writes", "told"),
    [
        ("musiclm.audio.Waveform.save", "writing to {out!r} failed (No space left on device)"),
        ("musiclm.evaluation.embeddings._save", "writing to {out!r} failed (No space left on"),
        ("pathlib.Path.write_text", "writing to {out!r} failed (No space left on device)"),
        ("musiclm.bundle.write_beside", "cannot write {readme} (No space left on device)"),
    ],
)
def test_a_full_disk_is_told_in_one_line(
    tiny_bundle, corpus, tmp_path, monkeypatch, capsys, writes, told
):
    out, readme = tmp_path / "out", tmp_path / "README.md"
    readme.write_text(f"{report.BEGIN}\n{report.END}\n")

    def make(model, prompts, **options):
        return [audio.Waveform(np.zeros(16_000), 1_600) for _ in prompts]

    def tables(measured, made, go_on):
        measured.cache.each({"": lambda waveform_T: {}}, made["generated"])
        return []

    monkeypatch.setattr("musiclm.api.MusicLM.generate", make)
    monkeypatch.setattr(suite.Suite, "tables", tables)
    given = ["--model", tiny_bundle, "--held-out", corpus, "--train", corpus, "--readme", readme]
    sizes = ["--clips", "3", "--pairs", "6", "--fit-clips", "6"]
    command = ["evaluate", *map(str, given), *sizes, "--out", str(out)]
    monkeypatch.setattr(writes, full)
    assert main.main(command) == 2
    assert told.format(out=str(out), readme=readme) in capsys.readouterr().err.splitlines()[-1]
    monkeypatch.undo()
    assert (out / "report.json").exists() == (writes == "musiclm.bundle.write_beside")
    assert not list(out.glob(".musiclm*"))
