import importlib.machinery
import sys
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musiclm import audio
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
    assert (quality.stft_distance_N == 0).all()
    assert (quality.si_sdr_db_N > 80).all()


def test_half_the_amplitude_is_six_decibels_to_the_ear_and_none_to_si_sdr(clips_NT):
    quality = codec_quality.compare(clips_NT, clips_NT / 2, 16_000)
    np.testing.assert_allclose(quality.log_mel_distance_db_N, 6.02, atol=0.01)
    assert (quality.si_sdr_db_N > 80).all()


@pytest.mark.slow
def test_each_level_comes_closer(clips_NT):
    codec, measured = RoundingCodec(), []
    codes_NFQ = codec_quality.encode(codec, clips_NT)
    for q in range(1, 7):
        made_NT = codec_quality.decode(codec, codes_NFQ[..., :q], clips_NT.shape[1])
        measured.append(codec_quality.compare(clips_NT, made_NT, 16_000))
    assert (np.diff([quality.log_mel_distance_db_N.mean() for quality in measured]) < 0).all()
    assert (np.diff([quality.si_sdr_db_N.mean() for quality in measured]) > 3).all()
    assert (np.diff([quality.stft_distance_N.mean() for quality in measured]) < 0).all()


def test_visqol_hears_clips_at_its_own_rate(clips_NT, monkeypatch):
    """A listener in its place: the package is built by a compiler, which may not be there."""
    asked, heard = [], []

    class Listener:
        def create(self, mode):
            assert mode == "audio"

        def measure_from_arrays(self, target_T, waveform_T, sample_rate):
            assert sample_rate == 48_000
            asked.append((target_T, waveform_T))
            return types.SimpleNamespace(moslqo=5 - np.abs(target_T - waveform_T).mean())

    package = types.ModuleType("visqol")
    package.VisqolApi, package.__spec__ = Listener, importlib.machinery.ModuleSpec("visqol", None)
    monkeypatch.setitem(sys.modules, "visqol", package)
    assert codec_quality.has_visqol()
    scores_N = codec_quality.visqol(clips_NT, clips_NT / 2, 16_000, heard.append)
    assert heard == [1] * len(clips_NT)
    for (target_T, waveform_T), clip_T in zip(asked, clips_NT, strict=True):
        assert target_T.shape == (3 * len(clip_T),)
        assert target_T.dtype == np.float64  # what the package computes in
        np.testing.assert_allclose(waveform_T, target_T / 2, atol=1e-6)
    np.testing.assert_allclose(scores_N, [5 - np.abs(a - b).mean() for a, b in asked])


@pytest.mark.slow
def test_visqol_prefers_what_is_nearer(clips_NT):
    pytest.importorskip("visqol")
    time_T = np.arange(32_000) / 16_000
    tone_T = (0.3 * np.sin(2 * np.pi * 440 * time_T) * np.exp(-(time_T % 0.5))).astype(np.float32)
    noise_T = np.random.default_rng(0).normal(size=tone_T.shape).astype(np.float32)
    made_NT = np.stack([tone_T, tone_T + 0.03 * noise_T])
    same, worse = codec_quality.visqol(np.stack([tone_T] * 2), made_NT, 16_000)
    assert same > 4.5
    assert worse < 3


def test_clips_come_back_in_order_each_as_it_is_alone(clips_NT):
    codec, done = RoundingCodec(), []
    codes_NFQ = codec_quality.encode(codec, clips_NT)
    np.testing.assert_array_equal(codes_NFQ, codec.encode(clips_NT))
    made_NT = codec_quality.decode(codec, codes_NFQ[..., :3], 7_000, done.append)
    assert done == [1] * len(clips_NT)
    np.testing.assert_array_equal(made_NT, codec.decode(codes_NFQ[..., :3])[:, :7_000])
    clips_NT = clips_NT[:, :7_000]
    quality = codec_quality.compare(clips_NT, made_NT, 16_000)
    for i in range(len(clips_NT)):
        alone = codec_quality.compare(clips_NT[i : i + 1], made_NT[i : i + 1], 16_000)
        assert quality.stft_distance_N[i] == alone.stft_distance_N[0]
        assert quality.si_sdr_db_N[i] == alone.si_sdr_db_N[0]


