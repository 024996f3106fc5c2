import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm import audio
from musiclm.losses import spectral

RATE = 16_000


def _tone(seconds=0.5, hz=440.0, level=0.5):
    time_T = jnp.arange(int(seconds * RATE)) / RATE
    return level * jnp.sin(2 * jnp.pi * hz * time_T)[None]


def test_frame_loss_equals_the_papers_sum():
    target_BT = _tone() + 0.01 * jax.random.normal(jax.random.key(0), (1, 8000))
    waveform_BT = _tone(hz=600.0)
    loss = spectral.FrameSpectralLoss(window_sizes=(256, 512), num_mels=16)
    expected = 0.0
    for size in (256, 512):
        config = audio.MelConfig(
            sample_rate=RATE, num_mels=16, window_size=size, hop_size=size // 4
        )
        s, s_hat = (np.asarray(audio.mel_magnitude(x, config))[0] for x in (target_BT, waveform_BT))
        floor = 3e-5 * size / 4
        log_norm = np.linalg.norm(np.log(s + floor) - np.log(s_hat + floor), axis=-1)
        expected += (np.abs(s - s_hat).sum(-1) + np.sqrt(size / 2) * log_norm).mean()
    assert float(loss(target_BT, waveform_BT, RATE)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss",
    [
        spectral.FrameSpectralLoss(window_sizes=(64, 512)),
        spectral.BandSpectralLoss(window_sizes=(64, 512), num_mels=(8, 64)),
    ],
)
def test_losses_rank_reconstructions_and_have_finite_gradients_in_silence(loss):
    target_BT = _tone().at[:, 4000:].set(0.0)
    noise_BT = jax.random.normal(jax.random.key(0), target_BT.shape)
    losses = [
        float(loss(target_BT, target_BT + level * noise_BT, RATE)) for level in (0, 0.001, 0.1)
    ]
    assert losses == sorted(losses)
    assert losses[0] < 0.01 * losses[2]
    gradient_BT = jax.grad(lambda x_BT: loss(target_BT, x_BT, RATE))(jnp.zeros_like(target_BT))
    assert bool(jnp.all(jnp.isfinite(gradient_BT)))


def test_distance_of_a_clip_played_softer_is_the_level():
    noise_BT = 0.1 * jax.random.normal(jax.random.key(0), (2, 8000))
    distance_B = spectral.log_mel_distance_db(noise_BT, noise_BT * 10 ** (-6 / 20), RATE)
    np.testing.assert_allclose(distance_B, 6.0, rtol=1e-3)
    np.testing.assert_allclose(spectral.log_mel_distance_db(noise_BT, noise_BT, RATE), 0.0)


def test_distance_hears_nothing_below_the_floor():
    clip_BT = _tone().at[:, 4096:].set(0.0)
    hiss_BT = 1e-9 * jax.random.normal(jax.random.key(0), clip_BT.shape)
    assert float(spectral.log_mel_distance_db(clip_BT, clip_BT + hiss_BT, RATE)[0]) < 0.05
    # Silence instead of the clip is 80 dB off where the clip is loudest, no more.
    lost = float(spectral.log_mel_distance_db(clip_BT, 0 * clip_BT, RATE)[0])
    assert 1.0 < lost < 80.0


def test_si_sdr_ignores_the_level():
    clip_BT = _tone()
    noise_BT = jax.random.normal(jax.random.key(0), clip_BT.shape)
    noise_BT = noise_BT / jnp.linalg.norm(noise_BT) * jnp.linalg.norm(clip_BT)
    for scale in (1.0, 0.1):
        sdr = float(spectral.si_sdr_db(clip_BT, scale * (clip_BT + 0.1 * noise_BT))[0])
        assert sdr == pytest.approx(20.0, abs=0.5)


def test_bands_must_match_the_windows():
    with pytest.raises(ValueError, match=r"num_mels=\(8, 16\) has 2 numbers for 1"):
        spectral.BandSpectralLoss(window_sizes=(64,), num_mels=(8, 16))
