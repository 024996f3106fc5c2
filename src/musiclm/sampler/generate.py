"""From text to sound: MuLan's codes of a text through the three stages and the codec.

Clips longer than a stage's window are made window by window (MusicLM, section 4.4, and for the
acoustic stages the continuation of AudioLM):

  semantic   each further window is prompted with the last half of the one before, and may be given
             another text (story mode)
  coarse     windows overlap by `COARSE_OVERLAP`, and each is prompted with what the one before
             left in the overlap; the text is that of the semantic step in its middle
  fine       windows stand side by side and are made together, as rows of a batch

Semantic and coarse codes of a clip are the beginning of those of a longer one; so are the fine
codes of every window but the last, which ends where the clip does.

Shapes: W semantic steps, T frames, Q levels.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np

from musiclm.sampler import batches, windows
from musiclm.sampler.logits import Sampling
from musiclm.sampler.stages import Stage
from musiclm.token_spec import TokenSpec
from musiclm.tokens.layout import STAGES

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

    def decode_stream(self, pieces: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The same of codes that come in pieces."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChainSampling:
    """How each stage draws its tokens; the temperatures are the paper's (section 4.1)."""

    semantic: Sampling = Sampling(temperature=1.0)
    coarse: Sampling = Sampling(temperature=0.95)
    fine: Sampling = Sampling(temperature=0.4)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Continuation:
    """Tokens that a clip begins with, of the same frames.

    Attributes:
      semantic_T: int32.
      acoustic_TQ: int32, of all levels.
    """

    semantic_T: np.ndarray
    acoustic_TQ: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """Everything that decides how a clip sounds.

    Attributes:
      prompt: the text.
      seconds: its length, with what is continued.
      seed: 32 bits.
      sampling: how tokens are drawn.
      story: (second, text) in the order of time: texts that take over from `prompt`. They do so at
        the semantic step that is nearest, every 15 s at the paper's size.
      continuation: what it begins with.
    """

    prompt: str
    seconds: float
    seed: int
    sampling: ChainSampling = ChainSampling()
    story: tuple[tuple[float, str], ...] = ()
    continuation: Continuation | None = None

    def __post_init__(self):
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise ValueError(f"Clip.seconds is {self.seconds}: give a positive number")
        starts = [start for start, _ in self.story]
        if any(not one < two for one, two in itertools.pairwise([0.0, *starts])):
            raise ValueError(
                f"Clip.story starts texts at {starts} s: give seconds above 0 in ascending order"
            )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """A clip in frames and codes.

    Attributes:
      clip: what it is of.
      num_frames: acoustic, at least one window of the fine stage.
      num_semantic: semantic frames, as far as the last coarse window looks.
      texts: by semantic step.
      mulan_WQ: their codes, int32.
      semantic_T, acoustic_TQ: those that are given, int32; often none.
    """

    clip: Clip
    num_frames: int
    num_semantic: int
    texts: tuple[str, ...]
    mulan_WQ: np.ndarray
    semantic_T: np.ndarray
    acoustic_TQ: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chain:
    """Everything between a text and a waveform.

    Attributes:
      token_spec: rates, levels and windows.
      mulan: makes the condition of a text.
      acoustic: makes sound of acoustic codes.
      semantic, coarse, fine: the stages.
      max_rows: rows that a stage decodes at once on a device, a bound on memory; more go in several
        batches.
      fixed_rows: fills every batch up to `max_rows`. Then what comes of a clip depends on the clip
        and the chain alone, and not on how many are made with it; without, on these but for
        rounding.
    """

    token_spec: TokenSpec
    mulan: TextTokenizer
    acoustic: AcousticDecoder
    semantic: Stage
    coarse: Stage
    fine: Stage
    max_rows: int = 16
    fixed_rows: bool = False

    def generate(
        self, plans: Sequence[Plan], progress: Progress | None = None
    ) -> Iterator[np.ndarray]:
        """Makes music of plans; see `compose` and `decode`.

        Yields:
          One f32 waveform a clip, [round(seconds · sample rate)].
        """
        for plan, codes_TQ in zip(plans, self.compose(plans, progress), strict=True):
            yield self.decode(plan, codes_TQ)

    def plan(self, clip: Clip) -> Plan:
        """Looks a clip through and encodes its texts.

        Raises:
          UserError: a text is longer than MuLan's tower takes.
          ValueError: the clip is not longer than what it continues.
        """
        # A whole number of semantic frames, and at least one window for the fine stage to see.
        num_frames = math.ceil(clip.seconds * self.token_spec.acoustic_frame_rate)
        num_frames = max(num_frames, self._fine_window)
        num_frames = math.ceil(num_frames / self._ratio) * self._ratio
        # The coarse stage sees whole windows of semantic codes, even beyond the end of a clip.
        last = windows.overlapping(num_frames, self._coarse_window, self._coarse_overlap)[-1]
        num_semantic = (last.start + self._coarse_window) // self._ratio
        texts = tuple(
            self._text_at(clip, step) for step in range(1 + self.steps.at(num_semantic - 1))
        )
        # One at a time, so that its neighbours can't touch a text's codes, not even by rounding.
        codes = {text: self.mulan.encode_text([text])[0] for text in dict.fromkeys(texts)}
        given = clip.continuation or Continuation(
            semantic_T=np.zeros(0, np.int32),
            acoustic_TQ=np.zeros((0, self.token_spec.num_acoustic_codebooks), np.int32),
        )
        if len(given.acoustic_TQ) != self._ratio * len(given.semantic_T):
            raise ValueError(
                f"a continuation has {len(given.semantic_T)} semantic and {len(given.acoustic_TQ)} "
                f"acoustic frames: give {self._ratio} acoustic frames for each semantic one"
            )
        if len(given.acoustic_TQ) >= num_frames:
            raise ValueError(
                f"a continuation has {len(given.acoustic_TQ)} acoustic frames, and the clip "
                f"{num_frames}: ask for more seconds"
            )
        return Plan(
            clip=clip,
            num_frames=num_frames,
            num_semantic=num_semantic,
            texts=texts,
            mulan_WQ=np.stack([codes[text] for text in texts]),
            semantic_T=given.semantic_T,
            acoustic_TQ=given.acoustic_TQ,
        )

    def compose(self, plans: Sequence[Plan], progress: Progress | None = None) -> list[np.ndarray]:
        """Acoustic codes of each clip, int32 [num_frames, Q].

        Args:
          plans: from `plan`.
          progress: called with the stage's name, the tokens done and the tokens in all, now and
            then.
        """
        semantic = [self.semantic_part(plan) for plan in plans]
        self.run("semantic", semantic, progress)
        coarse = [self.coarse_part(*pair) for pair in zip(plans, semantic, strict=True)]
        self.run("coarse", coarse, progress)
        fine = [self.fine_parts(*pair) for pair in zip(plans, coarse, strict=True)]
        self.run("fine", list(itertools.chain.from_iterable(fine)), progress)
        return [
            np.concatenate(
                [part.codes_TQ, self.join_fine(zip(self.fine_windows(plan), parts, strict=True))],
                axis=1,
            )
            for plan, part, parts in zip(plans, coarse, fine, strict=True)
        ]

    def decode(self, plan: Plan, codes_TQ: np.ndarray) -> np.ndarray:
        """The waveform of a clip's acoustic codes, f32 [round(seconds · sample rate)]."""
        length = round(plan.clip.seconds * self.token_spec.sample_rate)
        return np.asarray(self.acoustic.decode(codes_TQ[None]))[0, :length]

    def compile(self, plans: Sequence[Plan], rows: int) -> None:
        """Compiles ahead what `compose` needs for such clips, with so many rows a device."""
        for name in STAGES:
            stage = getattr(self, name)
            for kind in {kind for plan in plans for kind in self._kinds(name, plan)}:
                stage.compile(rows * stage.num_devices, *kind)

    def _kinds(self, name: str, plan: Plan) -> set[batches.Kind]:
        semantic = self.semantic_part(plan)
        coarse = self.coarse_part(plan, semantic)
        made = {"semantic": [semantic], "coarse": [coarse], "fine": self.fine_parts(plan, coarse)}
        return {part.kind_of(window) for part in made[name] for window in part.windows}

    def run(
        self, name: str, parts: Sequence[batches.Part], progress: Progress | None = None
    ) -> None:
        """Makes all windows of some clips in a stage; see `batches.run`."""
        stage = getattr(self, name)
        if self.fixed_rows:
            rows = self.max_rows * stage.num_devices
        else:
            rows = batches.rows_for(len(parts), stage.num_devices, self.max_rows)
        batches.run(
            stage,
            parts,
            stream=STAGES.index(name),
            rows=rows,
            progress=functools.partial(progress, name) if progress else None,
        )

    def semantic_part(self, plan: Plan) -> batches.Part:
        """A clip in the semantic stage; of `mulan_WQ` each window looks at its own step alone."""
        return batches.Part(
            seed=plan.clip.seed,
            sampling=plan.clip.sampling.semantic,
            windows=self.steps.windows(plan.num_semantic, plan.texts),
            condition=lambda window: {"mulan": plan.mulan_WQ[window.index]},
            codes_TQ=plan.semantic_T[:, None],
        )

    def coarse_part(self, plan: Plan, semantic: batches.Part) -> batches.Part:
        """A clip in the coarse stage, which looks at what the semantic one has made by then."""

        def condition(window: windows.Window) -> dict[str, np.ndarray]:
            first, last = window.start // self._ratio, self.semantic_frames(window)
            step = self.steps.at((first + last) // 2)
            return {"mulan": plan.mulan_WQ[step], "semantic": semantic.codes_TQ[first:last, 0]}

        return batches.Part(
            seed=plan.clip.seed,
            sampling=plan.clip.sampling.coarse,
            windows=windows.overlapping(plan.num_frames, self._coarse_window, self._coarse_overlap),
            condition=condition,
            codes_TQ=plan.acoustic_TQ[:, : self.token_spec.num_coarse_codebooks],
        )

    def semantic_frames(self, window: windows.Window) -> int:
        """How many frames the semantic stage must have made for a window of the coarse one."""
        return (window.start + self._coarse_window) // self._ratio

    def fine_windows(self, plan: Plan) -> list[windows.Window]:
        """Where the windows of `fine_parts` lie."""
        return windows.side_by_side(plan.num_frames, self._fine_window)

    def fine_parts(self, plan: Plan, coarse: batches.Part) -> list[batches.Part]:
        """A part a window of the fine stage: they need not wait for one another."""
        given_TQ = plan.acoustic_TQ[:, self.token_spec.num_coarse_codebooks :]
        return [
            batches.Part(
                seed=plan.clip.seed,
                sampling=plan.clip.sampling.fine,
                windows=[dataclasses.replace(window, start=0, stop=self._fine_window)],
                condition=lambda _, w=window: {"acoustic": coarse.codes_TQ[w.start : w.stop]},
                codes_TQ=given_TQ[window.start : window.stop],
            )
            for window in self.fine_windows(plan)
        ]

    def join_fine(
        self,
        pairs: Iterable[tuple[windows.Window, batches.Part]],
        fine_TQ: np.ndarray | None = None,
    ) -> np.ndarray:
        """Adds windows to the fine codes so far; where one overlaps what is there, that stays."""
        if fine_TQ is None:
            fine_TQ = np.zeros((0, self.token_spec.num_fine_codebooks), np.int32)
        for window, part in pairs:
            fine_TQ = np.concatenate([fine_TQ, part.codes_TQ[len(fine_TQ) - window.start :]])
        return fine_TQ

    def _text_at(self, clip: Clip, step: int) -> str:
        """The text in force in the middle of a semantic step."""
        seconds = self.steps.middle(step) / self.token_spec.semantic_frame_rate
        return [clip.prompt, *(text for start, text in clip.story if start <= seconds)][-1]

    @property
    def steps(self) -> windows.Steps:
        """Where the semantic stage's condition may change."""
        return windows.Steps(size=self.semantic.layout.target.num_frames)

    @property
    def _ratio(self) -> int:
        """Acoustic frames a semantic frame."""
        return self.token_spec.acoustic_frame_rate // self.token_spec.semantic_frame_rate

    @property
    def _coarse_window(self) -> int:
        return self.coarse.layout.target.num_frames

    @property
    def _coarse_overlap(self) -> int:
        """At least `COARSE_OVERLAP`; windows advance by a whole number of semantic frames."""
        size = self._coarse_window
        advance = size - round(COARSE_OVERLAP * size)
        return size - max(1, advance // self._ratio) * self._ratio

    @property
    def _fine_window(self) -> int:
        return self.fine.layout.target.num_frames
