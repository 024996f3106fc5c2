"""Where compiled programs are kept, and that no home is needed."""

import os

import pytest

from musiclm.bin import compilation_cache


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in (
        "JAX_COMPILATION_CACHE_DIR",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
        "XDG_CACHE_HOME",
    ):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_below_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert compilation_cache.enable() == tmp_path / ".cache/musiclm/jax"
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / ".cache/musiclm/jax")


def test_below_xdg_cache_home(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compilation_cache.enable() == tmp_path / "musiclm/jax"


def test_the_persons_choice_stands(monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    assert compilation_cache.enable() == tmp_path


def test_a_home_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    assert compilation_cache.enable() is None
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
