import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musiclm import audio
from musiclm.models.soundstream import (
    SoundStream,
    SoundStreamConfig,
    SpectrumConfig,
    decoder_state,
)

TINY = SoundStreamConfig(
    sample_rate=800, encoder_channels=4, decoder_channels=4, strides=(2, 4), latent_dim=6,
    dilations=(1, 3), num_codebooks=3, codebook_size=16,
)  # fmt: skip
SPECTRUM = SpectrumConfig(window_size=24, hop_size=4, phase_iters=64)
SPECTRAL = dataclasses.replace(TINY, spectrum=SPECTRUM, strides=(2,))


@functools.partial(jax.jit, static_argnums=0, static_argnames=("method", "quantize"))
def _run(model, *args, **kwargs):
    """The codec, compiled: op by op it takes seconds a call."""
    return model.apply(*args, **kwargs)


_analyse, _magnitudes, _synthesise, _synthesise_like, _synthesise_piece = (
    jax.jit(method, static_argnums=0)
    for method in (
        SpectrumConfig.analyse, SpectrumConfig.magnitudes, SpectrumConfig.synthesise,
        SpectrumConfig.synthesise_like, SpectrumConfig.synthesise_piece,
    )
)  # fmt: skip


@functools.cache
def _codec(config):
    """A codec with random codebooks on the scale of its latents."""
    model, rng = SoundStream(config), np.random.default_rng(0)
    waveform_BT = 0.5 * rng.normal(size=(2, 30 * config.hop_length)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(1), waveform_BT)
    latents_BTD = np.asarray(_run(model, variables, waveform_BT, method="latents"))
    quantizer = variables["codebooks"]["quantizer"]
    noise_QKD = rng.normal(size=quantizer["centroids_QKD"].shape).astype(np.float32)
    scale_Q11 = latents_BTD.std() * 0.6 ** np.arange(config.num_codebooks)[:, None, None]
    codebooks = {"quantizer": quantizer | {"centroids_QKD": noise_QKD * scale_Q11}}
    return model, {"params": variables["params"], "codebooks": codebooks}, waveform_BT


def _num_parameters(config):
    shapes = jax.eval_shape(
        SoundStream(config).init, jax.random.key(0), jnp.zeros((1, config.hop_length))
    )
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


@pytest.mark.parametrize(
    ("encoder", "decoder", "millions", "tolerance"),
    # Table I of the paper; the small sizes are given to one digit and rounded differently.
    [(32, 32, 8.4, 0.03), (16, 16, 2.4, 0.1), (16, 32, 5.5, 0.03), (8, 32, 4.8, 0.05),
     (32, 16, 5.3, 0.05), (32, 8, 4.4, 0.05)],
)  # fmt: skip
def test_sizes_are_the_papers(encoder, decoder, millions, tolerance):
    config = SoundStreamConfig(
        encoder_channels=encoder, decoder_channels=decoder, strides=(2, 4, 5, 8)
    )
    assert _num_parameters(config) == pytest.approx(millions * 1e6, rel=tolerance)


