"""From text to sound: MuLan's codes of a text through the stages and the codec.

Where the stages are made for it, the codes of a melody follow those of the text; they hold for the
whole clip, whatever its texts.

The acoustic codes are decoded one after the other, by the coarse and the fine stage, or in parallel
by SoundStorm, which stands for both: each clip says which.

Clips longer than a stage's window are made window by window (MusicLM, section 4.4, and for the
acoustic stages the continuation of AudioLM):

  semantic   each further window is prompted with the last half of the one before, and may be given
             another text (story mode)
  coarse     windows overlap by `COARSE_OVERLAP`, and each is prompted with what the one before
             left in the overlap; the text is that of the semantic step in its middle
  fine       windows stand side by side and are made together, as rows of a batch
  parallel   as coarse, with all levels

Semantic, coarse and parallel codes of a clip are the beginning of those of a longer one; so are the
fine codes of every window but the last, which ends where the clip does.

Shapes: W semantic steps, E embeddings of a melody, T frames, Q levels.
"""

import bisect
import collections
import concurrent.futures
import dataclasses
import functools
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import jax
import numpy as np

from musiclm.errors import UserError
from musiclm.sampler import batches, windows
from musiclm.sampler.logits import Sampling
from musiclm.token_spec import TokenSpec
from musiclm.tokens.layout import LAYOUTS

# How acoustic codes may come of semantic ones, and the stages that this takes.
DECODINGS = {"autoregressive": ("coarse", "fine"), "parallel": ("parallel",)}
# The fraction of a coarse window that the next one is prompted with, at least: 3 s of 10 s.
COARSE_OVERLAP = 0.3

Progress = Callable[[str, int, int], None]


