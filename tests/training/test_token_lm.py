"""Training of a stage: it learns what it is shown, from its condition, on its target."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from musiclm import sharding
from musiclm.errors import UserError
from musiclm.models.token_lm import TokenLM, TokenLMConfig
from musiclm.nn.transformer import TransformerConfig
from musiclm.token_spec import TokenSpec
from musiclm.tokens.layout import StageLayout
from musiclm.training import optim, program
from musiclm.training.state import TrainState
from musiclm.training.token_lm import TokenLMTask

CODES = 8
SPEC = TokenSpec(
    num_acoustic_codebooks=3,
    acoustic_codebook_size=CODES,
    num_coarse_codebooks=2,
    semantic_vocab_size=CODES,
    num_mulan_codebooks=1,
    mulan_codebook_size=CODES,
    semantic_window_seconds=0.4,
    coarse_window_seconds=0.24,
    fine_window_seconds=0.1,
)
STEPS = 240


def task(layout=None, **kwargs):
    config = TokenLMConfig(
        layout=layout or LAYOUT,
        transformer=TransformerConfig(
            num_layers=2,
            model_dim=32,
            num_heads=2,
            head_dim=16,
            mlp_dim=64,
            dropout=0.0,
            remat=False,
        ),
        time_embedding=True,
    )
    optimizer = optim.OptimizerConfig(learning_rate=1e-2, warmup_steps=20, total_steps=STEPS)
    return TokenLMTask(config=config, optimizer=optimizer, **kwargs)


LAYOUT = StageLayout.coarse(SPEC)


def raw_codes(seed, rows=32):
    """Random conditions; both acoustic levels follow from them and from nothing else."""
    rng = np.random.default_rng(seed)
    mulan, semantic = rng.integers(0, CODES, (rows, 1)), rng.integers(0, CODES, (rows, 6))
    first = np.repeat(semantic, 2, axis=1)
    acoustic = np.stack([first, (first + mulan) % CODES], axis=-1)
    codes = {"mulan": mulan, "semantic": semantic, "acoustic": acoustic}
    return {name: array.astype(np.int32) for name, array in codes.items()}


def batch(seed):
    return {"tokens": LAYOUT.flatten(raw_codes(seed))}


@pytest.fixture(scope="module")
def untrained():
    """The task, a first state and its compiled step."""
    lm = task()
    return lm, jax.jit(lm.init)(jax.random.key(0), batch(0)), jax.jit(lm.step)


@pytest.fixture(scope="module")
def trained(untrained):
    lm, state, step = untrained
    evaluate = jax.jit(lm.evaluate)
    before = evaluate(state, batch(10**6), jax.random.key(0))
    for i in range(STEPS):
        state, metrics = step(state, batch(i), jax.random.key(i))
    after = evaluate(state, batch(10**6), jax.random.key(0))
    return lm, state, evaluate, before, after, metrics


@pytest.mark.slow
def test_learns_the_target_from_its_condition(trained):
    _, state, _, before, after, metrics = trained
    assert int(state.step) == STEPS
    assert before["loss"] == pytest.approx(math.log(CODES), rel=0.05)
    assert after["loss"] < 0.3 * before["loss"]
    assert after["accuracy"] > 0.85
    assert all(np.isfinite(value) for value in metrics.values())
    assert metrics["learning_rate"] < 1e-3


@pytest.mark.slow
def test_learns_a_tune_from_the_melody_and_only_from_there():
    """The semantic codes are the melody's, embedding by embedding, level by level."""

    def batch(layout, seed):
        rng = np.random.default_rng(seed)
        mulan, melody = rng.integers(0, CODES, (32, 1)), rng.integers(0, CODES, (32, 3, 2))
        codes = {"mulan": mulan, "melody": melody, "semantic": melody.reshape(32, 6)}
        return {"tokens": layout.flatten(codes)}

    def loss(num_melody_codebooks):
        spec = dataclasses.replace(
            SPEC,
            num_melody_codebooks=num_melody_codebooks,
            melody_codebook_size=CODES,
            semantic_window_seconds=0.24,
        )
        layout = StageLayout.semantic(spec)
        lm = task(layout)
        state = jax.jit(lm.init)(jax.random.key(0), batch(layout, 0))
        step = jax.jit(lm.step, donate_argnums=0)
        for i in range(STEPS):
            state, metrics = step(state, batch(layout, i), jax.random.key(i))
        return metrics["loss"]  # of a batch that no step before has seen

    assert loss(0) > 0.95 * math.log(CODES)
    assert loss(2) < 0.1 * math.log(CODES)


