"""How close a codec's reconstruction comes to the original, with some or all of its levels.

Beside it what the codes cost (`bitrate`), and how much of their codebooks they use.

N clips, T samples or frames of codes, F frames, H bins of a spectrum, Q levels, K codes of a level.
"""

import concurrent.futures
import dataclasses
import importlib.util
from collections.abc import Callable, Sequence
from typing import Protocol

import jax.numpy as jnp
import numpy as np
import scipy.special

from musiclm import audio
from musiclm.losses import spectral

_STFT_WINDOWS = (512, 1024, 2048)  # samples; hop a quarter of the window
_VISQOL_RATE = 48_000  # Hz, of its audio mode
_MOST_AT_ONCE = 4  # batches that are decoded, each in a thread


class Codec(Protocol):
    """What is asked of a codec; `tokens.tokenizers.AcousticTokenizer` is one."""

    @property
    def sample_rate(self) -> int:
        """Hz."""

    @property
    def frame_rate(self) -> int:
        """Frames a second."""

    @property
    def num_codebooks(self) -> int:
        """Levels."""

    @property
    def codebook_size(self) -> int:
        """Codes a level."""

    def encode(self, waveform_BT: np.ndarray) -> np.ndarray:
        """Codes [B, F, Q]."""

    def decode(self, codes_BTQ: np.ndarray) -> np.ndarray:
        """Waveforms [B, T] of codes of the first one to Q levels."""


@dataclasses.dataclass(frozen=True)
class Quality:
    """One figure a clip, f32 [N]: see `spectral` for the first two, and `stft_distance`."""

    log_mel_distance_db_N: np.ndarray
    si_sdr_db_N: np.ndarray
    stft_distance_N: np.ndarray


def reconstruct(
    codec: Codec, waveform_NT: np.ndarray, *, num_levels: int | None = None, batch_size: int = 8
) -> np.ndarray:
    """Clips through the codec and back, f32 [N, T].

    Args:
      codec: the codec.
      waveform_NT: f32 at the codec's rate.
      num_levels: how many of its levels the decoder hears; None for all.
      batch_size: clips at a time; the last batch is filled up, so that all have one shape.
    """
    levels = slice(num_levels)
    parts = [
        codec.decode(codec.encode(batch)[..., levels])[:, : waveform_NT.shape[1]]
        for batch in _batches(waveform_NT, batch_size)
    ]
    return np.concatenate(parts)[: len(waveform_NT)]


def measure(
    codec: Codec,
    waveform_NT: np.ndarray,
    *,
    levels: Sequence[int] | None = None,
    batch_size: int = 8,
    progress: Callable[[int], None] | None = None,
) -> dict[int, Quality]:
    """The quality of reconstructions from the first q levels, for each q.

    Args:
      codec: the codec.
      waveform_NT: f32 at the codec's rate.
      levels: the numbers of levels to decode; None for 1 to all.
      batch_size: clips at a time.
      progress: called with the clips done after each batch and number of levels.

    Returns:
      By number of levels.
    """
    levels = list(levels or range(1, codec.num_codebooks + 1))
    parts: dict[int, list[Quality]] = {q: [] for q in levels}

    def quality(batch_BT: np.ndarray, codes_BFQ: np.ndarray, q: int) -> Quality:
        decoded_BT = codec.decode(codes_BFQ[..., :q])[:, : batch_BT.shape[1]]
        return compare(batch_BT, decoded_BT, codec.sample_rate)

    # What takes the time, finding phases, is done on one core.
    with concurrent.futures.ThreadPoolExecutor(_MOST_AT_ONCE) as pool:
        for batch_BT in _batches(waveform_NT, batch_size):
            codes_BFQ = codec.encode(batch_BT)
            jobs = [pool.submit(quality, batch_BT, codes_BFQ, q) for q in levels]
            for q, job in zip(levels, jobs, strict=True):
                parts[q].append(job.result())
                if progress:
                    progress(len(batch_BT))
    return {
        q: Quality(
            *(
                np.concatenate([getattr(part, field.name) for part in parts[q]])[: len(waveform_NT)]
                for field in dataclasses.fields(Quality)
            )
        )
        for q in levels
    }


def compare(target_NT: np.ndarray, waveform_NT: np.ndarray, sample_rate: int) -> Quality:
    """The quality of waveforms beside their originals, of the same shape."""
    return Quality(
        np.asarray(spectral.log_mel_distance_db(target_NT, waveform_NT, sample_rate)),
        np.asarray(spectral.si_sdr_db(target_NT, waveform_NT)),
        stft_distance(target_NT, waveform_NT),
    )


