"""A clip that is heard while it is made, and whose text may change on the way.

Shapes: T frames or samples, Q levels.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from musiclm.sampler import batches
from musiclm.sampler.generate import Chain, Plan


class Stream:
    """Iterates over the samples of a clip: f32 arrays [T], as soon as they are there.

    Coarse windows (or SoundStorm's) follow one another; each waits for the semantic codes that it
    sees, and fine windows and the codec follow at once. Unless `prompt` is set, the codes are those
    that `Chain.compose` makes of the same clip (with `fixed_rows`; else but for rounding).
    """

    def __init__(self, chain: Chain, plan: Plan):
        """Makes nothing before the first piece is asked for.

        Args:
          chain: that makes the clip.
          plan: of `chain.plan`.
        """
        self._chain, self._prompt = chain, plan.clip.prompt
        self._plan = dataclasses.replace(plan, mulan_WQ=plan.mulan_WQ.copy())
        self._track = chain.track(self._plan)
        self._fine_at_once = self._track.fine_at_once
        self._samples = chain.acoustic.decode_stream(self._codes())
        self._left = round(plan.clip.seconds * chain.token_spec.sample_rate)

    @property
    def prompt(self) -> str:
        """The text that was set last."""
        return self._prompt

    @prompt.setter
    def prompt(self, text: str) -> None:
        """Goes on by another text, from the first semantic step on that is not made yet.

        What a story still had to tell is dropped.

        Raises:
          UserError: the text is longer than MuLan's tower takes.
        """
        semantic = self._track.semantic
        # A window that is still to be made goes by its own step, however much of it was given.
        pending = [window.index for window in semantic.windows]
        step = pending[0] if pending else self._chain.steps.at(len(semantic.codes_TQ))
        self._plan.mulan_WQ[step:] = self._chain.mulan.encode_text([text])[0]
        self._prompt = text

    def __iter__(self) -> Iterator[np.ndarray]:
        return self

    def __next__(self) -> np.ndarray:
        if not self._left:
            raise StopIteration
        piece_T = next(self._samples)[0, : self._left]
        self._left -= len(piece_T)
        return piece_T

    def _codes(self) -> Iterator[np.ndarray]:
        """Acoustic codes [1, T, Q], piece by piece."""
        chain, track = self._chain, self._track
        semantic, acoustic = track.semantic, track.acoustic
        _, acoustic_stage, *_ = self._plan.clip.stages
        heard = 0
        while acoustic.windows:
            seen = chain.semantic_frames(acoustic.windows[0])
            while semantic.windows and len(semantic.codes_TQ) < seen:
                self._make_window("semantic", semantic)
            self._make_window(acoustic_stage, acoustic)
            # One shape for all of the stream, or it would stop to compile others while it plays.
            chain.run("fine", track.fine_ready, at_least=self._fine_at_once)
            codes_TQ = track.codes_TQ
            yield codes_TQ[None, heard:]
            heard = len(codes_TQ)

    def _make_window(self, stage: str, part: batches.Part) -> None:
        """Makes the next window of a part."""
        next_part = dataclasses.replace(part, windows=part.windows[:1])
        self._chain.run(stage, [next_part])
        part.codes_TQ = next_part.codes_TQ
        part.windows.pop(0)
