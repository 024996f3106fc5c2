import dataclasses
import itertools

import jax
import numpy as np
import pytest

from musiclm import bundle, sharding
from musiclm.models.soundstream import SoundStream, SoundStreamConfig, SpectrumConfig
from musiclm.training import optim, program
from musiclm.training.principal import fit_principal_components
from musiclm.training.soundstream import SoundStreamTask

pytestmark = pytest.mark.slow

SPECTRUM = SpectrumConfig(window_size=64, hop_size=16, phase_iters=8)
CONFIG = SoundStreamConfig(
    sample_rate=3_200, encoder_channels=8, decoder_channels=8, strides=(2,), latent_dim=8,
    dilations=(1,), num_codebooks=2, codebook_size=16, spectrum=SPECTRUM,
)  # fmt: skip


def _tones(*, seed, batch_size, start_step):
    """Decaying tones of 0.4 s."""
    time_T = np.arange(1_280) / 3_200
    for step in itertools.count(start_step):
        rng = np.random.default_rng((seed, step))
        hz_B1, decay_B1 = (
            rng.uniform(100, 1_200, (batch_size, 1)),
            rng.uniform(1, 8, (batch_size, 1)),
        )
        wave_BT = np.sin(2 * np.pi * hz_B1 * time_T) * np.exp(-decay_B1 * time_T)
        yield {"waveform": wave_BT.astype(np.float32)}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """The path of a fitted codec."""
    path = tmp_path_factory.mktemp("principal") / "start"
    fit_principal_components(
        config=CONFIG, component=path, dataset=_tones, num_batches=8, batch_size=8
    )
    return path


@jax.jit
def _decode(variables, waveform_BT):
    def frames(codec, x_BT):
        return codec.decoder(codec.latents(x_BT))[0]

    return SoundStream(CONFIG).apply(variables, waveform_BT, method=frames)


def _analyse(waveform_BT):
    return np.asarray(jax.jit(SPECTRUM.analyse)(waveform_BT))


def _variance_left(variables, waveform_BT):
    """Of the log magnitudes, after encoder and decoder without quantisation."""
    wanted_BNF, got_BNF = _analyse(waveform_BT), _decode(variables, waveform_BT)
    return ((wanted_BNF - got_BNF) ** 2).mean() / wanted_BNF.var()


def test_starts_as_the_best_linear_code_of_its_size(start):
    waveform_BT = next(_tones(seed=1, batch_size=16, start_step=0))["waveform"]
    component = bundle.load_component(start.parent, start.name)
    variance_left = _variance_left(component.variables, waveform_BT)
    frames_NV = _analyse(waveform_BT).reshape(-1, 2 * SPECTRUM.num_bins)
    values_V = np.linalg.svd(frames_NV - frames_NV.mean(0), compute_uv=False) ** 2
    best = values_V[CONFIG.latent_dim :].sum() / values_V.sum()
    assert best < variance_left < 2 * best
    untrained = jax.jit(SoundStream(CONFIG).init)(jax.random.key(0), waveform_BT)
    assert variance_left < 0.3 * _variance_left(untrained, waveform_BT)


def test_training_starts_from_the_component(start):
    task = SoundStreamTask(
        config=CONFIG, optimizer=optim.OptimizerConfig(), start=str(start), kmeans_batches=1
    )
    batch = next(_tones(seed=0, batch_size=4, start_step=0))
    begin = jax.jit(lambda key, batch, start: task.begin(task.init(key, batch), start))
    state = begin(jax.random.key(0), batch, task.read_start())
    params = bundle.load_component(start.parent, start.name).variables["params"]
    jax.tree.map(np.testing.assert_array_equal, state.params, params)
    other = dataclasses.replace(task, config=dataclasses.replace(CONFIG, dilations=(1, 3)))
    with pytest.raises(bundle.BundleError, match="is a codec of another config: fit it anew"):
        other.read_start()


def test_what_training_starts_from_is_read_where_values_are_needed(tmp_path):
    """Not where a checkpoint has them, or only the step is compiled."""
    optimizer = optim.OptimizerConfig()
    task = SoundStreamTask(config=CONFIG, optimizer=optimizer, start=str(tmp_path / "gone"))
    mesh = sharding.MeshConfig(data=1).make(jax.devices()[:1])
    built = program.build(task, mesh, batch_size=4)
    with pytest.raises(bundle.BundleError, match="gone"):
        built.read_start()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spectrum": None, "strides": (32,)}, "spectrum is None"),
        ({"latent_dim": 99}, "latent_dim=99 is more"),
    ],
)
def test_names_what_to_mend(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        fit_principal_components(
            config=dataclasses.replace(CONFIG, **changes), component=tmp_path / "x",
            dataset=_tones, num_batches=1, batch_size=1,
        )  # fmt: skip