class TextTokenizer(Protocol):
    """What generation asks of MuLan's tokenizer."""

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Codes of each text, int32 [B, Q]."""


class AcousticDecoder(Protocol):
    """What generation asks of the codec's tokenizer."""

    def decode_stream(self, pieces: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Codes [B, T, Q] in pieces to f32 samples [B, T · hop], in pieces as well."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChainSampling:
    """How each stage draws its tokens; the temperatures are the paper's (section 4.1).

    SoundStorm's paper tells none.
    """

    semantic: Sampling = Sampling(temperature=1.0)
    coarse: Sampling = Sampling(temperature=0.95)
    fine: Sampling = Sampling(temperature=0.4)
    parallel: Sampling = Sampling(temperature=1.0)


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
      decoding: how acoustic codes are decoded, one of `DECODINGS`.
      story: (second, text) in the order of time: texts that take over from `prompt`. They do so at
        the semantic step that is nearest, every 15 s at the paper's size.
      continuation: what it begins with.
      melody_EQ: the codes of its melody, integers, for stages that are conditioned on one.
    """

    prompt: str
    seconds: float
    seed: int
    sampling: ChainSampling = ChainSampling()
    decoding: str = "autoregressive"
    story: tuple[tuple[float, str], ...] = ()
    continuation: Continuation | None = None
    melody_EQ: np.ndarray | None = None

    def __post_init__(self):
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise ValueError(f"Clip.seconds is {self.seconds}: give a positive number")
        if self.decoding not in DECODINGS:
            raise ValueError(f"Clip.decoding is {self.decoding!r}: give one of {(*DECODINGS,)}")
        starts = [start for start, _ in self.story]
        if any(not one < two for one, two in itertools.pairwise([0.0, *starts])):
            raise ValueError(
                f"Clip.story starts texts at {starts} s: give seconds above 0 in ascending order"
            )

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that make it, in their order."""
        return ("semantic", *DECODINGS[self.decoding])


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


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Track:
    """A clip on its way through the stages.

    Attributes:
      parts: by stage in their order, one each but in the fine stage: there a part a window, which
        need not wait for one another.
      fine_windows: where those windows lie.
    """

    parts: Mapping[str, Sequence[batches.Part]]
    fine_windows: Sequence[windows.Window] = ()

    @property
    def semantic(self) -> batches.Part:
        """In the semantic stage."""
        return self.parts["semantic"][0]

    @property
    def acoustic(self) -> batches.Part:
        """In the stage that looks at the semantic codes: coarse or parallel."""
        return next(parts for stage, parts in self.parts.items() if stage != "semantic")[0]

    @property
    def fine_ready(self) -> list[batches.Part]:
        """Of the fine stage, those that are not made and whose coarse codes are there."""
        there = len(self.acoustic.codes_TQ)
        pairs = zip(self.fine_windows, self.parts.get("fine", ()), strict=True)
        return [part for window, part in pairs if part.windows and window.stop <= there]

    @property
    def fine_at_once(self) -> int:
        """The most parts of the fine stage that a single window of the coarse one makes ready."""
        stops = [window.stop for window in self.acoustic.windows]
        pairs = zip(self.fine_windows, self.parts.get("fine", ()), strict=True)
        made_by = [bisect.bisect_left(stops, window.stop) for window, part in pairs if part.windows]
        return max(collections.Counter(made_by).values(), default=0)

    @property
    def codes_TQ(self) -> np.ndarray:
        """The acoustic codes as far as those of all levels are there."""
        if "fine" not in self.parts:
            return self.acoustic.codes_TQ
        fine_TQ = self.parts["fine"][0].codes_TQ[:0]
        for window, part in zip(self.fine_windows, self.parts["fine"], strict=True):
            if part.windows:
                break
            # The last window may overlap the one before: what is there stays.
            fine_TQ = np.concatenate([fine_TQ, part.codes_TQ[len(fine_TQ) - window.start :]])
        return np.concatenate([self.acoustic.codes_TQ[: len(fine_TQ)], fine_TQ], axis=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chain:
    """Everything between a text and a waveform.

    Attributes:
      token_spec: rates, levels and windows.
      mulan: makes the condition of a text.
      acoustic: makes sound of acoustic codes.
      semantic, coarse, fine: the stages.
      parallel: SoundStorm, where there is one.
      max_rows: rows that a stage decodes at once on a device, a bound on memory; more go in several
        batches.
      fixed_rows: fills every batch up to `max_rows`. Then what comes of a clip depends on the clip
        and the chain alone, and not on how many are made with it; without, on these but for
        rounding.
    """

    token_spec: TokenSpec
    mulan: TextTokenizer
    acoustic: AcousticDecoder
    semantic: batches.Stage
    coarse: batches.Stage
    fine: batches.Stage
    parallel: batches.Stage | None = None
    max_rows: int = 16
    fixed_rows: bool = False

    def generate(
        self, plans: Sequence[Plan], progress: Progress | None = None
    ) -> Iterator[np.ndarray]:
        """Makes music of plans; see `compose` and `decode`.

        Yields:
          One f32 waveform a clip, [round(seconds · sample rate)].
        """
        # A clip keeps one core of a CPU busy, and an accelerator all of it.
        workers = os.cpu_count() if jax.default_backend() == "cpu" else 1
        decoded = collections.deque()
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            for plan, codes_TQ in zip(plans, self.compose(plans, progress), strict=True):
                decoded.append(pool.submit(self.decode, plan, codes_TQ))
                # No more waveforms wait to be taken than are being made.
                if len(decoded) > workers:
                    yield decoded.popleft().result()
            while decoded:
                yield decoded.popleft().result()

    def plan(self, clip: Clip) -> Plan:
        """Looks a clip through and encodes its texts.

        Raises:
          UserError: a text is longer than MuLan's tower takes, or the clip has a melody where the
            stages take none, none where they need one, or one of other codes.
          ValueError: the clip is not longer than what it continues, or there is no SoundStorm for
            it.
        """
        if missing := [stage for stage in clip.stages if getattr(self, stage) is None]:
            raise ValueError(f"Clip.decoding is {clip.decoding!r}, and no stage {missing} is there")
        self._check_melody(clip.melody_EQ)
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
        tracks = [self.track(plan) for plan in plans]
        for name in LAYOUTS:
            parts = [part for track in tracks for part in track.parts.get(name, ())]
            self.run(name, parts, progress)
        return [track.codes_TQ for track in tracks]

    def decode(self, plan: Plan, codes_TQ: np.ndarray) -> np.ndarray:
        """The waveform of a clip's acoustic codes, f32 [round(seconds · sample rate)].

        As a stream: memory and compiled shapes are those of a piece, whatever the length.
        """
        length = round(plan.clip.seconds * self.token_spec.sample_rate)
        pieces = list(self.acoustic.decode_stream([codes_TQ[None]]))
        return np.concatenate(pieces, axis=1)[0, :length]

    def compile(self, plans: Sequence[Plan], rows: int) -> None:
        """Compiles ahead what `compose` needs for such clips, with so many rows a device."""
        for plan in plans:
            for name, parts in self.track(plan).parts.items():
                stage = getattr(self, name)
                for kind in {part.kind_of(window) for part in parts for window in part.windows}:
                    stage.compile(rows * stage.num_devices, *kind)

    def run(
        self,
        name: str,
        parts: Sequence[batches.Part],
        progress: Progress | None = None,
        *,
        at_least: int = 0,
    ) -> None:
        """Makes all windows of some clips in a stage; see `batches.run`.

        Args:
          name: of the stage.
          parts: used up.
          progress: see `compose`.
          at_least: batches have rows for so many parts, so that calls with fewer share a shape.
        """
        if not parts:
            return
        stage = getattr(self, name)
        if self.fixed_rows:
            rows = self.max_rows * stage.num_devices
        else:
            num_parts = max(len(parts), at_least)
            rows = batches.rows_for(num_parts, stage.num_devices, self.max_rows)
        batches.run(
            stage,
            parts,
            stream=LAYOUTS.index(name),
            rows=rows,
            progress=functools.partial(progress, name) if progress else None,
        )

    def track(self, plan: Plan) -> Track:
        """What the stages are to make of a clip."""
        semantic = self._semantic_part(plan)
        if plan.clip.decoding == "parallel":
            parallel = self._acoustic_part(plan, semantic, "parallel")
            return Track(parts={"semantic": [semantic], "parallel": [parallel]})
        coarse = self._acoustic_part(plan, semantic, "coarse")
        side_by_side = windows.side_by_side(plan.num_frames, self._fine_window)
        fine = [self._fine_part(plan, coarse, window) for window in side_by_side]
        return Track(
            parts={"semantic": [semantic], "coarse": [coarse], "fine": fine},
            fine_windows=side_by_side,
        )

    def _semantic_part(self, plan: Plan) -> batches.Part:
        """A clip in the semantic stage; of `mulan_WQ` each window looks at its own step alone."""
        _, acoustic_stage, *_ = plan.clip.stages
        windows_wanted = self.steps.windows(plan.num_semantic, plan.texts)
        return batches.Part(
            seed=plan.clip.seed,
            sampling=plan.clip.sampling.semantic,
            windows=windows_wanted if self._hears_semantic(acoustic_stage) else [],
            condition=lambda window: self._clip_codes(plan, window.index),
            codes_TQ=plan.semantic_T[:, None],
        )

    def _acoustic_part(self, plan: Plan, semantic: batches.Part, stage: str) -> batches.Part:
        """A clip in the coarse or parallel stage, which looks at what the semantic one has made."""

        def condition(window: windows.Window) -> dict[str, np.ndarray]:
            first, last = window.start // self._ratio, self.semantic_frames(window)
            codes = self._clip_codes(plan, self.steps.at((first + last) // 2))
            if self._hears_semantic(stage):
                codes["semantic"] = semantic.codes_TQ[first:last, 0]
            return codes

        return batches.Part(
            seed=plan.clip.seed,
            sampling=getattr(plan.clip.sampling, stage),
            windows=windows.overlapping(plan.num_frames, self._coarse_window, self._coarse_overlap),
            condition=condition,
            codes_TQ=plan.acoustic_TQ[:, : getattr(self, stage).layout.target_levels],
        )

    def _hears_semantic(self, stage: str) -> bool:
        """Whether a stage looks at semantic codes; a coarse one may do without."""
        return any(part.source == "semantic" for part in getattr(self, stage).layout.prefix)

    def _clip_codes(self, plan: Plan, step: int) -> dict[str, np.ndarray]:
        """What holds at a semantic step: the codes of the text and, if there is one, the melody."""
        melody_EQ = plan.clip.melody_EQ
        melody = {} if melody_EQ is None else {"melody": melody_EQ}
        return {"mulan": plan.mulan_WQ[step], **melody}

    def _check_melody(self, melody_EQ: np.ndarray | None) -> None:
        spec, shape = self.token_spec, self.token_spec.melody_shape
        if shape is None:
            if melody_EQ is not None:
                raise UserError("a melody is given, and this model takes none: leave it out")
            return
        if melody_EQ is None:
            raise UserError(
                f"this model wants a melody, and none is given: give its codes, integers {shape}"
            )
        if melody_EQ.shape != shape or not np.issubdtype(melody_EQ.dtype, np.integer):
            raise UserError(
                f"the melody is {melody_EQ.dtype} {melody_EQ.shape}: give codes, integers {shape}"
            )
        if melody_EQ.min() < 0 or melody_EQ.max() >= spec.melody_codebook_size:
            raise UserError(
                f"the melody has codes from {melody_EQ.min()} to {melody_EQ.max()}: give codes "
                f"from 0 to {spec.melody_codebook_size - 1}"
            )

    def semantic_frames(self, window: windows.Window) -> int:
        """How many semantic frames must be there for a window of the coarse or parallel stage."""
        return (window.start + self._coarse_window) // self._ratio

    def _fine_part(self, plan: Plan, coarse: batches.Part, window: windows.Window) -> batches.Part:
        """A window of a clip in the fine stage."""
        given_TQ = plan.acoustic_TQ[:, self.token_spec.num_coarse_codebooks :]
        return batches.Part(
            seed=plan.clip.seed,
            sampling=plan.clip.sampling.fine,
            windows=[dataclasses.replace(window, start=0, stop=self._fine_window)],
            condition=lambda _: {"acoustic": coarse.codes_TQ[window.start : window.stop]},
            codes_TQ=given_TQ[window.start : window.stop],
        )

    def texts(self, clip: Clip) -> list[tuple[float, str]]:
        """The texts that a clip is made of, in the order of time, and the second each holds from.

        Those of its story that no semantic step goes by are not among them, nor one that would hold
        for less than a frame.
        """
        rate = self.token_spec.semantic_frame_rate
        last = self.steps.at(int(clip.seconds * rate) - 1)
        texts: list[tuple[float, str]] = []
        for step in range(last + 1):
            text = self._text_at(clip, step)
            if not texts or text != texts[-1][1]:
                texts.append((self.steps.start(step) / rate, text))
        return texts

    def most_rows(self, plans: Sequence[Plan]) -> int:
        """How many rows a stage decodes at once on a device, at most, to make such clips."""
        if self.fixed_rows:
            return self.max_rows
        counts: collections.Counter[str] = collections.Counter()
        for plan in plans:
            counts.update({name: len(parts) for name, parts in self.track(plan).parts.items()})
        devices = self.semantic.num_devices
        rows = (batches.rows_for(count, devices, self.max_rows) for count in counts.values())
        return max(rows) // devices

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
