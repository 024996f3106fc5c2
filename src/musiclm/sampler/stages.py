"""One stage at work: raw codes in, raw codes out.

Shapes: B batch, T frames, Q levels.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from musiclm.models.token_lm import TokenLMConfig
from musiclm.sampler import decode
from musiclm.sampler.logits import Sampling

# Frames a call of the compiled loop: how often a progress bar moves.
FRAMES_PER_CALL = 64


class Stage:
    """A trained semantic, coarse or fine stage, ready to decode.

    Attributes:
      config: the model.
      layout: what its sequences look like.
    """

    def __init__(self, config: TokenLMConfig, params: Mapping[str, Any]):
        """Takes the parameters of `TokenLM(config)` apart for decoding.

        Args:
          config: the model.
          params: the collection "params", arrays of JAX or NumPy.
        """
        self.config = config
        self.layout = config.layout
        self._weights = decode.unroll(config, params)

    def generate(
        self,
        condition: Mapping[str, np.ndarray],
        keys_B: jax.Array,
        sampling: Sampling,
        *,
        num_frames: int | None = None,
        prompt_BTQ: np.ndarray | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """Generates the target of one window.

        Args:
          condition: raw codes of the layout's prefix by source, int32.
          keys_B: one a row; a row's codes depend on its key and condition alone.
          sampling: how tokens are drawn.
          num_frames: frames of the target; all of the window's if None.
          prompt_BTQ: raw codes of its first frames, kept as they are.
          progress: called with the number of tokens (of a row) that have come since the last call.

        Returns:
          Raw codes, int32 [B, num_frames, Q], the prompt included.

        Raises:
          ValueError: more frames than the window holds, or a prompt that leaves none to generate.
        """
        layout = self.layout
        num_frames = layout.target.num_frames if num_frames is None else num_frames
        prompt_frames = 0 if prompt_BTQ is None else prompt_BTQ.shape[1]
        if not prompt_frames < num_frames <= layout.target.num_frames:
            raise ValueError(
                f"{num_frames} frames after a prompt of {prompt_frames} in the {layout.stage} "
                f"stage: give more than the prompt and up to {layout.target.num_frames}"
            )
        ids_BS = np.zeros((keys_B.shape[0], layout.sequence_length), np.int32)
        ids_BS[:, : layout.prefix_length] = layout.flatten_prefix(condition)
        known = layout.prefix_length
        if prompt_frames:
            prompt_BN = layout.flatten_target(prompt_BTQ)
            ids_BS[:, known : known + prompt_BN.shape[1]] = prompt_BN
            known += prompt_BN.shape[1]
        stop = layout.prefix_length + num_frames * layout.target_levels
        if sampling.guidance != 1:
            null_BS = layout.drop_condition(ids_BS, np.ones(len(ids_BS), bool))
            ids_BS = np.concatenate([ids_BS, null_BS])
        state = decode.start(self.config, self._weights, jnp.asarray(ids_BS), known)
        while known < stop:
            count = min(FRAMES_PER_CALL * layout.target_levels, stop - known)
            state = decode.advance(self.config, self._weights, state, keys_B, count, sampling)
            known += count
            if progress:
                state.known.block_until_ready()
                progress(count)
        ids_BN = np.asarray(state.ids_BS)[: keys_B.shape[0], layout.prefix_length : stop]
        return layout.unflatten_target(ids_BN)
