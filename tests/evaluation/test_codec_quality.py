import numpy as np
import pytest

from musiclm.evaluation import codec_quality


class RoundingCodec:
    """Levels of a sample's binary expansion: each further one halves the error."""

    sample_rate = 16_000
    num_codebooks = 6

    def encode(self, waveform_BT):
        codes, rest_BT = [], waveform_BT
        for level in range(self.num_codebooks):
            step = 2.0 ** -(level + 1)
            codes.append((rest_BT >= 0).astype(np.int32))
            rest_BT = rest_BT - np.where(codes[-1], step, -step)
        return np.stack(codes, axis=-1)

    def decode(self, codes_BTQ):
        steps_Q = 2.0 ** -np.arange(1, codes_BTQ.shape[-1] + 1)
        return ((2 * codes_BTQ - 1) * steps_Q).sum(axis=-1).astype(np.float32)


@pytest.fixture
def clips_NT():
    rng = np.random.default_rng(0)
    return (0.3 * rng.standard_normal((5, 8_000))).clip(-0.99, 0.99).astype(np.float32)


def test_identical_signals_have_no_distance(clips_NT):
    quality = codec_quality.compare(clips_NT, clips_NT, 16_000)
    assert (quality.log_mel_distance_db_N == 0).all()
    assert (quality.si_sdr_db_N > 80).all()


def test_half_the_amplitude_is_six_decibels_to_the_ear_and_none_to_si_sdr(clips_NT):
    quality = codec_quality.compare(clips_NT, clips_NT / 2, 16_000)
    np.testing.assert_allclose(quality.log_mel_distance_db_N, 6.02, atol=0.01)
    assert (quality.si_sdr_db_N > 80).all()


def test_each_level_comes_closer(clips_NT):
    codec = RoundingCodec()
    measured = codec_quality.measure(codec, clips_NT, batch_size=2)
    assert list(measured) == [1, 2, 3, 4, 5, 6]
    distances = [quality.log_mel_distance_db_N.mean() for quality in measured.values()]
    ratios = [quality.si_sdr_db_N.mean() for quality in measured.values()]
    assert (np.diff(distances) < 0).all()
    assert (np.diff(ratios) > 3).all()


def test_batches_change_nothing(clips_NT):
    codec = RoundingCodec()
    one = codec_quality.measure(codec, clips_NT, levels=(3,), batch_size=5)[3]
    other = codec_quality.measure(codec, clips_NT, levels=(3,), batch_size=2)[3]
    assert one.log_mel_distance_db_N.shape == (5,)
    np.testing.assert_allclose(one.log_mel_distance_db_N, other.log_mel_distance_db_N, rtol=1e-5)
    reconstructed = codec_quality.reconstruct(codec, clips_NT, num_levels=3, batch_size=2)
    again = codec_quality.compare(clips_NT, reconstructed, 16_000)
    np.testing.assert_allclose(one.si_sdr_db_N, again.si_sdr_db_N, rtol=1e-4)
