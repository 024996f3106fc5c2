"""SoundStorm: sizes, what a frame's scores depend on, which codes are hidden."""

import dataclasses
import functools
import pathlib

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musiclm.models import soundstorm
from musiclm.models.soundstorm import SoundStorm, SoundStormConfig
from musiclm.nn.conformer import ConformerConfig, SelfAttention
from musiclm.token_spec import TokenSpec
from musiclm.tokens.layout import StageLayout

GIN = pathlib.Path(__file__).parents[2] / "gin" / "models" / "soundstorm"
LEVELS, FRAMES = 4, 8
LAYOUT = StageLayout.parallel(
    TokenSpec(
        num_acoustic_codebooks=LEVELS,
        acoustic_codebook_size=13,
        num_coarse_codebooks=2,
        semantic_vocab_size=11,
        num_mulan_codebooks=3,
        mulan_codebook_size=7,
        coarse_window_seconds=FRAMES / 50,
    )
)
CONFIG = SoundStormConfig(
    layout=LAYOUT,
    conformer=ConformerConfig(num_blocks=2, model_dim=16, num_heads=2, ffn_dim=24),
)
ROWS = 3


@functools.cache
def apply(config=CONFIG):
    return jax.jit(SoundStorm(config).apply)


@pytest.fixture(scope="module")
def variables(moved):
    init = jax.jit(SoundStorm(CONFIG).init)
    return moved(init(jax.random.key(0), sequences(), *hidden(0, 0)))


def sequences(seed=0):
    rng = np.random.default_rng(seed)
    codes = {
        "mulan": rng.integers(0, 7, (ROWS, 3)),
        "semantic": rng.integers(0, 11, (ROWS, FRAMES // 2)),
        "acoustic": rng.integers(0, 13, (ROWS, FRAMES, LEVELS)),
    }
    return LAYOUT.flatten(codes)


def hidden(prompt, level, masked_T=None):
    """The mask of a level after a prompt, all of its frames unless told which, and the level."""
    generated_BT = np.tile(np.arange(FRAMES) >= prompt, (ROWS, 1))
    masked_BT = generated_BT if masked_T is None else np.tile(masked_T, (ROWS, 1))
    level_B = np.full(ROWS, level, np.int32)
    return soundstorm.masked_codes(masked_BT, generated_BT, level_B, LEVELS), level_B


def shapes_of(config):
    layout = config.layout
    return jax.eval_shape(
        SoundStorm(config).init,
        jax.random.key(0),
        jax.ShapeDtypeStruct((1, layout.sequence_length), jnp.int32),
        jax.ShapeDtypeStruct((1, layout.target.num_frames, layout.target_levels), bool),
        jax.ShapeDtypeStruct((1,), jnp.int32),
    )["params"]


def parameters(config):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes_of(config)))


def gin_config(name):
    gin.clear_config()
    gin.parse_config_file(str(GIN / name))
    try:
        return gin.get_configurable(SoundStormConfig)()
    finally:
        gin.clear_config()


def test_base_has_the_papers_350_million_parameters():
    config = gin_config("base.gin")
    assert parameters(config) == pytest.approx(350e6, rel=0.05)
    assert config.layout == StageLayout.parallel(TokenSpec())
    assert shapes_of(config)["frames"]["blocks"]["norm"]["scale"].shape == (12, 1024)


def test_mini_is_small():
    assert parameters(gin_config("mini.gin")) == pytest.approx(3e6, rel=0.2)


@given(
    prompt=st.integers(0, FRAMES - 1),
    level=st.integers(0, LEVELS - 1),
    masked=st.lists(st.booleans(), min_size=FRAMES, max_size=FRAMES),
)
def test_masks_are_the_papers(prompt, level, masked):
    generated_T = np.arange(FRAMES) >= prompt
    masked_T = generated_T & masked
    masked_BTQ, _ = hidden(prompt, level, masked_T)
    for frame in range(FRAMES):
        for q in range(LEVELS):
            expected = {
                q < level: False,  # coarser codes are all there
                q == level: masked_T[frame],
                q > level: frame >= prompt,
            }[True]
            assert (masked_BTQ[:, frame, q] == expected).all()


@pytest.mark.parametrize("level", [0, 2, LEVELS - 1])
def test_masked_codes_do_not_leak_and_the_others_count(variables, level):
    masked_T = np.array([False, False, True, False, True, True, False, True])
    masked_BTQ, level_B = hidden(2, level, masked_T)
    ids_BS = sequences()
    base_BTK = apply()(variables, ids_BS, masked_BTQ, level_B)
    assert base_BTK.shape == (ROWS, FRAMES, 13)
    assert base_BTK.dtype == jnp.float32
    codes = LAYOUT.unflatten(ids_BS)
    for frame in range(FRAMES):
        for q in range(LEVELS):
            acoustic = codes["acoustic"].copy()
            acoustic[:, frame, q] = (acoustic[:, frame, q] + 1) % 13
            changed_BS = LAYOUT.flatten(codes | {"acoustic": acoustic})
            moved_BTK = np.abs(apply()(variables, changed_BS, masked_BTQ, level_B) - base_BTK)
            if masked_BTQ[0, frame, q]:
                assert moved_BTK.max() == 0
            else:
                assert (moved_BTK.max((1, 2)) > 0).all()


