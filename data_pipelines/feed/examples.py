"""Rows of tokens, of sound and of texts: read, cropped and drawn, a whole host batch at once.

What a row holds depends on (seed, row) alone, see rows.py.

Shapes: R rows, T frames or samples, Q levels, W MuLan windows, E embeddings of a melody, N captions
of all rows, L text tokens.
"""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from data_pipelines import manifest, shards
from data_pipelines.feed import rows
from data_pipelines.feed.records import Records, open_records
from data_pipelines.feed.rows import Purpose
from musiclm import errors
from musiclm.tokens.layout import Segment, StageLayout
from musiclm.tokens.wordpiece import WordPiece

CONDITIONING = ("audio", "text", "mixed")
# MuLan's mix of caption kinds (section 4.1 there).
CAPTION_WEIGHTS = {"short": 2.0, "long": 2.0, "playlist": 1.0, "tags": 1.0}
# Sources whose codes are for a window as a whole.
_OF_WINDOWS = ("mulan", "melody")

Batch = dict[str, np.ndarray]


class Examples(Protocol):
    """What a data source serves: rows of one data set.

    Attributes:
      records: where they come from.
      shapes: of a row's features, by name.
      dtypes: the same features' NumPy types.
    """

    records: Records
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]

    def make(self, rows_R: np.ndarray, *, seed: int, shuffle: bool) -> Batch:
        """The features of rows, each with a leading axis R."""


