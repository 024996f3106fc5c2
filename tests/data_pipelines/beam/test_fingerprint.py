"""Copies are told from other music, whatever was done to them."""

import io
from collections import Counter

import numpy as np
import pytest
import soundfile
import soxr

from data_pipelines.beam import fingerprint

RATE = 16_000


def shared(a: fingerprint.Sketch, b: fingerprint.Sketch) -> int:
    """Hashes of both at the shift that has most."""
    times = dict(b)
    found = Counter(
        shift
        for value, time in a
        if value in times
        for shift in fingerprint.shifts(time - times[value])
    )
    return max(found.values(), default=0)


def encoded(mono: np.ndarray, format: str) -> np.ndarray:
    out = io.BytesIO()
    soundfile.write(out, mono, RATE, format=format)
    out.seek(0)
    return soundfile.read(out, dtype="float32")[0]


COPIES = {
    "mp3": lambda mono: (encoded(mono, "MP3"), RATE),
    "ogg": lambda mono: (encoded(mono, "OGG"), RATE),
    "quieter": lambda mono: (0.1 * mono, RATE),
    "another rate": lambda mono: (soxr.resample(mono, RATE, 44_100), 44_100),
    "cropped": lambda mono: (mono[5_923:-3_000], RATE),
    "cropped, quieter mp3": lambda mono: (encoded(0.3 * mono[4_321:], "MP3"), RATE),
}


@pytest.fixture(scope="module")
def sketches(music):
    """Of eight pieces, with their sounds."""
    sounds = [music(seed, 20.0, RATE) for seed in range(8)]
    return [(sound, fingerprint.sketch(sound, RATE)) for sound in sounds]


@pytest.mark.slow
@pytest.mark.parametrize("copy", COPIES)
def test_copies_are_alike(sketches, copy):
    for sound, sketch in sketches[:3]:
        assert shared(sketch, fingerprint.sketch(*COPIES[copy](sound))) >= fingerprint.ALIKE


@pytest.mark.slow
def test_other_music_is_not(sketches):
    for index, (_, one) in enumerate(sketches):
        for _, other in sketches[:index]:
            assert shared(one, other) < fingerprint.ALIKE / 4


def test_sounds_without_landmarks_have_an_empty_sketch():
    assert fingerprint.sketch(np.full(100, 0.5, np.float32), RATE) == ()
