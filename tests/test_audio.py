"""Spectra against a reference, framing, and files."""

import contextlib
import io
import json
import os
import struct
import wave

import jax
import librosa
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from musiclm import audio
from musiclm.errors import UserError

# Compiled as a whole: op by op, every shape takes dozens of small programs.
stft, istft, frame = (
    jax.jit(f, static_argnums=(1, 2)) for f in (audio.stft, audio.istft, audio.frame)
)
griffin_lim = jax.jit(audio.griffin_lim, static_argnums=(1, 2, 3))
log_mel, tempogram = (jax.jit(f, static_argnums=1) for f in (audio.log_mel, audio.tempogram))
chromagram = jax.jit(audio.chromagram, static_argnums=(1, 2))


@pytest.mark.slow
@pytest.mark.parametrize(("num_mels", "num_fft", "f_min"), [(64, 512, 60.0), (80, 1024, 0.0)])
def test_mel_filters_equal_librosa(num_mels, num_fft, f_min):
    ours = audio.mel_filters(num_mels, num_fft, 16_000, f_min)
    reference = librosa.filters.mel(
        sr=16_000, n_fft=num_fft, n_mels=num_mels, fmin=f_min, htk=True, norm=None
    ).T
    np.testing.assert_allclose(ours, reference, atol=1e-6)


@pytest.mark.slow
def test_stft_equals_librosa():
    waveform_T = np.random.default_rng(0).normal(size=4096).astype(np.float32)
    ours_NF = np.asarray(stft(waveform_T[None], 512, 128))[0]
    # librosa's frame n starts at 128 n; ours is centred on 128 n + 64 and starts 192 earlier.
    padded_T = np.pad(waveform_T, (192, 192))
    reference_NF = librosa.stft(padded_T, n_fft=512, hop_length=128, center=False).T
    np.testing.assert_allclose(ours_NF, reference_NF, rtol=1e-4, atol=1e-3)


def test_griffin_lim_of_a_sound_does_not_depend_on_its_batch():
    noise_BT = np.random.default_rng(0).normal(size=(3, 3_200)).astype(np.float32)
    wanted_BNF = np.abs(stft(noise_BT, 960, 160))
    alone_BT = griffin_lim(wanted_BNF[2:], 960, 160, 4)
    np.testing.assert_allclose(griffin_lim(wanted_BNF, 960, 160, 4)[2:], alone_BT, atol=1e-4)


def test_griffin_lim_goes_on_from_samples_that_stay():
    time_T = np.arange(8_000) / 16_000
    tone_BT = np.sin(2 * np.pi * 330 * time_T)[None].astype(np.float32)
    wanted_BNF = np.abs(stft(tone_BT, 960, 160))
    found_BT = np.asarray(griffin_lim(wanted_BNF, 960, 160, 32, past_BT=tone_BT[:, :2_000]))
    np.testing.assert_array_equal(found_BT[:, :2_000], tone_BT[:, :2_000])
    # The phase is that of the past, hence the sound itself; without a past it is any.
    apart_BT = np.asarray(griffin_lim(wanted_BNF, 960, 160, 32))
    error, chance = (
        np.linalg.norm((x_BT - tone_BT)[:, 2_000:2_800]) / np.linalg.norm(tone_BT[:, 2_000:2_800])
        for x_BT in (found_BT, apart_BT)
    )
    assert error < 0.3
    assert chance > 0.9


@pytest.mark.parametrize(("window_size", "hop_size"), [(512, 128), (960, 160)])
def test_istft_inverts_stft(window_size, hop_size):
    waveform_BT = np.random.default_rng(0).normal(size=(2, 20 * hop_size)).astype(np.float32)
    spectrum_BNF = stft(waveform_BT, window_size, hop_size)
    back_BT = istft(spectrum_BNF, window_size, hop_size)
    np.testing.assert_allclose(back_BT, waveform_BT, atol=1e-4)


