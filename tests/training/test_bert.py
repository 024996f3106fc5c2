import dataclasses
import math

import jax
import numpy as np
import pytest

from musiclm import bundle
from musiclm.audio import MelConfig
from musiclm.models.bert import POOLINGS, BertConfig
from musiclm.models.mulan import MuLanConfig
from musiclm.models.resnet import ResNetConfig
from musiclm.nn.encoder import EncoderConfig
from musiclm.training.bert import BertTask
from musiclm.training.health import HealthError, HealthMonitor
from musiclm.training.mulan import MuLanTask
from musiclm.training.optim import OptimizerConfig

pytestmark = pytest.mark.slow

CONFIG = BertConfig(
    encoder=EncoderConfig(
        num_layers=1, model_dim=32, num_heads=2, ffn_dim=64, dropout_rate=0.0, init_deviation=0.2
    ),
    vocab_size=30,
    max_length=10,
)
TASK = BertTask(
    config=CONFIG,
    optimizer=OptimizerConfig(
        learning_rate=1e-2, warmup_steps=10, total_steps=1000, schedule="constant"
    ),
    health_after_step=100,
)
MULAN = MuLanTask(
    config=MuLanConfig(
        resnet=ResNetConfig(
            stage_sizes=(1,), widths=(8,), bottleneck=False, stage_strides=((1, 1),),
            norm_groups=4, stem_pool=False, frequency_as_channels=True,
        ),
        bert=CONFIG,
        mel=MelConfig(sample_rate=2000, num_mels=16, window_size=256, hop_size=64),
        window_seconds=1.0,
        embedding_dim=8,
    )
)  # fmt: skip
evaluate = jax.jit(TASK.evaluate)


def texts(seed, size=256):
    """Two pieces, of ten each, say what the other six are: hidden ones follow from the rest."""
    rng = np.random.default_rng(seed)
    one_B1, other_B1 = rng.integers(0, 10, (2, size, 1))
    length_B1 = rng.integers(8, 11, (size, 1))
    place_L = np.arange(10)
    text_ids_BL = np.where(place_L % 2, 5 + one_B1, 15 + other_B1)
    text_ids_BL[:, 0] = 2
    text_ids_BL = np.where(place_L == length_B1 - 1, 3, text_ids_BL)
    return {"text_ids": np.where(place_L < length_B1, text_ids_BL, 0).astype(np.int32)}


@pytest.fixture(scope="module")
def trained():
    state = first = jax.jit(TASK.init)(jax.random.key(0), texts(0))
    step = jax.jit(TASK.step)
    for i in range(150):
        state, metrics = step(state, texts(i), jax.random.key(i))
    return first, state, metrics


def test_hidden_pieces_are_learned_from_the_others(trained):
    first, state, metrics = trained
    before, after = (evaluate(s, texts(9_999), jax.random.key(1)) for s in (first, state))
    # Twenty pieces, all as likely: so much does one lose who knows that, and no text.
    unread = math.log(20)
    assert before["loss"] > unread
    assert after["loss"] < 0.3 * unread
    assert after["nats_learned"] == pytest.approx(unread - float(after["loss"]), abs=0.1)
    assert after["accuracy"] > 0.8 > 0.2 > before["accuracy"]
    (gate,) = TASK.health()
    assert not gate.breached(float(metrics[gate.metric]))


def test_a_run_that_reads_nothing_is_stopped(trained):
    """Pieces that have nothing to do with one another: their shares are all there is to learn."""
    state = trained[0]
    step = jax.jit(TASK.step)
    rng = np.random.default_rng(0)
    monitor = HealthMonitor(TASK.health())
    for i in range(TASK.health_after_step):
        noise_BL = rng.choice([5, 6, 7, 8], (256, 10), p=[0.7, 0.1, 0.1, 0.1])
        state, metrics = step(state, {"text_ids": noise_BL.astype(np.int32)}, jax.random.key(i))
        monitor.observe(i, {"nats_learned": float(metrics["nats_learned"])})
    figures = {"nats_learned": float(metrics["nats_learned"])}
    monitor.observe(i + 1, figures)
    monitor.observe(i + 2, figures)
    with pytest.raises(HealthError, match=r"nats_learned.*lengthen warmup_steps"):
        monitor.observe(i + 3, figures)
    assert metrics["loss"] < 1.1  # 0.94 of these shares, 3.4 untrained


def test_of_another_seed_other_pieces_are_hidden(trained):
    _, state, _ = trained
    one, same, other = (evaluate(state, texts(1), jax.random.key(i))["loss"] for i in (1, 1, 2))
    assert one == same != other


def test_only_pieces_are_predicted(trained):
    """[CLS], [SEP] and padding are not, however many there are."""
    _, state, _ = trained
    empty_BL = np.zeros((192, 10), np.int32)
    empty_BL[:, :2] = 2, 3
    alone = evaluate(state, {"text_ids": empty_BL}, jax.random.key(1))
    assert alone["loss"] == alone["accuracy"] == alone["nats_learned"] == 0
    padded_BL = np.concatenate([texts(1, 64)["text_ids"], empty_BL])
    assert evaluate(state, {"text_ids": padded_BL}, jax.random.key(1))["accuracy"] > 0.7


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_text_tower_starts_from_it(trained, tmp_path, pooling):
    config, variables = TASK.export(trained[1])
    bundle.save_component(tmp_path, "bert", bundle.Component(config, variables), np.float32)
    task = dataclasses.replace(
        MULAN,
        config=dataclasses.replace(MULAN.config, bert=dataclasses.replace(CONFIG, pooling=pooling)),
        start=str(tmp_path / "bert"),
        optimizer=OptimizerConfig(ema_decay=0.9),
    )
    batch = {name: np.ones(spec.shape, spec.dtype) for name, spec in task.batch_spec(2).items()}
    fresh = jax.jit(task.init)(jax.random.key(0), batch)
    begun = jax.jit(task.begin)(fresh, task.read_start())
    assert jax.tree.structure(begun) == jax.tree.structure(fresh)
    for tree in (begun.params, begun.averaged):
        tower = dict(tree["text_tower"])
        if pooling == "first":
            np.testing.assert_array_equal(
                tower.pop("pooler")["kernel"], fresh.params["text_tower"]["pooler"]["kernel"]
            )
        jax.tree.map(np.testing.assert_array_equal, tower, variables["params"])
    for name in ("audio_tower", "text_projection"):
        jax.tree.map(np.testing.assert_array_equal, begun.params[name], fresh.params[name])


def test_a_text_tower_starts_from_nothing_else(trained, tmp_path):
    config, variables = TASK.export(trained[1])
    others = {
        r"vocab_size=31.*and MuLanConfig\.bert is .*vocab_size=30": (
            dataclasses.replace(config, vocab_size=31)
        ),
        "is a MuLanConfig and no BertConfig": MULAN.config,
    }
    task = dataclasses.replace(MULAN, start=str(tmp_path / "other"))
    for message, other in others.items():
        bundle.save_component(tmp_path, "other", bundle.Component(other, variables))
        with pytest.raises(bundle.BundleError, match=rf"MuLanTask\.start=.*{message}"):
            task.read_start()
    with pytest.raises(bundle.BundleError, match=r"nothing\.safetensors is missing"):
        dataclasses.replace(task, start=str(tmp_path / "nothing")).read_start()


def test_bad_settings_name_the_field():
    for share in (0.0, 1.0):
        with pytest.raises(ValueError, match=rf"BertTask\.predicted_share is {share}"):
            dataclasses.replace(TASK, predicted_share=share)
