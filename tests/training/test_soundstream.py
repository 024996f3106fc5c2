import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm import errors
from musiclm.losses import spectral
from musiclm.models.discriminators import DiscriminatorConfig
from musiclm.models.soundstream import SoundStreamConfig
from musiclm.training import loop, optim
from musiclm.training.soundstream import SoundStreamTask, _noise

pytestmark = pytest.mark.slow

RATE = 2_000
CONFIG = SoundStreamConfig(
    sample_rate=RATE, encoder_channels=8, decoder_channels=8, strides=(5, 8),
    latent_dim=8, dilations=(1,), num_codebooks=3, codebook_size=32,
)  # fmt: skip
DISCRIMINATOR = DiscriminatorConfig(
    wave_scales=(2,), wave_channels=4, wave_max_channels=8, stft_window=64, stft_hop=32,
    stft_channels=2, stft_widths=(1, 2),
)  # fmt: skip
OPTIMIZER = optim.OptimizerConfig(
    learning_rate=3e-3, warmup_steps=5, total_steps=200, schedule="constant"
)
LOSS = spectral.BandSpectralLoss(window_sizes=(64, 128), num_mels=16)
TASK = SoundStreamTask(
    config=CONFIG, optimizer=OPTIMIZER, spectral_loss=LOSS, waveform_weight=30.0,
    feature_weight=1.0, quantize_from_step=20, kmeans_batches=4, dead_below=0.2,
    quantizer_dropout=0.3,
)  # fmt: skip
ADVERSARIAL = dataclasses.replace(
    TASK, discriminator=DISCRIMINATOR, discriminator_optimizer=OPTIMIZER,
    discriminator_start_step=2, balance_gradients=True,
)  # fmt: skip


def _batch(seed, size=4, seconds=0.4):
    rng = np.random.default_rng(seed)
    time_T = np.arange(int(seconds * RATE)) / RATE
    hz_B1 = 110 * 2 ** rng.integers(0, 24, (size, 1)).astype(float) ** (1 / 12)
    phase_B1 = rng.uniform(0, 6, (size, 1))
    decay_B1 = rng.uniform(1, 8, (size, 1))
    wave_BT = 0.5 * np.sin(2 * np.pi * hz_B1 * time_T + phase_B1) * np.exp(-decay_B1 * time_T)
    return {"waveform": wave_BT.astype(np.float32)}


@functools.cache
def _compiled(task):
    """Compiling a step takes far longer than running it on these sizes."""
    return jax.jit(task.init), jax.jit(task.step)


def _run(task, steps, state=None, start=0):
    init, step = _compiled(task)
    state = state or init(jax.random.key(0), _batch(0))
    history = []
    for index in range(start, start + steps):
        state, metrics = step(state, _batch(index), jax.random.key(index))
        history.append({name: float(value) for name, value in metrics.items()})
    return state, history


def test_training_beats_the_untrained_codec_by_a_margin():
    state, history = _run(TASK, 150)
    held_out = _batch(10_000, size=16)
    evaluate = jax.jit(TASK.evaluate)
    trained = evaluate(state, held_out, jax.random.key(0))
    untrained = evaluate(
        _compiled(TASK)[0](jax.random.key(0), _batch(0)), held_out, jax.random.key(0)
    )
    assert float(trained["si_sdr_db"]) > float(untrained["si_sdr_db"]) + 10.0
    assert float(trained["spectral"]) < 0.7 * float(untrained["spectral"])
    assert float(trained["log_mel_distance_db"]) < 0.9 * float(untrained["log_mel_distance_db"])
    assert all(np.isfinite(list(metrics.values())).all() for metrics in history)
    assert history[-1]["codebook_perplexity"] > 4
    # More levels reconstruct better than the first alone.
    assert float(trained["si_sdr_db"]) > float(trained["si_sdr_db_1_levels"]) + 1.0


def test_codebooks_are_born_at_their_step_from_the_newest_latents():
    state, _ = _run(TASK, 20)
    centroids_QKD = np.asarray(state.codebooks["quantizer"]["centroids_QKD"])
    assert not centroids_QKD.any()
    latents_MND = np.asarray(state.latents_MND)
    assert (latents_MND != 0).any(axis=(1, 2)).all()
    latents_ND = latents_MND.reshape(-1, CONFIG.latent_dim)
    state, _ = _run(TASK, 1, state, start=20)
    quantizer = jax.device_get(state.codebooks["quantizer"])
    centroids_QKD = quantizer["centroids_QKD"]
    nearest_N = ((latents_ND[:, None] - centroids_QKD[0]) ** 2).sum(-1).min(-1)
    assert nearest_N.mean() < 0.3 * latents_ND.var(0).sum()
    low_D, high_D = quantizer["bounds_2D"]
    assert (low_D <= latents_ND.min(0) + 1e-6).all()
    assert (high_D >= latents_ND.max(0) - 1e-6).all()