def test_griffin_lim_finds_the_phases_of_a_chord():
    time_T = np.arange(8_000) / 16_000
    chord_BT = sum(np.sin(2 * np.pi * hz * time_T) for hz in (220.0, 277.2, 329.6))[None]
    wanted_BNF = np.abs(stft(chord_BT.astype(np.float32), 960, 160))

    def error(num_iters):
        found_BT = griffin_lim(wanted_BNF, 960, 160, num_iters)
        found_BNF = np.abs(stft(found_BT, 960, 160))
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
    frames_NW = np.asarray(frame(waveform_T[None], window_size, hop_size))[0]
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
    tone_BT = np.sin(2 * np.pi * 1_000 * time_T)[None].astype(np.float32)
    mel_NM = np.asarray(log_mel(tone_BT, config))[0]
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
    mel_BNM = log_mel(waveform_BT, config)
    tempogram_BLK = np.reshape(
        tempogram(mel_BNM, audio.TempogramConfig(num_bands=2, num_lags=110)), (2, 110, 2)
    )
    lags_BK = 1 + 20 + np.argmax(tempogram_BLK[:, 20:], axis=1)  # beyond the onset's own width
    np.testing.assert_allclose(lags_BK, 6_000 / bpm, atol=1)
    assert np.abs(tempogram_BLK).max() <= 1.0


@pytest.mark.parametrize("octave", [3, 4, 5])
def test_a_chromagram_has_the_notes_of_each_part_whatever_octave_and_level(octave):
    time_T = np.arange(2 * 16_000) / 16_000
    beginning, end = (0, 4, 7), (2, 5, 9)  # C major, D minor
    frequencies = 440 * 2 ** (octave - 4 + (np.array([beginning, end]) - 9) / 12)
    chords = np.sin(2 * np.pi * frequencies[..., None] * time_T).sum(axis=1)
    waveform_BT = np.stack([chords.ravel(), 0.1 * chords.ravel()]).astype(np.float32)
    spectrum = audio.MelConfig(window_size=2048, hop_size=400)
    config = audio.ChromagramConfig(num_parts=2)
    chroma_BPC = np.reshape(chromagram(waveform_BT, spectrum, config), (2, 2, 12))
    for part, notes in enumerate((beginning, end)):
        assert set(np.argsort(chroma_BPC[0, part])[-3:]) == set(notes)
    np.testing.assert_allclose(chroma_BPC[0], chroma_BPC[1], atol=0.02)
    np.testing.assert_allclose(chroma_BPC.mean(axis=-1), 0.0, atol=1e-6)
    np.testing.assert_allclose(chroma_BPC.std(axis=-1), 1.0, atol=0.05)


def test_a_chromagram_of_silence_says_nothing():
    silence_BT = np.zeros((1, 16_000), np.float32)
    spectrum = audio.MelConfig(window_size=2048, hop_size=400)
    chroma_BC = chromagram(silence_BT, spectrum, audio.ChromagramConfig())
    np.testing.assert_allclose(chroma_BC, np.zeros((1, 48)), atol=0.1)


def test_wav_round_trip_is_within_one_quantisation_step(tmp_path):
    samples_T = np.random.default_rng(0).uniform(-1, 1, 8_000).astype(np.float32)
    audio.write_wav(tmp_path / "a.wav", samples_T, 16_000)
    back_T = audio.read_audio(tmp_path / "a.wav", 16_000)
    assert np.abs(back_T - samples_T).max() <= 1 / 32_767
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


def test_reading_mixes_down_and_resamples(tmp_path):
    time_T = np.arange(44_100) / 44_100
    tone_T = np.sin(2 * np.pi * 440 * time_T)
    soundfile.write(tmp_path / "stereo.wav", np.stack([tone_T, 0 * tone_T], 1), 44_100)
    samples_T = audio.read_audio(tmp_path / "stereo.wav", 16_000)
    assert len(samples_T) == 16_000
    spectrum_F = np.abs(np.fft.rfft(samples_T))
    assert spectrum_F.argmax() == 440
    np.testing.assert_allclose(samples_T[100:-100].max(), 0.5, atol=0.01)


