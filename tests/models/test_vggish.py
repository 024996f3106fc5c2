"""VGGish: its front end, its layers and its published names, with random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from musiclm.errors import UserError
from musiclm.models import vggish

# As published: the name and the shape of each variable.
VARIABLES = {
    "conv1": (3, 3, 1, 64),
    "conv2": (3, 3, 64, 128),
    "conv3/conv3_1": (3, 3, 128, 256),
    "conv3/conv3_2": (3, 3, 256, 256),
    "conv4/conv4_1": (3, 3, 256, 512),
    "conv4/conv4_2": (3, 3, 512, 512),
    "fc1/fc1_1": (12288, 4096),
    "fc1/fc1_2": (4096, 4096),
    "fc2": (4096, 128),
}


@pytest.fixture(scope="module")
def variables():
    rng = np.random.default_rng(0)
    arrays = {}
    for name, shape in VARIABLES.items():
        scale = np.float32(np.sqrt(2 / np.prod(shape[:-1])))
        arrays[f"vggish/{name}/weights"] = rng.standard_normal(shape, np.float32) * scale
        arrays[f"vggish/{name}/biases"] = rng.standard_normal(shape[-1:], np.float32) * 0.1
    return arrays


@pytest.fixture(scope="module")
def weights(variables, tmp_path_factory):
    path = tmp_path_factory.mktemp("vggish") / "vggish.safetensors"
    safetensors.numpy.save_file(variables, path)
    return path


@pytest.mark.slow
def test_layers_are_those_written_down(variables, weights):
    patch_NF = np.random.default_rng(1).normal(size=(96, 64)).astype(np.float32)
    x = patch_NF[:, :, None]
    for stage in (["conv1"], ["conv2"], ["conv3/conv3_1", "conv3/conv3_2"],
                  ["conv4/conv4_1", "conv4/conv4_2"]):  # fmt: skip
        for name in stage:
            kernel = variables[f"vggish/{name}/weights"]
            padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
            taps = [
                padded[i : i + x.shape[0], j : j + x.shape[1]] @ kernel[i, j]
                for i in range(3)
                for j in range(3)
            ]
            x = np.maximum(sum(taps) + variables[f"vggish/{name}/biases"], 0)
        x = x.reshape(x.shape[0] // 2, 2, x.shape[1] // 2, 2, -1).max(axis=(1, 3))
    x = x.reshape(-1)
    for name in ("fc1/fc1_1", "fc1/fc1_2", "fc2"):
        x = x @ variables[f"vggish/{name}/weights"] + variables[f"vggish/{name}/biases"]
        x = x if name == "fc2" else np.maximum(x, 0)
    params = jax.tree.map(jnp.asarray, vggish.load(weights))
    found = jax.jit(vggish.VGGish().apply)({"params": params}, patch_NF[None])
    np.testing.assert_allclose(found[0], x, rtol=1e-3, atol=1e-3)
    assert found.min() < 0  # not through the last nonlinearity


def test_front_end_by_hand():
    time_T = np.arange(2 * vggish.SAMPLE_RATE) / vggish.SAMPLE_RATE
    hertz = 1_000.0
    patches_BNF = vggish.log_mel_patches(0.5 * np.sin(2 * np.pi * hertz * time_T))
    assert patches_BNF.shape == (2, 96, 64)
    assert patches_BNF.dtype == np.float32

    # 1 kHz is bin 32 of 512. A periodic Hann window of 400 sums to 200: a sine of half full scale
    # has there a magnitude of 0.5 / 2 · 200 = 50. The bins beside it are within the same triangles.
    mel = 1127 * np.log(1 + np.array([125.0, 7500.0, hertz]) / 700)
    step = (mel[1] - mel[0]) / 65
    nearest = round((mel[2] - mel[0]) / step) - 1
    assert patches_BNF[0, 40].argmax() == nearest
    magnitude_F = np.abs(
        np.fft.rfft(0.5 * np.sin(2 * np.pi * hertz * time_T[:400]) * np.hanning(401)[:-1], 512)
    )
    assert magnitude_F[32] == pytest.approx(50, rel=0.01)
    bins = 1127 * np.log(1 + np.arange(257) * 31.25 / 700)
    centre = mel[0] + (nearest + 1) * step
    triangle_F = np.maximum(0, 1 - np.abs(bins - centre) / step)
    assert patches_BNF[0, 0, nearest] == pytest.approx(np.log(magnitude_F @ triangle_F + 0.01))


def test_silence_is_the_logarithm_of_the_offset_and_a_constant_is_silence():
    silent = vggish.log_mel_patches(np.zeros(16_000))
    np.testing.assert_allclose(silent, np.log(0.01), rtol=1e-6)


@pytest.mark.parametrize("length", [15_599, 0])
def test_a_clip_without_a_patch_is_told(length):
    with pytest.raises(ValueError, match="15600 finite mono samples or more"):
        vggish.log_mel_patches(np.zeros(length))


def test_weights_of_another_shape_or_name_are_told(variables, tmp_path):
    path = tmp_path / "some.safetensors"
    some = {"vggish/conv1/weights": variables["vggish/conv1/weights"]}
    safetensors.numpy.save_file(some, path)
    with pytest.raises(UserError, match=r"vggish/conv1/biases must have the shape .*not there"):
        vggish.load(path)
    safetensors.numpy.save_file(some | {"vggish/conv1/biases": np.zeros(3, np.float32)}, path)
    with pytest.raises(UserError, match=r"\(64,\), and is \(3,\)"):
        vggish.load(path)
    path.write_bytes(b"no weights")
    with pytest.raises(UserError, match="cannot read the VGGish weights"):
        vggish.load(path)


@pytest.mark.slow
def test_a_checkpoint_of_the_published_kind_is_read(variables, weights, tmp_path):
    tf = pytest.importorskip("tensorflow")
    saved = str(tmp_path / "vggish_model.ckpt")
    stored = variables | {"global_step": np.int64(1)}
    tf.raw_ops.SaveV2(
        prefix=saved,
        tensor_names=list(stored),
        shape_and_slices=[""] * len(stored),
        tensors=list(stored.values()),
    )
    jax.tree.map(np.testing.assert_array_equal, vggish.load(saved), vggish.load(weights))
