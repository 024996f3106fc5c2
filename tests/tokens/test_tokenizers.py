import dataclasses
import functools
import itertools
import threading

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musiclm import bundle
from musiclm.models.mulan import MuLan
from musiclm.models.w2v_bert import W2vBert
from musiclm.tokens import tokenizers


@pytest.fixture(scope="module")
def mulan(tiny_bundle):
    return tokenizers.MuLanTokenizer.load(bundle.load_component(tiny_bundle, "mulan"))


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [4, 10, 12.4, 28.5])
def test_sound_of_any_length_is_the_normalised_average_of_its_windows(mulan, seconds):
    """Repeated where it is shorter than one, and in few pieces of few shapes."""
    rate, window = mulan.sample_rate, mulan.config.window_samples
    wave_BT = np.random.default_rng(0).normal(size=(2, round(seconds * rate))).astype(np.float32)
    wave_BT *= np.linspace(0.01, 1, wave_BT.shape[1], dtype=np.float32)
    whole_BT = np.tile(wave_BT, (1, 3))[:, :window] if seconds < 10 else wave_BT
    starts = range(0, whole_BT.shape[1] - window + 1, rate)
    windows_BWT = np.stack([whole_BT[:, s : s + window] for s in starts], axis=1)
    embed = jax.jit(functools.partial(MuLan(mulan.config).apply, method="embed_audio"))
    found_ND = np.asarray(embed({"params": mulan.params}, windows_BWT.reshape(-1, window)))
    mean_BD = found_ND.reshape(2, len(starts), -1).mean(axis=1)
    expected_BD = mean_BD / np.linalg.norm(mean_BD, axis=1, keepdims=True)
    np.testing.assert_allclose(mulan.embed_audio(wave_BT), expected_BD, atol=1e-5)


def test_mulans_codes_are_of_what_is_left_of_the_modalitys_mean(mulan):
    vectors_BD = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
    codes = {}
    for modality in ("audio", "text"):
        rest_BD, codes[modality] = vectors_BD - mulan.quantizer[f"{modality}_mean_D"], []
        for codebook_KD in mulan.quantizer["codebooks_QKD"]:
            distances_BK = ((rest_BD[:, None] - codebook_KD) ** 2).sum(-1)
            codes[modality].append(distances_BK.argmin(1))
            rest_BD = rest_BD - codebook_KD[codes[modality][-1]]
        found_BQ = mulan.quantize(vectors_BD, modality)
        np.testing.assert_array_equal(found_BQ, np.stack(codes[modality], axis=1))
    assert np.not_equal(codes["audio"], codes["text"]).any()


def test_semantic_tokens_are_the_nearest_of_standardised_features(tiny_bundle):
    semantic = tokenizers.SemanticTokenizer.load(bundle.load_component(tiny_bundle, "w2v_bert"))
    wave_BT = np.random.default_rng(0).normal(size=(2, 2 * semantic.sample_rate))
    wave_BT = wave_BT.astype(np.float32)
    features = jax.jit(functools.partial(W2vBert(semantic.config).apply, method="features"))
    features_BTD = np.asarray(features(semantic.variables, wave_BT))

    def nearest(features_BTD):
        difference_BTKD = features_BTD[:, :, None] - semantic.clusters["centroids_KD"]
        return (difference_BTKD**2).sum(-1).argmin(-1)

    standard_BTD = (features_BTD - semantic.clusters["mean_D"]) / semantic.clusters["std_D"]
    np.testing.assert_array_equal(semantic.encode(wave_BT), nearest(standard_BTD))
    assert (nearest(standard_BTD) != nearest(features_BTD)).any()


@pytest.mark.slow
def test_each_window_has_the_codes_of_its_own_sound(mulan):
    rate = mulan.sample_rate
    wave_BT = np.random.default_rng(0).normal(size=(2, 12 * rate)).astype(np.float32)
    wave_BT *= np.linspace(0.01, 1, 12 * rate, dtype=np.float32)
    codes_BWQ = mulan.encode_windows(wave_BT)
    assert codes_BWQ.shape == (2, 3, mulan.num_codebooks)
    alone = [mulan.encode_audio(wave_BT[:, s * rate : (s + 10) * rate]) for s in range(3)]
    np.testing.assert_array_equal(codes_BWQ, np.stack(alone, axis=1))


@pytest.fixture(scope="module")
def codec(tiny_bundle):
    """A codec of samples, 23 frames of codes, and what they make at once."""
    acoustic = tokenizers.AcousticTokenizer.load(bundle.load_component(tiny_bundle, "soundstream"))
    codes_BTQ = np.random.default_rng(0).integers(0, 8, (2, 23, 3)).astype(np.int32)
    return acoustic, codes_BTQ, acoustic.decode(codes_BTQ)


