import dataclasses
import functools

import jax
import numpy as np
import pytest

from musiclm.audio import MelConfig
from musiclm.errors import UserError
from musiclm.evaluation import text_audio
from musiclm.losses import contrastive
from musiclm.models.bert import BertConfig
from musiclm.models.mulan import MuLan, MuLanConfig
from musiclm.models.resnet import ResNetConfig
from musiclm.nn.encoder import EncoderConfig
from musiclm.nn.spec_augment import SpecAugmentConfig
from musiclm.training.health import HealthError, HealthMonitor
from musiclm.training.mulan import MuLanTask
from musiclm.training.optim import OptimizerConfig

pytestmark = pytest.mark.slow

TASK = MuLanTask(
    config=MuLanConfig(
        resnet=ResNetConfig(
            stage_sizes=(1,), widths=(16,), bottleneck=False, stage_strides=((1, 1),),
            norm_groups=4, stem_pool=False, frequency_as_channels=True,
        ),
        bert=BertConfig(
            encoder=EncoderConfig(
                num_layers=1, model_dim=16, num_heads=2, ffn_dim=32, dropout_rate=0.0
            ),
            vocab_size=40, max_length=6,
        ),
        mel=MelConfig(sample_rate=2000, num_mels=32, window_size=256, hop_size=64, floor=0.1),
        spec_augment=SpecAugmentConfig(max_frequency_width=2, max_time_width=5),
        embedding_dim=16,
        window_seconds=1.0,
    ),
    optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=5, total_steps=1000, clip_norm=1.0),
    health_after_step=20,
)  # fmt: skip


def pairs(batch, seed):
    """Chords of two tones of ten and eight pitches, and two words that name them."""
    rng = np.random.default_rng(seed)
    combinations = rng.permutation(80)[:batch]
    low_B, high_B = combinations // 8, combinations % 8
    time_T = np.arange(2000) / 2000
    phases_B21 = rng.uniform(0, 6.28, (batch, 2, 1))
    tones_B2 = np.stack([100 * 1.12**low_B, 350 * 1.12**high_B], axis=1)
    waveform_BT = np.sin(2 * np.pi * tones_B2[..., None] * time_T + phases_B21).sum(1)
    text_ids_BL = np.zeros((batch, 6), np.int32)
    text_ids_BL[:, 0], text_ids_BL[:, 3] = 2, 3
    text_ids_BL[:, 1], text_ids_BL[:, 2] = 5 + low_B, 20 + high_B
    return {"waveform": waveform_BT.astype(np.float32), "text_ids": text_ids_BL}


@pytest.fixture(scope="module")
def untrained():
    return jax.jit(TASK.init)(jax.random.key(0), pairs(2, 0))


@functools.cache
def compiled(loss):
    task = dataclasses.replace(TASK, loss=loss)
    return task, jax.jit(task.step), jax.jit(task.evaluate)


embed = jax.jit(functools.partial(MuLan(TASK.config).apply, train=False))


@pytest.mark.parametrize("loss", contrastive.LOSSES)
def test_a_few_steps_learn_what_goes_with_what(loss, untrained):
    task, step, evaluate = compiled(loss)
    state, held_out = untrained, pairs(80, 999)
    before = evaluate(state, held_out, jax.random.key(1))
    # Collapsed or random embeddings: the loss is about the one that the health check expects.
    assert abs(before["nats_learned"]) < 1.0
    for seed in range(150):
        state, metrics = step(state, pairs(32, seed), jax.random.key(seed))
    after = evaluate(state, held_out, jax.random.key(1))
    assert int(state.step) == 150
    assert after["nats_learned"] > before["nats_learned"] + 1.0
    assert after["recall_at_10"] > 0.8 > 0.3 > before["recall_at_10"]
    assert 0 < metrics["temperature"] <= 1
    output = embed({"params": state.params}, held_out["waveform"], held_out["text_ids"])
    figures = text_audio.retrieval_figures(np.asarray(output.text_BD), np.asarray(output.audio_BD))
    recall = figures["text_to_audio/recall_at_10"].value
    assert recall == pytest.approx(float(after["recall_at_10"]))
    monitor = HealthMonitor(task.health())
    for count in range(100, 110):
        monitor.observe(count, {name: float(value) for name, value in metrics.items()})


@pytest.mark.parametrize("loss", contrastive.LOSSES)
def test_a_run_that_learns_nothing_is_stopped_with_advice(loss, untrained):
    task, _, evaluate = compiled(loss)
    # Every waveform with every text alike: nothing can be learned.
    stuck = {
        "waveform": np.tile(pairs(1, 0)["waveform"], (80, 1)),
        "text_ids": np.tile(pairs(1, 0)["text_ids"], (80, 1)),
    }
    metrics = evaluate(untrained, stuck, jax.random.key(0))
    assert abs(metrics["nats_learned"]) < 1e-3
    monitor = HealthMonitor(task.health())
    metrics = {name: float(value) for name, value in metrics.items()}
    monitor.observe(10, metrics)  # too early to tell
    monitor.observe(20, metrics)
    monitor.observe(40, metrics)
    with pytest.raises(HealthError, match=r"nats_learned.*batch_size to 128"):
        monitor.observe(60, metrics)


def test_a_step_is_a_function_of_its_arguments(untrained):
    _, step, _ = compiled(TASK.loss)
    # The first step only warms up: its learning rate is 0.
    state, _ = step(untrained, pairs(32, 0), jax.random.key(0))
    kernels = [
        np.asarray(
            step(state, pairs(32, 1), jax.random.key(seed))[0].params["audio_projection"]["kernel"]
        )
        for seed in (3, 3, 4)
    ]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[0], kernels[2])  # another augmentation


def test_bad_settings_name_the_field():
    with pytest.raises(ValueError, match=r"MuLanTask\.loss is 'triplet'"):
        dataclasses.replace(TASK, loss="triplet")
    with pytest.raises(ValueError, match=r"MuLanTask\.gain_db is -1"):
        dataclasses.replace(TASK, gain_db=-1.0)


def test_a_batch_of_one_is_told():
    with pytest.raises(UserError, match="batch_size is 1: MuLan's loss needs 2 rows"):
        TASK.batch_spec(1)
