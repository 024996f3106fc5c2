"""AudioSet's AST equals the published implementation, on weights drawn by name.

The reference is Hugging Face's ASTForAudioClassification and ASTFeatureExtractor (transformers
5.24, torch 2.13), given the same file and sound.
"""

import numpy as np
import pytest
import safetensors.numpy

from musiclm.errors import UserError
from musiclm.models import audioset_ast

WIDTH, FFN, CLASSES = 128, 192, 5
DENSE = {
    "attention.attention.query": (WIDTH, WIDTH),
    "attention.attention.key": (WIDTH, WIDTH),
    "attention.attention.value": (WIDTH, WIDTH),
    "attention.output.dense": (WIDTH, WIDTH),
    "intermediate.dense": (FFN, WIDTH),
    "output.dense": (WIDTH, FFN),
}
NORMS = ("layernorm_before", "layernorm_after")


def shapes():
    tower = "audio_spectrogram_transformer."
    found = {
        f"{tower}embeddings.cls_token": (1, 1, WIDTH),
        f"{tower}embeddings.distillation_token": (1, 1, WIDTH),
        f"{tower}embeddings.position_embeddings": (1, 12 * 101 + 2, WIDTH),
        f"{tower}embeddings.patch_embeddings.projection.weight": (WIDTH, 1, 16, 16),
        f"{tower}embeddings.patch_embeddings.projection.bias": (WIDTH,),
        "classifier.dense.weight": (CLASSES, WIDTH),
        "classifier.dense.bias": (CLASSES,),
    }
    norms = [f"{tower}layernorm", "classifier.layernorm"]
    for index in range(2):
        layer = f"{tower}encoder.layer.{index}."
        norms += [layer + name for name in NORMS]
        for name, shape in DENSE.items():
            found |= {f"{layer}{name}.weight": shape, f"{layer}{name}.bias": shape[:1]}
    return found | {f"{name}.{kind}": (WIDTH,) for name in norms for kind in ("weight", "bias")}


@pytest.fixture(scope="module")
def published():
    arrays = {}
    for name, shape in shapes().items():
        rng = np.random.default_rng(sum(map(ord, name)))
        arrays[name] = 0.1 * rng.standard_normal(shape, np.float32)
        if name.endswith(("norm.weight", "before.weight", "after.weight")):
            arrays[name] += 1
    return arrays


@pytest.fixture(scope="module")
def tagger(published, tmp_path_factory):
    path = tmp_path_factory.mktemp("ast") / "model.safetensors"
    safetensors.numpy.save_file(published, path)
    return audioset_ast.load(path)


@pytest.fixture(scope="module")
def sweep():
    time_T = np.arange(3 * 16_000) / 16_000
    tone_T = 0.3 * np.sin(2 * np.pi * 440 * time_T) * np.exp(-time_T)
    return (tone_T + 0.1 * np.sin(2 * np.pi * 1000 * time_T**2)).astype(np.float32)


def test_the_front_end_is_the_published_one(sweep):
    mel_WNF = audioset_ast.log_mel_windows(sweep)
    assert mel_WNF.shape == (1, 1024, 128)
    assert mel_WNF.dtype == np.float32
    expected = [
        [0.08452332, -0.41399196, -1.09601474, -1.27759385],
        [-0.95758462, -0.74415612, -1.27759385, -0.81566137],
        [-1.26501608, -1.06399870, -1.27759385, -1.27759385],  # the last frame of the sound
        [0.46703237, 0.46703237, 0.46703237, 0.46703237],
    ]
    found = mel_WNF[0][np.ix_([0, 150, 297, 298], [0, 16, 40, 90])]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_what_is_heard_is_what_the_published_model_hears(tagger, sweep):
    expected = [0.21649304, 0.03784479, 0.19061378, 0.21454425, 0.34050414]
    np.testing.assert_allclose(tagger.distribution(sweep), expected, atol=1e-5)


def test_windows_are_heard_alone_and_averaged(tagger):
    rng = np.random.default_rng(0)
    window = audioset_ast.WINDOW_FRAMES * 160
    long_T = 0.1 * rng.standard_normal(window + 8_000)
    parts = [tagger.distribution(part) for part in (long_T[: window + 240], long_T[window:])]
    np.testing.assert_allclose(tagger.distribution(long_T), np.mean(parts, axis=0), atol=1e-5)
    assert np.abs(parts[0] - parts[1]).max() > 1e-3


@pytest.mark.parametrize("waveform", [np.zeros(399), np.full(400, np.nan), np.zeros((2, 400))])
def test_what_is_no_sound_is_told(waveform):
    with pytest.raises(ValueError, match="give 400 finite mono samples or more"):
        audioset_ast.log_mel_windows(waveform)


def test_other_files_are_told(published, tmp_path):
    path = tmp_path / "model.safetensors"

    def told(**change):
        safetensors.numpy.save_file({**published, **change}, path)
        with pytest.raises(UserError) as error:
            audioset_ast.load(path)
        return str(error.value)

    positions = "audio_spectrogram_transformer.embeddings.position_embeddings"
    assert "1300 positions hears no windows" in told(
        **{positions: np.zeros((1, 1300, WIDTH), np.float32)}
    )
    assert "must have the shape (5,)" in told(**{"classifier.dense.bias": np.zeros(4, np.float32)})
    some = {name: array for name, array in published.items() if "layernorm" not in name}
    safetensors.numpy.save_file(some, path)
    with pytest.raises(UserError, match=r"has no 'audio_spectrogram.*layernorm_before.weight'"):
        audioset_ast.load(path)
    path.write_bytes(b"no weights")
    with pytest.raises(UserError, match="cannot read the AudioSet classifier"):
        audioset_ast.load(path)
    with pytest.raises(UserError, match=r"missing\.safetensors"):
        audioset_ast.load(tmp_path / "missing.safetensors")
