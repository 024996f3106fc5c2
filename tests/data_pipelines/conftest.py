"""Corpora small enough to render in a test session."""

import pytest

from data_pipelines.corpora.gm import build as gm_build
from data_pipelines.corpora.gm import synth


def pytest_collection_modifyitems(items):
    """Without FluidSynth or the soundfont the rendering tests cannot run: they say so, skipped."""
    try:
        synth.load_fluidsynth()
        synth.find_soundfont()
    except synth.SynthError as error:
        for item in items:
            if {"corpus", "held_out_corpus", "synthesizer"} & set(item.fixturenames):
                item.add_marker(pytest.mark.skip(reason=str(error)))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """24 training clips of seed 3."""
    out = tmp_path_factory.mktemp("gm") / "train"
    gm_build.build(out, 24, seed=3, workers=2, progress=False)
    return out


@pytest.fixture(scope="session")
def held_out_corpus(tmp_path_factory):
    """12 held-out clips of seed 3."""
    out = tmp_path_factory.mktemp("gm") / "held_out"
    gm_build.build(out, 12, seed=3, held_out=True, workers=2, progress=False)
    return out


@pytest.fixture(scope="session")
def synthesizer():
    """FluidSynth with the soundfont, for 16 kHz."""
    loaded = synth.Synthesizer(synth.find_soundfont(), 16_000)
    yield loaded
    loaded.close()