def _magnitudes(waveform_T, window):
    """Frames centred on the middles of hops of a quarter window, one after the other."""
    hop = window // 4
    padded_T = np.pad(waveform_T[: len(waveform_T) // hop * hop], (window - hop) // 2)
    starts = range(0, len(waveform_T) // hop * hop, hop)
    frames = [padded_T[start : start + window] * audio.hann(window) for start in starts]
    return np.abs(np.fft.rfft(frames))


def test_stft_distance_is_its_formula(clips_NT):
    made_NT = clips_NT + 0.1 * np.random.default_rng(1).standard_normal(clips_NT.shape)
    wanted_N = np.zeros(len(clips_NT))
    for window in (512, 1024, 2048):
        for i in range(len(clips_NT)):
            s, s_hat = (_magnitudes(x_T, window) for x_T in (clips_NT[i], made_NT[i]))
            s, s_hat = (np.maximum(x, 1e-4 * s.max()) for x in (s, s_hat))
            wanted_N[i] += np.linalg.norm(s - s_hat) / np.linalg.norm(s) / 3
            wanted_N[i] += np.abs(np.log(s) - np.log(s_hat)).mean() / 3
    found_N = codec_quality.stft_distance(clips_NT, made_NT)
    np.testing.assert_allclose(found_N, wanted_N, rtol=1e-4)


def test_half_the_amplitude_is_a_half_and_a_logarithm_of_two(clips_NT):
    found_N = codec_quality.stft_distance(clips_NT, clips_NT / 2)
    np.testing.assert_allclose(found_N, 0.5 + np.log(2), atol=0.01)
    # The same at another level.
    again_N = codec_quality.stft_distance(clips_NT / 100, clips_NT / 200)
    np.testing.assert_allclose(again_N, found_N, rtol=1e-3)


def test_stft_distance_of_silence_is_finite(clips_NT):
    silence_NT = np.zeros_like(clips_NT)
    assert (codec_quality.stft_distance(silence_NT, silence_NT) == 0).all()
    assert np.isfinite(codec_quality.stft_distance(silence_NT, clips_NT)).all()
    lost_N = codec_quality.stft_distance(clips_NT, silence_NT)
    # All is gone, 80 dB at most.
    assert ((lost_N > 1) & (lost_N < 1 + np.log(1e4))).all()


def test_codebooks_that_are_used_evenly_in_part_and_hardly():
    even_T = np.arange(8)
    in_part_T = np.array([1, 1, 1, 1, 6, 6, 6, 6])
    hardly_T = np.array([3, 3, 3, 3, 3, 3, 3, 0])
    codes_NTQ = np.stack([even_T, in_part_T, hardly_T], axis=-1).reshape(2, 4, 3)
    usage = codec_quality.codebook_usage(codes_NTQ, 8)
    hardly = (8 / 7) ** (7 / 8) * 8 ** (1 / 8)
    np.testing.assert_allclose(usage.perplexity_Q, [8, 2, hardly])
    np.testing.assert_allclose(usage.used_Q, [1, 1 / 4, 1 / 4])


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_usage_knows_no_order_and_lies_within_its_bounds(seed):
    rng = np.random.default_rng(seed)
    codes_NTQ = rng.integers(rng.integers(1, 17), size=(3, 20, 2))
    usage = codec_quality.codebook_usage(codes_NTQ, 16)
    assert (usage.perplexity_Q >= 1 - 1e-9).all()
    assert (usage.perplexity_Q <= 16 * usage.used_Q + 1e-9).all()
    moved_NTQ = rng.permutation(16)[rng.permuted(codes_NTQ.reshape(60, 2), axis=0)]
    again = codec_quality.codebook_usage(moved_NTQ.reshape(6, 10, 2), 16)
    np.testing.assert_allclose(again.perplexity_Q, usage.perplexity_Q)
    np.testing.assert_array_equal(again.used_Q, usage.used_Q)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros((2, 5), int), r"codes of shape \(2, 5\)"),
        (np.zeros((0, 5, 2), int), r"codes of shape \(0, 5, 2\)"),
        (np.full((1, 5, 2), 16), "from 16 to 16 in a codebook of 16"),
        (np.full((1, 5, 2), -1), "from -1 to -1"),
    ],
)
def test_no_usage_of_what_is_no_code(codes, message):
    with pytest.raises(ValueError, match=message):
        codec_quality.codebook_usage(codes, 16)


def test_bitrates_of_the_papers():
    assert codec_quality.bitrate(50, 1024, 12) == 6_000  # MusicLM's SoundStream
    assert codec_quality.bitrate(75, 1024, 8) == 6_000  # EnCodec
    with pytest.raises(ValueError, match="levels 0: give"):
        codec_quality.bitrate(50, 1024, 0)
