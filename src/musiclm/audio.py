"""Waveforms: spectra inside the models, files outside them.

B: batch, T: samples, N: frames, F: frequency bins, M: mel bands.
"""

import base64
import contextlib
import dataclasses
import functools
import io
import json
import math
import os
import pathlib
import struct
import tempfile
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np

from musiclm.errors import UserError

if TYPE_CHECKING:
    import soundfile

# A file whose peak is below, -80 dB, holds no music: dither at most.
SILENCE = 1e-4
_BLOCK = 1 << 20  # frames that are decoded at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class MelConfig:
    """A log-mel front end.

    Attributes:
      sample_rate: of the waveform, in Hz.
      num_mels: mel bands.
      window_size: Hann window, in samples.
      hop_size: samples between frames.
      fft_size: points of the transform; 0 takes the power of two that holds the window.
      f_min: lower edge of the first band, in Hz.
      f_max: upper edge of the last band, in Hz; 0 takes half the sample rate.
      floor: added to the magnitudes before the logarithm.
    """

    sample_rate: int = 16_000
    num_mels: int = 80
    window_size: int = 400
    hop_size: int = 160
    fft_size: int = 0
    f_min: float = 0.0
    f_max: float = 0.0
    floor: float = 1e-5

    def __post_init__(self):
        if self.fft_size and self.fft_size < self.window_size:
            raise ValueError(
                f"MelConfig.fft_size {self.fft_size} is below window_size {self.window_size}: "
                "enlarge it, or give 0 for the next power of two"
            )

    @property
    def num_fft(self) -> int:
        """Points of the transform."""
        return self.fft_size or 1 << (self.window_size - 1).bit_length()


def hz_to_mel(frequency):
    """The HTK mel scale: 2595 log10(1 + f/700)."""
    return 2595.0 * np.log10(1.0 + np.asarray(frequency) / 700.0)


def mel_to_hz(mel):
    """The inverse of `hz_to_mel`."""
    return 700.0 * (10.0 ** (np.asarray(mel) / 2595.0) - 1.0)


def mel_filters(
    num_mels: int, num_fft: int, sample_rate: int, f_min: float = 0.0, f_max: float = 0.0
) -> np.ndarray:
    """Triangles of height one, evenly spaced on the HTK mel scale.

    Not area-normalised: with Slaney's norm the upper bands fall below any useful log floor.

    Returns:
      f32 [num_fft // 2 + 1, num_mels].
    """
    edges = mel_to_hz(
        np.linspace(hz_to_mel(f_min), hz_to_mel(f_max or sample_rate / 2), num_mels + 2)
    )
    bins = np.arange(num_fft // 2 + 1)[:, None] * (sample_rate / num_fft)
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)


