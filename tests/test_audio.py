"""Spectra against a reference, framing, and files."""

import librosa
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musiclm import audio
from musiclm.errors import UserError


@pytest.mark.parametrize(("num_mels", "num_fft", "f_min"), [(64, 512, 60.0), (80, 1024, 0.0)])
def test_mel_filters_equal_librosa(num_mels, num_fft, f_min):
    ours = audio.mel_filters(num_mels, num_fft, 16_000, f_min)
    reference = librosa.filters.mel(
        sr=16_000, n_fft=num_fft, n_mels=num_mels, fmin=f_min, htk=True, norm=None
    ).T
    np.testing.assert_allclose(ours, reference, atol=1e-6)


def test_stft_equals_librosa():
    waveform_T = np.random.default_rng(0).normal(size=4096).astype(np.float32)
    ours_NF = np.asarray(audio.stft(waveform_T[None], 512, 128)[0])
    # librosa's frame n starts at 128 n; ours is centred on 128 n + 64 and starts 192 earlier.
    padded_T = np.pad(waveform_T, (192, 192))
    reference_NF = librosa.stft(padded_T, n_fft=512, hop_length=128, center=False).T
    np.testing.assert_allclose(ours_NF, reference_NF, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("window_size", "hop_size"), [(512, 128), (960, 160)])
def test_istft_inverts_stft(window_size, hop_size):
    waveform_BT = np.random.default_rng(0).normal(size=(2, 20 * hop_size)).astype(np.float32)
    spectrum_BNF = audio.stft(waveform_BT, window_size, hop_size)
    back_BT = audio.istft(spectrum_BNF, window_size, hop_size)
    np.testing.assert_allclose(back_BT, waveform_BT, atol=1e-4)


def test_griffin_lim_finds_the_phases_of_a_chord():
    time_T = np.arange(8_000) / 16_000
    chord_BT = sum(np.sin(2 * np.pi * hz * time_T) for hz in (220.0, 277.2, 329.6))[None]
    wanted_BNF = np.abs(audio.stft(chord_BT.astype(np.float32), 960, 160))

    def error(num_iters):
        found_BT = audio.griffin_lim(wanted_BNF, 960, 160, num_iters)
        found_BNF = np.abs(audio.stft(found_BT, 960, 160))
        return np.linalg.norm(found_BNF - wanted_BNF) / np.linalg.norm(wanted_BNF)

    assert error(32) < 0.1
    assert error(32) < 0.25 * error(0)  # random phases alone


@settings(max_examples=25, deadline=None)
@given(
    length=st.integers(1, 2_000), hop_size=st.sampled_from([50, 64, 160]), ratio=st.integers(1, 5)
)
def test_frames_hold_the_samples_around_their_centre(length, hop_size, ratio):
    window_size = hop_size * ratio + 10 * (ratio > 2)
    waveform_T = np.arange(1, length + 1, dtype=np.float32)
    frames_NW = np.asarray(audio.frame(waveform_T[None], window_size, hop_size)[0])
    assert frames_NW.shape == (length // hop_size, window_size)
    for n, frame_W in enumerate(frames_NW):
        start = n * hop_size - (window_size - hop_size) // 2
        wanted_W = [
            i + 1 if 0 <= i < length // hop_size * hop_size else 0
            for i in range(start, start + window_size)
        ]
        np.testing.assert_array_equal(frame_W, wanted_W)


def test_a_tone_peaks_in_its_own_mel_band():
    config = audio.MelConfig(sample_rate=16_000, num_mels=64, window_size=1024, hop_size=256)
    time_T = np.arange(16_000) / 16_000
    mel_NM = audio.log_mel(np.sin(2 * np.pi * 1_000 * time_T)[None].astype(np.float32), config)[0]
    filters = audio.mel_filters(64, 1024, 16_000)
    assert int(mel_NM[20].argmax()) == int(filters[round(1_000 * 1024 / 16_000)].argmax())


@pytest.mark.parametrize("bpm", [60, 96, 150])
def test_a_tempogram_peaks_at_the_beat_whatever_the_level(bpm):
    config = audio.MelConfig(num_mels=32, window_size=512, hop_size=160)
    rng = np.random.default_rng(0)
    waveform_BT = np.zeros((2, 10 * 16_000), np.float32)
    for beat in np.arange(0.1, 9.8, 60 / bpm):
        start = round(beat * 16_000)
        waveform_BT[0, start : start + 800] = 0.1 * rng.standard_normal(800)
    waveform_BT[1] = 5 * waveform_BT[0]
    tempogram_BLK = audio.tempogram(
        audio.log_mel(waveform_BT, config), audio.TempogramConfig(num_bands=2, num_lags=110)
    ).reshape(2, 110, 2)
    lags_BK = 1 + 20 + np.argmax(tempogram_BLK[:, 20:], axis=1)  # beyond the onset's own width
    np.testing.assert_allclose(lags_BK, 6_000 / bpm, atol=1)
    assert np.abs(tempogram_BLK).max() <= 1.0


def test_wav_round_trip_is_within_one_quantisation_step(tmp_path):
    samples_T = np.random.default_rng(0).uniform(-1, 1, 8_000).astype(np.float32)
    audio.write_wav(tmp_path / "a.wav", samples_T, 16_000)
    back_T = audio.read_audio(tmp_path / "a.wav", 16_000)
    assert np.abs(back_T - samples_T).max() <= 1 / 32_767
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


def test_reading_mixes_down_and_resamples(tmp_path):
    import soundfile

    time_T = np.arange(44_100) / 44_100
    tone_T = np.sin(2 * np.pi * 440 * time_T)
    soundfile.write(tmp_path / "stereo.wav", np.stack([tone_T, 0 * tone_T], 1), 44_100)
    samples_T = audio.read_audio(tmp_path / "stereo.wav", 16_000)
    assert len(samples_T) == 16_000
    spectrum_F = np.abs(np.fft.rfft(samples_T))
    assert spectrum_F.argmax() == 440
    np.testing.assert_allclose(samples_T[100:-100].max(), 0.5, atol=0.01)


def test_what_is_no_audio_is_refused_by_name(tmp_path):
    (tmp_path / "page.mp3").write_text("<html>")
    with pytest.raises(UserError, match=r"page\.mp3"):
        audio.read_audio(tmp_path / "page.mp3", 16_000)


def test_a_waveform_plays_in_a_notebook():
    html = audio.Waveform(np.zeros(160, np.float32), 16_000)._repr_html_()
    assert html.startswith("<audio controls")
    assert "base64,UklGR" in html  # "RIFF"
