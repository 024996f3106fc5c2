"""Parallel decoding with SoundStorm: a window in a few passes instead of one a token.

Levels are made one after the other, the coarsest first. A pass over a level draws all codes that
are still masked and keeps those that the model is surest of; the last one takes the likeliest
(SoundStorm, section 3.3, after MaskGIT).

Rows lie over the devices of a mesh as in `sampler.decode`.

Shapes: B batch, P prefix, N tokens of the target, T frames, Q levels, K codes, G rows of the model:
B, or with guidance 2 B; I passes.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from musiclm.models import soundstorm
from musiclm.models.soundstorm import SoundStorm, SoundStormConfig
from musiclm.sampler import logits
from musiclm.sampler.decode import ROWS, fetch, make_mesh
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
      num_devices: that share the rows of a batch.
    """

    def __init__(
        self,
        config: SoundStormConfig,
        params: Mapping[str, Any],
        mesh: Mesh | None = None,
        *,
        iterations: Sequence[int] = ITERATIONS,
    ):
        """Takes a model.

        Args:
          config: the model.
          params: the collection "params", arrays of JAX or NumPy.
          mesh: from `decode.make_mesh`; over this process's devices by default.
          iterations: see `plan`.
        """
        plan(iterations, config.layout.target_levels)  # says what is wrong with them
        self.config = config
        self.layout = config.layout
        self._iterations = tuple(iterations)
        self._mesh = make_mesh() if mesh is None else mesh
        self.num_devices = self._mesh.size
        self._by_rows = NamedSharding(self._mesh, P(ROWS))
        self._params = jax.device_put(params, NamedSharding(self._mesh, P()))
        self._compiled: set[tuple[int, bool, bool]] = set()

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

        A shorter one is the beginning of a whole one: its frames hear those after it. What comes of
        a row depends on its own arguments; the number of rows a device, and whether any is guided
        or filtered, can matter in the last bit.

        Args:
          condition: raw codes of the layout's prefix by source, int32.
          keys_B: one a row; a multiple of `num_devices` of them.
          samplings: how the codes of each row are drawn.
          num_frames: frames of the target; all of the window's if None.
          prompts: for each row the raw codes [T, Q] of its first frames, kept as they are.
          prefilled: as in `Stage.generate`, which this may stand for; all frames are looked at in
            one go, whatever it is.
          progress: called at the end with the frames that are there.

        Returns:
          Raw codes, int32 [B, num_frames, Q], the prompts included.

        Raises:
          ValueError: more frames than the window holds, or prompts that leave none to generate.
        """
        layout, num_rows = self.layout, len(samplings)
        num_frames = layout.target.num_frames if num_frames is None else num_frames
        if prompts is None:
            prompts = [np.zeros((0, layout.target_levels), np.int32)] * num_rows
        given_B = np.array([len(prompt_TQ) for prompt_TQ in prompts], np.int32)
        if not given_B.min() < num_frames <= layout.target.num_frames:
            raise ValueError(
                f"{num_frames} frames after prompts of {given_B.min()} or more in the "
                f"{layout.stage} stage: give more than the prompts and up to "
                f"{layout.target.num_frames}"
            )
        codes_BTQ = np.zeros((num_rows, layout.target.num_frames, layout.target_levels), np.int32)
        for codes_TQ, prompt_TQ in zip(codes_BTQ, prompts, strict=True):
            codes_TQ[: len(prompt_TQ)] = prompt_TQ[: len(codes_TQ)]
        made_BTQ = self._decode(
            layout.flatten_prefix(condition),
            codes_BTQ,
            given_B,
            keys_B,
            samplings,
            guided=any(sampling.guided for sampling in samplings),
            filtered=any(sampling.filtered for sampling in samplings),
        )[:, :num_frames]
        if progress:
            progress(num_frames)
        return made_BTQ

    def compile(self, num_rows: int, prefilled: int, guided: bool, filtered: bool) -> None:
        """Compiles all that `generate` needs for so many rows, and takes the memory that it takes.

        Once; a further call with the same arguments does nothing, and `prefilled` is none of them.
        """
        program = (num_rows, guided, filtered)
        if program in self._compiled:
            return
        layout = self.layout
        self._decode(
            np.zeros((num_rows, layout.prefix_length), np.int32),
            np.zeros((num_rows, layout.target.num_frames, layout.target_levels), np.int32),
            np.zeros(num_rows, np.int32),
            jax.random.split(jax.random.key(0), num_rows),
            [Sampling()] * num_rows,
            guided=guided,
            filtered=filtered,
        )
        self._compiled.add(program)

    def _decode(
        self, prefix_BP, codes_BTQ, given_B, keys_B, samplings, *, guided, filtered
    ) -> np.ndarray:
        rows = logits.by_row(samplings)
        by_rows = jax.device_put((prefix_BP, codes_BTQ, given_B, keys_B, rows), self._by_rows)
        static = (self.config, self._mesh, self._iterations, guided, filtered)
        return fetch(decode(*static, self._params, *by_rows))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def decode(
    config: SoundStormConfig,
    mesh: Mesh,
    iterations: tuple[int, ...],
    guided: bool,
    filtered: bool,
    params: Mapping[str, Any],
    prefix_BP: jax.Array,
    codes_BTQ: jax.Array,
    given_B: jax.Array,
    keys_B: jax.Array,
    rows: logits.Rows,
) -> jax.Array:
    """All passes, in one program.

    Args:
      config, params: the model; its parameters on every device of the mesh.
      mesh: from `decode.make_mesh`; its size divides B.
      iterations: see `plan`.
      guided: whether any row is; the null condition takes as many rows again.
      filtered: whether any row is; see `logits.sample`.
      prefix_BP: the condition, int32 identifiers.
      codes_BTQ: int32, a window that is known in its first frames; the rest is not looked at.
      given_B: int32, how many frames of each row are known.
      keys_B: one a row.
      rows: the settings.

    Returns:
      The window's codes, int32 [B, T, Q].
    """
    return jax.shard_map(
        functools.partial(_decode_on_device, config, iterations, guided, filtered),
        mesh=mesh,
        in_specs=(P(), *[P(ROWS)] * 5),
        out_specs=P(ROWS),
        check_vma=False,
    )(params, prefix_BP, codes_BTQ, given_B, keys_B, rows)


def _decode_on_device(
    config, iterations, guided, filtered, params, prefix_BP, codes_BTQ, given_B, keys_B, rows
) -> jax.Array:
    layout = config.layout
    num_rows, num_frames, num_levels = codes_BTQ.shape
    prefix_GP = prefix_BP
    if guided:
        null_BP = layout.drop_condition(prefix_BP, np.ones(num_rows, bool))
        prefix_GP = jnp.concatenate([prefix_BP, null_BP])
    copies = len(prefix_GP) // num_rows
    generated_BT = jnp.arange(num_frames) >= given_B[:, None]
    passes = plan(iterations, num_levels)

    def score(codes_BTQ, masked_BT, level):
        level_B = jnp.full(num_rows, level)
        masked_BTQ = soundstorm.masked_codes(masked_BT, generated_BT, level_B, num_levels)
        ids_BN = layout.flatten_target(codes_BTQ)
        logits_GTK = SoundStorm(config).apply(
            {"params": params},
            jnp.concatenate([prefix_GP, jnp.tile(ids_BN, (copies, 1))], axis=1),
            jnp.tile(masked_BTQ, (copies, 1, 1)),
            jnp.tile(level_B, copies),
        )
        if not guided:
            return logits_GTK
        return jax.vmap(logits.guide, in_axes=(1, None), out_axes=1)(logits_GTK, rows.guidance_B)

    def run(state, this_pass):
        codes_BTQ, masked_BT = state
        index, level, remaining = this_pass
        logits_BTK = score(codes_BTQ, masked_BT, level)
        draw_keys_B, noise_keys_B = (_fold(keys_B, 2 * index + i) for i in range(2))
        # The last pass over a level is greedy.
        settings = rows._replace(temperature_B=jnp.where(remaining > 0, rows.temperature_B, 0.0))
        keys_BT = jax.vmap(lambda key: jax.random.split(key, num_frames))(draw_keys_B)
        draw = functools.partial(logits.sample, rows=settings, filtered=filtered)
        drawn_BT = jax.vmap(draw, in_axes=1, out_axes=1)(logits_BTK, keys_BT)

        noise_BT = jax.vmap(lambda key: jax.random.gumbel(key, (num_frames,)))(noise_keys_B)
        noise_BT *= CONFIDENCE_NOISE * remaining * rows.temperature_B[:, None]
        log_probs_BTK = jax.nn.log_softmax(logits_BTK)
        sure_BT = jnp.take_along_axis(log_probs_BTK, drawn_BT[..., None], axis=-1)[..., 0]
        left_B = jnp.sin(jnp.pi / 2 * remaining) * (num_frames - given_B)
        still_BT = least_sure(sure_BT + noise_BT, masked_BT, left_B.astype(jnp.int32))

        is_new_BTQ = (masked_BT & ~still_BT)[..., None] & (jnp.arange(num_levels) == level)
        codes_BTQ = jnp.where(is_new_BTQ, drawn_BT[..., None], codes_BTQ)
        # After a level's last pass, the next one is masked as a whole.
        return (codes_BTQ, jnp.where(remaining > 0, still_BT, generated_BT)), None

    numbered = (np.arange(len(passes.levels)), *passes)
    return jax.lax.scan(run, (codes_BTQ, generated_BT), numbered)[0][0]


def least_sure(confidence_BT: jax.Array, masked_BT: jax.Array, count_B: jax.Array) -> jax.Array:
    """The `count_B` masked frames of each row of which the model is least sure, bool [B, T]."""
    ranked_BT = jnp.argsort(jnp.where(masked_BT, confidence_BT, jnp.inf), axis=-1, stable=True)
    place_BT = jnp.argsort(ranked_BT, axis=-1)
    return masked_BT & (place_BT < count_B[:, None])


def _fold(keys_B: jax.Array, number: jax.Array) -> jax.Array:
    return jax.vmap(jax.random.fold_in, (0, None))(keys_B, number)
