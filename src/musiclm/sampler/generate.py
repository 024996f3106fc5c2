"""From text to sound: MuLan's codes of a text through the three stages and the codec.

Clips longer than a stage's window are made window by window (MusicLM, section 4.4, and for the
acoustic stages the continuation of AudioLM):

  semantic   each further window is prompted with the last half of the one before
  coarse     windows overlap by at least `COARSE_OVERLAP`, and each is prompted with what the one
             before left in the overlap; they are spread evenly, so that none is longer than needed
  fine       windows stand side by side and are made together, as rows of a batch

Shapes: B clips, R rows of a batch, T frames, Q levels.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from musiclm.sampler.logits import Sampling
from musiclm.sampler.stages import Stage
from musiclm.token_spec import TokenSpec

# The fraction of a coarse window that the next one is prompted with, at least: 3 s of 10 s.
COARSE_OVERLAP = 0.3

Progress = Callable[[str, int, int], None]


class TextTokenizer(Protocol):
    """What generation asks of MuLan's tokenizer."""

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Codes of each text, int32 [B, Q]."""


class AcousticDecoder(Protocol):
    """What generation asks of the codec's tokenizer."""

    def decode(self, codes_BTQ: np.ndarray) -> np.ndarray:
        """The waveforms of codes, f32 [B, T · hop]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChainSampling:
    """How each stage draws its tokens; the temperatures are the paper's (section 4.1)."""

    semantic: Sampling = Sampling(temperature=1.0)
    coarse: Sampling = Sampling(temperature=0.95)
    fine: Sampling = Sampling(temperature=0.4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chain:
    """Everything between a text and a waveform.

    Attributes:
      token_spec: rates, levels and windows.
      mulan: makes the condition of a text.
      acoustic: makes sound of acoustic codes.
      semantic, coarse, fine: the stages.
      max_rows: rows that a stage decodes at once, a bound on memory; more go in several batches.
    """

    token_spec: TokenSpec
    mulan: TextTokenizer
    acoustic: AcousticDecoder
    semantic: Stage
    coarse: Stage
    fine: Stage
    max_rows: int = 16

    def __post_init__(self):
        if self.max_rows < 1:
            raise ValueError(f"Chain.max_rows is {self.max_rows}: give 1 or more")

    def generate(
        self,
        prompts: Sequence[str],
        *,
        seconds: float,
        seeds: Sequence[int],
        sampling: ChainSampling | None = None,
        progress: Progress | None = None,
    ) -> list[np.ndarray]:
        """Makes a clip of each text.

        Args:
          prompts: texts.
          seconds: length of every clip.
          seeds: one a text, 0 up to below 2³². A clip depends on its text and its seed, not on the
            other clips (but their number may change how matrix products round).
          sampling: temperatures and the like; the paper's by default.
          progress: called with the stage, the tokens done and the tokens in all, a few times a
            second or less.

        Returns:
          One f32 waveform a text, [round(seconds · sample rate)].
        """
        if not prompts or len(prompts) != len(seeds):
            raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds: give one seed a text")
        codes = self.generate_codes(
            np.asarray(self.mulan.encode_text(prompts)),
            seconds=seconds,
            seeds=seeds,
            sampling=sampling,
            progress=progress,
        )
        length = round(seconds * self.token_spec.sample_rate)
        return [np.asarray(self.acoustic.decode(clip[None]))[0, :length] for clip in codes]

    def generate_codes(
        self,
        mulan_BQ: np.ndarray,
        *,
        seconds: float,
        seeds: Sequence[int],
        sampling: ChainSampling | None = None,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """Acoustic codes for MuLan's, int32 [B, T, Q] of at least `seconds`; see `generate`."""
        if not (math.isfinite(seconds) and seconds > 0):
            raise ValueError(f"seconds is {seconds}: give a positive number")
        spec, sampling = self.token_spec, sampling or ChainSampling()
        ratio = spec.acoustic_frame_rate // spec.semantic_frame_rate
        fine_window = self.fine.layout.target.num_frames
        coarse_window = self.coarse.layout.target.num_frames
        # A whole number of semantic frames, and at least one window for the fine stage to see.
        num_frames = max(math.ceil(seconds * spec.acoustic_frame_rate), fine_window)
        num_frames = math.ceil(num_frames / ratio) * ratio
        # The coarse stage sees a whole window of semantic codes, even for a shorter clip.
        num_semantic = max(num_frames, coarse_window) // ratio
        keys_B = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
        semantic_keys_B, coarse_keys_B, fine_keys_B = (_fold(keys_B, i) for i in range(3))

        def semantic(mulan_BQ, keys_B, count):
            windows = half_overlapping(num_semantic, self.semantic.layout.target.num_frames)
            condition = {"mulan": mulan_BQ}
            return _stitch(
                self.semantic, windows, lambda _: condition, keys_B, sampling.semantic, count
            )

        def coarse(mulan_BQ, semantic_BT, keys_B, count):
            windows = spread(
                num_frames, coarse_window, round(COARSE_OVERLAP * coarse_window), ratio
            )

            def condition(window):
                first = window.start // ratio
                codes_BT = semantic_BT[:, first : first + coarse_window // ratio]
                return {"mulan": mulan_BQ, "semantic": codes_BT}

            return _stitch(self.coarse, windows, condition, keys_B, sampling.coarse, count)

        def fine(coarse_RTQ, keys_R, count):
            condition = {"acoustic": coarse_RTQ}
            return self.fine.generate(condition, keys_R, sampling.fine, progress=count)

        semantic_BT = self._by_groups(
            "semantic", semantic, (mulan_BQ, semantic_keys_B), num_semantic, progress
        )[:, :, 0]
        coarse_tokens = num_frames * self.coarse.layout.target_levels
        coarse_BTQ = self._by_groups(
            "coarse", coarse, (mulan_BQ, semantic_BT, coarse_keys_B), coarse_tokens, progress
        )
        starts = [
            min(start, num_frames - fine_window) for start in range(0, num_frames, fine_window)
        ]
        windows_RTQ = np.concatenate([coarse_BTQ[:, s : s + fine_window] for s in starts])
        keys_R = jnp.concatenate([_fold(fine_keys_B, i) for i in range(len(starts))])
        fine_RTQ = self._by_groups(
            "fine", fine, (windows_RTQ, keys_R), self.fine.layout.target_length, progress
        )
        fine_BTQ = np.empty((*coarse_BTQ.shape[:2], spec.num_fine_codebooks), np.int32)
        for start, codes_BTQ in zip(starts, np.split(fine_RTQ, len(starts)), strict=True):
            fine_BTQ[:, start : start + fine_window] = codes_BTQ
        return np.concatenate([coarse_BTQ, fine_BTQ], axis=2)

    def _by_groups(
        self,
        stage: str,
        make: Callable[..., np.ndarray],
        arrays: Sequence[Any],
        row_tokens: int,
        progress: Progress | None,
    ) -> np.ndarray:
        """Calls `make` on groups of at most `max_rows` rows of the arrays and joins the results.

        All groups have one size, so that they share their compilation; the last row fills them up.
        """
        num_rows = len(arrays[0])
        num_groups = math.ceil(num_rows / self.max_rows)
        size = math.ceil(num_rows / num_groups)
        rows = np.minimum(np.arange(num_groups * size), num_rows - 1).reshape(num_groups, size)
        done, total = 0, num_groups * row_tokens

        def count(num_tokens: int) -> None:
            nonlocal done
            done += num_tokens
            if progress:
                progress(stage, done, total)

        parts = [make(*(array[group] for array in arrays), count) for group in rows]
        return np.concatenate(parts)[:num_rows]


@dataclasses.dataclass(frozen=True)
class Window:
    """Frames [start, stop) of a clip, made in one go after what is there of them already."""

    start: int
    stop: int


def half_overlapping(num_frames: int, window: int) -> list[Window]:
    """Windows that each start at the middle of the one before; the last may be cut short."""
    windows, start = [Window(0, min(num_frames, window))], 0
    while windows[-1].stop < num_frames:
        start += window - window // 2
        windows.append(Window(start, min(num_frames, start + window)))
    return windows


def spread(num_frames: int, window: int, overlap: int, multiple: int) -> list[Window]:
    """As few whole windows as cover the frames with at least so much overlap, evenly.

    They start at multiples of `multiple`, which must divide `num_frames` and `window`. A clip
    shorter than a window has one, cut short.
    """
    if num_frames <= window:
        return [Window(0, num_frames)]
    hops = math.ceil((num_frames - window) / ((window - overlap) // multiple * multiple))
    starts = [i * ((num_frames - window) // multiple) // hops * multiple for i in range(hops + 1)]
    return [Window(start, start + window) for start in starts]


def _stitch(
    stage: Stage,
    windows: Sequence[Window],
    condition: Callable[[Window], Mapping[str, np.ndarray]],
    keys_B: jax.Array,
    sampling: Sampling,
    count: Callable[[int], None],
) -> np.ndarray:
    """Makes windows one after the other, each prompted with what it shares with those before."""
    codes_BTQ = np.zeros((len(keys_B), 0, stage.layout.target_levels), np.int32)
    for index, window in enumerate(windows):
        prompt_BTQ = codes_BTQ[:, window.start :]
        made_BTQ = stage.generate(
            condition(window),
            _fold(keys_B, index),
            sampling,
            num_frames=window.stop - window.start,
            prompt_BTQ=prompt_BTQ,
            progress=count,
        )
        codes_BTQ = np.concatenate([codes_BTQ, made_BTQ[:, prompt_BTQ.shape[1] :]], axis=1)
    return codes_BTQ


def _fold(keys_B: jax.Array, number: int) -> jax.Array:
    return jax.vmap(jax.random.fold_in, (0, None))(keys_B, number)