class TokenExamples:
    """Aligned crops of the token streams that a stage needs, as raw codes.

    A crop starts at a semantic frame. Its MuLan codes are those of one of the stored 10 s windows
    that overlap it most (in MusicLM, of the mean of the embeddings of all), or those of one of its
    captions. A melody's are that window's always.
    """

    def __init__(
        self,
        folder: str,
        layout: StageLayout,
        *,
        conditioning: str = "audio",
        caption_weights: Mapping[str, float] = CAPTION_WEIGHTS,
        encoder: str | None = None,
    ):
        """Opens a data set of tokens for a stage.

        Args:
          folder: of the data set.
          layout: of the stage's sequences.
          conditioning: where MuLan codes come from: "audio" (MusicLM), "text" (of a drawn caption)
            or "mixed" (either, evenly). A window without captions is conditioned on its sound.
          caption_weights: how often each kind of caption is drawn, one weight above 0 for each of
            `manifest.CAPTION_KINDS`.
          encoder: digest of the tokenizers that must have made the data set; None takes any.

        Raises:
          UserError: `conditioning` or `caption_weights` are none of these.
          shards.ShardError: no such data set, or it lacks streams, time or levels for the stage.
        """
        if conditioning not in CONDITIONING:
            raise errors.UserError(
                f"conditioning is {conditioning!r}: choose one of {CONDITIONING}"
            )
        if (
            set(caption_weights) != set(manifest.CAPTION_KINDS)
            or min(caption_weights.values()) <= 0
        ):
            raise errors.UserError(
                f"caption_weights is {dict(caption_weights)}: give a number above 0 for each of "
                f"{manifest.CAPTION_KINDS}"
            )
        segments = (*layout.prefix, layout.target)
        self._conditioning = conditioning
        self._caption_weights = caption_weights
        self._codebook_sizes = {segment.source: segment.codebook_size for segment in segments}
        streams = set(self._codebook_sizes)
        if "mulan" in streams and conditioning != "audio":
            streams.add("text")
        self.records = open_records(folder, tuple(sorted(streams)), encoder=encoder)
        self._stored = self.records.data_set.streams
        if "semantic" not in self._stored:
            raise shards.ShardError(f"{folder} has no semantic tokens: give a data set of tokens")
        self.shapes = {segment.source: self._shape(segment) for segment in segments}
        self.dtypes = dict.fromkeys(self.shapes, "uint16")
        self._crop_frames = max(
            -(-shape[0] // self._ratio(source))
            for source, shape in self.shapes.items()
            if source not in _OF_WINDOWS
        )
        spare = self._stored["semantic"].shape[0] - self._crop_frames
        if spare < 0:
            raise shards.ShardError(
                f"{folder} has windows of {self.records.data_set.window_seconds:g} s, too short "
                f"for the {layout.stage} stage: give a data set of longer ones"
            )
        self._starts = spare + 1

    def make(self, rows_R: np.ndarray, *, seed: int, shuffle: bool) -> Batch:
        """Raw codes, uint16, of those that the stage needs.

        Returns:
          "mulan" [R, Q], "melody" [R, E, Q], "semantic" [R, T], "acoustic" [R, T, Q].
        """
        read = list(self.records.read(rows_R, seed=seed, shuffle=shuffle))
        records = {name: [record[name] for record in read] for name in self.records.streams}
        starts_R = rows.integers(seed, rows_R, Purpose.CROP, self._starts)
        batch = {}
        for source, shape in self.shapes.items():
            codes_R = self._decode(source, records[source])
            if source in _OF_WINDOWS:
                windows_R = self._choose_window(starts_R, codes_R.shape[1], rows_R, seed)
                codes_R = codes_R[np.arange(len(rows_R)), windows_R]
                batch[source] = codes_R[..., : shape[-1]]
                continue
            ratio, length = self._ratio(source), shape[0]
            levels = (slice(None), *(slice(size) for size in shape[1:]))
            batch[source] = np.stack(
                [
                    codes[start : start + length][levels]
                    for codes, start in zip(codes_R, (starts_R * ratio).tolist(), strict=True)
                ]
            )
        if "text" in records:
            self._take_captions(batch["mulan"], records["text"], rows_R, seed)
        for source, codes in batch.items():
            if codes.max() >= self._codebook_sizes[source]:
                raise shards.ShardError(
                    f"{self.records.folder} has the {source} code {codes.max()}, and the run's "
                    f"codebooks have {self._codebook_sizes[source]}: other tokenizers made it"
                )
        return batch

    def _shape(self, segment: Segment) -> tuple[int, ...]:
        """Of a row's codes: levels above those that the stage uses are left out."""
        stored = self._stored[segment.source].shape
        if segment.source == "semantic":
            return (segment.num_frames,)
        levels = segment.first_level + segment.num_levels
        if segment.source == "melody" and stored[1] != segment.num_frames:
            raise shards.ShardError(
                f"{self.records.folder} tells a melody by {stored[1]} embeddings, and the stage "
                f"needs {segment.num_frames}: tokenize the corpus with the run's tokenizers"
            )
        if stored[-1] < levels:
            raise shards.ShardError(
                f"{self.records.folder} has {stored[-1]} levels of {segment.source} codes, and the "
                f"stage needs {levels}: tokenize the corpus with the run's tokenizers"
            )
        return (levels,) if segment.source == "mulan" else (segment.num_frames, levels)

    def _ratio(self, source: str) -> int:
        """Frames of a stream in a semantic frame."""
        return round(self._stored[source].rate / self._stored["semantic"].rate)

    def _decode(self, source: str, records: Sequence[bytes]) -> np.ndarray:
        stream = self._stored[source]
        return np.frombuffer(b"".join(records), stream.dtype).reshape(-1, *stream.shape)

    def _choose_window(self, starts_R, num_windows: int, rows_R, seed: int) -> np.ndarray:
        """The window of each row, the same whatever codes are taken of it."""
        rate, draws_R = self._stored["semantic"].rate, rows.uniform(seed, rows_R, Purpose.MULAN)
        return choose_window(starts_R / rate, self._crop_frames / rate, num_windows, draws_R)

    def _take_captions(self, mulan_RQ, records: Sequence[bytes], rows_R, seed: int) -> None:
        """Puts the codes of drawn captions in place of those from sound."""
        texts = [self._stored["text"].decode(record) for record in records]
        texts_NQ = np.concatenate(texts)
        chosen_R = choose_captions(
            texts_NQ[:, 0],
            np.array([len(text) for text in texts]),
            rows.uniform(seed, rows_R, Purpose.CAPTION),
            self._caption_weights,
        )
        from_text_R = chosen_R >= 0
        if self._conditioning == "mixed":
            from_text_R &= rows.uniform(seed, rows_R, Purpose.SOURCE) < 0.5
        mulan_RQ[from_text_R] = texts_NQ[chosen_R[from_text_R], 1 : 1 + mulan_RQ.shape[1]]


class AudioExamples:
    """Random crops of sound, and the word pieces of one of their captions if asked for."""

    def __init__(
        self,
        folder: str,
        *,
        seconds: float,
        sample_rate: int,
        vocabulary: WordPiece | None = None,
        max_text_tokens: int = 0,
    ):
        """Opens a data set of sound.

        Args:
          folder: of the data set.
          seconds: length of a crop.
          sample_rate: that the data set must have, in Hz.
          vocabulary: of the captions; without it there are none.
          max_text_tokens: L; longer captions lose their ends.

        Raises:
          shards.ShardError: no such data set, or its windows are shorter or of another rate.
        """
        streams = ("audio",) if vocabulary is None else ("audio", "captions")
        self.records = open_records(folder, streams)
        self._vocabulary = vocabulary
        stored = self.records.data_set.streams["audio"]
        if stored.rate != sample_rate:
            raise shards.ShardError(
                f"{folder} is sound at {stored.rate:g} Hz, and the run's is at {sample_rate} Hz: "
                "pack the corpus at that rate"
            )
        length = round(seconds * sample_rate)
        if stored.shape[0] < length:
            raise shards.ShardError(
                f"{folder} has windows of {self.records.data_set.window_seconds:g} s, and crops "
                f"are to be of {seconds:g} s: ask for shorter ones, or pack the corpus in longer"
            )
        self._dtype, self._starts = stored.dtype, stored.shape[0] - length + 1
        self.shapes: dict[str, tuple[int, ...]] = {"audio": (length,)}
        self.dtypes = {"audio": "int16"}
        if vocabulary is not None:
            self.shapes["text_ids"], self.dtypes["text_ids"] = (max_text_tokens,), "int32"

    def make(self, rows_R: np.ndarray, *, seed: int, shuffle: bool) -> Batch:
        """{"audio": int16 [R, T]}, with a vocabulary also {"text_ids": int32 [R, L]}."""
        batch = {
            name: np.empty((len(rows_R), *shape), self.dtypes[name])
            for name, shape in self.shapes.items()
        }
        length = self.shapes["audio"][0]
        starts_R = rows.integers(seed, rows_R, Purpose.CROP, self._starts)
        captions = []
        read = self.records.read(rows_R, seed=seed, shuffle=shuffle)
        for row, (record, start) in enumerate(zip(read, starts_R.tolist(), strict=True)):
            # Let go of before the next is read, so that megabytes need no fresh pages every time.
            samples_T = np.frombuffer(record.pop("audio"), self._dtype)
            batch["audio"][row] = samples_T[start : start + length]
            del samples_T
            captions.append(record.get("captions"))
        if self._vocabulary is not None:
            texts = _draw_texts(self.records.folder, captions, rows_R, seed)
            length = self.shapes["text_ids"][0]
            batch["text_ids"] = self._vocabulary.encode(texts, length, overlong="truncate")
        return batch


class TextExamples:
    """The word pieces of captions, without their sound."""

    def __init__(self, folder: str, *, vocabulary: WordPiece, max_text_tokens: int):
        """Opens a data set of sound.

        Args:
          folder: of the data set.
          vocabulary: of the captions.
          max_text_tokens: L; longer captions lose their ends.

        Raises:
          shards.ShardError: no such data set.
        """
        self.records = open_records(folder, ("captions",))
        self._vocabulary = vocabulary
        self.shapes: dict[str, tuple[int, ...]] = {"text_ids": (max_text_tokens,)}
        self.dtypes = {"text_ids": "int32"}

    def make(self, rows_R: np.ndarray, *, seed: int, shuffle: bool) -> Batch:
        """{"text_ids": int32 [R, L]}."""
        records = self.records.read(rows_R, seed=seed, shuffle=shuffle)
        captions = [record["captions"] for record in records]
        texts = _draw_texts(self.records.folder, captions, rows_R, seed)
        length = self.shapes["text_ids"][0]
        return {"text_ids": self._vocabulary.encode(texts, length, overlong="truncate")}


def _draw_texts(
    folder: os.PathLike, records: Sequence[bytes], rows_R: np.ndarray, seed: int
) -> list[str]:
    """One caption of each row's."""
    captions = [json.loads(record) for record in records]
    if not all(captions):
        raise shards.ShardError(
            f"{folder} has windows without captions: pack a corpus in which every clip has one"
        )
    flat = [caption for of_row in captions for caption in of_row]
    kinds_N = np.array([manifest.CAPTION_KINDS.index(caption["kind"]) for caption in flat])
    chosen_R = choose_captions(
        kinds_N,
        np.array([len(of_row) for of_row in captions]),
        rows.uniform(seed, rows_R, Purpose.CAPTION),
    )
    return [flat[caption]["text"] for caption in chosen_R]


def choose_window(
    starts_R: np.ndarray, seconds: float, num_windows: int, draws_R: np.ndarray
) -> np.ndarray:
    """Of the 10 s windows that overlap each crop most, one: int64 [R].

    Args:
      starts_R: of the crops, in seconds.
      seconds: length of a crop.
      num_windows: W; window w starts at second w.
      draws_R: from [0, 1): which of those that overlap alike.
    """
    windows_W = np.arange(num_windows)
    ends_RW = np.minimum(starts_R[:, None] + seconds, windows_W + shards.MULAN_SECONDS)
    overlap_RW = ends_RW - np.maximum(starts_R[:, None], windows_W)
    # Sums of fractions of a second differ in their last bits where they should not.
    best_RW = overlap_RW > overlap_RW.max(axis=1, keepdims=True) - 1e-6
    nth_R = (draws_R * best_RW.sum(axis=1)).astype(np.int64)
    return (best_RW.cumsum(axis=1) > nth_R[:, None]).argmax(axis=1)


def choose_captions(
    kinds_N: np.ndarray,
    counts_R: np.ndarray,
    draws_R: np.ndarray,
    weights: Mapping[str, float] = CAPTION_WEIGHTS,
) -> np.ndarray:
    """One caption a row: by the weight of its kind, and evenly within a kind.

    Args:
      kinds_N: index in `manifest.CAPTION_KINDS` of the captions of all rows, one row after another.
      counts_R: captions of each row.
      draws_R: from [0, 1).
      weights: of each of `manifest.CAPTION_KINDS`.

    Returns:
      Places in `kinds_N`, int64 [R]; -1 for a row that has none.
    """
    row_N = np.repeat(np.arange(len(counts_R)), counts_R)
    kinds_N = kinds_N.astype(np.int64)
    alike_N = row_N * len(manifest.CAPTION_KINDS) + kinds_N
    weights_K = np.array([weights[kind] for kind in manifest.CAPTION_KINDS])
    weights_N = weights_K[kinds_N] / np.bincount(alike_N)[alike_N]
    totals_R = np.bincount(row_N, weights_N, minlength=len(counts_R))
    ends_R = np.cumsum(counts_R)
    sums_N = np.cumsum(weights_N)
    targets_R = np.cumsum(totals_R) - totals_R + draws_R * totals_R
    chosen_R = np.searchsorted(sums_N, targets_R, side="right")
    # Rounding may carry a draw at the edge of a row into the next one.
    chosen_R = np.clip(chosen_R, ends_R - counts_R, ends_R - 1)
    return np.where(counts_R > 0, chosen_R, -1)
