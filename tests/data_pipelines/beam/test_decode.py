"""Every way in which a file can be bad has its reason."""

import io
import struct

import numpy as np
import pytest
import soundfile

from data_pipelines.beam import decode

RATE = 8_000


@pytest.fixture(scope="module")
def encoded(music):
    """A sound in a format, as bytes."""
    mono = music(0, 4.0, RATE)

    def encode(format, samples=mono, **settings):
        out = io.BytesIO()
        soundfile.write(out, samples, RATE, format=format, **settings)
        return out.getvalue()

    return encode


def flipped(data: bytes, seed: int = 0, count: int = 20) -> bytes:
    """Some bytes of the second half, inverted."""
    changed = bytearray(data)
    for place in np.random.default_rng(seed).integers(len(data) // 2, len(data), count):
        changed[place] ^= 0xFF
    return bytes(changed)


def longer_header(wav: bytes) -> bytes:
    """A WAV that says twice the size it has."""
    return wav[:4] + struct.pack("<I", 2 * len(wav)) + wav[8:]


HTML = b"<!DOCTYPE html>\n<html><body>404: no such song</body></html>\n" * 50

CASES = {
    "empty": ("empty", lambda encoded: b""),
    "html named mp3": ("not audio", lambda encoded: HTML),
    "flac header flipped": ("not audio", lambda encoded: b"\0" * 4 + encoded("FLAC")[4:]),
    "flac cut": ("damaged", lambda encoded: encoded("FLAC")[:-5_000]),
    "flac flipped": ("damaged", lambda encoded: flipped(encoded("FLAC"))),
    "wav cut": ("truncated", lambda encoded: encoded("WAV")[:-5_000]),
    "wav header longer": ("truncated", lambda encoded: longer_header(encoded("WAV"))),
    "mp3 cut": ("truncated", lambda encoded: encoded("MP3")[: -len(encoded("MP3")) // 2]),
    "ogg cut": ("truncated", lambda encoded: encoded("OGG")[: -len(encoded("OGG")) // 3]),
    "nan": (
        "not finite",
        lambda encoded: encoded("WAV", np.array([0.1, np.nan] * RATE, np.float32), subtype="FLOAT"),
    ),
    "silent": ("silent", lambda encoded: encoded("WAV", np.full(RATE, 3e-5), subtype="PCM_16")),
    "no frames": ("silent", lambda encoded: encoded("WAV", np.zeros(0))),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_told(encoded, case):
    reason, make = CASES[case]
    with pytest.raises(decode.BadAudio) as told:
        decode.decode(make(encoded))
    assert told.value.reason == reason
    assert told.value.reason in decode.REASONS


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG", "MP3", "AIFF"])
def test_what_is_good_is_decoded_to_mono(encoded, music, format):
    mono = music(0, 4.0, RATE)
    data = encoded(format, np.stack([mono, -0.5 * mono], axis=1))
    decoded, rate = decode.decode(data)
    assert rate == RATE
    assert decoded.dtype == np.float32
    assert decoded.shape == mono.shape
    error = np.sqrt(np.mean((decoded - 0.25 * mono) ** 2) / np.mean((0.25 * mono) ** 2))
    assert error < (0.35 if format in ("OGG", "MP3") else 2e-3)


def test_a_wav_of_unknown_size_is_good(encoded):
    data = encoded("WAV")
    assert len(decode.decode(data[:4] + b"\xff" * 4 + data[8:])[0]) == 4 * RATE


def test_files_are_held_to_the_manifest(tmp_path, encoded, clip_of):
    path = tmp_path / "a.wav"
    good = encoded("WAV")
    path.write_bytes(good)
    clip = clip_of(path, seconds=4.0)
    assert len(decode.read(str(path), clip)[0]) == 4 * RATE

    path.write_bytes(flipped(good))
    with pytest.raises(decode.BadAudio, match="changed"):
        decode.read(str(path), clip)
    path.write_bytes(good[:-5_000])
    with pytest.raises(decode.BadAudio, match="truncated"):
        decode.read(str(path), clip)
    path.write_bytes(good)
    with pytest.raises(decode.BadAudio, match="truncated"):
        decode.read(str(path), clip_of(path, seconds=6.0))
    path.write_bytes(b"")
    with pytest.raises(decode.BadAudio, match="empty"):
        decode.read(str(path), clip)
    path.unlink()
    with pytest.raises(decode.BadAudio, match="missing"):
        decode.read(str(path), clip)
    with pytest.raises(decode.BadAudio, match="missing"):
        decode.read("nowhere://a.wav", clip)