def test_gradients_learn_codebooks_as_well():
    """From k-means on, to within a margin of moving averages; dead entries are replaced too."""
    task = dataclasses.replace(TASK, codebook_optimizer=OPTIMIZER)
    born, _ = _run(task, 21)
    state, history = _run(task, 100, born, start=21)
    assert len(jax.tree.leaves(_run(TASK, 1)[0].codebook_opt_state)) == 0
    moved = (
        state.codebooks["quantizer"]["centroids_QKD"] - born.codebooks["quantizer"]["centroids_QKD"]
    )
    assert (jnp.abs(moved).max(-1) > 0).all()
    assert history[-1]["dead_codes"] < 0.2
    by_averages, _ = _run(TASK, 121)
    found, wanted = (
        float(of.evaluate(after, _batch(1000), jax.random.key(0))["log_mel_distance_db"])
        for of, after in ((task, state), (TASK, by_averages))
    )
    assert found < 1.3 * wanted


def test_discriminators_wait_for_their_step_then_learn():
    state, history = _run(ADVERSARIAL, 2)
    start = _compiled(ADVERSARIAL)[0](jax.random.key(0), _batch(0)).discriminator_params
    jax.tree.map(np.testing.assert_array_equal, start, state.discriminator_params)
    assert history[-1]["discriminator"] == 0.0
    state, history = _run(ADVERSARIAL, 30, state, start=2)
    assert history[0]["discriminator"] > 0.0
    assert min(metrics["discriminator"] for metrics in history[20:]) < history[0]["discriminator"]
    # The last biases may stand still: in the hinge's slope real and fake pull them equally.
    moved = jax.tree.map_with_path(
        lambda path, a, b: path[-1].key == "bias" or (a != b).any(),
        *jax.device_get((start, state.discriminator_params)),
    )
    assert all(jax.tree.leaves(moved))


def test_gradient_is_the_weighted_sum_of_the_losses():
    """Of those on the output, and, in one way back, of those of the discriminators."""
    state = _compiled(ADVERSARIAL)[0](jax.random.key(0), _batch(0)).replace(step=2)
    rng = np.random.default_rng(0)
    target_BT = _batch(0)["waveform"]
    fake_BT = target_BT + 0.1 * rng.normal(size=target_BT.shape).astype(np.float32)
    weights = {"spectral": 2.0, "waveform": 3.0, "adversarial": 5.0, "feature": 7.0}
    task = dataclasses.replace(
        ADVERSARIAL,
        balance_gradients=False,
        **{f"{name}_weight": weight for name, weight in weights.items()},
    )

    @jax.jit
    def gradients(state, target_BT, fake_BT):
        on_output = ADVERSARIAL._reconstruction(target_BT, fake_BT)[0]
        alone = on_output | ADVERSARIAL._judge(state, target_BT, fake_BT)[0]
        together = on_output | task._judge(state, target_BT, fake_BT)[0]
        return alone, task._combine(state, together)[0]

    alone, total = gradients(state, target_BT, fake_BT)
    assert all(bool(jnp.any(alone[name] != 0)) for name in weights)
    expected = sum(weight * alone[name] for name, weight in weights.items())
    np.testing.assert_allclose(total, expected, rtol=1e-4, atol=1e-6)


def test_quantizer_dropout_draws_every_level():
    task = dataclasses.replace(TASK, quantizer_dropout=1.0)
    levels_B = np.asarray(task._num_levels(jax.random.key(0), 3000))
    np.testing.assert_allclose(np.bincount(levels_B)[1:] / 3000, 1 / 3, atol=0.04)
    task = dataclasses.replace(TASK, quantizer_dropout=0.0)
    assert np.all(np.asarray(task._num_levels(jax.random.key(0), 3000)) == 3)


def test_denoising_mixes_noise_at_the_ratio_and_clears_the_target():
    task = dataclasses.replace(
        TASK, config=dataclasses.replace(CONFIG, denoise=True), noise_snr_db=(6.0, 6.0)
    )
    clean_BT = _batch(0, size=64)["waveform"]
    source_BT, target_BT, denoise_B = jax.jit(task._source_and_target)(clean_BT, jax.random.key(0))
    noise_BT = np.asarray(source_BT) - clean_BT
    noisy_B = np.abs(noise_BT).max(-1) > 0
    assert 16 < noisy_B.sum() < 48
    assert 16 < denoise_B.sum() < 48
    ratio = (clean_BT**2).mean(-1) / np.maximum((noise_BT**2).mean(-1), 1e-12)
    np.testing.assert_allclose(10 * np.log10(ratio[noisy_B]), 6.0, atol=0.1)
    expected = np.where(np.asarray(denoise_B)[:, None], clean_BT, source_BT)
    np.testing.assert_allclose(target_BT, expected, rtol=1e-6)


