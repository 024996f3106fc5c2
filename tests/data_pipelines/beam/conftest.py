"""Corpora of sound made on the spot."""

import hashlib
import pathlib
from collections.abc import Callable

import numpy as np
import pytest
import soundfile

from data_pipelines import manifest

CAPTIONS = (
    manifest.Caption(kind="long", text="slow piano"),
    manifest.Caption(kind="tags", text="fast flute " * 50),  # more than MuLan reads
)


def _music(seed: int, seconds: float, rate: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    mono = rng.normal(scale=1e-3, size=len(t))
    for _ in range(int(8 * seconds)):
        start, pitch = rng.uniform(0, seconds), 110 * 2 ** (rng.integers(48) / 12)
        age = t[np.searchsorted(t, start) :] - start
        envelope = rng.uniform(0.02, 0.1) * np.exp(-4 * age)
        for harmonic in range(1, rng.integers(2, 6)):
            if pitch * harmonic < rate / 2:
                wave = envelope / harmonic * np.sin(2 * np.pi * pitch * harmonic * age)
                mono[len(t) - len(age) :] += wave
    return mono.astype(np.float32)


def _clip_of(path: pathlib.Path, **fields) -> manifest.Clip:
    known = {
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "0" * 64,
        "seconds": 0.0,
        "sample_rate": 1,
        "channels": 1,
        "licence": "CC0-1.0",
        "split": "train",
    }
    return manifest.Clip(**known | fields)


@pytest.fixture(scope="session")
def music() -> Callable[[int, float, int], np.ndarray]:
    """Random notes of random timbre by (seed, seconds, rate), f32 [T]: no two seeds are alike."""
    return _music


@pytest.fixture(scope="session")
def clip_of() -> Callable[..., manifest.Clip]:
    """The record of a file as it now is, in a manifest beside it; fields can be given."""
    return _clip_of


@pytest.fixture(scope="session")
def sound_corpus(tmp_path_factory) -> pathlib.Path:
    """Six clips of 10 to 35 s, mono and stereo, FLAC and WAV, of 0 to 2 captions: 15 windows."""
    root = tmp_path_factory.mktemp("sound") / "corpus"
    root.mkdir()
    clips = []
    for index in range(6):
        mono = _music(index, 10.0 + 5 * index, 4_000)
        path = root / f"{index}.{'flac' if index % 2 else 'wav'}"
        soundfile.write(path, np.stack([mono, mono], axis=1) if index % 3 else mono, 4_000)
        blank = (manifest.Caption(kind="short", text=" "),) * (index == 5)
        clips.append(_clip_of(path, captions=(*blank, *CAPTIONS[: index % 3])))
    manifest.write(root, clips)
    return root


@pytest.fixture
def musiclm(capsys) -> Callable[..., tuple[int, str, str]]:
    """Runs the command; gives its exit code, the last line of stdout, and stderr."""
    from musiclm.bin import main

    def run(*argv: object) -> tuple[int, str, str]:
        code = main.main([str(argument) for argument in argv])
        out, err = capsys.readouterr()
        return code, (out.splitlines() or [""])[-1], err

    return run


@pytest.fixture
def bytes_of() -> Callable[..., dict[str, bytes]]:
    """The shards of a data set, by name."""

    def read(folder) -> dict[str, bytes]:
        found = pathlib.Path(folder).glob("*.array_record")
        return {path.name: path.read_bytes() for path in found}

    return read
