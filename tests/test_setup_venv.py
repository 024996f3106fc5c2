"""scripts/setup_venv.sh chooses a Python, with stand-ins for several."""

import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
# Tells a version as its own, runs what is asked of it, and makes no environment.
STAND_IN = """#!{}
import sys
if sys.argv[1] == "--version":
    print("Python {}")
elif sys.argv[1] == "-c":
    exec(sys.argv[2].replace("sys.version_info[:2]", "({})"))
else:
    sys.exit(1)
"""


@pytest.fixture
def setup(tmp_path):
    """Runs a copy of the script where there are Pythons of some versions; gives code and words."""
    (tmp_path / "scripts").mkdir()
    for name in ("scripts/setup_venv.sh", "setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("cat", "cksum", "dirname"):
        (programs / name).symlink_to(shutil.which(name))

    def python(path, version):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(STAND_IN.format(sys.executable, version, version.replace(".", ", ")))
        path.chmod(0o755)

    def setup(*extras, pythons=None, venv=None, **environment):
        for name, version in (pythons or {}).items():
            python(programs / name, version)
        if venv:
            python(tmp_path / ".venv" / "bin" / "python", venv)
        done = subprocess.run(
            ["/bin/sh", tmp_path / "scripts" / "setup_venv.sh", *extras],
            env={"PATH": str(programs), **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stderr

    return setup


def test_music_is_made_with_any_from_3_11_on(setup):
    _, told = setup(pythons={"python3": "3.14"})
    assert told.startswith("making .venv with Python 3.14 …")


def test_tests_pass_over_one_without_tensorflow(setup):
    _, told = setup("dev", pythons={"python3": "3.14", "python3.12": "3.12"})
    assert told.startswith("making .venv with Python 3.12 …")


@pytest.mark.parametrize(("extras", "version"), [((), "3.10"), (("dev",), "3.14")])
def test_none_that_fits_is_told(setup, extras, version):
    code, told = setup(*extras, pythons={"python3": version})
    assert code == 2
    assert f"no Python 3.11 {'to 3.13' if extras else 'or newer'} found" in told


def test_an_environment_that_is_too_new_is_told(setup):
    code, told = setup("dev", venv="3.14")
    assert code == 2
    assert ".venv has Python 3.14, and this takes 3.11 to 3.13: run `rm -rf .venv`" in told
