"""What one sequence of each stage looks like: the only place that knows.

A sequence is a prefix (what the stage is given) and a target (what it models), without a token
for the beginning: the last of the prefix predicts the first of the target. Identifier 0 is not used
and 1 stands for every conditioning token where the condition is dropped; the codes of each segment
follow, a block of `codebook_size` a level. Within a segment, tokens go frame by frame and level by
level inside a frame (AudioLM, section III-C).

Works on NumPy and JAX arrays alike and imports neither a model nor JAX.

Shapes: B batch, S sequence, N tokens of a segment, T frames, Q levels.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from musiclm.token_spec import TokenSpec

NULL = 1
NUM_SPECIAL = 2
STAGES = ("semantic", "coarse", "fine")
# With SoundStorm's, which stands for the coarse and the fine stage.
LAYOUTS = (*STAGES, "parallel")

Array = Any  # np.ndarray or jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segment:
    """A run of codes of one source.

    Attributes:
      source: "mulan", "melody", "semantic" or "acoustic": where the codes come from.
      num_frames: in time; 1 for MuLan, whose codes are for the clip as a whole. So are those of a
        melody, whose frames are its embeddings.
      first_level, num_levels: which of the source's levels.
      codebook_size: codes a level.
      frames_per_time: frames that share a step of `StageLayout.times`; 0 if not in time.
    """

    source: str
    num_frames: int
    first_level: int = 0
    num_levels: int = 1
    codebook_size: int
    frames_per_time: int = 1

    @property
    def length(self) -> int:
        """Tokens."""
        return self.num_frames * self.num_levels

    @property
    def num_codes(self) -> int:
        """Identifiers that it takes of the vocabulary."""
        return self.num_levels * self.codebook_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageLayout:
    """The sequence of one stage; make it with `semantic`, `coarse`, `fine`, `parallel` or `of`.

    Attributes:
      stage: its name.
      prefix: the segments that it is given.
      target: the segment that it models.
    """

    stage: str
    prefix: tuple[Segment, ...]
    target: Segment

    @classmethod
    def semantic(cls, token_spec: TokenSpec) -> "StageLayout":
        """MuLan codes, then semantic codes (MusicLM, section 3.2).

        Where the spec has melodies, their codes follow MuLan's, here and in the coarse stage.
        """
        frames = token_spec.semantic_frames(token_spec.semantic_window_seconds)
        return cls(
            stage="semantic",
            prefix=(_mulan(token_spec), *_melody(token_spec)),
            target=_semantic(token_spec, frames),
        )

    @classmethod
    def coarse(cls, token_spec: TokenSpec, *, semantic: bool = True) -> "StageLayout":
        """MuLan and semantic codes, then the first acoustic levels (MusicLM, section 3.2).

        Args:
          token_spec: rates, levels and windows.
          semantic: False leaves the semantic codes out, the paper's ablation of their stage.
        """
        condition = (_mulan(token_spec), *_melody(token_spec))
        layout = cls._after_semantic(
            "coarse", token_spec, condition, token_spec.num_coarse_codebooks
        )
        return layout if semantic else dataclasses.replace(layout, prefix=condition)

    @classmethod
    def fine(cls, token_spec: TokenSpec) -> "StageLayout":
        """The first acoustic levels, then the others (AudioLM, section III-C)."""
        frames = token_spec.acoustic_frames(token_spec.fine_window_seconds)
        coarse = token_spec.num_coarse_codebooks
        return cls(
            stage="fine",
            prefix=(_acoustic(token_spec, frames, 0, coarse),),
            target=_acoustic(token_spec, frames, coarse, token_spec.num_fine_codebooks),
        )

    @classmethod
    def parallel(cls, token_spec: TokenSpec) -> "StageLayout":
        """MuLan and semantic codes, then all acoustic levels: SoundStorm's, coarse and fine in one.

        A window is as long as the coarse stage's. A melody is heard through the semantic codes
        alone: SoundStorm sums what holds for the clip, and with it the order of the embeddings.
        """
        condition, num_levels = (_mulan(token_spec),), token_spec.num_acoustic_codebooks
        return cls._after_semantic("parallel", token_spec, condition, num_levels)

    @classmethod
    def of(cls, stage: str, token_spec: TokenSpec) -> "StageLayout":
        """The layout of a stage by name.

        Raises:
          ValueError: no stage has that name.
        """
        if stage not in LAYOUTS:
            raise ValueError(f"stage is {stage!r}: choose one of {LAYOUTS}")
        return getattr(cls, stage)(token_spec)

    @classmethod
    def _after_semantic(
        cls, stage: str, token_spec: TokenSpec, condition: tuple[Segment, ...], num_levels: int
    ) -> "StageLayout":
        frames = token_spec.semantic_frames(token_spec.coarse_window_seconds)
        ratio = token_spec.acoustic_frame_rate // token_spec.semantic_frame_rate
        return cls(
            stage=stage,
            prefix=(*condition, _semantic(token_spec, frames)),
            target=_acoustic(token_spec, frames * ratio, 0, num_levels, frames_per_time=ratio),
        )

    @property
    def prefix_length(self) -> int:
        """Tokens before the target."""
        return sum(segment.length for segment in self.prefix)

    @property
    def target_length(self) -> int:
        """Tokens of the target."""
        return self.target.length

    @property
    def sequence_length(self) -> int:
        """Tokens in all."""
        return self.prefix_length + self.target_length

    @property
    def target_levels(self) -> int:
        """Levels of the target: its token i is of level i modulo this."""
        return self.target.num_levels

    @property
    def target_codebook_size(self) -> int:
        """Codes that one token of the target chooses from."""
        return self.target.codebook_size

    @property
    def target_offset(self) -> int:
        """Identifier of the target's code 0 of its first level."""
        return NUM_SPECIAL + sum(segment.num_codes for segment in self.prefix)

    @property
    def vocab_size(self) -> int:
        """Identifiers: 0, which is not used, null and the codes of every segment."""
        return self.target_offset + self.target.num_codes

    @property
    def times(self) -> np.ndarray:
        """When each token is, int32 [S]: tokens of one moment share it, whatever their segment.

        Counted from 1 at the coarsest rate in the sequence; 0 for what holds for the whole clip.
        """
        parts = []
        for segment in (*self.prefix, self.target):
            frames = np.arange(segment.num_frames)
            share = segment.frames_per_time
            moments = 1 + frames // share if share else np.zeros_like(frames)
            parts.append(np.repeat(moments, segment.num_levels))
        return np.concatenate(parts).astype(np.int32)

    @property
    def aligned(self) -> np.ndarray:
        """What of the prefix sounds together with the token that comes next, int32 [S, N].

        For each position of the sequence the positions of the prefix whose moment (see `times`) is
        that of the token after it, if that one is of the target; -1 where there are none. Where
        the whole prefix is for the clip as a whole, all of it sounds together with every token.
        """
        times_S = self.times
        prefix_P = times_S[: self.prefix_length]
        same_SP = (times_S[1:, None] == prefix_P) | (prefix_P.max() == 0)
        same_SP[: self.prefix_length - 1] = False
        aligned_SN = np.full((self.sequence_length, same_SP.sum(axis=1).max()), -1, np.int32)
        for position, same_P in enumerate(same_SP):
            found = np.flatnonzero(same_P)
            aligned_SN[position, : len(found)] = found
        return aligned_SN

    def flatten(self, codes: Mapping[str, Array]) -> Array:
        """The sequence of raw codes.

        Args:
          codes: "mulan" [B, Q], "melody" [B, T, Q], "semantic" [B, T], "acoustic" [B, T, Q] as the
            stage needs them, integers; levels that it does not use may be there too.

        Returns:
          Identifiers, int32 [B, sequence_length].

        Raises:
          ValueError: an array lacks frames or levels, or has too many frames.
        """
        target_BN = self.flatten_target(_select(codes, self.target))
        return _concatenate([self.flatten_prefix(codes), target_BN])

    def flatten_prefix(self, codes: Mapping[str, Array]) -> Array:
        """The prefix alone, int32 [B, prefix_length]; see `flatten`."""
        offset, parts = NUM_SPECIAL, []
        for segment in self.prefix:
            parts.append(_to_ids(_select(codes, segment), segment, offset))
            offset += segment.num_codes
        return _concatenate(parts)

    def flatten_target(self, codes_BTQ: Array) -> Array:
        """Identifiers of the target's own levels, int32 [B, T · Q], for any number of frames."""
        return _to_ids(codes_BTQ, self.target, self.target_offset)

    def unflatten(self, ids_BS: Array) -> dict[str, Array]:
        """The raw codes of a sequence: the inverse of `flatten`, for the levels that it holds."""
        offset, position, codes = NUM_SPECIAL, 0, {}
        for segment in (*self.prefix, self.target):
            ids = ids_BS[:, position : position + segment.length]
            levels = _to_codes(ids, segment, offset)
            if segment.source in codes:
                levels = _concatenate([codes[segment.source], levels], axis=2)
            codes[segment.source] = levels
            offset += segment.num_codes
            position += segment.length
        return {source: _drop_unit_axis(source, levels) for source, levels in codes.items()}

    def unflatten_target(self, ids_BN: Array) -> Array:
        """The inverse of `flatten_target`: raw codes [B, T, Q]."""
        return _to_codes(ids_BN, self.target, self.target_offset)

    def drop_condition(self, ids_BS: Array, dropped_B: Array) -> Array:
        """Replaces the prefix of the rows in `dropped_B` (bool) by the null identifier."""
        is_prefix_S = np.arange(ids_BS.shape[1]) < self.prefix_length
        xp = ids_BS.__array_namespace__()
        return xp.where(dropped_B[:, None] & is_prefix_S, NULL, ids_BS)


