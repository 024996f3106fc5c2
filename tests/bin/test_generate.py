"""`musiclm generate` with an untrained bundle: its files, their bytes, and what failures leave."""

import json
import os
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
import soundfile

from musiclm import api, bundle
from musiclm.bin import main

QUICK = ["--seconds", "0.5"]


def generate(model, out, *argv: str) -> int:
    return main.main(["generate", *argv, *QUICK, "--model", str(model), "--out", str(out)])


@pytest.fixture(autouse=True)
def cache_in_tmp_path(tmp_path, monkeypatch):
    """Where it would be if nobody named a folder, but not in the home of whoever runs the tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        monkeypatch.setenv(name, "")  # so that monkeypatch restores what the command sets
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def clips(tiny_bundle, tmp_path_factory):
    """The folder of two clips with pictures."""
    out = tmp_path_factory.mktemp("clips") / "deep" / "out"
    prompts = ("slow 'sad' piano $1", "fast flute, ß 音楽")
    assert generate(tiny_bundle, out, *prompts, "--seed", "7", "--png") == 0
    return out


def test_manifest_tells_each_clip(clips, tiny_bundle):
    lines = [json.loads(line) for line in (clips / "manifest.jsonl").read_text().splitlines()]
    assert lines == [
        {
            "file": f"00{i}.wav",
            "picture": f"00{i}.png",
            "prompt": prompt,
            "seed": 7 + i,
            "seconds": 0.5,
            "sample_rate": 1600,
            "model": "tiny",
            "model_digest": bundle.load(tiny_bundle).digest,
        }
        for i, prompt in enumerate(("slow 'sad' piano $1", "fast flute, ß 音楽"))
    ]
    for line in lines:
        samples, sample_rate = soundfile.read(clips / line["file"])
        assert (samples.shape, sample_rate) == ((800,), 1600)
        assert np.ptp(samples) > 0


def test_pictures_are_png(clips):
    for name in ("000.png", "001.png"):
        assert (clips / name).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_nothing_else_is_there(clips):
    assert sorted(path.name for path in clips.iterdir()) == [
        "000.png",
        "000.wav",
        "001.png",
        "001.wav",
        "manifest.jsonl",
    ]


def test_same_seed_same_bytes(clips, tiny_bundle, tmp_path):
    prompts = ("slow 'sad' piano $1", "fast flute, ß 音楽")
    assert generate(tiny_bundle, tmp_path / "again", *prompts, "--seed", "7") == 0
    for name in ("000.wav", "001.wav"):
        assert (tmp_path / "again" / name).read_bytes() == (clips / name).read_bytes()


def test_another_seed_other_bytes(clips, tiny_bundle, tmp_path):
    prompts = ("slow 'sad' piano $1", "fast flute, ß 音楽")
    assert generate(tiny_bundle, tmp_path / "other", *prompts, "--seed", "8") == 0
    assert (tmp_path / "other" / "000.wav").read_bytes() != (clips / "000.wav").read_bytes()


def test_reports_place_seed_speed_and_stages(tiny_bundle, tmp_path, capsys):
    assert generate(tiny_bundle, tmp_path / "out", "slow piano", "fast flute") == 0
    told = capsys.readouterr()
    assert str(tmp_path / "out" / "001.wav") in told.out
    assert "seed 1" in told.out
    assert "real time" in told.out
    assert [stage for stage in api.STAGES if stage in told.err] == ["semantic", "coarse", "fine"]


def test_decoding_in_parallel(soundstorm_bundle, tmp_path, capsys):
    out = tmp_path / "out"
    assert generate(soundstorm_bundle, out, "slow piano", "--decoding", "parallel") == 0
    told = capsys.readouterr()
    assert [stage for stage in api.STAGES if stage in told.err] == ["semantic", "parallel"]
    assert json.loads((out / "manifest.jsonl").read_text())["decoding"] == "parallel"


def test_int8(tiny_bundle, tmp_path, capsys):
    out = tmp_path / "out"
    assert generate(tiny_bundle, out, "slow piano", "--int8", "weights", "--int8", "cache") == 0
    assert json.loads((out / "manifest.jsonl").read_text())["int8"] == ["weights", "cache"]
    assert generate(tiny_bundle, tmp_path / "out", "piano", "--int8", "heads") == 2
    expect_one_line(capsys, "--int8")


def test_melody(melody_bundle, tmp_path, capsys):
    codes = np.arange(6).reshape(3, 2)
    np.save(tmp_path / "one.npy", codes)
    np.save(tmp_path / "two.npy", codes + 1)
    np.save(tmp_path / "short.npy", codes[:1])
    for name in ("one", "two"):
        tune = str(tmp_path / f"{name}.npy")
        assert generate(melody_bundle, tmp_path / name, "slow piano", "--melody", tune) == 0
    one, two = ((tmp_path / name / "000.wav").read_bytes() for name in ("one", "two"))
    assert one != two
    capsys.readouterr()
    for argv, told in (
        (["--melody", str(tmp_path / "short.npy")], "(1, 2): give codes, integers (3, 2)"),
        (["--melody", str(tmp_path / "no.npy")], "no.npy"),
        ([], "wants a melody"),
    ):
        assert generate(melody_bundle, tmp_path / "out", "slow piano", *argv) == 2
        expect_one_line(capsys, told)
        assert not (tmp_path / "out").exists()


def test_earlier_files_with_other_names_stay(tiny_bundle, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    (tmp_path / "000.wav").write_text("replace")
    assert generate(tiny_bundle, tmp_path, "slow piano") == 0
    assert (tmp_path / "mine.txt").read_text() == "keep"
    assert (tmp_path / "000.wav").read_bytes().startswith(b"RIFF")


# Failures --------------------------------------------------------------------------------------


def expect_one_line(capsys, told: str) -> None:
    stderr = capsys.readouterr().err
    lines = [line for line in stderr.splitlines() if line.startswith("musiclm: error: ")]
    assert len(lines) == 1
    assert stderr.rstrip("\n").endswith(lines[0])
    assert told in lines[0]
    assert "Traceback" not in stderr


def test_unknown_model_lists_the_known(tmp_path, capsys):
    assert generate("gm-maxi", tmp_path / "out", "piano") == 2
    expect_one_line(
        capsys, "unknown model 'gm-maxi': give a directory with a bundle.json, or one of gm-"
    )
    assert not (tmp_path / "out").exists()


def test_parallel_decoding_without_a_soundstorm(tiny_bundle, tmp_path, capsys):
    assert generate(tiny_bundle, tmp_path / "out", "piano", "--decoding", "parallel") == 2
    expect_one_line(capsys, "the model 'tiny' has no SoundStorm")
    assert generate(tiny_bundle, tmp_path / "out", "piano", "--decoding", "paralel") == 2
    expect_one_line(capsys, "--decoding")
    assert not (tmp_path / "out").exists()


NO_ROOM = "take another device, or a smaller --model"


@pytest.mark.parametrize(
    ("method", "more", "fit", "told"),
    [
        ("render", ["--best-of", "8"], 3, " with 16 rows at once: add --rows 2"),
        ("render", ["--rows", "4"], 9, " with 4 rows at once: add --rows 2"),
        ("render", ["flute"], 0, f": {NO_ROOM}"),
        ("render", [], 9, " with 2 rows at once: add --rows 1"),  # of the fine stage
        ("render", ["--rows", "1"], 9, f": {NO_ROOM}"),
        ("__init__", [], 9, f": {NO_ROOM}"),
    ],
)
def test_full_memory(tiny_bundle, tmp_path, capsys, monkeypatch, method, more, fit, told):
    def fill(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.")

    def compile_few(model, plans, rows):
        if rows > fit:
            fill()

    monkeypatch.setattr(api.MusicLM, method, fill)
    monkeypatch.setattr(api.MusicLM, "compile", compile_few)
    assert generate(tiny_bundle, tmp_path / "out", "piano", *more) == 2
    expect_one_line(capsys, f"memory is full{told}")
    assert not (tmp_path / "out").exists()


def test_rows_are_a_number_from_one(tiny_bundle, tmp_path, capsys):
    assert generate(tiny_bundle, tmp_path / "out", "piano", "--rows", "0") == 2
    expect_one_line(capsys, "rows is 0: give a whole number from 1 on")
    assert generate(tiny_bundle, tmp_path / "out", "piano", "--rows", "1") == 0


@pytest.mark.parametrize("damage", ["no json", "truncated", "missing", "foreign"])
def test_damaged_bundles(tiny_bundle, tmp_path, capsys, damage):
    model = tmp_path / "model"
    shutil.copytree(tiny_bundle, model)
    if damage == "no json":
        (model / "bundle.json").write_bytes(b"\x00\xff")
    elif damage == "truncated":
        data = (model / "coarse.safetensors").read_bytes()
        (model / "coarse.safetensors").write_bytes(data[: len(data) // 2])
    elif damage == "missing":
        (model / "fine.safetensors").unlink()
    else:
        (model / "bundle.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    assert generate(model, tmp_path / "out", "piano") == 2
    expect_one_line(capsys, str(model))
    assert not (tmp_path / "out").exists()


def test_prompt_beyond_the_text_tower(tiny_bundle, tmp_path, capsys):
    assert generate(tiny_bundle, tmp_path / "out", "piano 1234567 " * 20) == 2
    expect_one_line(capsys, "horten")
    assert not (tmp_path / "out").exists()


def test_out_is_a_file(tiny_bundle, tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    assert generate(tiny_bundle, tmp_path / "out", "piano") == 2
    expect_one_line(capsys, str(tmp_path / "out"))
    assert (tmp_path / "out").read_text() == "mine"


def test_out_is_below_a_file(tiny_bundle, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert generate(tiny_bundle, tmp_path / "file" / "out", "piano") == 2
    expect_one_line(capsys, "cannot write")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_folder(tiny_bundle, tmp_path, capsys):
    tmp_path.chmod(0o500)
    assert generate(tiny_bundle, tmp_path / "out", "piano") == 2
    expect_one_line(capsys, "Permission denied")


def test_a_folder_in_the_way_of_a_file(tiny_bundle, tmp_path, capsys):
    (tmp_path / "out" / "manifest.jsonl").mkdir(parents=True)
    assert generate(tiny_bundle, tmp_path / "out", "piano") == 2
    expect_one_line(capsys, "manifest.jsonl")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["manifest.jsonl"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), RuntimeError("a bug"), OSError(28, "full")])
def test_a_stop_half_way_leaves_nothing(tiny_bundle, tmp_path, capsys, monkeypatch, stop):
    def broken(path, waveform, title):
        assert (path.parent / "000.wav").is_file()  # half of the work is there by now
        raise stop

    monkeypatch.setattr("musiclm.bin.picture.save", broken)
    out = tmp_path / "a" / "b"
    if isinstance(stop, RuntimeError):
        with pytest.raises(RuntimeError):
            generate(tiny_bundle, out, "piano", "--png")
    else:
        code = 130 if isinstance(stop, KeyboardInterrupt) else 2
        assert generate(tiny_bundle, out, "piano", "--png") == code
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_leave_nothing(tmp_path, signum, code):
    """In a process of its own, stopped while it waits inside the chain."""
    program = (
        # What starts the tests may ignore Ctrl-C, and children inherit that.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import sys, time; from musiclm import api; from musiclm.bin import main\n"
        "class Slow:\n"
        "    name = 'slow'\n"
        "    def generate(self, *args, **kwargs):\n"
        "        print('ready', flush=True); time.sleep(60)\n"
        "api.MusicLM.from_pretrained = classmethod(lambda cls, name, **options: Slow())\n"
        f"sys.exit(main.main(['generate', 'piano', '--out', {str(tmp_path / 'out')!r}]))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        assert (tmp_path / "out").is_dir()
        process.send_signal(signum)
        _, stderr = process.communicate(timeout=300)
    assert process.returncode == code
    assert "Traceback" not in stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_story_and_a_sound_that_goes_on(tiny_bundle, tmp_path):
    story = tmp_path / "story.yaml"
    story.write_text("2: fast flute\n0: slow piano\n")
    options = ["--model", str(tiny_bundle), "--seconds", "3.5"]
    argv = ["generate", "--story", str(story), *options, "--out", str(tmp_path / "one")]
    assert main.main(argv) == 0
    (line,) = (tmp_path / "one" / "manifest.jsonl").read_text().splitlines()
    assert json.loads(line)["prompt"] == "slow piano"
    assert json.loads(line)["story"] == [[2, "fast flute"]]
    first = str(tmp_path / "one" / "000.wav")
    argv = ["generate", "flute", "piano", "--continuation", first, *options[:2], "--seconds", "5"]
    assert main.main([*argv, "--out", str(tmp_path / "two")]) == 0
    one, two = (soundfile.read(tmp_path / "two" / f"00{i}.wav")[0] for i in (0, 1))
    assert len(one) == len(two) == 8000
    # What is given is the same in both, but for how far each was turned down as a whole.
    assert np.corrcoef(one[:4700], two[:4700])[0, 1] > 0.999
    assert np.corrcoef(one[4800:], two[4800:])[0, 1] < 0.9


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("5: fast flute\n", "does not start at 0"),
        ("- calm strings\n", "does not start at 0"),
        ("0: [", "no YAML"),
        ("0: calm\n15: 2020-99-99\n", "no YAML"),
        ("0: calm\n15: !!timestamp soon\n", "no YAML"),
        ("[" * 5_000, "no YAML"),
        ("0: calm\n99: fast\n", "below 10"),
        ("0: calm\nlater: fast\n", "give a number of seconds"),
    ],
)
def test_wrong_stories(tmp_path, capsys, text, told):
    story = tmp_path / "story.yaml"
    story.write_text(text)
    assert main.main(["generate", "--story", str(story), "--out", str(tmp_path / "out")]) == 2
    expect_one_line(capsys, told)
    assert main.main(["generate", "calm", "--story", str(story)]) == 2
    expect_one_line(capsys, "into the story, at 0")
