"""Parallel decoding with SoundStorm: a window in a few passes instead of one a token.

Levels are made one after the other, the coarsest first. A pass over a level draws all codes that
are still masked and keeps those that the model is surest of; the last one takes the likeliest
(SoundStorm, section 3.3, after MaskGIT).

Shapes: B batch, S sequence, T frames, Q levels, K codes, G rows of the model: B, or with guidance
2 B; I passes.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from musiclm.models import soundstorm
from musiclm.models.soundstorm import SoundStorm, SoundStormConfig
from musiclm.sampler import logits
from musiclm.sampler.logits import Sampling

# Passes over each of the first levels; the others take one.
ITERATIONS = (16,)
# Noise on what the model is sure of, a multiple of the temperature that falls to zero within a
# level. Without it the commonest codes always come first, and the others hang on them. MaskGIT's.
CONFIDENCE_NOISE = 4.5


class Passes(NamedTuple):
    """What each pass does, arrays [I].

    Attributes:
      levels: int32, which level it is over.
      remaining: f32, the fraction of the level's passes that come after it.
    """

    levels: np.ndarray
    remaining: np.ndarray


def plan(iterations: Sequence[int], num_levels: int) -> Passes:
    """The passes over all levels.

    Args:
      iterations: passes over each of the first levels.
      num_levels: Q.

    Raises:
      ValueError: fewer than one pass, or more numbers than levels.
    """
    if len(iterations) > num_levels or min(iterations, default=1) < 1:
        raise ValueError(
            f"iterations is {tuple(iterations)} for {num_levels} levels: give at most one number a "
            "level, each 1 or more"
        )
    counts = (*iterations, *(1,) * (num_levels - len(iterations)))
    return Passes(
        levels=np.repeat(np.arange(num_levels, dtype=np.int32), counts),
        remaining=np.concatenate([np.arange(n)[::-1] / n for n in counts]).astype(np.float32),
    )


class ParallelStage:
    """A trained SoundStorm, ready to decode: what a coarse and a fine stage are together.

    Attributes:
      config: the model.
      layout: what its sequences look like.
    """

    def __init__(
        self,
        config: SoundStormConfig,
        params: Mapping[str, Any],
        *,
        iterations: Sequence[int] = ITERATIONS,
    ):
        """Takes a model.

        Args:
          config: the model.
          params: the collection "params", arrays of JAX or NumPy.
          iterations: see `plan`.
        """
        plan(iterations, config.layout.target_levels)  # says what is wrong with them
        self.config = config
        self.layout = config.layout
        self._iterations = tuple(iterations)
        self._params = jax.tree.map(jnp.asarray, params)

    def generate(
        self,
        condition: Mapping[str, np.ndarray],
        keys_B: jax.Array,
        samplings: Sequence[Sampling],
        *,
        num_frames: int | None = None,
        prompt_BTQ: np.ndarray | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """Generates the target of one window.

        A shorter one is the beginning of a whole one: its frames hear those after it.

        Args:
          condition: raw codes of the layout's prefix by source, int32.
          keys_B: one a row; a row's codes depend on its key, condition and sampling alone.
          samplings: how codes are drawn, one a row; top_k and top_p alike in all.
          num_frames: frames of the target; all of the window's if None.
          prompt_BTQ: raw codes of its first frames, kept as they are.
          progress: called at the end with the number of tokens (of a row) that have come.

        Returns:
          Raw codes, int32 [B, num_frames, Q], the prompt included.

        Raises:
          ValueError: more frames than the window holds, or a prompt that leaves none to generate;
            not one sampling a row, or rows of different top_k or top_p.
        """
        layout, num_rows = self.layout, keys_B.shape[0]
        num_frames = layout.target.num_frames if num_frames is None else num_frames
        prompt_frames = 0 if prompt_BTQ is None else prompt_BTQ.shape[1]
        if not prompt_frames < num_frames <= layout.target.num_frames:
            raise ValueError(
                f"{num_frames} frames after a prompt of {prompt_frames} in the {layout.stage} "
                f"stage: give more than the prompt and up to {layout.target.num_frames}"
            )
        if len(samplings) != num_rows:
            raise ValueError(f"{len(samplings)} samplings of {num_rows} rows: give one a row")
        kept = {(sampling.top_k, sampling.top_p) for sampling in samplings}
        if len(kept) > 1:
            raise ValueError(
                f"samplings have the (top_k, top_p) {sorted(kept, key=str)}: give all rows of a "
                "call the same"
            )
        codes_BTQ = np.zeros((num_rows, layout.target.num_frames, layout.target_levels), np.int32)
        if prompt_frames:
            codes_BTQ[:, :prompt_frames] = prompt_BTQ
        prefix_BP = layout.flatten_prefix(condition)
        ids_BS = np.concatenate([prefix_BP, layout.flatten_target(codes_BTQ)], axis=1)
        codes_BTQ = decode(
            self.config,
            self._iterations,
            any(sampling.guidance != 1 for sampling in samplings),
            *kept.pop(),
            self._params,
            ids_BS,
            jnp.int32(prompt_frames),
            keys_B,
            np.array([sampling.guidance for sampling in samplings], np.float32),
            np.array([sampling.temperature for sampling in samplings], np.float32),
        )
        codes_BTQ = np.asarray(codes_BTQ)[:, :num_frames]
        if progress:
            progress((num_frames - prompt_frames) * layout.target_levels)
        return codes_BTQ


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def decode(
    config: SoundStormConfig,
    iterations: tuple[int, ...],
    guided: bool,
    top_k: int | None,
    top_p: float | None,
    params: Mapping[str, Any],
    ids_BS: jax.Array,
    prompt_frames: jax.Array,
    keys_B: jax.Array,
    guidance_B: jax.Array,
    temperature_B: jax.Array,
) -> jax.Array:
    """All passes, in one program.

    Args:
      config, params: the model.
      iterations: see `plan`.
      guided: whether any row's guidance is not 1; the null condition takes as many rows again.
      top_k, top_p: see `Sampling`.
      ids_BS: sequences whose target is known in its first frames; the rest is not looked at.
      prompt_frames: int32 scalar, how many.
      keys_B: one a row.
      guidance_B, temperature_B: see `Sampling`.

    Returns:
      The target's codes, int32 [B, T, Q].
    """
    layout = config.layout
    num_rows, prefix = len(ids_BS), layout.prefix_length
    num_frames, num_levels = layout.target.num_frames, layout.target_levels
    prefix_GP = ids_BS[:, :prefix]
    if guided:
        null_BP = layout.drop_condition(prefix_GP, np.ones(num_rows, bool))
        prefix_GP = jnp.concatenate([prefix_GP, null_BP])
    repeats = len(prefix_GP) // num_rows
    generated_BT = jnp.tile(jnp.arange(num_frames) >= prompt_frames, (num_rows, 1))
    passes = plan(iterations, num_levels)

    def score(codes_BTQ, masked_BT, level):
        level_B = jnp.full(num_rows, level)
        masked_BTQ = soundstorm.masked_codes(masked_BT, generated_BT, level_B, num_levels)
        ids_BN = layout.flatten_target(codes_BTQ)
        logits_GTK = SoundStorm(config).apply(
            {"params": params},
            jnp.concatenate([prefix_GP, jnp.tile(ids_BN, (repeats, 1))], axis=1),
            jnp.tile(masked_BTQ, (repeats, 1, 1)),
            jnp.tile(level_B, repeats),
        )
        if not guided:
            return logits_GTK
        guidance_B11 = guidance_B[:, None, None]
        guided_BTK = logits.guide(logits_GTK, guidance_B11)
        # To the last bit what the row would get among others without guidance.
        return jnp.where(guidance_B11 == 1, logits_GTK[:num_rows], guided_BTK)

    def run(carry, this):
        codes_BTQ, masked_BT = carry
        index, level, remaining = this
        logits_BTK = score(codes_BTQ, masked_BT, level)
        draw_keys_B, rank_keys_B = (_fold(keys_B, 2 * index + i) for i in range(2))
        # The last pass over a level is greedy.
        drawn_BT = jax.vmap(logits.sample, (0, 0, 0, None, None))(
            logits_BTK,
            jax.vmap(lambda key: jax.random.split(key, num_frames))(draw_keys_B),
            jnp.where(remaining > 0, temperature_B, 0.0),
            top_k,
            top_p,
        )
        noise_BT = jax.vmap(lambda key: jax.random.gumbel(key, (num_frames,)))(rank_keys_B)
        noise_BT *= CONFIDENCE_NOISE * remaining * temperature_B[:, None]
        log_probs_BTK = jax.nn.log_softmax(logits_BTK)
        confidence_BT = jnp.take_along_axis(log_probs_BTK, drawn_BT[..., None], axis=-1)[..., 0]
        count = jnp.floor(jnp.sin(jnp.pi / 2 * remaining) * (num_frames - prompt_frames)).astype(
            jnp.int32
        )
        still_BT = least_sure(confidence_BT + noise_BT, masked_BT, count)
        is_new_BTQ = (masked_BT & ~still_BT)[..., None] & (jnp.arange(num_levels) == level)
        codes_BTQ = jnp.where(is_new_BTQ, drawn_BT[..., None], codes_BTQ)
        # After its last pass, the next level is masked as a whole.
        return (codes_BTQ, jnp.where(remaining > 0, still_BT, generated_BT)), None

    start = (layout.unflatten_target(ids_BS[:, prefix:]), generated_BT)
    each = (np.arange(len(passes.levels)), *passes)
    return jax.lax.scan(run, start, each)[0][0]


def least_sure(confidence_BT: jax.Array, masked_BT: jax.Array, count: jax.Array) -> jax.Array:
    """The `count` masked frames of each row of which the model is least sure, bool [B, T]."""
    ranked_BT = jnp.argsort(jnp.where(masked_BT, confidence_BT, jnp.inf), axis=-1, stable=True)
    place_BT = jnp.argsort(ranked_BT, axis=-1)
    return masked_BT & (place_BT < count)


def _fold(keys_B: jax.Array, number: jax.Array) -> jax.Array:
    return jax.vmap(jax.random.fold_in, (0, None))(keys_B, number)
