"""`make generate` hands the prompt on as it was typed; `make train-mini` trains a whole bundle."""

import os
import pathlib
import shutil
import subprocess

import pytest

from musiclm import bundle

ROOT = pathlib.Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="needs make")


@pytest.fixture
def checkout(tmp_path):
    """The Makefile beside stand-ins for what it calls."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name, body in {
        "scripts/setup_venv.sh": "",
        ".venv/bin/musiclm": 'for last; do :; done; printf %s "$last" >"prompt"',
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
    return tmp_path


def make(checkout, *arguments, **environment):
    names = ("PROMPT", "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MUSICLM_PROMPT")
    inherited = {name: value for name, value in os.environ.items() if name not in names}
    return subprocess.run(
        ["make", "generate", *arguments],
        cwd=checkout,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "prompt",
    [
        "a slow sad piano melody in A minor",
        'it\'s "loud"',
        "costs $5, $HOME, $(shell touch stolen), ${x} and $( or `touch stolen`",
        "-- --seconds 3; touch stolen # not a comment \\ & | > *",
        "flûte – 笛",
    ],
)
@pytest.mark.parametrize("way", ["argument", "environment"])
def test_prompts_arrive_as_typed(checkout, prompt, way):
    if way == "argument":
        done = make(checkout, f"PROMPT={prompt}")
    else:
        done = make(checkout, PROMPT=prompt)
    assert done.returncode == 0, done.stderr
    assert (checkout / "prompt").read_text() == prompt
    assert not (checkout / "stolen").exists()


def test_the_chain_trains_every_model_of_a_bundle(checkout):
    """What it would do; each run has its gin file."""
    done = subprocess.run(
        ["make", "--dry-run", "train-mini"],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=True,
    )
    for model in (*bundle.COMPONENTS, *bundle.OPTIONAL):
        assert f"{model}.gin" in done.stdout
        assert (ROOT / f"gin/train/mini/{model}.gin").is_file()
        assert done.stdout.index(f"{model}.gin") < done.stdout.index("bundle.gin")


def test_no_prompt_is_told_before_anything_is_installed(checkout):
    (checkout / "scripts/setup_venv.sh").write_text("#!/bin/sh\ntouch installed\n")
    done = make(checkout)
    assert done.returncode == 2
    assert "PROMPT=" in done.stderr
    assert not (checkout / "installed").exists()