@pytest.mark.slow
@settings(max_examples=25)
@given(st.lists(st.integers(0, 23), max_size=8), st.sampled_from([1, 5, 23, 40]))
def test_a_stream_of_codes_makes_what_they_make_at_once(codec, cuts, piece_frames):
    acoustic, codes_BTQ, whole_BT = codec
    pieces = (codes_BTQ[:, a:b] for a, b in itertools.pairwise([0, *sorted(cuts), 23]))
    sounds = list(acoustic.decode_stream(pieces, piece_frames=piece_frames))
    np.testing.assert_allclose(np.concatenate(sounds, axis=1), whole_BT, atol=1e-4)
    assert [sound.shape[1] for sound in sounds[:-1]] == [32 * piece_frames] * (len(sounds) - 1)


def test_a_codec_can_be_asked_for_codes_without_the_noise(codec):
    acoustic, _, whole_BT = codec
    with pytest.raises(ValueError, match="denoise is False"):
        acoustic.encode(whole_BT, denoise=True)
    film = {"scale": np.array([[1], [-1]]) * np.ones(acoustic.config.latent_dim)}
    film["shift"] = 0 * film["scale"]
    denoising = tokenizers.AcousticTokenizer(
        dataclasses.replace(acoustic.config, denoise=True),
        acoustic.variables | {"params": acoustic.variables["params"] | {"film": film}},
    )
    as_it_is = denoising.encode(whole_BT)
    np.testing.assert_array_equal(as_it_is, acoustic.encode(whole_BT))
    assert (denoising.encode(whole_BT, denoise=True) != as_it_is).any()


def test_sound_comes_as_soon_as_its_codes(codec):
    acoustic, codes_BTQ, _ = codec
    taken = []

    def pieces():
        for start in range(20):
            taken.append(start)
            yield codes_BTQ[:, start : start + 1]

    stream = acoustic.decode_stream(pieces(), piece_frames=5)
    next(stream)
    assert len(taken) == 5
    next(stream)
    assert len(taken) == 10


def test_a_stream_without_codes_is_silent(codec):
    acoustic, codes_BTQ, _ = codec
    assert list(acoustic.decode_stream([])) == []
    assert list(acoustic.decode_stream([codes_BTQ[:, :0]])) == []


@pytest.fixture(scope="module")
def magnitudes():
    """The bundled codec, which finds phases for its sound."""
    return tokenizers.AcousticTokenizer.load(bundle.load("gm-mini").components["soundstream"])


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True])
def test_threads_may_decode_at_once(magnitudes, whole):
    """As the sampler does on a CPU, and the evaluation of the codec.

    As daemons, for what waits for ever would hold the tests.
    """
    codes_BTQ = np.random.default_rng(0).integers(0, 1000, (4, 1, 250, 6)).astype(np.int32)
    sounds = [None] * len(codes_BTQ)

    def decode(clip):
        if whole:
            sounds[clip] = magnitudes.decode(codes_BTQ[clip])
        else:
            sounds[clip] = np.concatenate(list(magnitudes.decode_stream([codes_BTQ[clip]])), axis=1)

    threads = [threading.Thread(target=decode, args=(i,), daemon=True) for i in range(len(sounds))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    at_once = sounds.copy()
    for clip, sound_BT in enumerate(at_once):
        decode(clip)
        np.testing.assert_array_equal(sound_BT, sounds[clip])


@pytest.mark.slow
@pytest.mark.parametrize(("num_frames", "piece_frames"), [(47, 20), (60, 20), (3, 20), (5, 2)])
def test_a_stream_of_magnitudes_is_as_long_as_its_codes(magnitudes, num_frames, piece_frames):
    time_T = np.arange(60 * 320) / 16_000
    tone_BT = 0.5 * np.sin(2 * np.pi * 440 * time_T)[None].astype(np.float32)
    codes_BTQ = magnitudes.encode(tone_BT)[:, :num_frames]
    decode = functools.partial(magnitudes.decode_stream, piece_frames=piece_frames)
    sound_BT = np.concatenate(list(decode([codes_BTQ])), axis=1)
    assert sound_BT.shape == (1, num_frames * 320)
    # Bit for bit the same, however the codes came.
    by_frame = [codes_BTQ[:, i : i + 1] for i in range(num_frames)]
    np.testing.assert_array_equal(np.concatenate(list(decode(by_frame)), axis=1), sound_BT)
    if num_frames > 40:
        spectrum_F = np.abs(np.fft.rfft(sound_BT[0, : 40 * 320]))
        assert abs(spectrum_F.argmax() * 16_000 / (40 * 320) - 440) < 5


@pytest.mark.slow
def test_a_stream_of_magnitudes_hears_no_other_row(magnitudes):
    codes_BTQ = np.random.default_rng(0).integers(0, 512, (2, 10, 6)).astype(np.int32)
    both_BT, alone_BT = (
        np.concatenate(list(magnitudes.decode_stream([codes], piece_frames=5)), axis=1)
        for codes in (codes_BTQ, codes_BTQ[1:])
    )
    np.testing.assert_allclose(both_BT[1:], alone_BT, atol=1e-3)