def test_noise_is_of_all_colours():
    noise_BT = np.asarray(jax.jit(_noise, static_argnums=1)(jax.random.key(0), (64, 4_096)))
    power_BF = np.abs(np.fft.rfft(noise_BT)) ** 2
    octaves = np.log2(power_BF[:, 100:200].mean(1) / power_BF[:, 800:1600].mean(1)) / 3
    assert -0.2 < octaves.min() < 0.3
    assert 1.7 < octaves.max() < 2.2


def test_a_codec_that_denoises_trains_from_plain_batches():
    config = dataclasses.replace(CONFIG, denoise=True)
    task = dataclasses.replace(TASK, config=config, noise_snr_db=(3.0, 3.0), quantize_from_step=200)
    assert set(task.batch_spec(4)) == {"waveform"}
    state, _ = _run(task, 150)
    clean_BT = _batch(10_000, size=16)["waveform"]
    noisy_BT = clean_BT + 0.1 * np.random.default_rng(0).normal(size=clean_BT.shape)

    @jax.jit
    def loss(denoise_B):
        variables = {"params": state.params, "codebooks": state.codebooks}
        output = task.model.apply(variables, noisy_BT, quantize=False, denoise_B=denoise_B)
        return LOSS(clean_BT, output.waveform_BT, RATE)

    assert loss(np.ones(16, bool)) < 0.98 * loss(np.zeros(16, bool))


def test_sounds_before_codebooks_are_those_of_the_latents():
    state, _ = _run(TASK, 2)
    reconstruction_NT = jax.jit(TASK.sounds)(state, _batch(0))["reconstruction"]
    output = jax.jit(functools.partial(TASK.model.apply, quantize=False))(
        {"params": state.params, "codebooks": state.codebooks}, _batch(0)["waveform"]
    )
    np.testing.assert_allclose(reconstruction_NT, output.waveform_BT, atol=1e-5)


def test_a_run_must_come_to_its_codebooks(tmp_path):
    with pytest.raises(errors.UserError, match="quantize_from_step is 20 of 20 steps"):
        loop.train(
            task=TASK, dataset=None, workdir=tmp_path / "run", component=tmp_path / "codec",
            num_steps=20, batch_size=4,
        )  # fmt: skip
    TASK.check_steps(21)


def test_export_decodes():
    state, _ = _run(TASK, 21)
    config, variables = TASK.export(state)
    assert config == CONFIG
    run = jax.jit(TASK.model.apply, static_argnames="method")
    codes_BTQ = run(variables, _batch(5)["waveform"], method="encode")
    assert codes_BTQ.shape == (4, 20, 3)
    assert run(variables, codes_BTQ, method="decode").shape == (4, 800)


def test_health_gates_name_the_figures_the_step_reports():
    _, history = _run(ADVERSARIAL, 1)
    checks = ADVERSARIAL.health()
    assert {check.metric for check in checks} <= set(history[0])
    by_name = {check.metric: check for check in checks}
    assert by_name["codebook_perplexity_min"].breached(0.1)
    assert not by_name["codebook_perplexity_min"].breached(12.0)
    assert by_name["codebook_perplexity_min"].after_step > TASK.quantize_from_step
    for metric, well in (("generator_discriminator_ratio", 1.0), ("discriminator", 2.0)):
        assert by_name[metric].breached(1e3)
        assert not by_name[metric].breached(well)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"discriminator": DISCRIMINATOR}, "discriminator_optimizer is None"),
        ({"feature_weight": -1.0}, "feature_weight=-1.0: set 0 or more"),
        ({"quantize_from_step": 0}, "quantize_from_step=0: set 1 or more"),
        ({"quantizer_dropout": 2.0}, "quantizer_dropout=2.0"),
        ({"ema_decay": 1.0}, "ema_decay=1.0"),
    ],
)
def test_task_names_what_to_mend(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TASK, **changes)


def test_batches_must_fit():
    with pytest.raises(ValueError, match="no whole number of hops of 40"):
        TASK.init(jax.random.key(0), {"waveform": np.zeros((4, 810), np.float32)})
    big = dataclasses.replace(TASK, config=dataclasses.replace(CONFIG, codebook_size=1024))
    with pytest.raises(ValueError, match="kmeans_batches"):
        big.init(jax.random.key(0), _batch(0))
    # As many batches as come before quantisation are fitted, and no more.
    early = dataclasses.replace(
        TASK, config=dataclasses.replace(CONFIG, codebook_size=128), quantize_from_step=1
    )
    with pytest.raises(ValueError, match=r"128 entries to 80 frames: .*quantize_from_step \(now 1"):
        early.init(jax.random.key(0), _batch(0))