def test_default_is_musiclms():
    config = SoundStreamConfig()
    assert (config.hop_length, config.frame_rate) == (480, 50)
    assert (config.num_codebooks, config.codebook_size) == (12, 1024)
    assert _num_parameters(config) == pytest.approx(8.4e6, rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("config", [TINY, SPECTRAL])
def test_no_frame_hears_past_its_hop_and_window(config):
    model, variables, waveform_BT = _codec(config)
    cut = 17 * config.hop_length
    spectrum = config.spectrum
    heard = cut + (spectrum.window_size - spectrum.hop_size) // 2 if spectrum else cut
    changed_BT, nudged_BT = waveform_BT.copy(), waveform_BT.copy()
    changed_BT[:, heard:] *= -1
    nudged_BT[:, heard - 1] += 1.0
    before_BTD, after_BTD, nudged_BTD = (
        np.asarray(_run(model, variables, x_BT, method="latents"))
        for x_BT in (waveform_BT, changed_BT, nudged_BT)
    )
    np.testing.assert_allclose(before_BTD[:, :17], after_BTD[:, :17], atol=1e-6)
    assert np.abs(before_BTD[:, 17] - after_BTD[:, 17]).max() > 1e-3
    # The last sample before the cut does reach frame 16: the hop adds no delay.
    assert np.abs(before_BTD[:, 16] - nudged_BTD[:, 16]).max() > 1e-4


@pytest.mark.slow
def test_prefix_of_codes_decodes_to_prefix_of_waveform():
    config = TINY
    model, variables, waveform_BT = _codec(config)
    codes_BTQ = np.asarray(_run(model, variables, waveform_BT, method="encode"))
    whole_BT = _run(model, variables, codes_BTQ, method="decode")
    for frames in (1, 11, 29):
        prefix_BT = _run(model, variables, codes_BTQ[:, :frames], method="decode")
        assert prefix_BT.shape == (2, frames * config.hop_length)
        np.testing.assert_allclose(prefix_BT, whole_BT[:, : prefix_BT.shape[1]], atol=1e-5)


@pytest.fixture(scope="module")
def stream(moved):
    """Decoding in pieces by a codec all of whose layers do something; codes, and their sound."""
    model, variables, _ = _codec(TINY)
    variables = variables | {"params": moved(variables["params"])}
    codes_BTQ = np.random.default_rng(3).integers(0, 16, (2, 30, 3), dtype=np.int32)
    whole_BT = np.asarray(_run(model, variables, codes_BTQ, method="decode"))
    decode = jax.jit(functools.partial(model.apply, variables, method="decode_piece"))
    return decode, codes_BTQ, whole_BT


# Three lengths, so that few shapes are compiled; a frame alone is shorter than what layers read.
@pytest.mark.slow
@given(st.lists(st.sampled_from([1, 2, 7]), min_size=1, max_size=12))
def test_pieces_of_any_lengths_make_the_whole(stream, lengths):
    decode, codes_BTQ, whole_BT = stream
    state, pieces, begin = decoder_state(TINY, 2), [], 0
    shapes = jax.tree.map(jnp.shape, state)
    for end in itertools.accumulate(lengths):
        if end <= codes_BTQ.shape[1]:
            piece_BT, state = decode(codes_BTQ[:, begin:end], state)
            pieces.append(piece_BT)
            begin = end
    waveform_BT = np.concatenate(pieces, axis=1)
    np.testing.assert_allclose(waveform_BT, whole_BT[:, : waveform_BT.shape[1]], atol=1e-5)
    # What is carried on has one size, however much came before.
    assert jax.tree.map(jnp.shape, state) == shapes


def test_a_piece_hears_what_came_before(stream):
    decode, codes_BTQ, whole_BT = stream
    alone_BT, _ = decode(codes_BTQ[:, :2], decoder_state(TINY, 2))
    np.testing.assert_allclose(alone_BT, whole_BT[:, : alone_BT.shape[1]], atol=1e-5)
    alone_BT, _ = decode(codes_BTQ[:, 7:9], decoder_state(TINY, 2))
    assert np.abs(alone_BT - whole_BT[:, 7 * 8 : 9 * 8]).max() > 1e-2


def test_magnitudes_of_a_spectrum_come_back_as_the_sound():
    time_T = np.arange(800) / 800
    tone_BT = 0.5 * np.sin(2 * np.pi * np.array([[60.0], [220.0]]) * time_T)
    frames_BNF = np.asarray(_analyse(SPECTRUM, tone_BT))
    assert frames_BNF.shape == (2, 200, SPECTRUM.num_bins)
    # With the sound's own phases it is the sound; otherwise it has its spectrum.
    np.testing.assert_allclose(_synthesise_like(SPECTRUM, frames_BNF, tone_BT), tone_BT, atol=1e-4)
    found_BT = _synthesise(SPECTRUM, frames_BNF)
    magnitude_BNF, found_BNF = (
        np.exp(np.asarray(_analyse(SPECTRUM, x_BT)) * SPECTRUM.log_deviation)
        for x_BT in (tone_BT, found_BT)
    )
    error = np.linalg.norm(found_BNF - magnitude_BNF) / np.linalg.norm(magnitude_BNF)
    assert error < 0.1
    assert np.abs(_synthesise(SPECTRUM, frames_BNF + 100.0)).max() < 20.0


def _notes(seconds, rate=16_000, seed=0):
    """Decaying notes with overtones, no beat a multiple of another's: f32 [1, T]."""
    rng = np.random.default_rng(seed)
    waveform_T = np.zeros(round(seconds * rate))
    for start in np.cumsum(rng.uniform(0.1, 0.35, round(seconds * 4))):
        time_T = np.arange(len(waveform_T)) / rate - start
        pitch = 110 * 2 ** (rng.integers(0, 36) / 12)
        sines = sum(np.sin(2 * np.pi * k * pitch * time_T) / k for k in range(1, 6))
        waveform_T += 0.15 * np.where(time_T > 0, np.exp(-4 * np.maximum(time_T, 0)), 0) * sines
    return waveform_T[None].astype(np.float32)


def _ranks_of_flux(waveform_BT, places):
    """The greatest rise of the spectrum within 12 ms of each place: its rank among all, 0 to 1."""
    spectrum_BNF = jax.jit(audio.stft, static_argnums=(1, 2))(waveform_BT, 256, 32)
    log_BNF = np.log(np.abs(spectrum_BNF) + 1e-2)
    flux_N = np.maximum(np.diff(log_BNF[0], axis=0), 0.0).mean(axis=-1)
    rises_N = np.lib.stride_tricks.sliding_window_view(flux_N, 12).max(axis=-1)
    return [np.mean(rises_N < rises_N[place // 32 - 6]) for place in places]


@pytest.mark.slow
def test_spectra_in_pieces_make_sound_without_seams():
    config = SpectrumConfig()
    wanted_BNF = np.asarray(_analyse(config, _notes(5.0)))
    parts = np.split(wanted_BNF, 10, axis=1)
    piece = parts[0].shape[1] * config.hop_size
    state, pieces = None, []
    for part_BNF in parts:
        piece_BT, state = _synthesise_piece(config, part_BNF, state)
        assert piece_BT.shape == (1, piece)
        pieces.append(piece_BT)
    delayed_BT = np.concatenate(pieces, axis=1)
    assert np.abs(delayed_BT[:, : config.delay // 2]).max() < 0.05  # it is yet to start
    stream_BT = delayed_BT[:, config.delay :]

    def error(waveform_BT):
        frames_BNF = _analyse(config, waveform_BT)
        wanted, found = (
            np.asarray(_magnitudes(config, x_BNF))
            for x_BNF in (wanted_BNF[:, : frames_BNF.shape[1]], frames_BNF)
        )
        inside = slice(6, -6)  # cut windows aside
        return np.linalg.norm((found - wanted)[:, inside]) / np.linalg.norm(wanted[:, inside])

    whole_BT = np.asarray(_synthesise(config, wanted_BNF))
    assert error(stream_BT) < 1.1 * error(whole_BT[:, : stream_BT.shape[1]])
    ranks = _ranks_of_flux(stream_BT, piece * np.arange(1, 10) - config.delay)
    assert max(ranks) < 0.99
    assert np.mean(ranks) < 0.7  # 0.5 but for chance
    # Pieces that know nothing of each other have seams that this finds.
    apart_BT = np.concatenate([_synthesise(config, part_BNF) for part_BNF in parts], axis=1)
    ranks = _ranks_of_flux(apart_BT, piece * np.arange(1, 10))
    assert max(ranks) > 0.99
    assert np.mean(ranks) > 0.8


@pytest.mark.slow
def test_a_codec_of_magnitudes_trains_and_decodes_the_same_spectra():
    model, variables, waveform_BT = _codec(SPECTRAL)
    codes_BTQ = _run(model, variables, waveform_BT, method="encode")
    frames_BNF = _run(
        model,
        variables,
        codes_BTQ,
        method=lambda codec, codes: codec.decoder(codec.quantizer.decode(codes))[0],
    )
    assert frames_BNF.shape == (2, 60, SPECTRUM.num_bins)
    trained_BT = _run(model, variables, waveform_BT).waveform_BT
    np.testing.assert_allclose(
        trained_BT, _synthesise_like(SPECTRUM, frames_BNF, waveform_BT), atol=1e-3
    )
    decoded_BT = _run(model, variables, codes_BTQ, method="decode")
    assert decoded_BT.shape == waveform_BT.shape
    # Random spectra belong to no sound, yet some of them must come through.
    wanted, found = (
        np.log(np.asarray(_magnitudes(SPECTRUM, x_BNF)) + 1e-3).ravel()
        for x_BNF in (frames_BNF, _analyse(SPECTRUM, decoded_BT))
    )
    assert np.corrcoef(wanted, found)[0, 1] > 0.3


@pytest.mark.slow
def test_codes_and_training_pass_agree():
    model, variables, waveform_BT = _codec(TINY)
    output = _run(model, variables, waveform_BT)
    codes_BTQ = _run(model, variables, waveform_BT, method="encode")
    assert codes_BTQ.shape == (2, 30, 3)
    np.testing.assert_array_equal(codes_BTQ, np.moveaxis(output.quantized.codes_QBT, 0, -1))
    decoded_BT = _run(model, variables, codes_BTQ, method="decode")
    np.testing.assert_allclose(decoded_BT, output.waveform_BT, atol=1e-4)
    # The quantiser does something, and can be turned off.
    unquantised_BT = _run(model, variables, waveform_BT, quantize=False).waveform_BT
    assert np.abs(np.asarray(unquantised_BT) - output.waveform_BT).max() > 1e-3


@pytest.mark.slow
def test_fewer_levels_decode():
    model, variables, waveform_BT = _codec(TINY)
    codes_BTQ = _run(model, variables, waveform_BT, method="encode")
    output = _run(model, variables, waveform_BT, num_levels_B=np.full(2, 2))
    decoded_BT = _run(model, variables, codes_BTQ[..., :2], method="decode")
    np.testing.assert_allclose(decoded_BT, output.waveform_BT, atol=1e-4)


def test_last_frame_is_filled_with_zeros():
    model, variables, waveform_BT = _codec(TINY)
    ragged_BT = waveform_BT[:, : 29 * 8 + 3]
    filled_BT = np.pad(ragged_BT, ((0, 0), (0, 5)))
    codes_BTQ = _run(model, variables, ragged_BT, method="encode")
    assert codes_BTQ.shape == (2, 30, 3)
    np.testing.assert_array_equal(codes_BTQ, _run(model, variables, filled_BT, method="encode"))


@pytest.mark.slow
def test_denoise_acts_through_film_alone():
    config = dataclasses.replace(TINY, denoise=True)
    model, variables, waveform_BT = _codec(config)
    plain, plain_variables, _ = _codec(TINY)
    flags_B = np.array([True, False])

    def latents(variables, flags_B=None):
        return _run(model, variables, waveform_BT, flags_B, method="latents")

    # Identity at the start: the codec of the same weights without the option.
    shared = {name: variables["params"][name] for name in ("encoder", "decoder")}
    plain_BTD = _run(plain, plain_variables | {"params": shared}, waveform_BT, method="latents")
    np.testing.assert_array_equal(latents(variables, flags_B), plain_BTD)
    film = variables["params"]["film"]
    film = film | {"scale": film["scale"].at[1].set(2.0), "shift": film["shift"].at[1].set(0.5)}
    trained = variables | {"params": variables["params"] | {"film": film}}
    np.testing.assert_allclose(latents(trained, flags_B)[0], 2 * plain_BTD[0] + 0.5, rtol=1e-5)
    np.testing.assert_array_equal(latents(trained, flags_B)[1], plain_BTD[1])
    np.testing.assert_array_equal(latents(trained), plain_BTD)


def test_denoise_needs_the_option():
    model, variables, waveform_BT = _codec(TINY)
    with pytest.raises(ValueError, match="denoise is False"):
        _run(model, variables, waveform_BT, jnp.array([True, False]), method="encode")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strides": (3, 7)}, r"strides=\(3, 7\) make a hop of 21"),
        ({"strides": ()}, r"strides=\(\): give at least one"),
        ({"encoder_channels": 5}, "encoder_channels=5: residual units halve it"),
        ({"spectrum": dataclasses.replace(SPECTRUM, hop_size=3)}, "make a hop of 24, which"),
        ({"codebook_size": 1}, "codebook_size=1: set 2 or more"),
        ({"num_codebooks": 0}, "num_codebooks=0: set 1 or more"),
        ({"dtype": "float64"}, "dtype='float64': set"),
    ],
)
def test_config_names_what_to_mend(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"hop_size": 9}, "window_size=24 is no even multiple of hop_size=9"),
     ({"phase_iters": 0}, "phase_iters=0: set 1 or more")],
)  # fmt: skip
def test_spectrum_names_what_to_mend(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SPECTRUM, **changes)