def test_every_frame_hears_the_condition_at_its_moment_and_of_the_clip(variables):
    """Seen where frames enter the conformer: its attention carries everything everywhere."""
    masked_BTQ, level_B = hidden(0, 0)

    @jax.jit
    def frames(ids_BS):
        _, state = SoundStorm(CONFIG).apply(
            variables,
            ids_BS,
            masked_BTQ,
            level_B,
            capture_intermediates=lambda module, _: module.name == "Dropout_0",
        )
        return state["intermediates"]["Dropout_0"]["__call__"][0]

    ids_BS = sequences()
    base_BTM = frames(ids_BS)
    for position in range(LAYOUT.prefix_length):
        changed_BS = ids_BS.copy()
        changed_BS[:, position] = 2 if ids_BS[0, position] != 2 else 3
        moved_T = np.abs(frames(changed_BS) - base_BTM)[0].max(-1) > 0
        if position < 3:
            assert moved_T.all()
        else:  # a semantic code lasts two frames
            assert np.flatnonzero(moved_T).tolist() == [2 * (position - 3), 2 * (position - 3) + 1]


def test_attention_knows_distances_alone():
    """Equal to attention whose queries are turned by the distance and whose keys are not at all."""
    width, heads, frames = 16, 2, 7
    half = width // heads // 2
    module = SelfAttention(CONFIG.conformer, deterministic=True)
    x_TM = np.random.default_rng(1).normal(size=(frames, width)).astype(np.float32)
    params = jax.jit(module.init)(jax.random.key(2), x_TM[None])["params"]
    params["out"]["kernel"] = np.eye(width, dtype=np.float32)
    found_TM = jax.jit(module.apply)({"params": params}, x_TM[None])[0]

    centred_TM = x_TM.astype(np.float64) - x_TM.mean(1, keepdims=True)
    normed_TM = centred_TM / np.sqrt((centred_TM**2).mean(1, keepdims=True) + 1e-6)
    query_TNH, key_TNH, value_TNH = (
        (normed_TM @ np.asarray(params[name]["kernel"])).reshape(frames, heads, 2 * half)
        for name in ("query", "key", "value")
    )
    distance_TT = np.arange(frames)[:, None] - np.arange(frames)
    angle_TT1H = distance_TT[..., None, None] * 10_000.0 ** (-np.arange(half) / half)
    complex_query = query_TNH[..., :half] + 1j * query_TNH[..., half:]
    complex_key = key_TNH[..., :half] + 1j * key_TNH[..., half:]
    turned = complex_query[:, None] * np.exp(1j * angle_TT1H)
    scores_TTN = (turned * complex_key.conj()).real.sum(-1) / np.sqrt(2 * half)
    weights_TTN = np.exp(scores_TTN) / np.exp(scores_TTN).sum(1, keepdims=True)
    expected = np.einsum("tsn,snh->tnh", weights_TTN, value_TNH).reshape(frames, width)
    np.testing.assert_allclose(found_TM, expected, atol=1e-5)


def test_a_level_has_a_head_of_its_own(variables):
    masked_BTQ, _ = hidden(0, 0)
    ids_BS = sequences()
    one = [
        apply()(variables, ids_BS, masked_BTQ, np.full(ROWS, level, np.int32))
        for level in range(LEVELS)
    ]
    level_B = np.array([2, 0, 3], np.int32)
    mixed_BTK = apply()(variables, ids_BS, masked_BTQ, level_B)
    for row, level in enumerate(level_B):
        np.testing.assert_allclose(mixed_BTK[row], one[level][row], atol=1e-5)
    assert np.abs(one[0] - one[1]).max() > 0.1


def test_masks_of_levels_differ(variables):
    """What is masked tells its level: two frames that lack one code each are not alike."""
    level_B = np.zeros(ROWS, np.int32)
    ids_BS = sequences()
    scores = []
    for q in (2, 3):
        masked_BTQ = np.broadcast_to(np.arange(LEVELS) == q, (ROWS, FRAMES, LEVELS))
        scores.append(apply()(variables, ids_BS, masked_BTQ, level_B))
    assert np.abs(scores[0] - scores[1]).max() > 0.01


def test_bfloat16_is_near_float32(variables):
    half = dataclasses.replace(
        CONFIG, conformer=dataclasses.replace(CONFIG.conformer, dtype="bfloat16")
    )
    inputs = (sequences(), *hidden(2, 1))
    exact, rounded = (np.asarray(apply(config)(variables, *inputs)) for config in (CONFIG, half))
    assert rounded.dtype == np.float32
    np.testing.assert_allclose(rounded, exact, atol=0.1 * np.abs(exact).max())


def test_wrong_lengths_are_named(variables):
    with pytest.raises(ValueError, match="parallel stage: give 39"):
        SoundStorm(CONFIG).apply(variables, sequences()[:, :-1], *hidden(0, 0))
