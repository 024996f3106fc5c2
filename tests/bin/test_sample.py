"""`musiclm sample` with an untrained bundle: what a line decides, and what nothing else does."""

import functools
import itertools
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from musiclm import api, audio
from musiclm.bin import main, sample_meter
from musiclm.sampler import generate

pytestmark = pytest.mark.slow

GIN = pathlib.Path(__file__).parents[2] / "gin/sample/batch.gin"
LINES = [
    {"prompt": "slow piano"},
    {"prompt": "fast flute", "seconds": 2.5, "seed": 3},
    {"prompt": "slow flute, ß 音楽", "seed": 1, "sampling": {"semantic": {"guidance": 3}}},
    {"prompt": "fast piano", "seconds": 2.5, "sampling": {"coarse": {"top_k": 3}}},
    {"prompt": "slow piano", "seconds": 2.5, "story": [[1, "fast flute"]]},
    {"prompt": "fast flute", "seconds": 4, "continuation": "sound.wav"},
    {"prompt": "slow piano", "seconds": 2.5, "decoding": "parallel"},
    {
        "prompt": "fast piano",
        "seconds": 4,
        "decoding": "parallel",
        "continuation": "sound.wav",
        "sampling": {"parallel": {"top_p": 0.9}},
    },
    {"prompt": "fast flute", "seed": 3, "best_of": 3},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a sound of 3.4 s and the lines."""
    path = tmp_path_factory.mktemp("prompts")
    samples = np.random.default_rng(0).normal(0, 0.1, round(3.4 * 8000)).clip(-1, 1)
    audio.write_wav(path / "sound.wav", samples, 8000)
    write(path / "prompts.jsonl", LINES)
    return path


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def command(model, prompts_file, out, rows=2, lines_a_round=4) -> list[str]:
    macros = {"MODEL": str(model), "ROWS": rows, "LINES_A_ROUND": lines_a_round, "SECONDS": 0.5}
    bindings = [f"--gin_bindings={name}={value!r}" for name, value in macros.items()]
    files = ["--prompts", str(prompts_file), "--out", str(out)]
    return ["sample", "--gin_file", str(GIN), *bindings, *files]


@pytest.fixture(scope="module")
def made(soundstorm_bundle, folder, tmp_path_factory):
    """What comes of the lines in one run."""
    out = tmp_path_factory.mktemp("songs") / "deep" / "out"
    assert main.main(command(soundstorm_bundle, folder / "prompts.jsonl", out)) == 0
    return out


def files(out, pattern="*"):
    return {path.name: path.read_bytes() for path in out.iterdir() if path.match(pattern)}


def manifest(out):
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


def test_every_line_has_its_clip(made):
    assert sorted(files(made)) == [
        *(f"{i:06d}.wav" for i in range(1, 1 + len(LINES))),
        "manifest.jsonl",
        "summary.json",
    ]
    for number, (told, line) in enumerate(zip(manifest(made), LINES, strict=True), start=1):
        assert (told["file"], told["line"]) == (f"{number:06d}.wav", number)
        assert (told["model"], told["sample_rate"]) == ("tiny", 1600)
        expected = {"seconds": 0.5, "seed": 0} | line | {"continuation": told.get("continuation")}
        if best_of := expected.pop("best_of", None):
            seeds = range(expected["seed"], expected["seed"] + best_of)
            assert [candidate["seed"] for candidate in told["candidates"]] == [*seeds]
            best = max(told["candidates"], key=lambda candidate: candidate["score"])
            expected |= best
        assert {name: told.get(name) for name in expected} == expected
        samples, rate = soundfile.read(made / told["file"])
        assert (len(samples), rate) == (round(1600 * told["seconds"]), 1600)
        assert np.ptp(samples) > 0
    assert len(set(files(made, "*.wav").values())) == len(LINES)


def test_the_best_clip_is_that_of_its_own_seed(made, soundstorm_bundle, folder, tmp_path):
    (kept,) = [record for record in manifest(made) if "candidates" in record]
    seeds = [candidate["seed"] for candidate in kept["candidates"]]
    write(folder / "alone.jsonl", [{"prompt": kept["prompt"], "seed": seed} for seed in seeds])
    assert main.main(command(soundstorm_bundle, folder / "alone.jsonl", tmp_path)) == 0
    best, *others = sorted(range(3), key=lambda i: -kept["candidates"][i]["score"])
    expected, _ = soundfile.read(made / kept["file"])
    samples, _ = soundfile.read(tmp_path / f"{1 + best:06d}.wav")
    np.testing.assert_array_equal(samples, expected)
    for other in others:
        assert (soundfile.read(tmp_path / f"{1 + other:06d}.wav")[0] != expected).any()


def test_the_summary_tells_speed_and_memory(made):
    summary = json.loads((made / "summary.json").read_text())
    assert (summary["clips"], summary["there_already"], summary["rejected"]) == (9, 0, 0)
    assert summary["music_seconds"] == sum(line.get("seconds", 0.5) for line in LINES)
    assert set(summary["tokens_per_second"]) == {"semantic", "coarse", "fine", "parallel"}
    assert set(summary["bandwidth_bound_share"]) == {"semantic", "coarse", "fine"}
    assert summary["peak_memory_bytes"] > 1e6


def test_a_clip_depends_on_its_line_alone(made, soundstorm_bundle, folder, tmp_path):
    """Backwards, in other rounds, beside lines that are rejected."""
    lines = [*LINES[::-1], {"prompt": ""}, {"prompt": "more", "seconds": 1}]
    write(folder / "backwards.jsonl", lines)
    argv = command(soundstorm_bundle, folder / "backwards.jsonl", tmp_path, lines_a_round=5)
    assert main.main(argv) == 0
    for i in range(len(LINES)):
        one, other = made / f"{i + 1:06d}.wav", tmp_path / f"{len(LINES) - i:06d}.wav"
        assert one.read_bytes() == other.read_bytes()


def test_a_kill_loses_nothing_and_changes_nothing(
    made, soundstorm_bundle, folder, tmp_path, monkeypatch
):
    argv = command(soundstorm_bundle, folder / "prompts.jsonl", tmp_path, lines_a_round=3)
    with monkeypatch.context() as patch:
        saves = itertools.count()

        def save(self, path):
            if next(saves) == 1:
                path.with_name(f".{path.name}.x7").write_bytes(b"RIFF")  # half of a file
                with (tmp_path / "manifest.jsonl").open("a") as file:
                    file.write('{"file": "000002.w')  # half of a line
                raise KeyboardInterrupt
            audio.write_wav(path, self.samples, self.sample_rate, self.provenance)

        patch.setattr(audio.Waveform, "save", save)
        assert main.main(argv) == 130
    assert sorted(files(tmp_path, "*.wav")) == ["000001.wav"]
    untouched = (tmp_path / "000001.wav").stat().st_mtime_ns
    assert main.main(argv) == 0
    assert (tmp_path / "000001.wav").stat().st_mtime_ns == untouched
    again, before = files(tmp_path), files(made)
    assert json.loads(again.pop("summary.json"))["there_already"] == 1
    before.pop("summary.json")
    assert again == before


def test_what_is_there_is_made_again_if_its_line_or_file_changed(
    made, soundstorm_bundle, folder, tmp_path, capsys
):
    for name, data in files(made).items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "000004.wav").unlink()
    lines = [*LINES[:2], {"prompt": "fast flute", "seed": 9}, *LINES[3:]]
    lines[0] = {"seed": 0, "seconds": 0.5, **LINES[0]}  # the same, said otherwise
    write(folder / "changed.jsonl", lines)
    assert main.main(command(soundstorm_bundle, folder / "changed.jsonl", tmp_path)) == 0
    assert "2 clips made, 7 were there" in capsys.readouterr().out
    before, after = files(made, "*.wav"), files(tmp_path, "*.wav")
    assert {name for name in before if before[name] != after[name]} == {"000003.wav"}
    assert [record["line"] for record in manifest(tmp_path)] == [*range(1, 1 + len(LINES))]
    assert manifest(tmp_path)[2]["seed"] == 9


def test_bad_lines_are_told_and_the_others_made(soundstorm_bundle, folder, tmp_path, capsys):
    lines = [
        b'{"prompt": "slow piano"}',
        b"{broken",
        b"",
        b'{"prompt": "caf\xe9"}',
        b'{"prompt": "' + b"1234567 " * 40 + b'"}',
        b'{"prompt": "slow piano", "continuation": "no.wav"}',
        b'{"prompt": "slow piano", "seconds": 3, "continuation": "sound.wav"}',
        b'{"prompt": "slow piano", "sampling": {"fine": {"temperature": -1}}}',
        b'{"prompt": "slow piano", "continuation": "\\ud800\\u0000"}',
        b'{"prompt": "slow piano", "sampling": {"fine": {"temperature": 1' + b"0" * 400 + b"}}}",
    ]
    (folder / "bad.jsonl").write_bytes(b"\n".join(lines))
    assert main.main(command(soundstorm_bundle, folder / "bad.jsonl", tmp_path)) == 0
    told = capsys.readouterr()
    assert "1 clips made, 0 were there, 8 lines rejected" in told.out
    rejected = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    reasons = {record["line"]: record["reason"] for record in rejected}
    expected = {
        2: "not JSON",
        4: "not JSON",
        5: "horten",
        6: "no.wav",
        7: "the sound that is continued has 3",
        9: "cannot read",
        8: "temperature is -1",
        10: "sampling: int too large",
    }
    assert reasons.keys() == expected.keys()
    for number, reason in expected.items():
        assert reason in reasons[number]
    # Mended, nothing is rejected any longer.
    write(folder / "bad.jsonl", LINES[:1])
    assert main.main(command(soundstorm_bundle, folder / "bad.jsonl", tmp_path)) == 0
    assert not (tmp_path / "rejected.jsonl").exists()


def test_lines_have_melodies_where_the_model_wants_them(melody_bundle, tmp_path):
    for name, add in (("one", 0), ("two", 1)):
        np.save(tmp_path / f"{name}.npy", np.arange(6).reshape(3, 2) + add)
    line = {"prompt": "slow piano", "seed": 3}
    lines = [line | {"melody": "one.npy"}, line | {"melody": "two.npy"}, line]
    lines.append(line | {"melody": "one.npy", "continuation": None})
    write(tmp_path / "lines.jsonl", lines)
    argv = command(melody_bundle, tmp_path / "lines.jsonl", tmp_path / "out")
    assert main.main(argv) == 0
    first, second, _, fourth = (tmp_path / "out" / f"{i:06d}.wav" for i in (1, 2, 3, 4))
    assert first.read_bytes() == fourth.read_bytes()
    assert first.read_bytes() != second.read_bytes()
    told = manifest(tmp_path / "out")
    assert [record["melody"] for record in told[:2]] == [
        str(tmp_path / f"{name}.npy") for name in ("one", "two")
    ]
    (rejected,) = (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()
    assert json.loads(rejected)["line"] == 3
    assert "wants a melody" in json.loads(rejected)["reason"]
    # Another content under the same name is another clip.
    np.save(tmp_path / "one.npy", np.zeros((3, 2), int))
    assert main.main(argv) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["clips"], summary["there_already"]) == (2, 1)


PROGRAM = """
import sys
from musiclm.bin import main
code = main.main(sys.argv[2:])
import jax
assert len(jax.devices()) == int(sys.argv[1])
assert not {"tensorflow", "seqio", "musiclm.training", "data_pipelines"} & set(sys.modules)
sys.exit(code)
"""


def test_processes_and_their_devices_make_what_one_makes(made, soundstorm_bundle, folder, tmp_path):
    """Two of two devices each, which import nothing of training; a restart may have others."""
    argv = command(soundstorm_bundle, folder / "prompts.jsonl", tmp_path / "out")
    launch = [sys.executable, "-m", "tpu_launch", "supervise", "--processes=2", "--devices=2"]
    program = [f"--logs={tmp_path / 'logs'}", "--", sys.executable, "-c", PROGRAM, "4"]
    done = subprocess.run(
        [*launch, *program, *argv, "--distributed"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for index in range(2):
        own = tmp_path / "out" / f"manifest-{index:05d}-of-00002.jsonl"
        lines = [json.loads(line)["line"] for line in own.read_text().splitlines()]
        assert lines == [*range(1 + index, 1 + len(LINES), 2)]
    assert files(tmp_path / "out", "*.wav") == files(made, "*.wav")
    whole = json.loads((tmp_path / "out" / "summary.json").read_text())
    parts = [json.loads(text) for text in files(tmp_path / "out", "summary-*.json").values()]
    alone = json.loads((made / "summary.json").read_text())
    assert whole.keys() == alone.keys() == parts[0].keys()
    for name in ("clips", "rejected", "music_seconds"):
        assert whole[name] == alone[name] == sum(part[name] for part in parts)
    assert whole["generating_seconds"] == max(part["generating_seconds"] for part in parts)
    assert whole["tokens_per_second"].keys() == alone["tokens_per_second"].keys()
    assert main.main(argv) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["there_already"] == len(LINES)
    assert manifest(tmp_path / "out") == manifest(made)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"MODEL": "'gm-maxi'"}, "unknown model 'gm-maxi'"),
        ({"ROWS": "0"}, "rows is 0"),
        ({"SECONDS": "-1.0"}, "seconds is -1.0"),
        ({"SECNDS": "1.0"}, "did you mean SECONDS?"),
        ({"BEST_OF": "65"}, "best_of is 65"),
        ({"INT8": "('weights', 'heads')"}, "give a list of any of weights, cache"),
        ({"DECODING": "'paralel'"}, "give autoregressive or parallel"),
        ({"sample.sample.sampling": "{'fine': {'heat': 1}}"}, "sampling"),
    ],
)
def test_a_mistake_in_the_settings_is_code_2(
    soundstorm_bundle, folder, tmp_path, capsys, change, told
):
    argv = command(soundstorm_bundle, folder / "prompts.jsonl", tmp_path)
    argv += [f"--gin_bindings={name}={value}" for name, value in change.items()]
    assert main.main(argv) == 2
    stderr = capsys.readouterr().err
    assert told in stderr.splitlines()[-1]
    assert not list(tmp_path.glob("*.wav"))


def test_a_bundle_without_a_soundstorm(tiny_bundle, folder, tmp_path, capsys):
    """Lines that ask for parallel decoding are rejected; a job that does is a mistake."""
    write(folder / "two.jsonl", [{"prompt": "slow piano", "decoding": "parallel"}, LINES[0]])
    argv = command(tiny_bundle, folder / "two.jsonl", tmp_path)
    assert main.main(argv) == 0
    (rejected,) = (tmp_path / "rejected.jsonl").read_text().splitlines()
    assert json.loads(rejected)["line"] == 1
    assert "has no SoundStorm" in json.loads(rejected)["reason"]
    assert [record["line"] for record in manifest(tmp_path)] == [2]
    assert main.main([*argv, "--gin_bindings=DECODING='parallel'"]) == 2
    assert "has no SoundStorm" in capsys.readouterr().err.splitlines()[-1]


def test_int8_makes_clips_of_its_own(tiny_bundle, folder, tmp_path):
    """What is there of other weights is made again."""
    write(folder / "one.jsonl", LINES[:1])
    argv = command(tiny_bundle, folder / "one.jsonl", tmp_path)
    for bindings, told in (([], None), (["--gin_bindings=INT8=('cache',)"], ["cache"])):
        assert main.main([*argv, *bindings]) == 0
        (record,) = manifest(tmp_path)
        assert record.get("int8") == told
    assert json.loads((tmp_path / "summary.json").read_text())["clips"] == 1


def test_other_mistakes_are_code_2(soundstorm_bundle, folder, tmp_path, capsys):
    assert main.main(command(soundstorm_bundle, folder / "no.jsonl", tmp_path)) == 2
    assert "no.jsonl" in capsys.readouterr().err
    (tmp_path / "file").write_text("mine")
    assert main.main(command(soundstorm_bundle, folder / "prompts.jsonl", tmp_path / "file")) == 2
    assert "cannot read or write" in capsys.readouterr().err
    (tmp_path / "rejected.jsonl").write_text("mine")
    for text, told in (
        ('{"file": "000.wav", "prompt": "a"}\n', "line 1 of"),
        ('{"path": "a.wav"}', "is none of `musiclm sample`"),
    ):
        (tmp_path / "manifest.jsonl").write_text(text)
        assert main.main(command(soundstorm_bundle, folder / "prompts.jsonl", tmp_path)) == 2
        assert told in capsys.readouterr().err
        assert (tmp_path / "manifest.jsonl").read_text() == text
    assert (tmp_path / "rejected.jsonl").read_text() == "mine"


def test_full_memory_is_told_with_fewer_rows(
    soundstorm_bundle, folder, tmp_path, capsys, monkeypatch
):
    import jax

    def compile_up_to(fit, failure, plans, rows):
        if rows > fit:
            raise jax.errors.JaxRuntimeError(failure)

    for fit, failure, told in (
        (3, "RESOURCE_EXHAUSTED: Out of memory", "add --gin_bindings ROWS=2"),
        (0, "INTERNAL: YNNPACK operation failed: error", "not even 1 fits"),
    ):
        compile_ = functools.partial(compile_up_to, fit, failure)
        monkeypatch.setattr("musiclm.api.MusicLM.compile", lambda _, *args, c=compile_: c(*args))
        argv = command(soundstorm_bundle, folder / "prompts.jsonl", tmp_path, rows=8)
        assert main.main(argv) == 2
        assert f"rows is 8, and memory is full: {told}" in capsys.readouterr().err


def fill_memory(*_, **__):
    import jax

    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.")


def test_full_memory_beside_the_stages_loses_nothing(
    tiny_bundle, folder, tmp_path, capsys, monkeypatch
):
    """In the codec in the second round, in w2v-BERT, and then where the bandwidth is measured."""
    write(folder / "three.jsonl", [LINES[0], LINES[1], LINES[5]])
    argv = command(tiny_bundle, folder / "three.jsonl", tmp_path, lines_a_round=1)
    decode = generate.Chain.decode

    def decode_short(chain, plan, codes_TQ):
        return (decode if plan.clip.seconds < 1 else fill_memory)(chain, plan, codes_TQ)

    with monkeypatch.context() as patch:
        patch.setattr(generate.Chain, "decode", decode_short)
        assert main.main(argv) == 2
    told = "rows is 2, and memory is full: add --gin_bindings ROWS=1 and start again"
    assert told in capsys.readouterr().err.splitlines()[-1]
    assert [record["line"] for record in manifest(tmp_path)] == [1]
    assert not (tmp_path / "rejected.jsonl").exists()
    with monkeypatch.context() as patch:
        patch.setattr(api.MusicLM, "read_continuation", fill_memory)
        assert main.main(argv) == 0
    (rejected,) = map(json.loads, (tmp_path / "rejected.jsonl").read_text().splitlines())
    assert (rejected["line"], rejected["reason"][:14]) == (3, "memory is full")
    assert [record["line"] for record in manifest(tmp_path)] == [1, 2]
    monkeypatch.setattr(sample_meter, "read_bytes_per_second", fill_memory)
    assert main.main(argv) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["clips"], summary["there_already"]) == (1, 2)
    assert summary["bandwidth_bound_share"] == {}
    assert [record["line"] for record in manifest(tmp_path)] == [1, 2, 3]
