"""Tones whose notes are known."""

import numpy as np
import pytest

from musiclm.evaluation import notes

RATE, WINDOW = 16_000, 4096


def _magnitude(pitches, gain=1.0, partials=6):
    time_T = np.arange(RATE) / RATE
    waveform_T = sum(
        0.6**k * np.sin(2 * np.pi * (k + 1) * 440 * 2 ** ((pitch - 69) / 12) * time_T + k * pitch)
        for pitch in pitches
        for k in range(partials)
    )
    frames = np.lib.stride_tricks.sliding_window_view(gain * waveform_T, WINDOW)[::1024]
    return np.abs(np.fft.rfft(frames * np.hanning(WINDOW), axis=1)).astype(np.float32)


@pytest.mark.parametrize("partials", [1, 6])
@pytest.mark.parametrize("pitch", range(40, 97, 4))
def test_a_note_is_the_strongest_whatever_its_overtones(pitch, partials):
    strength_NP = notes.strengths(_magnitude([pitch], partials=partials), RATE)
    assert (strength_NP.argmax(axis=1) + notes.LOWEST == pitch).all()
    assert notes.chroma(strength_NP).mean(axis=0).argmax() == pitch % 12


def test_a_chord_is_its_notes():
    chord = [55, 60, 64, 69]
    mean_P = notes.strengths(_magnitude(chord), RATE).mean(axis=0)
    assert sorted(mean_P.argsort()[-4:] + notes.LOWEST) == chord


def test_loudness_and_the_first_note_change_nothing_else():
    loud, quiet = (notes.strengths(_magnitude([60, 67], gain), RATE) for gain in (1.0, 0.01))
    np.testing.assert_allclose(quiet, loud, atol=1e-4)
    fewer = notes.strengths(_magnitude([60, 67]), RATE, lowest=40)
    assert fewer.shape[1] == loud.shape[1] - (40 - notes.LOWEST)
    assert fewer.mean(axis=0).argmax() + 40 == loud.mean(axis=0).argmax() + notes.LOWEST


def test_silence_has_no_notes():
    assert not notes.strengths(np.zeros((5, WINDOW // 2 + 1), np.float32), RATE).any()


def test_chroma_sums_octaves():
    strength_NP = np.random.default_rng(0).random((3, notes.HIGHEST - notes.LOWEST + 1))
    a_NP = strength_NP[:, [45 - notes.LOWEST + 12 * octave for octave in range(-1, 5)]]
    np.testing.assert_allclose(notes.chroma(strength_NP)[:, 9], a_NP.sum(axis=1), rtol=1e-6)