def mel_triangles(
    num_mels: int, num_fft: int, sample_rate: int, f_min: float, f_max: float
) -> np.ndarray:
    """`mel_filters` whose sides are straight over mel and not over Hz, as published taggers have.

    Returns:
      f64 [num_fft // 2 + 1, num_mels].
    """
    edges = np.linspace(hz_to_mel(f_min), hz_to_mel(f_max), num_mels + 2)
    bins = hz_to_mel(np.linspace(0, sample_rate / 2, num_fft // 2 + 1))[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling))


def hann(window_size: int) -> np.ndarray:
    """The periodic Hann window, f32 [window_size]."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window_size) / window_size)).astype(np.float32)


def frame(waveform_BT: jax.Array, window_size: int, hop_size: int) -> jax.Array:
    """Overlapping frames [B, T // hop, window], the n-th centred on sample n·hop + hop/2.

    The ends are padded with zeros, so that the frame count depends on the length alone.
    """
    num_frames = waveform_BT.shape[-1] // hop_size
    left = (window_size - hop_size) // 2
    right = window_size - hop_size - left
    padded = jnp.pad(
        waveform_BT[..., : num_frames * hop_size], ((0, 0), (max(left, 0), max(right, 0)))
    )
    if window_size % hop_size == 0:
        # Shifted reshapes: cheaper than a gather, and so is their gradient.
        ratio = window_size // hop_size
        hops = padded.reshape(padded.shape[0], -1, hop_size)
        return jnp.concatenate([hops[:, i : i + num_frames] for i in range(ratio)], axis=-1)
    index = np.arange(num_frames)[:, None] * hop_size + np.arange(window_size)
    return padded[:, index]


def stft(waveform_BT: jax.Array, window_size: int, hop_size: int, num_fft: int = 0) -> jax.Array:
    """Short-time Fourier transform, Hann window: complex64 [B, T // hop, num_fft // 2 + 1]."""
    frames = frame(waveform_BT, window_size, hop_size) * hann(window_size)
    return jnp.fft.rfft(frames, n=num_fft or window_size)


def istft(spectrum_BNF: jax.Array, window_size: int, hop_size: int) -> jax.Array:
    """The waveform f32 [B, N · hop] whose `stft` is closest to the given one (least squares).

    Args:
      spectrum_BNF: complex64, with `window_size // 2 + 1` bins.
      window_size: of the Hann window, a multiple of `hop_size`.
      hop_size: samples between frames.
    """
    num_frames, ratio = spectrum_BNF.shape[1], window_size // hop_size
    window = hann(window_size)
    frames = jnp.fft.irfft(spectrum_BNF, n=window_size) * window
    pieces = frames.reshape(-1, num_frames, ratio, hop_size)
    summed = sum(
        jnp.pad(pieces[:, :, i], ((0, 0), (i, ratio - 1 - i), (0, 0))) for i in range(ratio)
    )
    overlap = sum(
        np.pad(
            np.tile(window[i * hop_size : (i + 1) * hop_size] ** 2, (num_frames, 1)),
            ((i, ratio - 1 - i), (0, 0)),
        )
        for i in range(ratio)
    )
    left = (window_size - hop_size) // 2
    waveform_BT = (summed / np.maximum(overlap, 1e-3)).reshape(len(summed), -1)
    return waveform_BT[:, left : left + num_frames * hop_size]


def unit_phase(spectrum_BNF: jax.Array) -> jax.Array:
    """The phases of a spectrum, as complex numbers of length 1 (or 0, of silence)."""
    return spectrum_BNF / (jnp.abs(spectrum_BNF) + 1e-12)


def with_phases(magnitude_BNF: jax.Array, spectrum_BNF: jax.Array) -> jax.Array:
    """Magnitudes, f32 [B, N, F], with the phases of a spectrum; 0 where it is silent."""
    # Part by part: complex numbers are divided at several times the cost.
    real_BNF, imag_BNF = spectrum_BNF.real, spectrum_BNF.imag
    scale_BNF = magnitude_BNF * jax.lax.rsqrt(real_BNF**2 + imag_BNF**2 + 1e-24)
    return jax.lax.complex(scale_BNF * real_BNF, scale_BNF * imag_BNF)


def random_phase(key: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    """Evenly drawn phases [B, N, F] as complex numbers of length 1.

    They are the same in every row, so that no sound depends on its neighbours in a batch.
    """
    turns_NF = jax.random.uniform(key, shape[1:])
    return jnp.broadcast_to(jnp.exp(2j * jnp.pi * turns_NF), shape)


def griffin_lim(
    magnitude_BNF: jax.Array, window_size: int, hop_size: int, num_iters: int,
    *, phase_BNF: jax.Array | None = None, past_BT: jax.Array | None = None,
) -> jax.Array:  # fmt: skip
    """A waveform f32 [B, N · hop] whose `stft` has these magnitudes, or nearly so.

    The fast algorithm of Perraudin et al. (WASPAA 2013), momentum 0.99.

    Args:
      magnitude_BNF: f32, with `window_size // 2 + 1` bins.
      window_size: of the Hann window, a multiple of `hop_size`.
      hop_size: samples between frames.
      num_iters: projections; 32 come within -20 dB of the magnitudes of music.
      phase_BNF: to start from; random ones, the same at every call, when None.
      past_BT: the first samples of the waveform where they are settled already: they stay, and the
        rest goes on from them.
    """
    momentum = 0.99
    if phase_BNF is None:
        phase_BNF = random_phase(jax.random.key(0), magnitude_BNF.shape)

    def waveform(wanted_BNF):
        waveform_BT = istft(wanted_BNF, window_size, hop_size)
        if past_BT is None:
            return waveform_BT
        return jnp.concatenate([past_BT, waveform_BT[:, past_BT.shape[1] :]], axis=1)

    def iterate(_, carry):
        wanted_BNF, previous_BNF = carry
        spectrum_BNF = stft(waveform(wanted_BNF), window_size, hop_size)
        ahead_BNF = spectrum_BNF - momentum / (1 + momentum) * previous_BNF
        return with_phases(magnitude_BNF, ahead_BNF), spectrum_BNF

    start = magnitude_BNF * phase_BNF, jnp.zeros(magnitude_BNF.shape, jnp.complex64)
    wanted_BNF, _ = jax.lax.fori_loop(0, num_iters, iterate, start, unroll=2)
    return waveform(wanted_BNF)


def magnitude(waveform_BT: jax.Array, config: MelConfig) -> jax.Array:
    """Magnitudes of the spectrum behind the mel bands: f32 [B, T // hop, num_fft // 2 + 1]."""
    spectrum_BNF = stft(waveform_BT, config.window_size, config.hop_size, config.num_fft)
    # The small term keeps the gradient of |·| finite in digital silence.
    return jnp.sqrt(spectrum_BNF.real**2 + spectrum_BNF.imag**2 + 1e-12)


def mel_magnitude(waveform_BT: jax.Array, config: MelConfig) -> jax.Array:
    """Magnitudes in mel bands: f32 [B, T // hop, num_mels]."""
    filters = mel_filters(
        config.num_mels, config.num_fft, config.sample_rate, config.f_min, config.f_max
    )
    return magnitude(waveform_BT, config) @ filters


def log_mel(waveform_BT: jax.Array, config: MelConfig) -> jax.Array:
    """Natural logarithm of the mel magnitudes plus the floor: f32 [B, T // hop, num_mels]."""
    return jnp.log(mel_magnitude(waveform_BT, config) + config.floor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TempogramConfig:
    """How rhythm is measured.

    Attributes:
      num_bands: groups of neighbouring mel bands, each with a rhythm of its own.
      num_lags: of the autocorrelation, in frames: lag 1 up to this.
    """

    num_bands: int = 4
    num_lags: int = 80


def tempogram(log_mel_BNM: jax.Array, config: TempogramConfig) -> jax.Array:
    """Autocorrelation of the onset strength, f32 [B, num_lags · num_bands] between -1 and 1.

    Onset strength is the rise of the log-mel spectrum from frame to frame, averaged over a group
    of bands (after Grosche, Müller & Kurth, ICASSP 2010, without their windows: over all frames).

    Args:
      log_mel_BNM: f32, with more frames than `num_lags` and a multiple of `num_bands` mel bands.
      config: sizes.
    """
    rise_BNM = jnp.maximum(jnp.diff(log_mel_BNM, axis=1), 0.0)
    onset_BNK = rise_BNM.reshape(*rise_BNM.shape[:2], config.num_bands, -1).mean(axis=-1)
    onset_BNK -= onset_BNK.mean(axis=1, keepdims=True)
    num_fft = 2 * onset_BNK.shape[1]  # padded: the end is not followed by the start
    power_BFK = jnp.abs(jnp.fft.rfft(onset_BNK, num_fft, axis=1)) ** 2
    correlation_BNK = jnp.fft.irfft(power_BFK, axis=1)[:, : config.num_lags + 1]
    lags_BNK = correlation_BNK[:, 1:] / (correlation_BNK[:, :1] + 1e-6)
    return lags_BNK.reshape(len(lags_BNK), -1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChromagramConfig:
    """How harmony is measured.

    Attributes:
      f_min: Hz; the spectrum's window must part semitones from about here on.
      f_max: Hz; what lies above is overtones rather than notes.
      num_parts: of equal length, with a chroma each: C major and A minor have the same notes, and
        differ in how music begins and ends.
    """

    f_min: float = 55.0
    f_max: float = 2000.0
    num_parts: int = 4


def chromagram(waveform_BT: jax.Array, spectrum: MelConfig, config: ChromagramConfig) -> jax.Array:
    """How much each pitch class sounds beside the others: f32 [B, num_parts · 12], C first.

    The octaves of a frame's spectrum are folded into one (Fujishima, ICMC 1999) and its floor and
    loudness taken away, so that frames count alike but for those that are all but silent. The
    twelve numbers of a part have mean 0 and deviation 1, as where keys are told by correlation
    (Krumhansl 1990); those of silence are all but 0.

    Args:
      waveform_BT: f32, with `num_parts` frames or more.
      spectrum: of whose magnitudes it is made.
      config: sizes.
    """
    num_fft, sample_rate = spectrum.num_fft, spectrum.sample_rate
    filters = chroma_filters(num_fft, sample_rate, config.f_min, config.f_max)
    chroma_BNC = magnitude(waveform_BT, spectrum) @ filters
    chroma_BNC -= chroma_BNC.min(axis=-1, keepdims=True)
    loudness_BN1 = jnp.sqrt(jnp.sum(chroma_BNC**2, axis=-1, keepdims=True))
    quiet_B11 = 0.1 * loudness_BN1.mean(axis=1, keepdims=True)
    alike_BNC = chroma_BNC / (loudness_BN1 + quiet_B11 + 0.1)
    parts = jnp.array_split(alike_BNC, config.num_parts, axis=1)
    chroma_BPC = jnp.stack([part_BNC.mean(axis=1) for part_BNC in parts], axis=1)
    chroma_BPC -= chroma_BPC.mean(axis=-1, keepdims=True)
    deviation_BP1 = jnp.sqrt(jnp.mean(chroma_BPC**2, axis=-1, keepdims=True))
    return (chroma_BPC / (deviation_BP1 + 1e-3)).reshape(len(chroma_BPC), -1)


def chroma_filters(num_fft: int, sample_rate: int, f_min: float, f_max: float) -> np.ndarray:
    """Triangles of height one and a semitone to each side, around each pitch class of A 440.

    Returns:
      f32 [num_fft // 2 + 1, 12], 0 outside `f_min` to `f_max` Hz.
    """
    frequency = np.arange(num_fft // 2 + 1)[:, None] * (sample_rate / num_fft)
    pitch = 69.0 + 12.0 * np.log2(np.maximum(frequency, 1.0) / 440.0)
    away = np.abs((pitch - np.arange(12) + 6.0) % 12.0 - 6.0)
    heard = (f_min <= frequency) & (frequency < f_max)
    return (np.maximum(0.0, 1.0 - away) * heard).astype(np.float32)


def resample(samples: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Band-limited resampling along the first axis, f32.

    soxr's default quality, "HQ", is exact to 20 bits, beyond what most files hold.
    """
    import soxr

    if from_rate == to_rate:
        return samples.astype(np.float32)
    return soxr.resample(samples, from_rate, to_rate).astype(np.float32)


@contextlib.contextmanager
def _reading(path: str | os.PathLike) -> Iterator[None]:
    """Says in words what is wrong with a file that can't be read as audio."""
    import soundfile

    try:
        size = os.path.getsize(path)
        if size:
            yield
    # TypeError: libsndfile guesses headerless sound from some names. ValueError: no file could have
    # such a name.
    except (OSError, TypeError, ValueError, soundfile.LibsndfileError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot read {path} as audio ({why}): give a wav, flac, ogg or mp3 file"
        ) from error
    if not size:
        raise UserError(f"{path} is empty (0 bytes): give a wav, flac, ogg or mp3 file")


def decode_mono(file: "soundfile.SoundFile", enough: float = math.inf) -> np.ndarray:
    """The mean of the channels of an open file, f32 [T], as far as it can be decoded.

    Block by block: what a header says of its length may be untrue, and more than any memory holds.

    Args:
      file: to read.
      enough: samples a channel, after which the rest need not be decoded.
    """
    blocks, left = [np.zeros(0, np.float32)], enough
    # Channel by channel: NumPy's mean along a short last axis takes longer than the decoding.
    while left > 0 and len(block_TC := file.read(_BLOCK, dtype="float32", always_2d=True)):
        blocks.append(functools.reduce(np.add, block_TC.T) / np.float32(file.channels))
        left -= len(block_TC)
    return np.concatenate(blocks)


def read_audio(
    path: str | os.PathLike, sample_rate: int, max_seconds: float = math.inf
) -> np.ndarray:
    """Reads a file as mono f32 [T] at the given rate.

    Args:
      path: of the file.
      sample_rate: Hz.
      max_seconds: of its beginning, what is read; all by default.

    Raises:
      UserError: the file is missing, empty, or no audio that libsndfile can read.
    """
    import soundfile

    # Bytes, here and below: names of files need not be Unicode.
    with _reading(path), soundfile.SoundFile(os.fsencode(path)) as file:
        rate = file.samplerate
        mono_T = decode_mono(file, (max_seconds + 1) * rate)  # filters look ahead a little
    samples_T = resample(mono_T, rate, sample_rate)
    return samples_T[: int(min(len(samples_T), max_seconds * sample_rate + 0.5))]


def read_music(
    path: str | os.PathLike,
    sample_rate: int,
    min_seconds: float,
    max_seconds: float = math.inf,
) -> np.ndarray:
    """`read_audio` of what shall be gone on from: so long at least, and not silent.

    Args:
      path: of the file.
      sample_rate: Hz.
      min_seconds: that it must last.
      max_seconds: see `read_audio`.

    Raises:
      UserError: the file can't be read, is too short, silent, or has samples that are no numbers.
    """
    samples = read_audio(path, sample_rate, max_seconds)
    if len(samples) < int(min_seconds * sample_rate + 0.5):
        seconds = len(samples) / sample_rate
        raise UserError(f"{path} lasts {seconds:.2f} s: give {min_seconds:g} s of music or more")
    if not np.isfinite(samples).all():
        raise UserError(f"{path} has samples that are no numbers (NaN or infinite): export it anew")
    if np.abs(samples).max(initial=0.0) < SILENCE:
        raise UserError(f"{path} is silent: give a file with music")
    return samples


def read_facts(path: str | os.PathLike) -> dict[str, Any]:
    """What kind of sound is in a file: "format", "sample_rate" in Hz, "channels", "seconds".

    Raises:
      UserError: as `read_audio`.
    """
    import soundfile

    with _reading(path):
        info = soundfile.info(os.fsencode(path))
    return {
        "format": info.format,
        "sample_rate": info.samplerate,
        "channels": info.channels,
        "seconds": info.frames / info.samplerate,
    }


def _chunk(name: bytes, data: bytes) -> bytes:
    """A part of a RIFF file; the next one starts at an even byte."""
    return name + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)


def _chunks(file: BinaryIO, end: int) -> Iterator[tuple[bytes, int]]:
    """The names and sizes of the parts up to a byte; the file stands at the start of their data."""
    while file.tell() + 8 <= end:
        name, size = struct.unpack("<4sI", file.read(8))
        start = file.tell()
        yield name, size
        file.seek(start + size + size % 2)


def wav_bytes(
    samples: np.ndarray, sample_rate: int, provenance: Mapping[str, Any] | None = None
) -> bytes:
    """The bytes of a mono 16-bit PCM WAV file; samples outside [-1, 1] are clipped.

    Args:
      samples: f32 [T].
      sample_rate: in Hz.
      provenance: what made the sound, JSON-ready: prompt, seed, model …. It is the comment of the
        file (RIFF chunk LIST, type INFO, entry ICMT), in JSON and UTF-8, with "generated": true
        before it; programs that don't know it skip it, others show it.
    """
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(samples, -1, 1), sample_rate, format="RAW", subtype="PCM_16")
    pcm, mono, width = 1, 1, 2
    form = struct.pack("<HHIIHH", pcm, mono, sample_rate, sample_rate * width, width, 8 * width)
    parts = [b"WAVE", _chunk(b"fmt ", form)]
    if provenance is not None:
        comment = json.dumps({"generated": True, **provenance}, ensure_ascii=False)
        parts.append(_chunk(b"LIST", b"INFO" + _chunk(b"ICMT", comment.encode() + b"\0")))
    parts.append(_chunk(b"data", buffer.getvalue()))
    return _chunk(b"RIFF", b"".join(parts))


def write_wav(
    path: str | os.PathLike, samples: np.ndarray, sample_rate: int,
    provenance: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Writes `wav_bytes`: beside its place first, then renamed, so never half a file."""
    path = pathlib.Path(path)
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(wav_bytes(samples, sample_rate, provenance))
        os.chmod(beside, 0o644)
        os.replace(beside, path)
    except BaseException:
        os.unlink(beside)
        raise


def read_provenance(path: str | os.PathLike) -> dict[str, Any] | None:
    """What `wav_bytes` was told of a file; None where a file says nothing of the kind.

    Other formats are asked for their comment, which converters take along.

    Raises:
      UserError: as `read_audio`.
    """
    import soundfile

    with _reading(path), soundfile.SoundFile(os.fsencode(path)) as sound:
        # Of a long comment in a WAV, libsndfile would say nothing.
        comment = _wav_comment(path) if sound.format.startswith("WAV") else sound.comment
    try:
        provenance = json.loads(comment)
    except (ValueError, RecursionError):
        return None
    is_ours = isinstance(provenance, dict) and "generated" in provenance
    return provenance if is_ours else None


def _wav_comment(path: str | os.PathLike) -> str:
    """The text of a WAV's INFO entry ICMT; empty if there is none."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(12)
        for name, length in _chunks(file, size):
            if name != b"LIST" or file.read(4) != b"INFO":
                continue
            for entry, entry_length in _chunks(file, min(size, file.tell() + length - 4)):
                if entry == b"ICMT":
                    return file.read(entry_length).rstrip(b"\0").decode(errors="replace")
    return ""


@dataclasses.dataclass(frozen=True, eq=False)
class Waveform:
    """Mono sound.

    Attributes:
      samples: f32 [T] in [-1, 1].
      sample_rate: in Hz.
      provenance: what made it, JSON-ready; files that are saved tell it. None of other sound.
    """

    samples: np.ndarray
    sample_rate: int
    provenance: Mapping[str, Any] | None = None

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.sample_rate

    def save(self, path: str | os.PathLike) -> None:
        """Writes a 16-bit PCM WAV; for what it tells of its making see `wav_bytes`."""
        write_wav(path, self.samples, self.sample_rate, self.provenance)

    def _repr_html_(self) -> str:
        data = base64.b64encode(wav_bytes(self.samples, self.sample_rate)).decode()
        return f'<audio controls src="data:audio/wav;base64,{data}"></audio>'
