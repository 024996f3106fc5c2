"""`musiclm listen`: a test is made, answered and analysed; every mistake is one line and code 2."""

import json

import numpy as np
import pytest

from musiclm import audio
from musiclm.bin import main

RATE = 8_000
PROMPTS = ("calm flute", "fast drums")


def write_folder(folder, prompts=PROMPTS, rate=RATE, seconds=0.1):
    folder.mkdir()
    lines = []
    for i, prompt in enumerate(prompts):
        audio.write_wav(folder / f"{i}.wav", np.full(round(rate * seconds), 0.1, np.float32), rate)
        lines.append(json.dumps({"file": f"{i}.wav", "prompt": prompt}) + "\n")
    (folder / "manifest.jsonl").write_text("".join(lines))


@pytest.fixture
def songs(tmp_path, monkeypatch):
    """A folder to be in, with the clips of two systems, and some that don't fit."""
    monkeypatch.chdir(tmp_path)
    for name in ("small", "large"):
        write_folder(tmp_path / name)
    write_folder(tmp_path / "other", ["church organ"])
    write_folder(tmp_path / "faster", rate=2 * RATE)
    write_folder(tmp_path / "longer", seconds=0.2)
    write_folder(tmp_path / "lost")
    (tmp_path / "lost" / "0.wav").unlink()
    (tmp_path / "bare").mkdir()
    return tmp_path


def listen(*argv: str) -> int:
    return main.main(["listen", *argv])


def make(*names: str, out="test") -> int:
    return listen("make", *(f"--folder={name}={name}" for name in names), "--out", out)


def answer(folder, participant, winner, **changes):
    """The file of a participant who always prefers one system, and sits on every other side."""
    key = json.loads((folder / "test.key.json").read_text())
    answers = []
    for number, (id, systems) in enumerate(key["comparisons"].items()):
        clips = sorted(systems, reverse=number % 2)
        word = "strongly prefer A" if systems[clips[0]] == winner else "slightly prefer B"
        answers.append({"id": id, "a": clips[0], "b": clips[1], "answer": word, "seconds": 20})
    record = {
        "test": key["test"],
        "participant": participant,
        "code": f"code of {participant}",
        "headphones": {"passed": True},
        "answers": answers,
    }
    path = folder / f"{participant}.json"
    path.write_text(json.dumps(record | changes))
    return str(path)


def test_a_test_is_made_answered_and_analysed(songs, capsys):
    assert make("small", "large") == 0
    told = capsys.readouterr().out
    assert str(songs / "test" / "index.html") in told
    assert str(songs / "test.key.json") in told
    assert "2 comparisons of 4 clips, 2 for each participant" in told
    assert sorted(path.name for path in (songs / "test").iterdir()) == [
        *(f"clip-{number}.wav" for number in range(1, 5)),
        "index.html",
    ]
    files = [
        *(answer(songs, name, "large") for name in ("p", "q", "r")),
        answer(songs, "s", "small"),
        answer(songs, "deaf", "small", headphones={"passed": False}),
    ]
    assert listen("analyse", "--key", "test.key.json", *files, "--out", "results") == 0
    told = capsys.readouterr().out
    assert "| large | 8 | 6 | 0.75 (0.41 to 0.93) | 1.73 |" in told
    assert "1 failed the headphones check" in told
    assert (songs / "results" / "listening.md").read_text() == told
    figures = json.loads((songs / "results" / "listening.json").read_text())
    assert figures["systems"]["small"]["win_rate"]["value"] == 0.25
    assert figures["participants"]["counted"]["p"] == "code of p"
    assert figures["strengths"] == pytest.approx({"small": 3**-0.5, "large": 3**0.5})


def expect_one_line(capsys, told: str) -> None:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("musiclm: error: ")
    assert captured.err.count("\n") == 1
    assert told in captured.err


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ("", "ACTION"),
        ("make --out test", "0 folders to compare"),
        ("make --folder a=small --out test", "1 folder to compare: give two or more"),
        ("make --folder small --out test", "write it like"),
        ("make --folder =small --out test", "write it like"),
        ("make --folder a=small --folder a=large --out test", "'a' twice"),
        ("make --folder a=small --folder b=bare --out test", "bare/manifest.jsonl"),
        ("make --folder a=small --folder b=no --out test", "no/manifest.jsonl"),
        ("make --folder a=small --folder b=other --out test", "no prompt is common to a, b"),
        ("make --folder a=small --folder b=faster --out test", "16000 Hz"),
        ("make --folder a=small --folder b=longer --out test", "cut the longer"),
        ("make --folder a=small --folder b=lost --out test", "lost/0.wav"),
        ("make --folder a=small --folder b=large --out other", "choose another folder"),
        ("make --folder a=small --folder b=large --out test --comparisons 3", "2 can be made"),
        ("make --folder a=small --folder b=large --out test --seed -1", "seed is -1"),
        ("analyse p.json", "--key"),
        ("analyse --key none.key.json p.json", "none.key.json"),
        ("analyse --key small/manifest.jsonl p.json", "small/manifest.jsonl"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(songs, capsys, argv, told):
    before = sorted(songs.rglob("*"))
    assert listen(*argv.split()) == 2
    expect_one_line(capsys, told)
    assert sorted(songs.rglob("*")) == before


def test_a_test_is_not_overwritten(songs, capsys):
    assert make("small", "large") == 0
    key = (songs / "test.key.json").read_bytes()
    capsys.readouterr()
    assert make("large", "small") == 2
    expect_one_line(capsys, "choose another folder")
    for path in (songs / "test").iterdir():
        path.unlink()
    assert make("large", "small") == 2  # the key may be all that tells what was answered
    assert (songs / "test.key.json").read_bytes() == key


@pytest.mark.parametrize(
    ("changes", "options", "told"),
    [
        ({"test": "another"}, [], "answers of test 'another'"),
        ({"answers": [{"id": "c9"}]}, [], "no comparison 'c9'"),
        ({"answers": []}, [], "damaged"),
        ({"headphones": {"passed": False}}, [], "none of 1 participants counts"),
        ({}, ["--min-seconds", "60"], "took less than 60 s"),
        ({}, ["--min-seconds", "nan"], "--min-seconds is nan"),
        ({}, ["--out", "p.json"], "p.json"),
    ],
)
def test_answers_that_do_not_count_are_one_line_and_code_2(songs, capsys, changes, options, told):
    assert make("small", "large") == 0
    capsys.readouterr()
    path = answer(songs, "p", "small", **changes)
    assert listen("analyse", "--key", "test.key.json", path, *options) == 2
    expect_one_line(capsys, told)


@pytest.mark.parametrize("action", ["make", "analyse"])
def test_help_has_examples(capsys, action):
    assert listen(action, "--help") == 0
    assert f"musiclm listen {action} " in capsys.readouterr().out.partition("examples:")[2]