def _mulan(spec: TokenSpec) -> Segment:
    return Segment(
        source="mulan",
        num_frames=1,
        num_levels=spec.num_mulan_codebooks,
        codebook_size=spec.mulan_codebook_size,
        frames_per_time=0,
    )


def _melody(spec: TokenSpec) -> tuple[Segment, ...]:
    """One segment, or none."""
    if not spec.num_melody_codebooks:
        return ()
    segment = Segment(
        source="melody",
        num_frames=spec.num_melody_embeddings,
        num_levels=spec.num_melody_codebooks,
        codebook_size=spec.melody_codebook_size,
        frames_per_time=0,
    )
    return (segment,)


def _semantic(spec: TokenSpec, num_frames: int) -> Segment:
    return Segment(source="semantic", num_frames=num_frames, codebook_size=spec.semantic_vocab_size)


def _acoustic(
    spec: TokenSpec, num_frames: int, first: int, count: int, *, frames_per_time: int = 1
) -> Segment:
    return Segment(
        source="acoustic",
        num_frames=num_frames,
        first_level=first,
        num_levels=count,
        codebook_size=spec.acoustic_codebook_size,
        frames_per_time=frames_per_time,
    )


def _select(codes: Mapping[str, Array], segment: Segment) -> Array:
    """The segment's part of the raw codes, [B, T, Q]."""
    if segment.source not in codes:
        raise ValueError(f"codes have no {segment.source!r} but {sorted(codes)}: add it")
    array = codes[segment.source]
    # MuLan's codes have no time and semantic ones no levels: an axis of one for each.
    array = {"mulan": lambda: array[:, None], "semantic": lambda: array[:, :, None]}.get(
        segment.source, lambda: array
    )()
    stop = segment.first_level + segment.num_levels
    if array.ndim != 3 or array.shape[1] != segment.num_frames or array.shape[2] < stop:
        raise ValueError(
            f"codes[{segment.source!r}] have the shape {tuple(codes[segment.source].shape)}: give "
            f"{segment.num_frames} frames of at least {stop} levels"
        )
    return array[:, :, segment.first_level : stop]


def _level_offsets(segment: Segment) -> np.ndarray:
    return np.arange(segment.num_levels, dtype=np.int32) * segment.codebook_size


def _to_ids(codes_BTQ: Array, segment: Segment, offset: int) -> Array:
    ids_BTQ = codes_BTQ.astype(np.int32) + (offset + _level_offsets(segment))
    return ids_BTQ.reshape(ids_BTQ.shape[0], -1)


def _to_codes(ids_BN: Array, segment: Segment, offset: int) -> Array:
    num_frames = ids_BN.shape[1] // segment.num_levels
    ids_BTQ = ids_BN.reshape(ids_BN.shape[0], num_frames, segment.num_levels)
    return ids_BTQ - (offset + _level_offsets(segment))


def _drop_unit_axis(source: str, codes_BTQ: Array) -> Array:
    if source == "mulan":
        return codes_BTQ[:, 0]
    return codes_BTQ[:, :, 0] if source == "semantic" else codes_BTQ


def _concatenate(parts: list[Array], axis: int = 1) -> Array:
    # The array's own namespace, that of JAX if any part is JAX's.
    namespace = next((p for p in parts if not isinstance(p, np.ndarray)), parts[0])
    return namespace.__array_namespace__().concat(parts, axis=axis)