@settings(max_examples=20)
@given(
    kind=st.sampled_from([("WAV", "PCM_24"), ("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("MP3", None)]),
    rate=st.sampled_from([8_000, 22_050, 44_100, 48_000]),
    channels=st.integers(1, 2),
)
def test_music_of_any_kind_is_read(tmp_path_factory, kind, rate, channels):
    path = tmp_path_factory.mktemp("kinds") / f"a.{kind[0].lower()}"
    tone_T = 0.5 * np.sin(2 * np.pi * 440 * np.arange(4 * rate) / rate)
    soundfile.write(path, np.stack([tone_T] * channels, 1), rate, format=kind[0], subtype=kind[1])
    samples_T = audio.read_music(path, 16_000, 3.0)
    assert samples_T.dtype == np.float32
    assert len(samples_T) == pytest.approx(4 * 16_000, abs=0.1 * 16_000)  # mp3 adds a frame or two
    middle_T = samples_T[16_000 : 3 * 16_000]
    assert np.abs(np.fft.rfft(middle_T)).argmax() == 2 * 440
    assert np.abs(middle_T).max() == pytest.approx(0.5, abs=0.1)
    facts = audio.read_facts(path)
    assert (facts["format"], facts["sample_rate"], facts["channels"]) == (kind[0], rate, channels)
    assert facts["seconds"] == pytest.approx(4, abs=0.1)


TONE_T = (0.5 * np.sin(np.arange(4 * 16_000) * 0.2)).astype(np.float32)


def _float_wav(samples_T):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples_T, 16_000, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def _lying_flac():
    """A FLAC that claims the most samples that its header can say."""
    buffer = io.BytesIO()
    soundfile.write(buffer, TONE_T, 16_000, format="FLAC")
    data = bytearray(buffer.getvalue())
    data[21] |= 0x0F  # of 36 bits, the last 4 of this byte are the first
    data[22:26] = b"\xff" * 4
    return bytes(data)


@pytest.mark.parametrize("read", [audio.read_audio, audio.read_music])
@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("page.mp3", b"<html>", "cannot read .*page.mp3 as audio"),
        ("sound.raw", bytes(9_999), "cannot read .*sound.raw as audio"),
        ("nothing.wav", b"", r"nothing.wav is empty \(0 bytes\)"),
        ("header.wav", audio.wav_bytes(TONE_T, 16_000)[:20], "cannot read .*header.wav as audio"),
        ("absent.wav", None, r"cannot read .*absent.wav as audio \(No such file"),
        ("liar.flac", _lying_flac(), "cannot read .*liar.flac as audio"),
        ("\ud800.wav", None, r"cannot read .* as audio \(.*surrogates"),
    ],
)
def test_what_is_no_audio_is_refused_by_name(tmp_path, read, name, content, told):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=told):
        read(tmp_path / name, 16_000, *([3.0] if read is audio.read_music else []))


def test_a_name_need_not_be_unicode(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav")
    audio.write_wav(path, TONE_T, 16_000, PROVENANCE)
    assert audio.read_audio(path, 16_000).shape == TONE_T.shape
    assert audio.read_facts(path)["format"] == "WAV"
    assert audio.read_provenance(path) == {"generated": True, **PROVENANCE}


def test_a_folder_is_no_audio(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .* as audio"):
        audio.read_audio(tmp_path, 16_000)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (audio.wav_bytes(TONE_T[:16_000], 16_000), "lasts 1.00 s: give 3 s of music or more"),
        (audio.wav_bytes(TONE_T[:0], 16_000), "lasts 0.00 s"),
        (audio.wav_bytes(0 * TONE_T, 16_000), "is silent"),
        (audio.wav_bytes(1e-4 * TONE_T, 16_000), "is silent"),  # dither
        (_float_wav(np.where(np.arange(len(TONE_T)) == 9, np.nan, TONE_T)), "no numbers"),
        (_float_wav(np.where(np.arange(len(TONE_T)) == 9, np.inf, TONE_T)), "no numbers"),
    ],
)
def test_what_is_no_music_is_refused_by_name(tmp_path, content, told):
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(UserError, match=f"a.wav .*{told}"):
        audio.read_music(tmp_path / "a.wav", 16_000, 3.0)


PROVENANCE = {"prompt": 'flûte – 笛 "x"\n', "seed": 7, "model": "gm-mini", "digest": "17" * 32}


