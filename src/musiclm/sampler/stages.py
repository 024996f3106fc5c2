"""One stage at work: raw codes in, raw codes out.

Shapes: B batch, T frames, Q levels, S sequence.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from musiclm.models.token_lm import TokenLMConfig
from musiclm.sampler import decode, logits
from musiclm.sampler.logits import Sampling

# Frames a call of the compiled loop: how often a progress bar moves.
FRAMES_PER_CALL = 64


class Stage:
    """A trained semantic, coarse or fine stage, ready to decode.

    Attributes:
      config: the model.
      layout: what its sequences look like.
      num_devices: that share the rows of a batch.
      bytes_read: what the steps so far had to read of each device's memory; see
        `decode.bytes_read`.
    """

    def __init__(
        self,
        config: TokenLMConfig,
        params: Mapping[str, Any],
        mesh: Mesh | None = None,
        *,
        int8_weights: bool = False,
        int8_cache: bool = False,
    ):
        """Takes the parameters of `TokenLM(config)` apart for decoding.

        Args:
          config: the model.
          params: the collection "params", arrays of JAX or NumPy.
          mesh: from `decode.make_mesh`; over this process's devices by default.
          int8_weights, int8_cache: keep those as int8; see `decode.unroll` and `decode.start`.
        """
        self._mesh = decode.make_mesh() if mesh is None else mesh
        if self._mesh.devices.flat[0].platform == "cpu":
            # It multiplies no bfloat16, but makes floats of every one first.
            transformer = dataclasses.replace(config.transformer, dtype="float32")
            config = dataclasses.replace(config, transformer=transformer)
        self.config = config
        self.layout = config.layout
        self.num_devices = self._mesh.size
        self._by_rows = NamedSharding(self._mesh, P(decode.ROWS))
        whole = NamedSharding(self._mesh, P())
        weights = decode.unroll(config, params, int8_weights=int8_weights)
        self._weights = jax.device_put(weights, whole)
        self._int8_cache = int8_cache
        self._compiled: set[tuple[int, int, bool, bool]] = set()
        self.bytes_read = 0

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
        """Generates the target of one window.

        What comes of a row depends on its own arguments, on the number of rows a device and on
        `prefilled`; whether any row is guided or filtered can matter in the last bit.

        Args:
          condition: raw codes of the layout's prefix by source, int32.
          keys_B: one a row; a multiple of `num_devices` of them.
          samplings: how the tokens of each row are drawn.
          num_frames: frames of the target; all of the window's if None.
          prompts: for each row the raw codes [T, Q] of its first frames, kept as they are; there
            may be any number of frames, from `prefilled` on.
          prefilled: frames that are looked at in one go. Frames of prompts beyond these are
            gone through step by step.
          progress: called with the frames that are there.

        Returns:
          Raw codes, int32 [B, num_frames, Q], the prompts included.

        Raises:
          ValueError: more frames than the window holds, or prompts that leave none to generate or
            are shorter than `prefilled`.
        """
        layout, num_rows = self.layout, len(samplings)
        num_frames = layout.target.num_frames if num_frames is None else num_frames
        if prompts is None:
            prompts = [np.zeros((0, layout.target_levels), np.int32)] * num_rows
        given_B = np.array([len(prompt_TQ) for prompt_TQ in prompts], np.int32)
        if not prefilled <= given_B.min() < num_frames <= layout.target.num_frames:
            raise ValueError(
                f"{num_frames} frames after prompts of {given_B.min()} or more, {prefilled} in one "
                f"go, in the {layout.stage} stage: give more than the prompts and up to "
                f"{layout.target.num_frames}"
            )
        first = layout.prefix_length
        ids_BS = np.zeros((num_rows, layout.sequence_length), np.int32)
        ids_BS[:, :first] = layout.flatten_prefix(condition)
        for ids_S, prompt_TQ in zip(ids_BS, prompts, strict=True):
            (prompt_N,) = layout.flatten_target(prompt_TQ[None, :num_frames])
            ids_S[first : first + prompt_N.size] = prompt_N
        given_B = first + given_B * layout.target_levels
        ids_BS, keys_B, given_B, rows = jax.device_put(
            (ids_BS, keys_B, given_B, logits.by_row(samplings)), self._by_rows
        )
        state = decode.start(
            self.config,
            self._mesh,
            self._weights,
            ids_BS,
            first + prefilled * layout.target_levels,
            guided=any(sampling.guided for sampling in samplings),
            int8_cache=self._int8_cache,
        )
        filtered = any(sampling.filtered for sampling in samplings)
        frames = prefilled
        while frames < num_frames:
            count = min(FRAMES_PER_CALL, num_frames - frames)
            state = decode.advance(
                self.config,
                self._mesh,
                self._weights,
                state,
                keys_B,
                given_B,
                count * layout.target_levels,
                rows,
                filtered=filtered,
            )
            frames += count
            if progress:
                state.known.block_until_ready()
                progress(frames)
        self.bytes_read += decode.bytes_read(
            self.config,
            self._weights,
            len(state.ids_GS) // self.num_devices,
            first + prefilled * layout.target_levels,
            first + num_frames * layout.target_levels,
            int8_cache=self._int8_cache,
        )
        # Each device has its own rows first; those with the null condition follow.
        ids_DGS = decode.fetch(state.ids_GS).reshape(self.num_devices, -1, layout.sequence_length)
        ids_BS = ids_DGS[:, : num_rows // self.num_devices].reshape(num_rows, -1)
        stop = first + num_frames * layout.target_levels
        return layout.unflatten_target(ids_BS[:, first:stop])

    def compile(self, num_rows: int, prefilled: int, guided: bool, filtered: bool) -> None:
        """Compiles all that `generate` needs for so many rows, and takes the memory that it takes.

        Once; a further call with the same arguments does nothing.
        """
        program = (num_rows, prefilled, guided, filtered)
        if program in self._compiled:
            return
        ids_BS, keys_B, given_B, rows = jax.device_put(
            (
                np.zeros((num_rows, self.layout.sequence_length), np.int32),
                jax.random.split(jax.random.key(0), num_rows),
                np.zeros(num_rows, np.int32),
                logits.by_row([Sampling()] * num_rows),
            ),
            self._by_rows,
        )
        known = self.layout.prefix_length + prefilled * self.layout.target_levels
        state = decode.start(
            self.config,
            self._mesh,
            self._weights,
            ids_BS,
            known,
            guided=guided,
            int8_cache=self._int8_cache,
        )
        decode.compile_spans(
            self.config, self._mesh, self._weights, state, keys_B, given_B, rows, filtered=filtered
        )
        self._compiled.add(program)
