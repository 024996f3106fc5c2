"""The command's frame: mistakes in one line, exit codes, and nothing heavy before it is needed."""

import importlib
import subprocess
import sys

import pytest

from musiclm import errors
from musiclm.bin import main


def run(capsys, *argv: str) -> tuple[int, str]:
    """The exit code and what came on stderr."""
    code = main.main(argv)
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ([], "COMMAND"),
        (["sing"], "invalid choice: 'sing'"),
        (["generate"], "no prompt: give at least one text"),
        (["generate", ""], "empty"),
        (["generate", "  \n"], "empty"),
        (["generate", "flute", ""], "empty"),
        (["generate", "la " * 1000], "3000 characters"),
        (["generate", "bad \udcff byte"], "UTF-8"),
        (["generate", "flute", "--seconds", "0"], "seconds is 0.0"),
        (["generate", "flute", "--seconds", "-3"], "seconds is -3.0"),
        (["generate", "flute", "--seconds", "nan"], "seconds is nan"),
        (["generate", "flute", "--seconds", "inf"], "seconds is inf"),
        (["generate", "flute", "--seconds", "1e6"], "up to 300"),
        (["generate", "flute", "--seconds", "ten"], "'ten'"),
        (["generate", "flute", "--seed", "-1"], "seed is -1"),
        (["generate", "flute", "--seed", "4294967296"], "seed is 4294967296"),
        (["generate", "flute", "oboe", "--seed", "4294967295"], "seed is 4294967295"),
        (["generate", "flute", "--seed", "1.5"], "'1.5'"),
        (["generate", "flute", "--temperature-coarse", "nan"], "--temperature-coarse is nan"),
        (["generate", "flute", "--temperature-fine", "-1"], "--temperature-fine is -1.0"),
        (["generate", "flute", "--top-k-semantic", "0"], "--top-k-semantic is 0"),
        (["generate", "flute", "--top-p-semantic", "1.5"], "--top-p-semantic is 1.5"),
        (["generate", "flute", "--volume", "11"], "--volume"),
        (["describe"], "GIN_FILE"),
        (["inspect"], "FILE"),
        (["listen"], "ACTION"),
        (["describe", "no/such.gin"], "'no/such.gin'"),
        (["data"], "CORPUS"),
        (["data", "spotify"], "invalid choice: 'spotify'"),
        (["describe", "x.gin", "--runner", "FnApiRunner"], "unrecognized arguments: --runner"),
        (["tokenize", "--manifest", "m.jsonl", "--out", "o"], "--bundle"),
        (["pack", "--manifest", "m.jsonl", "--out", "o", "--split", "all of it"], "'all of it'"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(capsys, argv, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, stderr = run(capsys, *argv)
    assert code == 2
    assert stderr.startswith("musiclm: error: ")
    assert stderr.count("\n") == 1
    assert told in stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["", *main._COMMANDS])
def test_help_has_examples(capsys, command):
    assert main.main([*command.split(), "--help"]) == 0
    assert "example" in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        *([command, "--help"] for command in ("generate", "describe", "inspect", "listen")),
        ["generate", ""],
    ],
)
def test_nothing_heavy_before_it_is_needed(argv):
    code = (
        "import sys; from musiclm.bin import main; "
        f"main.main({argv!r}); "
        "heavy = {'jax', 'numpy', 'gin', 'flax', 'matplotlib', 'tqdm', 'data_pipelines'}; "
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_does_not_import_jax():
    code = (
        "import sys, musiclm; dir(musiclm); musiclm.MusicLM, musiclm.UserError; "
        "sys.exit('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def no_pipelines(monkeypatch):
    """As if only the package's core was installed."""
    real = importlib.import_module

    def without_pipelines(name, package=None):
        if name.startswith("data_pipelines"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", without_pipelines)


def test_missing_pipelines_say_how_to_install(capsys, no_pipelines):
    code, stderr = run(capsys, "data", "gm", "--out", "x", "--clips", "3")
    assert code == 2
    assert stderr.count("\n") == 1
    assert "pip install -e '.[data]'" in stderr


def test_an_argument_may_have_a_commands_name(capsys, no_pipelines):
    code, stderr = run(capsys, "generate", "", "--out", "data")
    assert code == 2
    assert "a prompt is empty" in stderr


def test_interruption_is_130(capsys, monkeypatch, tmp_path):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr("musiclm.bin.describe.run", interrupted)
    code, stderr = run(capsys, "describe", str(tmp_path))
    assert code == 130
    assert "Traceback" not in stderr


def test_a_fault_keeps_its_traceback(monkeypatch):
    def faulty(args):
        raise RuntimeError("a bug")

    monkeypatch.setattr("musiclm.bin.describe.run", faulty)
    with pytest.raises(RuntimeError, match="a bug"):
        main.main(["describe", "x.gin"])


def test_long_messages_become_one_line(capsys, monkeypatch):
    def wrong(args):
        raise errors.UserError("two\n  lines")

    monkeypatch.setattr("musiclm.bin.describe.run", wrong)
    assert run(capsys, "describe", "x.gin") == (2, "musiclm: error: two lines\n")