# Of comments beyond some 8 kB libsndfile reads nothing; a story has many prompts.
@pytest.mark.parametrize("words", ["", "flute", "odd!", "长" * 20_000])
def test_provenance_comes_back_and_the_sound_with_it(tmp_path, words):
    provenance = PROVENANCE | {"prompt": words}
    path = tmp_path / "a.wav"
    audio.Waveform(TONE_T, 16_000, provenance).save(path)
    assert audio.read_provenance(path) == {"generated": True, **provenance}
    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16_000, 1, 2)
        frames = file.readframes(10**9)
    bare = audio.wav_bytes(TONE_T, 16_000)
    assert frames == bare[44:]
    read_T, rate = soundfile.read(path, dtype="int16")
    assert (rate, read_T.tobytes()) == (16_000, frames)
    written = path.read_bytes()
    assert struct.unpack("<I", written[4:8])[0] == len(written) - 8
    assert written == audio.wav_bytes(TONE_T, 16_000, provenance)
    assert [p.name for p in tmp_path.iterdir()] == ["a.wav"]


def test_other_programs_see_provenance_as_the_comment(tmp_path):
    audio.write_wav(tmp_path / "a.wav", TONE_T, 16_000, PROVENANCE)
    with soundfile.SoundFile(tmp_path / "a.wav") as file:
        assert json.loads(file.comment) == {"generated": True, **PROVENANCE}
    # A converter takes it along.
    with soundfile.SoundFile(tmp_path / "a.flac", "w", 16_000, 1) as file:
        file.comment = json.dumps({"generated": True, **PROVENANCE})
        file.write(TONE_T)
    assert audio.read_provenance(tmp_path / "a.flac") == {"generated": True, **PROVENANCE}


def test_bytes_without_provenance_are_those_of_libsndfile():
    buffer = io.BytesIO()
    soundfile.write(buffer, 3 * TONE_T.clip(-1 / 3, 1 / 3), 24_000, format="WAV", subtype="PCM_16")
    assert audio.wav_bytes(3 * TONE_T, 24_000) == buffer.getvalue()


@pytest.mark.parametrize("comment", [None, "my song", "[1, 2]", '{"a": 1}', "[" * 5_000])
def test_a_file_of_others_has_no_provenance(tmp_path, comment):
    with soundfile.SoundFile(tmp_path / "a.wav", "w", 16_000, 1) as file:
        if comment:
            file.comment = comment
        file.title = "ICMT"
        file.write(TONE_T)
    assert audio.read_provenance(tmp_path / "a.wav") is None


@given(st.integers(20, 300), st.integers(0, 2**32 - 1))
def test_a_damaged_header_ends_in_words_or_nothing(tmp_path_factory, place, number):
    content = bytearray(audio.wav_bytes(TONE_T[:99], 16_000, PROVENANCE))
    content[place : place + 4] = struct.pack("<I", number)
    path = tmp_path_factory.getbasetemp() / "damaged.wav"
    path.write_bytes(content)
    with contextlib.suppress(UserError):
        assert audio.read_provenance(path) is None or "generated" in audio.read_provenance(path)


def test_a_waveform_plays_in_a_notebook():
    html = audio.Waveform(np.zeros(160, np.float32), 16_000)._repr_html_()
    assert html.startswith("<audio controls")
    assert "base64,UklGR" in html  # "RIFF"


def test_a_beginning_is_decoded_no_further_than_needed(tmp_path, monkeypatch):
    """At another rate it is the beginning of the whole, and blocks behind it are not read."""
    samples_T = np.random.default_rng(0).normal(0, 0.1, 10 * 11_025).astype(np.float32)
    audio.write_wav(tmp_path / "a.wav", samples_T, 11_025)
    whole_T = audio.read_audio(tmp_path / "a.wav", 16_000)
    monkeypatch.setattr(audio, "_BLOCK", 1_000)
    found_T = audio.read_audio(tmp_path / "a.wav", 16_000, 2.001)
    assert len(found_T) == 32_016
    np.testing.assert_allclose(found_T, whole_T[:32_016], atol=1e-6)
    with soundfile.SoundFile(tmp_path / "a.wav") as file:
        audio.decode_mono(file, 20_500)
        assert file.tell() == 21_000
    assert len(audio.read_music(tmp_path / "a.wav", 22_050, 2.001, 2.001)) == 44_122
