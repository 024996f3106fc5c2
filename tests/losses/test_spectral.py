import jax
import numpy as np
import pytest

from musiclm import audio
from musiclm.losses import spectral

RATE = 16_000
_distance_db = jax.jit(spectral.log_mel_distance_db, static_argnums=2)
_si_sdr_db = jax.jit(spectral.si_sdr_db)


def _tone(seconds=0.5, hz=440.0, level=0.5):
    time_T = np.arange(int(seconds * RATE)) / RATE
    return level * np.sin(2 * np.pi * hz * time_T)[None]


def _noise(shape=(1, 8000)):
    return np.random.default_rng(0).normal(size=shape)


def test_frame_loss_equals_the_papers_sum():
    target_BT = _tone() + 0.01 * _noise()
    waveform_BT = _tone(hz=600.0)
    loss = spectral.FrameSpectralLoss(window_sizes=(256, 512), num_mels=16)
    mel_magnitude = jax.jit(audio.mel_magnitude, static_argnums=1)
    expected = 0.0
    for size in (256, 512):
        config = audio.MelConfig(
            sample_rate=RATE, num_mels=16, window_size=size, hop_size=size // 4
        )
        s, s_hat = (np.asarray(mel_magnitude(x, config))[0] for x in (target_BT, waveform_BT))
        floor = 3e-5 * size / 4
        log_norm = np.linalg.norm(np.log(s + floor) - np.log(s_hat + floor), axis=-1)
        expected += (np.abs(s - s_hat).sum(-1) + np.sqrt(size / 2) * log_norm).mean()
    found = jax.jit(loss, static_argnums=2)(target_BT, waveform_BT, RATE)
    assert float(found) == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss",
    [
        spectral.FrameSpectralLoss(window_sizes=(64, 512)),
        spectral.BandSpectralLoss(window_sizes=(64, 512), num_mels=(8, 64)),
    ],
)
def test_losses_rank_reconstructions_and_have_finite_gradients_in_silence(loss):
    target_BT, noise_BT = _tone(), _noise()
    target_BT[:, 4000:] = 0.0
    judge = jax.jit(jax.value_and_grad(lambda x_BT: loss(target_BT, x_BT, RATE)))
    losses = [float(judge(target_BT + level * noise_BT)[0]) for level in (0, 0.001, 0.1)]
    assert losses == sorted(losses)
    assert losses[0] < 0.01 * losses[2]
    assert np.isfinite(judge(np.zeros_like(target_BT))[1]).all()


def test_distance_of_a_clip_played_softer_is_the_level():
    noise_BT = 0.1 * _noise((2, 8000))
    distance_B = _distance_db(noise_BT, noise_BT * 10 ** (-6 / 20), RATE)
    np.testing.assert_allclose(distance_B, 6.0, rtol=1e-3)
    np.testing.assert_allclose(_distance_db(noise_BT, noise_BT, RATE), 0.0, atol=1e-6)


def test_distance_hears_nothing_below_the_floor():
    clip_BT, hiss_BT = _tone(), 1e-9 * _noise()
    clip_BT[:, 4096:] = 0.0
    assert float(_distance_db(clip_BT, clip_BT + hiss_BT, RATE)[0]) < 0.05
    # Silence instead of the clip is 80 dB off where the clip is loudest, no more.
    lost = float(_distance_db(clip_BT, 0 * clip_BT, RATE)[0])
    assert 1.0 < lost < 80.0


def test_si_sdr_ignores_the_level():
    clip_BT, noise_BT = _tone(), _noise()
    noise_BT = noise_BT / np.linalg.norm(noise_BT) * np.linalg.norm(clip_BT)
    for scale in (1.0, 0.1):
        sdr = float(_si_sdr_db(clip_BT, scale * (clip_BT + 0.1 * noise_BT))[0])
        assert sdr == pytest.approx(20.0, abs=0.5)


def test_bands_must_match_the_windows():
    with pytest.raises(ValueError, match=r"num_mels=\(8, 16\) has 2 numbers for 1"):
        spectral.BandSpectralLoss(window_sizes=(64,), num_mels=(8, 16))
