"""Training of SoundStorm: what is drawn, what is scored, that it learns."""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musiclm.models.soundstorm import SoundStorm, SoundStormConfig
from musiclm.nn.conformer import ConformerConfig
from musiclm.token_spec import TokenSpec
from musiclm.tokens.layout import StageLayout
from musiclm.training import optim, soundstorm
from musiclm.training.soundstorm import SoundStormTask
from musiclm.training.state import TrainState

CODES, LEVELS, FRAMES = 8, 3, 12
LAYOUT = StageLayout.parallel(
    TokenSpec(
        num_acoustic_codebooks=LEVELS,
        acoustic_codebook_size=CODES,
        num_coarse_codebooks=2,
        semantic_vocab_size=CODES,
        num_mulan_codebooks=1,
        mulan_codebook_size=CODES,
        coarse_window_seconds=FRAMES / 50,
    )
)
STEPS = 200


def task(**kwargs):
    sizes = ConformerConfig(num_blocks=2, model_dim=32, num_heads=2, ffn_dim=64)
    return SoundStormTask(
        config=SoundStormConfig(layout=LAYOUT, conformer=sizes),
        optimizer=optim.OptimizerConfig(learning_rate=1e-2, warmup_steps=20, total_steps=STEPS),
        **kwargs,
    )