@pytest.mark.slow
def test_metrics_name_the_codecs_levels(trained):
    *_, after, metrics = trained
    for name in ("loss_level_0", "loss_level_1", "accuracy_level_0", "accuracy_level_1"):
        assert name in metrics
    levels = [float(after[f"loss_level_{level}"]) for level in range(2)]
    assert float(after["loss"]) == pytest.approx(np.mean(levels), rel=1e-5)


@pytest.mark.slow
def test_a_wrong_condition_costs(trained):
    _, state, evaluate, _, after, _ = trained
    wrong = raw_codes(10**6)
    wrong["semantic"] = np.roll(wrong["semantic"], 1, axis=0)
    tokens = {"tokens": LAYOUT.flatten(wrong)}
    assert evaluate(state, tokens, jax.random.key(0))["loss"] > 2 * after["loss"] + 1


@pytest.mark.slow
def test_loss_is_on_the_target_alone(trained):
    lm, state, evaluate, *_ = trained
    codes = raw_codes(3)
    ids = LAYOUT.flatten(codes)
    logits = jax.jit(TokenLM(lm.config).apply)({"params": state.params}, ids)
    logits = np.asarray(logits, np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    chosen = np.take_along_axis(log_probs, codes["acoustic"][..., :2, None], axis=-1)
    loss = evaluate(state, {"tokens": ids}, jax.random.key(0))["loss"]
    assert float(loss) == pytest.approx(-chosen.mean(), rel=1e-4)


@pytest.mark.slow
def test_condition_dropout_hides_the_condition_in_training(trained):
    lm, state, evaluate, *_ = trained
    blind = dataclasses.replace(lm, condition_dropout=0.9)
    blind_loss = jax.jit(lambda *arguments: blind.step(*arguments)[1]["loss"])
    held_out = evaluate(state, batch(10**6), jax.random.key(0))
    assert blind_loss(state, batch(10**6), jax.random.key(0)) > 5 * held_out["loss"]


@pytest.mark.slow
def test_health_knows_guessing(trained):
    lm, _, _, before, after, _ = trained
    (check,) = lm.health()
    assert check.breached(float(before["loss"]))
    assert not check.breached(float(after["loss"]))


def test_the_average_of_the_weights_is_exported():
    lm = task()
    lm = dataclasses.replace(lm, optimizer=dataclasses.replace(lm.optimizer, ema_decay=0.9))
    state = TrainState.create({"params": {"w": np.ones(3)}}, lm.optimizer.make())
    config, variables = lm.export(state.replace(params={"w": np.zeros(3)}))
    assert config == lm.config
    np.testing.assert_array_equal(variables["params"]["w"], 1)


def test_flash_is_known_to_training_alone(flash_interpreted):
    """A bundle's model runs anywhere; MFU counts no padding, and what the kernel hides."""
    lm = task()
    sizes = dataclasses.replace(lm.config.transformer, dtype="bfloat16")
    plain = dataclasses.replace(lm, config=dataclasses.replace(lm.config, transformer=sizes))
    sizes = dataclasses.replace(sizes, attention="flash", scan_unroll=2)
    fast = dataclasses.replace(lm, config=dataclasses.replace(lm.config, transformer=sizes))
    state = jax.eval_shape(lm.init, jax.random.key(0), batch(0))
    assert fast.export(state)[0] == plain.config
    mesh = sharding.MeshConfig().make(jax.devices()[:1])
    counts = [program.build(t, mesh, batch_size=8).training_flops() for t in (fast, plain)]
    assert counts[0] == counts[1]


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="condition_dropout"):
        dataclasses.replace(task(), condition_dropout=1.0)


@pytest.mark.slow
def test_microbatches_make_the_same_update(untrained):
    """In parts or at once: the losses are means over rows of one length."""
    _, state, step = untrained
    arguments = state, batch(3), jax.random.key(1)
    expected, metrics = step(*arguments)
    in_parts, metrics_in_parts = jax.jit(task(microbatch_size=8).step)(*arguments)
    for name, value in metrics.items():
        np.testing.assert_allclose(metrics_in_parts[name], value, rtol=1e-4, err_msg=name)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        in_parts.params,
        expected.params,
    )


@pytest.mark.parametrize("size", [5, 0, -8])
def test_microbatches_that_do_not_divide_are_told(size):
    with pytest.raises(UserError, match=f"microbatch_size is {size} of 32 rows"):
        task(microbatch_size=size).batch_spec(32)
