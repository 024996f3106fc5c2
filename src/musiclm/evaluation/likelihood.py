"""How likely the stages find music: nats a token, so that lengths don't matter.

Shapes: B batch, N clips, T frames, Q levels, S sequence, K codes a level.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from musiclm.models.token_lm import TokenLM, TokenLMConfig
from musiclm.tokens.layout import StageLayout


def nats(
    config: TokenLMConfig,
    params: Mapping[str, Any],
    codes: Mapping[str, np.ndarray],
    *,
    batch_size: int = 16,
) -> np.ndarray:
    """Mean negative log-likelihood of the tokens of a stage's first window, f64 [N].

    Args:
      config: of the stage.
      params: its parameters.
      codes: raw codes of clips of a window or more, by source: "mulan" [N, Q], "semantic" [N, T],
        "acoustic" [N, T, Q], those that the stage's layout names.
      batch_size: clips at a time.

    Raises:
      ValueError: the clips are shorter than the window.
    """
    params = jax.tree.map(jnp.asarray, params)
    ids_NS = _first_windows(config.layout, codes)
    found = []
    for start in range(0, len(ids_NS), batch_size):
        # The last clip fills up the last batch: all have one shape.
        rows_B = np.minimum(np.arange(start, start + batch_size), len(ids_NS) - 1)
        found.append(np.asarray(_score(config, params, ids_NS[rows_B])))
    return np.concatenate(found)[: len(ids_NS)].astype(np.float64)


def is_filled(layout: StageLayout, codes: Mapping[str, np.ndarray]) -> bool:
    """Whether clips are as long as a window of the stage, or longer; `codes` as of `nats`."""
    return all(
        segment.source == "mulan" or codes[segment.source].shape[1] >= segment.num_frames
        for segment in (*layout.prefix, layout.target)
    )


def _first_windows(layout: StageLayout, codes: Mapping[str, np.ndarray]) -> np.ndarray:
    """The sequences int32 [N, S] of the beginnings of clips."""
    if not is_filled(layout, codes):
        raise ValueError(f"the clips don't fill a window of the {layout.stage} stage: give longer")
    cut = {
        segment.source: codes[segment.source]
        if segment.source == "mulan"
        else codes[segment.source][:, : segment.num_frames]
        for segment in (*layout.prefix, layout.target)
    }
    return np.asarray(layout.flatten(cut))


@functools.partial(jax.jit, static_argnums=0)
def _score(config: TokenLMConfig, params, ids_BS: jax.Array) -> jax.Array:
    layout = config.layout
    logits_BTQK = TokenLM(config).apply({"params": params}, ids_BS)
    codes_BTQ = layout.unflatten_target(ids_BS[:, layout.prefix_length :])
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits_BTQK), codes_BTQ[..., None], axis=-1)
    return -picked.mean(axis=(1, 2, 3))
