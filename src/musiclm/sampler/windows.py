"""Which frames of a clip a stage makes in one go.

Windows of a stage start every `window - overlap` frames, whatever the length of the clip: a clip is
the beginning of a longer one of the same seed, and windows of different clips look alike.
"""

import dataclasses
import math
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """Frames [start, stop) of a clip.

    Attributes:
      index: no other window of the clip and stage has the same.
      start, stop: what the stage sees or makes.
      overlap: of the first frames, how many are there before the window is made, whatever the
        clip.
    """

    index: int
    start: int
    stop: int
    overlap: int


def overlapping(num_frames: int, size: int, overlap: int) -> list[Window]:
    """Windows that overlap by so many frames; the last is cut short."""
    count = 1 + max(0, math.ceil((num_frames - size) / (size - overlap)))
    starts = [i * (size - overlap) for i in range(count)]
    return [
        Window(
            index=i,
            start=start,
            stop=min(start + size, num_frames),
            overlap=overlap if i else 0,
        )
        for i, start in enumerate(starts)
    ]


def side_by_side(num_frames: int, size: int) -> list[Window]:
    """Whole windows without overlap, but for the last, which ends where the clip does."""
    starts = [min(start, num_frames - size) for start in range(0, num_frames, size)]
    return [
        Window(index=i, start=start, stop=start + size, overlap=0) for i, start in enumerate(starts)
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Steps:
    """The semantic stage's steps: at each of them its condition may change.

    The first step is what a second window overlaps of the first; then each window ends one step.
    At MusicLM's size, windows of 30 s that advance by 15 s, a step is 15 s (section 4.4).

    Attributes:
      size: frames of a window.
    """

    size: int

    @property
    def overlap(self) -> int:
        """Frames that a window shares with the one before: those of the first step."""
        return self.size // 2

    @property
    def hop(self) -> int:
        """Frames of every further step."""
        return self.size - self.overlap

    def at(self, frame: int) -> int:
        """The step that a frame is in."""
        return 0 if frame < self.overlap else 1 + (frame - self.overlap) // self.hop

    def start(self, step: int) -> int:
        """The first frame of a step."""
        return self.overlap + (step - 1) * self.hop if step else 0

    def middle(self, step: int) -> float:
        """The frame in the middle of a step."""
        return (self.start(step) + self.start(step + 1)) / 2

    def windows(self, num_frames: int, conditions: Sequence[object]) -> list[Window]:
        """Windows that make a step each, of the index of their step.

        The first window makes two at once if their conditions are the same: from then on, another
        condition can hold from the third step at the earliest.
        """
        first, *others = overlapping(num_frames, self.size, self.overlap)
        windows = [first, *(dataclasses.replace(w, index=w.index + 1) for w in others)]
        if self.at(first.stop - 1) == 0 or conditions[0] == conditions[1]:
            return windows
        return [
            dataclasses.replace(first, stop=self.overlap),
            dataclasses.replace(first, index=1, overlap=self.overlap),
            *windows[1:],
        ]