def raw_codes(seed, rows=32):
    """Random conditions; a level follows from the condition or from the level before it."""
    rng = np.random.default_rng(seed)
    mulan, semantic = rng.integers(0, CODES, (rows, 1)), rng.integers(0, CODES, (rows, FRAMES // 2))
    first = np.repeat(semantic, 2, axis=1)
    second = (first + mulan) % CODES
    acoustic = np.stack([first, second, (3 * second) % CODES], axis=-1)
    return {"mulan": mulan, "semantic": semantic, "acoustic": acoustic}


def batch(seed, rows=32):
    return {"tokens": LAYOUT.flatten(raw_codes(seed, rows)).astype(np.int32)}


@functools.cache
def sampled(num_frames, num_levels, rows=4096):
    """Many masks, each level as often as the others."""
    level_B = np.arange(rows, dtype=np.int32) % num_levels
    masks = soundstorm.sample_masks(jax.random.key(0), level_B, num_frames, num_levels)
    return jax.device_get(masks)


@pytest.mark.slow
@given(num_frames=st.sampled_from([1, 2, 7, 40]), num_levels=st.sampled_from([1, 2, 5]))
def test_masks_are_the_papers(num_frames, num_levels):
    masks = sampled(num_frames, num_levels)
    levels_Q = np.arange(num_levels)
    finer_BTQ = np.broadcast_to(levels_Q > masks.level_B[:, None, None], masks.masked_BTQ.shape)
    coarser_BTQ = np.broadcast_to(levels_Q < masks.level_B[:, None, None], finer_BTQ.shape)
    own_BT = np.take_along_axis(masks.masked_BTQ, masks.level_B[:, None, None], axis=2)[..., 0]
    np.testing.assert_array_equal(own_BT, masks.asked_BT)
    assert not masks.masked_BTQ[coarser_BTQ].any()
    # Finer levels: nothing in the prompt, everything after it, and alike in all of them.
    for row in range(0, len(own_BT), 97):
        finer_TN = masks.masked_BTQ[row][:, levels_Q > masks.level_B[row]]
        if not finer_TN.size:
            continue
        prompt = num_frames - finer_TN[:, 0].sum()
        np.testing.assert_array_equal(
            finer_TN, np.repeat(np.arange(num_frames)[:, None] >= prompt, finer_TN.shape[1], 1)
        )
        assert prompt < num_frames
        assert not masks.asked_BT[row, :prompt].any()


def test_prompts_and_shares_are_drawn_as_the_paper_says():
    frames = 40
    masks = sampled(frames, 2)
    first = masks.level_B == 0
    generated_B = masks.masked_BTQ[first][:, :, 1].sum(1)
    # t ~ U{0 … T - 1}: after it 1 to T frames, all as likely.
    counts = np.bincount(generated_B, minlength=frames + 1)
    assert counts[0] == 0
    expected = len(generated_B) / frames
    assert np.abs(counts[1:] - expected).max() < 5 * np.sqrt(expected)
    # Of p = cos(u), u ~ U[0, π/2], the mean is 2/π and the mean square 1/2.
    long = generated_B > frames / 2
    share_B = masks.asked_BT[first].sum(1)[long] / generated_B[long]
    assert share_B.mean() == pytest.approx(2 / math.pi, abs=0.03)
    assert (share_B**2).mean() == pytest.approx(0.5, abs=0.03)


def test_every_level_is_asked_for():
    levels = np.concatenate(
        [task()._levels(jax.random.key(i), np.zeros((32, 1))) for i in range(40)]
    )
    counts = np.bincount(levels, minlength=LEVELS)
    assert len(counts) == LEVELS
    assert np.abs(counts / len(levels) - 1 / LEVELS).max() < 0.06


@pytest.fixture(scope="module")
def trained():
    storm = task()
    state = jax.jit(storm.init)(jax.random.key(0), batch(0))
    step = jax.jit(storm.step, donate_argnums=0)
    evaluate = jax.jit(storm.evaluate)
    before = evaluate(state, batch(10**6), jax.random.key(0))
    for i in range(STEPS):
        state, metrics = step(state, batch(i), jax.random.key(i))
    after = evaluate(state, batch(10**6), jax.random.key(0))
    return storm, state, evaluate, before, after, metrics


@pytest.mark.slow
def test_learns_every_level(trained):
    _, state, _, before, after, metrics = trained
    assert int(state.step) == STEPS
    assert before["loss"] == pytest.approx(math.log(CODES), rel=0.15)
    for level in range(LEVELS):
        assert after[f"loss_level_{level}"] < 0.3 * before[f"loss_level_{level}"]
        assert after[f"accuracy_level_{level}"] > 0.85
    assert all(np.isfinite(value) for value in metrics.values())
    assert metrics["learning_rate"] < 1e-3


@pytest.mark.slow
def test_a_wrong_condition_costs(trained):
    _, state, evaluate, _, after, _ = trained
    wrong = raw_codes(10**6)
    wrong["semantic"] = np.roll(wrong["semantic"], 1, axis=0)
    tokens = {"tokens": LAYOUT.flatten(wrong).astype(np.int32)}
    metrics = evaluate(state, tokens, jax.random.key(0))
    assert metrics["loss_level_0"] > 2 * after["loss_level_0"] + 0.5


@pytest.mark.slow
def test_loss_is_the_mean_over_what_is_asked_for(trained):
    storm, state, *_ = trained
    ids_BS, key = batch(3)["tokens"], jax.random.key(5)
    masks = jax.jit(storm._masks)(key, storm._levels(key, ids_BS))
    logits_BTK = jax.jit(SoundStorm(storm.config).apply)(
        {"params": state.params}, ids_BS, masks.masked_BTQ, masks.level_B
    )
    logits_BTK = np.asarray(logits_BTK, np.float64)
    log_probs_BTK = logits_BTK - np.log(np.exp(logits_BTK).sum(-1, keepdims=True))
    acoustic_BTQ = raw_codes(3)["acoustic"]
    level_B, asked_BT = jax.device_get((masks.level_B, masks.asked_BT))
    losses, hits = [], []
    for row, frame in zip(*np.nonzero(asked_BT), strict=True):
        code = acoustic_BTQ[row, frame, level_B[row]]
        losses.append(-log_probs_BTK[row, frame, code])
        hits.append(logits_BTK[row, frame].argmax() == code)
    found = jax.jit(storm.forward)(state, {"tokens": ids_BS}, key)
    assert float(found["loss"]) == pytest.approx(np.mean(losses), rel=1e-4)
    assert float(found["accuracy"]) == pytest.approx(np.mean(hits), rel=1e-4)


@pytest.mark.slow
def test_metrics_name_the_codecs_levels(trained):
    *_, after, metrics = trained
    for name in ("loss", "accuracy"):
        levels = [float(after[f"{name}_level_{level}"]) for level in range(LEVELS)]
        assert float(after[name]) == pytest.approx(np.mean(levels), rel=1e-5)
        assert name in metrics


@pytest.mark.slow
def test_condition_dropout_hides_the_condition_in_training(trained):
    storm, state, _, _, after, _ = trained
    blind = dataclasses.replace(storm, condition_dropout=0.9)
    blind_loss = jax.jit(lambda *arguments: blind.step(*arguments)[1]["loss"])
    assert blind_loss(state, batch(10**6), jax.random.key(0)) > 3 * after["loss"]


@pytest.mark.slow
def test_health_knows_guessing(trained):
    storm, _, _, before, after, _ = trained
    (check,) = storm.health()
    assert check.breached(float(before["loss"]))
    assert not check.breached(float(after["loss"]))


def test_the_average_of_the_weights_is_exported():
    storm = task()
    storm = dataclasses.replace(
        storm, optimizer=dataclasses.replace(storm.optimizer, ema_decay=0.9)
    )
    state = TrainState.create({"params": {"w": np.ones(3)}}, storm.optimizer.make())
    config, variables = storm.export(state.replace(params={"w": np.zeros(3)}))
    assert config == storm.config
    np.testing.assert_array_equal(variables["params"]["w"], 1)


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="condition_dropout"):
        task(condition_dropout=1.0)
