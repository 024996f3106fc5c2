import dataclasses
import functools
import math

import jax
import numpy as np
import pytest

from musiclm.models.w2v_bert import W2vBert, W2vBertConfig
from musiclm.training import health, optim
from musiclm.training.w2v_bert import W2vBertTask

pytestmark = pytest.mark.slow

RATE = 1_600
CONFIG = W2vBertConfig(
    sample_rate=RATE, num_mels=16, mel_window_size=128, conv_channels=(4, 4), model_dim=32,
    num_heads=2, ffn_dim=64, contrastive_blocks=1, mlm_blocks=2, codebook_size=16, codebook_dim=16,
    feature_layer=1, dropout=0.0,
)  # fmt: skip
TASK = W2vBertTask(
    config=CONFIG,
    optimizer=optim.OptimizerConfig(
        learning_rate=6e-3, warmup_steps=20, total_steps=1000, schedule="constant"
    ),
    mask_span=4, mask_start_prob=0.1, num_distractors=20, gumbel_steps=100,
    target_rate=0.1,
)  # fmt: skip
STEPS = 400
evaluate = jax.jit(TASK.evaluate)


def _batch(seed, size=12):
    """Two tones that take turns in each clip: what is hidden follows from what is not."""
    rng = np.random.default_rng(seed)
    time_T = np.arange(2 * RATE) / RATE
    first_B1, second_B1 = 60.0 * 2 ** (rng.integers(0, 30, (2, size, 1)) / 10)
    turn_BT = ((time_T + rng.uniform(0, 1, (size, 1))) // 0.4) % 2
    hz_BT = np.where(turn_BT > 0, first_B1, second_B1)
    return {"waveform": (0.5 * np.sin(2 * np.pi * hz_BT * time_T)).astype(np.float32)}


@pytest.fixture(scope="module")
def trained():
    state = first = jax.jit(TASK.init)(jax.random.key(0), _batch(0))
    # So many steps pay for LLVM's optimisation, which the tests leave out elsewhere.
    step = jax.jit(TASK.step, compiler_options={"xla_backend_optimization_level": 2})
    for i in range(STEPS):
        state, metrics = step(state, _batch(i), jax.random.key(i))
    return first, state, metrics


def test_training_beats_untrained_and_chance(trained):
    first, state, _ = trained
    before, after = (evaluate(s, _batch(9_999), jax.random.key(1)) for s in (first, state))
    assert after["prediction_loss"] < 0.7 * before["prediction_loss"]
    assert after["prediction_loss"] < 0.7 * math.log(CONFIG.codebook_size)
    assert after["prediction_accuracy"] > before["prediction_accuracy"] + 0.2
    assert after["contrastive_loss"] < 0.85 * math.log(TASK.num_distractors + 1)
    assert after["codebook_perplexity"] > 4


def test_a_step_counts_moves_and_reports(trained):
    first, state, metrics = trained
    assert int(state.step) == STEPS
    moved = jax.tree.map(
        lambda a, b: np.abs(a - b).max(), *jax.device_get((first.params, state.params))
    )
    assert min(jax.tree.leaves(moved)) > 0
    for gate in TASK.health():
        assert gate.metric in metrics
    assert float(metrics["gumbel_temperature"]) == pytest.approx(TASK.gumbel_end)
    expected = (
        metrics["contrastive_loss"]
        + TASK.diversity_weight * metrics["diversity_loss"]
        + metrics["prediction_loss"]
    )
    assert float(metrics["loss"]) == pytest.approx(float(expected), rel=1e-5)


def test_same_key_same_step_and_other_key_other_masks(trained):
    _, state, _ = trained
    losses = [float(evaluate(state, _batch(1), jax.random.key(k))["loss"]) for k in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_exported_part_gives_the_same_features(trained):
    _, state, _ = trained
    config, variables = TASK.export(state)
    waveform_BT = _batch(3)["waveform"][:2]
    whole, part = (
        jax.jit(functools.partial(W2vBert(config).apply, method="features"))(variables, waveform_BT)
        for config, variables in (
            (CONFIG, {"params": state.params, **state.model_state}),
            (config, variables),
        )
    )
    np.testing.assert_allclose(part, whole, atol=1e-5)
    assert config.mlm_blocks == 1
    kept, all_of_it = (
        sum(x.size for x in jax.tree.leaves(p)) for p in (variables["params"], state.params)
    )
    assert kept < 0.75 * all_of_it


def test_a_contrastive_loss_without_weight_adds_nothing_and_is_not_watched(trained):
    _, state, _ = trained
    task = dataclasses.replace(TASK, contrastive_weight=0.0)
    found = jax.jit(task.evaluate)(state, _batch(1), jax.random.key(0))
    whole = evaluate(state, _batch(1), jax.random.key(0))
    assert float(found["contrastive_loss"]) == pytest.approx(float(whole["contrastive_loss"]))
    assert float(found["loss"]) == pytest.approx(float(whole["loss"] - whole["contrastive_loss"]))
    assert [gate.metric for gate in task.health()] == ["codebook_perplexity"]


def test_gumbel_temperature_falls_to_its_end_and_stays():
    task = dataclasses.replace(TASK, gumbel_start=2.0, gumbel_end=0.5, gumbel_steps=100)
    taus = [float(task.gumbel_temperature(step)) for step in (0, 50, 100, 500)]
    assert taus == pytest.approx([2.0, 1.0, 0.5, 0.5])


@pytest.mark.parametrize(
    ("metric", "healthy", "ill", "advice"),
    [
        ("codebook_perplexity", 8.0, 1.2, "diversity_weight"),
        ("contrastive_loss", 1.5, math.log(21), "learning rate"),
    ],
)
def test_health_gates(metric, healthy, ill, advice):
    monitor = health.HealthMonitor(TASK.health())
    late = TASK.health_after_step
    for value, step in ((ill, 0), (healthy, late)):
        for _ in range(10):
            monitor.observe(step, {metric: value})
    patience = {gate.metric: gate.patience for gate in TASK.health()}[metric]
    for _ in range(patience - 1):
        monitor.observe(late, {metric: ill})
    with pytest.raises(health.HealthError, match=advice):
        monitor.observe(late, {metric: ill})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask_start_prob": 0.0}, "mask_start_prob 0.0"),
        ({"mask_span": 0}, "mask_span 0"),
        ({"optimizer": optim.OptimizerConfig(ema_decay=0.9)}, "ema_decay 0.9: give 0"),
        ({"num_distractors": 0}, "num_distractors 0"),
        ({"contrastive_temperature": 0.0}, "contrastive_temperature"),
        ({"target_rate": 1.5}, "target_rate 1.5"),
        ({"contrastive_weight": -1.0}, "contrastive_weight -1.0"),
        ({"diversity_weight": -1.0}, "diversity_weight -1.0"),
        ({"gumbel_start": 0.1}, "gumbel_end 0.5 must be above 0 and not above gumbel_start 0.1"),
    ],
)
def test_task_names_what_is_wrong(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TASK, **change)
