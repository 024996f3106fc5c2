"""Audio for corpora whose metadata the tests write."""

import argparse
import importlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_pipelines import manifest
from data_pipelines.corpora import corpus


@pytest.fixture
def sound() -> Callable[..., Path]:
    """Writes a tone to a path; its pitch makes the bytes differ."""

    def write(path: Path, *, seconds: float = 1.0, rate: int = 8_000, channels: int = 1, pitch=440):
        path.parent.mkdir(parents=True, exist_ok=True)
        time_T = np.arange(round(seconds * rate)) / rate
        tone_T = 0.3 * np.sin(2 * np.pi * pitch * time_T)
        soundfile.write(path, np.repeat(tone_T[:, None], channels, axis=1), rate)
        return path

    return write


@pytest.fixture
def make(tmp_path) -> Callable[..., tuple[dict[str, manifest.Clip], corpus.Made]]:
    """Runs a reader on its arguments: the clips by the ends of their paths, and what came of it."""

    def run(name: str, *arguments, out: Path | None = None):
        module = importlib.import_module(f"data_pipelines.corpora.{name}")
        parser = argparse.ArgumentParser()
        module.add_arguments(parser)
        out = out or tmp_path / "out"
        made = module.make(parser.parse_args([*map(str, arguments), "--out", str(out)]))
        clips = {Path(clip.file).name: clip for clip in manifest.read(made.manifest)}
        return clips, made

    return run
