"""What a report tells of a corpus, counted in one pass over its manifest."""

import collections
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from data_pipelines import manifest
from data_pipelines.corpora import corpus

# Words that say nothing of music.
_STOP = frozenset(
    """about all also and any are been but can for from had has have her his how into its like more
    most not one other our out over she some such than that the their them then there these they
    this very was way were what when which while who with without would you your sounds song music
    track played plays playing""".split()  # noqa: SIM905
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """A corpus in numbers.

    Attributes:
      seconds: the duration of each clip, by split.
      formats: clips by (sample rate, channels).
      licences: clips by licence, "" where it is unknown.
      captions: captions by kind and by number of words.
      with_captions: clips that have any.
      words: how many captions hold a word.
      copies: (split, file) of clips with the same bytes, by hash; only where there are several.
      left_out: names of clips that are not in the manifest, by reason.
    """

    seconds: dict[str, list[float]]
    formats: dict[tuple[int, int], int]
    licences: dict[str, int]
    captions: dict[str, dict[int, int]]
    with_captions: int
    words: dict[str, int]
    copies: dict[str, list[tuple[str, str]]]
    left_out: dict[str, list[str]]

    @property
    def clips(self) -> int:
        return sum(map(len, self.seconds.values()))

    @property
    def hours(self) -> float:
        return sum(map(sum, self.seconds.values())) / 3600

    @property
    def superfluous(self) -> int:
        """Clips that would not be missed, since a copy of each remains."""
        return sum(len(files) - 1 for files in self.copies.values())

    @property
    def leaks(self) -> int:
        """Groups of copies that lie in more than one split."""
        return sum(len({split for split, _ in files}) > 1 for files in self.copies.values())


def count(path: Path, left_out: Sequence[corpus.LeftOut]) -> Facts:
    """Counts.

    Args:
      path: the manifest.
      left_out: what the corpus lists beside it.
    """
    seconds = collections.defaultdict(list)
    formats, licences, words = (collections.Counter() for _ in range(3))
    captions = collections.defaultdict(collections.Counter)
    with_captions = 0
    files = collections.defaultdict(list)
    for clip in manifest.iterate(path):
        seconds[clip.split].append(clip.seconds)
        formats[clip.sample_rate, clip.channels] += 1
        licences[clip.licence] += 1
        files[clip.sha256].append((clip.split, clip.file))
        with_captions += bool(clip.captions)
        for caption in clip.captions:
            captions[caption.kind][len(caption.text.split())] += 1
            words.update(set(re.findall(r"[^\W\d_]{3,}", caption.text.lower())) - _STOP)
    reasons = collections.defaultdict(list)
    for one in left_out:
        reasons[one.reason].append(one.name)
    return Facts(
        seconds={split: seconds[split] for split in manifest.SPLITS if split in seconds},
        formats=dict(sorted(formats.items())),
        licences=dict(licences.most_common()),
        captions={kind: captions[kind] for kind in manifest.CAPTION_KINDS if kind in captions},
        with_captions=with_captions,
        words=dict(words.most_common(60)),
        copies={sha256: names for sha256, names in files.items() if len(names) > 1},
        left_out=dict(sorted(reasons.items(), key=lambda item: -len(item[1]))),
    )
