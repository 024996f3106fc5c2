"""Windows of many clips, gathered into batches of one shape.

The windows of a clip follow one another; those of different clips share batches if they are of one
kind, whatever their place, length and settings. A kind has one program, so that what comes of a
window depends on the clip alone, not on what stands beside it.

Shapes: B batch, T frames, Q levels.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import jax
import numpy as np

from musiclm.sampler.logits import Sampling
from musiclm.sampler.windows import Window
from musiclm.tokens.layout import StageLayout


class Stage(Protocol):
    """What makes windows: `stages.Stage`, token by token, or `parallel.ParallelStage`."""

    layout: StageLayout
    num_devices: int

    def generate(
        self,
        condition: Mapping[str, np.ndarray],
        keys_B: jax.Array,
        samplings: Sequence[Sampling],
        *,
        num_frames: int | None = None,
        prompts: Sequence[np.ndarray] | None = None,
        prefilled: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """The target of one window."""

    def compile(self, num_rows: int, prefilled: int, guided: bool, filtered: bool) -> None:
        """Compiles ahead what `generate` needs."""


class Kind(NamedTuple):
    """What decides the program that makes a window.

    Attributes:
      prefilled: frames of its prompt that are looked at in one go.
      guided, filtered: see `Sampling`.
    """

    prefilled: int
    guided: bool
    filtered: bool


@dataclasses.dataclass(kw_only=True)
class Part:
    """One clip in one stage.

    Attributes:
      seed: of the clip.
      sampling: how tokens are drawn.
      windows: that are still to be made, in order.
      condition: the codes by source, without a batch, that a window is given.
      codes_TQ: what is there so far, from frame 0 on.
    """

    seed: int
    sampling: Sampling
    windows: list[Window]
    condition: Callable[[Window], Mapping[str, np.ndarray]]
    codes_TQ: np.ndarray

    def __post_init__(self):
        # What was given from the start needs no window.
        self.windows = [window for window in self.windows if window.stop > len(self.codes_TQ)]

    def kind_of(self, window: Window) -> Kind:
        """The kind of one of its windows."""
        return Kind(window.overlap, self.sampling.guided, self.sampling.filtered)

    @property
    def prompt_TQ(self) -> np.ndarray:
        """What of the next window is there."""
        return self.codes_TQ[self.windows[0].start :]

    @property
    def frames_left(self) -> int:
        """Frames that are still to be made."""
        return self.windows[-1].stop - len(self.codes_TQ)

    def add(self, made_TQ: np.ndarray) -> None:
        """Takes the next window, made at least as far as it goes."""
        window = self.windows.pop(0)
        new_TQ = made_TQ[len(self.codes_TQ) - window.start : window.stop - window.start]
        self.codes_TQ = np.concatenate([self.codes_TQ, new_TQ])


def rows_for(num_parts: int, num_devices: int, max_rows: int) -> int:
    """Rows of every batch: as few batches as can be, of one size, a multiple of the devices."""
    num_batches = max(1, math.ceil(num_parts / (max_rows * num_devices)))
    return math.ceil(num_parts / (num_batches * num_devices)) * num_devices


def run(
    stage: Stage,
    parts: Sequence[Part],
    *,
    stream: int,
    rows: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[np.ndarray]:
    """Makes all windows of all parts.

    Args:
      stage: that makes them.
      parts: used up.
      stream: number of the stage, for its keys.
      rows: of every batch; the last part of a smaller one fills it up.
      progress: called with the tokens done and the tokens in all.

    Returns:
      The codes of each part, int32 [T, Q].
    """
    levels = stage.layout.target_levels
    total = sum(part.frames_left for part in parts if part.windows)
    done = 0
    while waiting := [part for part in parts if part.windows]:
        kinds = collections.defaultdict(list)
        for part in waiting:
            kinds[part.kind_of(part.windows[0])].append(part)
        # The fullest batch first; in it those that have farthest to go, so that few are left alone
        # at the end.
        ready = max(kinds.values(), key=len)
        batch = sorted(ready, key=lambda part: -part.frames_left)[:rows]
        spans = [(len(part.prompt_TQ), _length(part.windows[0])) for part in batch]

        def count(frames: int, before: int = done, spans=spans) -> None:
            made = sum(min(max(frames, known), stop) - known for known, stop in spans)
            if progress:
                progress((before + made) * levels, total * levels)

        made_BTQ = _generate(stage, batch, stream, rows, count)
        for part, made_TQ in zip(batch, made_BTQ, strict=False):
            part.add(made_TQ)
        done += sum(stop - known for known, stop in spans)
    return [part.codes_TQ for part in parts]


def _generate(stage, batch, stream, rows, count) -> np.ndarray:
    filled = [*batch, *[batch[-1]] * (rows - len(batch))]
    conditions = [part.condition(part.windows[0]) for part in filled]
    keys_B = _keys(
        np.array([part.seed for part in filled], np.uint32),
        np.array([part.windows[0].index for part in filled], np.uint32),
        stream,
    )
    return stage.generate(
        {source: np.stack([codes[source] for codes in conditions]) for source in conditions[0]},
        keys_B,
        [part.sampling for part in filled],
        num_frames=max(_length(part.windows[0]) for part in batch),
        prompts=[part.prompt_TQ for part in filled],
        prefilled=batch[0].windows[0].overlap,
        progress=count,
    )


def _length(window: Window) -> int:
    return window.stop - window.start


@functools.partial(jax.jit, static_argnames="stream")
@functools.partial(jax.vmap, in_axes=(0, 0, None))
def _keys(seed: jax.Array, index: jax.Array, stream: int) -> jax.Array:
    """The key of a window, of its clip's seed, its stage and its index."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), index)