def stft_distance(target_NT: np.ndarray, waveform_NT: np.ndarray) -> np.ndarray:
    """Multi-resolution STFT distance, f32 [N], 0 or more (a loss in arXiv 1910.11480).

    The mean over windows of 512, 1024 and 2048 samples (Hann, hop a quarter) of

        ‖S − Ŝ‖ / ‖S‖ + mean |ln S − ln Ŝ|

    with S and Ŝ the magnitudes of original and reconstruction, the norms over all frames and bins
    of a clip: spectral convergence, which listens to what is loud, and log magnitude, to which
    every bin is the same. The bins are linear, so treble counts for more than in the log-mel
    distance.

    Magnitudes are raised to a floor 80 dB below the greatest of the original, as there, and to
    120 dB below a full-scale sine, so that silence has a logarithm. But an original that is silent
    all through has no scale: leave such clips out.

    Args:
      target_NT: the originals.
      waveform_NT: the reconstructions, of the same shape, 2048 samples or more.
    """
    distance_N = 0.0
    for window in _STFT_WINDOWS:
        target_NFH, made_NFH = (
            jnp.abs(audio.stft(waveform, window, window // 4)) * (4 / window)
            for waveform in (target_NT, waveform_NT)
        )
        floor_N11 = jnp.maximum(1e-4 * target_NFH.max(axis=(1, 2), keepdims=True), 1e-6)
        target_NFH, made_NFH = (jnp.maximum(x, floor_N11) for x in (target_NFH, made_NFH))
        gap_N = jnp.linalg.norm(target_NFH - made_NFH, axis=(1, 2))
        convergence_N = gap_N / jnp.linalg.norm(target_NFH, axis=(1, 2))
        distance_N += convergence_N + jnp.abs(jnp.log(target_NFH / made_NFH)).mean(axis=(1, 2))
    return np.asarray(distance_N / len(_STFT_WINDOWS))


def has_visqol() -> bool:
    """Whether `visqol` can be asked: its package is there."""
    return importlib.util.find_spec("visqol") is not None


def visqol(
    target_NT: np.ndarray,
    waveform_NT: np.ndarray,
    sample_rate: int,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Mean opinion scores that ViSQOL predicts (v3, arXiv 2004.09584), f64 [N], 1 to about 4.7.

    Its audio mode. It takes seconds a clip, and the package visqol-python, which no extra brings:
    it is built by a C compiler.

    Args:
      target_NT: the originals.
      waveform_NT: the reconstructions, of the same shape.
      sample_rate: Hz.
      progress: called with 1 after each clip.
    """
    from visqol import VisqolApi

    listener = VisqolApi()
    listener.create(mode="audio")
    scores = []
    for pair in zip(target_NT, waveform_NT, strict=True):
        heard = (audio.resample(one_T, sample_rate, _VISQOL_RATE).astype(float) for one_T in pair)
        scores.append(listener.measure_from_arrays(*heard, _VISQOL_RATE).moslqo)
        if progress:
            progress(1)
    return np.array(scores)


@dataclasses.dataclass(frozen=True)
class Usage:
    """How much of its codebook each level uses, f64 [Q].

    Attributes:
      perplexity_Q: e to the power of the entropy of the codes: as many equally frequent codes
        would say as much. From 1, a single code, to the size of the codebook.
      used_Q: share of the codebook that occurs.
    """

    perplexity_Q: np.ndarray
    used_Q: np.ndarray


def codebook_usage(codes_NTQ: np.ndarray, codebook_size: int) -> Usage:
    """Perplexity and used share of each level's codebook, over all clips and frames.

    Both are limited by the number of frames: give many times the size of the codebook.

    Raises:
      ValueError: there is no code, or one is outside the codebook.
    """
    codes_NTQ = np.asarray(codes_NTQ)
    if codes_NTQ.ndim != 3 or not codes_NTQ.size:
        raise ValueError(f"codes of shape {codes_NTQ.shape}: give [N, T, Q]")
    if codes_NTQ.min() < 0 or codes_NTQ.max() >= codebook_size:
        raise ValueError(
            f"codes from {codes_NTQ.min()} to {codes_NTQ.max()} in a codebook of {codebook_size}: "
            "give the size that the codec has"
        )
    count_QK = np.stack(
        [
            np.bincount(codes.ravel(), minlength=codebook_size)
            for codes in np.moveaxis(codes_NTQ, 2, 0)
        ]
    )
    share_QK = count_QK / count_QK.sum(axis=1, keepdims=True)
    perplexity_Q = np.exp(scipy.special.entr(share_QK).sum(axis=1))
    return Usage(perplexity_Q, (count_QK > 0).mean(axis=1))


def bitrate(frame_rate: float, codebook_size: int, levels: int) -> float:
    """Bits a second that codes take, each written with log₂ of its codebook's size.

    Args:
      frame_rate: frames a second.
      codebook_size: codes a level.
      levels: codes a frame.

    Raises:
      ValueError: one of them is not above 0.
    """
    if min(frame_rate, codebook_size, levels) <= 0:
        raise ValueError(
            f"frame_rate {frame_rate}, codebook_size {codebook_size} and levels {levels}: give "
            "numbers above 0"
        )
    return float(frame_rate * levels * np.log2(codebook_size))


def _batches(waveform_NT: np.ndarray, batch_size: int):
    """Batches of one size; the last clip fills up the last of them."""
    size = min(batch_size, len(waveform_NT))
    for start in range(0, len(waveform_NT), size):
        yield waveform_NT[np.minimum(np.arange(start, start + size), len(waveform_NT) - 1)]
