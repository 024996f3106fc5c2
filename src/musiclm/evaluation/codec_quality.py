"""How close a codec's reconstruction comes to the original, with some or all of its levels.

Beside it what the codes cost (`bitrate`), and how much of their codebooks they use.

N clips, B batch, T samples or frames of codes, F frames, H bins of a spectrum, Q levels, K codes
of a level.
"""

import dataclasses
import functools
import importlib.util
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from musiclm import audio
from musiclm.evaluation import threads
from musiclm.losses import spectral

_STFT_WINDOWS = (512, 1024, 2048)  # samples; hop a quarter of the window
_VISQOL_RATE = 48_000  # Hz, of its audio mode


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


def encode(codec: Codec, waveform_NT: np.ndarray) -> np.ndarray:
    """Codes [N, F, Q] of clips f32 [N, T], one after the other: all are of one shape."""
    return np.concatenate([codec.encode(clip_T[None]) for clip_T in waveform_NT])


def decode(
    codec: Codec,
    codes_NFQ: np.ndarray,
    num_samples: int,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Clips f32 [N, T] of their codes.

    On a CPU what takes the time, finding phases, is done on one core, and quicker if a clip is
    alone: as many are decoded at once as there are cores.

    Args:
      codec: the codec.
      codes_NFQ: of the first one to Q levels.
      num_samples: T; what the last frame has beyond it is cut off.
      progress: called with 1 after each clip.
    """
    clips = list(threads.each(codec.decode, codes_NFQ[:, None], progress))
    return np.concatenate(clips)[:, :num_samples]


def compare(target_NT: np.ndarray, waveform_NT: np.ndarray, sample_rate: int) -> Quality:
    """The quality of waveforms beside their originals, of the same shape."""
    pairs = zip(target_NT[:, None], waveform_NT[:, None], strict=True)
    figures = threads.each(lambda pair: _compare(*pair, sample_rate), pairs)
    return Quality(*(np.concatenate(figure_N1) for figure_N1 in zip(*figures, strict=True)))


@functools.partial(jax.jit, static_argnums=2)
def _compare(target_BT: jax.Array, waveform_BT: jax.Array, sample_rate: int) -> tuple:
    return (
        spectral.log_mel_distance_db(target_BT, waveform_BT, sample_rate),
        spectral.si_sdr_db(target_BT, waveform_BT),
        stft_distance(target_BT, waveform_BT),
    )


def stft_distance(target_NT: jax.Array, waveform_NT: jax.Array) -> jax.Array:
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
    return distance_N / len(_STFT_WINDOWS)


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
