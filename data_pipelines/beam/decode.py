"""Bytes of an audio file to mono sound, or the reason why not.

T: frames, C: channels.
"""

import hashlib
import io
import struct

import numpy as np
import soundfile

from data_pipelines import manifest
from data_pipelines.beam import storage
from musiclm import audio

# -80 dB of full scale: below it a file has nothing to hear.
SILENCE = 1e-4
# How much shorter than its manifest says a file may turn out: published durations are rounded.
SECONDS_OFF = 1.0
_UNKNOWN_SIZES = (0, 0xFFFFFFFF)  # of a RIFF file that was written to a pipe

REASONS = (
    "missing",
    "empty",
    "changed",
    "not audio",
    "damaged",
    "truncated",
    "not finite",
    "silent",
    "short",
)


class BadAudio(ValueError):
    """A file cannot be used.

    Attributes:
      reason: one of `REASONS`.
      detail: what exactly was found.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def read(path: str, clip: manifest.Clip) -> tuple[np.ndarray, int]:
    """A clip's sound, if its file is what the manifest says.

    Args:
      path: where the audio lies.
      clip: its record.

    Returns:
      f32 [T] mono, and its sample rate in Hz.

    Raises:
      BadAudio: for any reason but "short".
    """
    try:
        data = storage.read(path)
    except (OSError, ValueError) as error:
        raise BadAudio("missing", f"{path}: {error}") from error
    if not data:
        raise BadAudio("empty", "the file has no bytes")
    if (found := hashlib.sha256(data).hexdigest()) != clip.sha256:
        # What is wrong with the bytes says more than that they differ.
        decode(data)
        raise BadAudio("changed", f"SHA-256 is {found}, not {clip.sha256}")
    mono, rate = decode(data)
    if len(mono) / rate < clip.seconds - SECONDS_OFF:
        raise BadAudio("truncated", f"{len(mono) / rate:.2f} s of {clip.seconds:.2f} s")
    return mono, rate


def decode(data: bytes) -> tuple[np.ndarray, int]:
    """Decodes WAV, FLAC, Ogg, MP3 and what else libsndfile knows, and takes the channels' mean.

    Returns:
      f32 [T], and its sample rate in Hz.

    Raises:
      BadAudio: "empty", "not audio", "damaged", "truncated", "not finite" or "silent".
    """
    if not data:
        raise BadAudio("empty", "the file has no bytes")
    try:
        file = soundfile.SoundFile(io.BytesIO(data))
    except soundfile.LibsndfileError as error:
        reason = "not audio" if "not recognised" in error.error_string else "damaged"
        raise BadAudio(reason, f"{error.error_string} It starts with {data[:16]!r}") from error
    with file:
        try:
            mono = audio.decode_mono(file)
        except soundfile.LibsndfileError as error:
            raise BadAudio("damaged", error.error_string) from error
        if len(mono) < file.frames:
            raise BadAudio("truncated", f"{len(mono)} frames of {file.frames}")
        rate = file.samplerate
    _check_container(data)
    if not np.isfinite(mono).all():
        first = int(np.argmin(np.isfinite(mono)))
        raise BadAudio("not finite", f"sample {first} is {mono[first]}")
    peak = float(np.abs(mono).max(initial=0.0))
    if peak < SILENCE:
        raise BadAudio("silent", f"no sample is louder than {peak:.2g}")
    return mono, rate


def _check_container(data: bytes) -> None:
    """Finds what libsndfile forgives: a file that stops before its own header says."""
    if data[:4] == b"RIFF":
        (size,) = struct.unpack("<I", data[4:8])
        # Some writers count a last byte of padding that they leave out.
        if size not in _UNKNOWN_SIZES and size + 8 > len(data) + 1:
            raise BadAudio("truncated", f"{len(data)} bytes of {size + 8}")
    if data[:4] == b"OggS":
        flags = data[data.rfind(b"OggS") + 5 :][:1]
        if not flags or not flags[0] & 4:
            raise BadAudio("truncated", "the last page is not marked as the last")
