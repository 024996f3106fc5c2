"""What turns windows of sound into records: the tokenizers, or plain PCM.

B: batch, T: samples or frames, Q: levels, W: MuLan windows, C: captions.
"""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from data_pipelines import manifest, shards
from data_pipelines.beam.windows import Window
from musiclm import bundle, errors

# Of every stream, its value for one window.
Record = Mapping[str, Any]
Encode = Callable[[Sequence[Window]], Sequence[Record]]

_KEY = shards.Stream(dtype=shards.JSON)
# Captions are few and short; a fixed number at once compiles once.
_TEXTS_A_BATCH = 16


class Encoder(Protocol):
    """A way to make records; small, and pickled to the workers.

    Attributes:
      digest: of all that decides what the records hold.
      sample_rates: Hz, those that `load`'s function needs of each window.
      batch_size: windows that it takes at once, at most.
    """

    digest: str
    sample_rates: tuple[int, ...]
    batch_size: int

    def streams(self, window_seconds: float) -> Mapping[str, shards.Stream]:
        """The streams of a data set of windows of this length.

        Raises:
          UserError: no such windows can be encoded.
        """

    def load(self) -> Encode:
        """Makes the function that encodes; once a worker."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PcmEncoder:
    """Sound as it is, for training the tokenizers: "audio" int16 and the captions."""

    sample_rate: int
    batch_size: int = 8

    @property
    def digest(self) -> str:
        """Names the format, as there is no model."""
        return hashlib.sha256(f"int16 PCM, mono, {self.sample_rate} Hz".encode()).hexdigest()

    @property
    def sample_rates(self) -> tuple[int, ...]:
        """The one."""
        return (self.sample_rate,)

    def streams(self, window_seconds: float) -> Mapping[str, shards.Stream]:
        """See `Encoder`."""
        samples = _whole(window_seconds, self.sample_rate)
        return {
            "audio": shards.Stream(dtype="<i2", shape=(samples,), rate=self.sample_rate),
            "captions": shards.Stream(dtype=shards.JSON),
            "key": _KEY,
        }

    def load(self) -> Encode:
        """See `Encoder`."""
        return lambda windows: [self._encode(window) for window in windows]

    def _encode(self, window: Window) -> Record:
        # The scale of 16-bit files: those at this rate stay as they are.
        samples_T = np.round(window.waveforms[self.sample_rate] * 32768.0)
        return {
            "audio": np.clip(samples_T, -32768, 32767).astype(np.int16),
            "captions": [dataclasses.asdict(caption) for caption in window.captions],
            "key": window.key,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenEncoder:
    """The three frozen tokenizers of a bundle, by its name or folder.

    What they give a window can depend on how many are in its batch, though not on which, nor on
    its place: every batch is filled up to `batch_size`, and a job keeps to one.
    """

    bundle: str
    digest: str
    sample_rates: tuple[int, ...]
    batch_size: int

    @classmethod
    def of(cls, name_or_folder: str, *, batch_size: int) -> "TokenEncoder":
        """The encoder of a bundle, or of a folder with the tokenizers alone.

        Raises:
          BundleError: a tokenizer is missing or damaged.
        """
        if batch_size < 1:
            raise errors.UserError(f"--batch-size is {batch_size}: give 1 or more")
        if os.path.isdir(name_or_folder):  # else a name, whose files lie elsewhere on a worker
            name_or_folder = os.path.abspath(name_or_folder)
        digest = bundle.tokenizer_digest(bundle.find_tokenizers(name_or_folder))
        tokenizers = _tokenizers(name_or_folder, digest)
        return cls(
            bundle=name_or_folder,
            digest=digest,
            sample_rates=tuple(sorted({t.sample_rate for t in tokenizers.values()})),
            batch_size=batch_size,
        )

    def streams(self, window_seconds: float) -> Mapping[str, shards.Stream]:
        """See `Encoder`."""
        acoustic, semantic, mulan = _tokenizers(self.bundle, self.digest).values()
        heard, stride = mulan.config.window_seconds, mulan.config.window_stride_seconds
        if (heard, stride) != (shards.MULAN_SECONDS, 1):
            raise errors.UserError(
                f"MuLan's window_seconds is {heard:g} and window_stride_seconds {stride:g}: data "
                f"sets hold a window of {shards.MULAN_SECONDS} s a second, use a model that has "
                "those"
            )
        if window_seconds < heard:
            raise errors.UserError(
                f"--window-seconds is {window_seconds:g}: give at least {heard:g}, which is what "
                "MuLan hears at once"
            )
        num_windows = int(window_seconds - heard) + 1
        return {
            "semantic": shards.Stream(
                dtype="<u2",
                shape=(_whole(window_seconds, semantic.frame_rate),),
                rate=semantic.frame_rate,
            ),
            "acoustic": shards.Stream(
                dtype="<u2",
                shape=(_whole(window_seconds, acoustic.frame_rate), acoustic.num_codebooks),
                rate=acoustic.frame_rate,
            ),
            "mulan": shards.Stream(dtype="<u2", shape=(num_windows, mulan.num_codebooks), rate=1.0),
            "text": shards.Stream(dtype="<u2", shape=(-1, 1 + mulan.num_codebooks)),
            "key": _KEY,
        }

    def load(self) -> Encode:
        """See `Encoder`.

        Raises:
          UserError: the tokenizers that the worker finds are not those of the job.
        """
        found = bundle.tokenizer_digest(bundle.find_tokenizers(self.bundle))
        if found != self.digest:
            raise errors.UserError(
                f"the tokenizers of {self.bundle} are {found[:12]} on this worker, and the job's "
                f"are {self.digest[:12]}: put the same files into the workers' container"
            )
        tokenizers = _tokenizers(self.bundle, self.digest)
        return functools.partial(self._encode, **tokenizers)

    def _encode(self, windows: Sequence[Window], *, acoustic, semantic, mulan) -> list[Record]:
        full = [*windows, *[windows[-1]] * (self.batch_size - len(windows))]
        at = {rate: np.stack([w.waveforms[rate] for w in full]) for rate in self.sample_rates}
        semantic_BT = semantic.encode(at[semantic.sample_rate])
        acoustic_BTQ = acoustic.encode(at[acoustic.sample_rate])
        mulan_BWQ = mulan.encode_windows(at[mulan.sample_rate])
        texts = _texts(mulan, [caption.text for w in windows for caption in w.captions])
        return [
            {
                "semantic": semantic_BT[i],
                "acoustic": acoustic_BTQ[i],
                "mulan": mulan_BWQ[i],
                "text": np.array(
                    [
                        [manifest.CAPTION_KINDS.index(caption.kind), *next(texts)]
                        for caption in window.captions
                    ]
                ).reshape(-1, 1 + mulan.num_codebooks),
                "key": window.key,
            }
            for i, window in enumerate(windows)
        ]


def _texts(mulan, texts: Sequence[str]):
    """The codes of texts, one by one."""
    for start in range(0, len(texts), _TEXTS_A_BATCH):
        batch = texts[start : start + _TEXTS_A_BATCH]
        full = [*batch, *batch[-1:] * (_TEXTS_A_BATCH - len(batch))]
        yield from mulan.encode_text(full, overlong="truncate")[: len(batch)]


@functools.lru_cache(maxsize=1)
def _tokenizers(name_or_folder: str, digest: str) -> dict[str, Any]:
    """The tokenizers by name; kept, so that the runs of a job compile once.

    Args:
      name_or_folder: of the bundle.
      digest: of their files, so that changed ones are read anew.
    """
    from musiclm.tokens import tokenizers

    folder = bundle.find_tokenizers(name_or_folder)
    loaded = {
        "acoustic": tokenizers.AcousticTokenizer.load(bundle.load_component(folder, "soundstream")),
        "semantic": tokenizers.SemanticTokenizer.load(bundle.load_component(folder, "w2v_bert")),
        "mulan": tokenizers.MuLanTokenizer.load(bundle.load_component(folder, "mulan")),
    }
    for name, tokenizer in loaded.items():
        if tokenizer.codebook_size > 1 << 16:
            raise errors.UserError(
                f"the {name} tokens count {tokenizer.codebook_size}: data sets hold up to 65,536"
            )
    return loaded


def _whole(seconds: float, rate: float) -> int:
    """Frames of so many seconds.

    Raises:
      UserError: that is no whole number.
    """
    frames = round(seconds * rate)
    if frames != seconds * rate:
        raise errors.UserError(
            f"--window-seconds is {seconds:g}: give a whole number of frames at {rate:g} a second"
        )
    return frames
