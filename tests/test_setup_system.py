"""scripts/setup_system.sh, with stand-ins for Debian's programs."""

import pathlib
import shutil
import subprocess

import pytest

SCRIPT = pathlib.Path(__file__).parents[1] / "scripts" / "setup_system.sh"
RENDERING = "libfluidsynth3 fluid-soundfont-gm"


@pytest.fixture
def setup(tmp_path):
    """Runs the script where some packages are there, and some can be had."""

    def setup(*extras, installed="", offered="", root=True):
        # apt-get install -y -qq PACKAGE…: writes down what is asked for.
        programs = {
            "dpkg-query": f'case " {installed} " in *" $4 "*) echo ok installed;; esac',
            "apt-get": f'[ "$1" = install ] || exit 0; shift 3; echo "$@" >>{tmp_path}/asked\n'
            f'for name; do case " {offered} " in *" $name "*) ;; *) exit 100;; esac; done',
            "id": f"echo {0 if root else 1000}",
            "sudo": "exit 1",
        }
        for name, body in programs.items():
            path = tmp_path / name
            path.write_text(f"#!/bin/sh\n{body}\n")
            path.chmod(0o755)
        for name in ("grep", "env", "sh"):
            (tmp_path / name).symlink_to(shutil.which(name))
        done = subprocess.run(
            ["/bin/sh", SCRIPT, *extras],
            env={"PATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        asked = tmp_path / "asked"
        return done.returncode, done.stderr, asked.read_text() if asked.exists() else ""

    return setup


def test_what_is_there_is_not_asked_for(setup):
    assert setup("chromium", installed=f"{RENDERING} chromium") == (0, "", "")


def test_what_is_missing_is_installed(setup):
    code, told, asked = setup("chromium", offered=f"{RENDERING} chromium")
    assert (code, asked) == (0, f"{RENDERING}\nchromium\n")
    assert told == f"installing the system packages {RENDERING} chromium …\n"


def test_an_extra_that_is_not_offered_is_done_without(setup):
    code, told, _ = setup("chromium", installed=RENDERING)
    assert code == 0
    assert told.endswith("going on without chromium: the tests skip what needs it\n")


def test_what_rendering_needs_must_be_had(setup):
    code, *_ = setup("chromium", offered="chromium")
    assert code != 0


def test_without_rights_the_line_to_run_is_told(setup):
    code, told, asked = setup("chromium", installed="libfluidsynth3", root=False)
    assert (code, asked) == (2, "")
    assert "run `sudo apt-get install fluid-soundfont-gm chromium`" in told
    assert told.count("\n") == 1


def test_without_rights_an_extra_is_done_without(setup):
    code, told, asked = setup("chromium", installed=RENDERING, root=False)
    assert (code, asked) == (0, "")
    assert told.startswith("going on without chromium: `sudo apt-get install chromium` ")
