"""How close a codec's reconstruction comes to the original, with some or all of its levels.

N clips, T samples, F frames, Q levels.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from musiclm.losses import spectral


class Codec(Protocol):
    """What is asked of a codec; `tokens.tokenizers.AcousticTokenizer` is one."""

    @property
    def sample_rate(self) -> int:
        """Hz."""

    @property
    def num_codebooks(self) -> int:
        """Levels."""

    def encode(self, waveform_BT: np.ndarray) -> np.ndarray:
        """Codes [B, F, Q]."""

    def decode(self, codes_BTQ: np.ndarray) -> np.ndarray:
        """Waveforms [B, T] of codes of the first one to Q levels."""


@dataclasses.dataclass(frozen=True)
class Quality:
    """One figure a clip, f32 [N]: log-mel distance and scale-invariant SDR, both in dB."""

    log_mel_distance_db_N: np.ndarray
    si_sdr_db_N: np.ndarray


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
    for batch_BT in _batches(waveform_NT, batch_size):
        codes_BFQ = codec.encode(batch_BT)
        for q in levels:
            decoded_BT = codec.decode(codes_BFQ[..., :q])[:, : batch_BT.shape[1]]
            parts[q].append(compare(batch_BT, decoded_BT, codec.sample_rate))
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
    )


def _batches(waveform_NT: np.ndarray, batch_size: int):
    """Batches of one size; the last clip fills up the last of them."""
    size = min(batch_size, len(waveform_NT))
    for start in range(0, len(waveform_NT), size):
        yield waveform_NT[np.minimum(np.arange(start, start + size), len(waveform_NT) - 1)]
