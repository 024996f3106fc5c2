"""VGGish, the embedding of published Fréchet audio distances (Hershey et al., arXiv 1609.09430).

A VGG of four stages over log-mel patches of 0.96 s, trained on a preliminary YouTube-8M. Its
weights are published and not part of this project. FAD takes the last layer before its
nonlinearity, without the PCA that the published code adds (Kilgour et al., arXiv 1812.08466).

Shapes: B patches, T samples, N frames (96 a patch), F mel bands (64), K bins, D embedding
(128).
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from musiclm import audio
from musiclm.errors import UserError, first_line

SAMPLE_RATE = 16_000  # Hz
EMBEDDING_DIM = 128
PATCH_FRAMES = 96  # of 10 ms
NUM_MELS = 64

_WINDOW, _HOP, _FFT = 400, 160, 512  # samples
_F_MIN, _F_MAX = 125.0, 7_500.0  # Hz
_LOG_OFFSET = 0.01
# Layers by their published names: widths of convolutions, each stage before a pooling of two.
_STAGES = (
    {"conv1": 64},
    {"conv2": 128},
    {"conv3/conv3_1": 256, "conv3/conv3_2": 256},
    {"conv4/conv4_1": 512, "conv4/conv4_2": 512},
)
_DENSE = {"fc1/fc1_1": 4096, "fc1/fc1_2": 4096, "fc2": EMBEDDING_DIM}
_SCOPE = "vggish/"


class VGGish(nn.Module):
    """Patches to embeddings."""

    @nn.compact
    def __call__(self, patches_BNF: jax.Array) -> jax.Array:
        """f32 [B, 96, 64] to f32 [B, 128], not through the last nonlinearity."""
        x = patches_BNF[..., None]
        for stage in _STAGES:
            for name, width in stage.items():
                x = nn.relu(nn.Conv(width, (3, 3), name=_module_name(name))(x))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = x.reshape(len(x), -1)
        for name, width in _DENSE.items():
            x = nn.Dense(width, name=_module_name(name))(x)
            x = x if name == "fc2" else nn.relu(x)
        return x


def log_mel_patches(waveform_T: np.ndarray) -> np.ndarray:
    """The front end: f32 [B, 96, 64], patches side by side; what is left at the end is not heard.

    Magnitudes of 25 ms Hann windows every 10 ms, the first at the first sample, in 64 triangles
    that are even on the mel scale, log(mel + 0.01).

    Args:
      waveform_T: f32 at 16 kHz, full scale 1; 0.975 s or more.

    Raises:
      ValueError: it is shorter, not mono, or not finite.
    """
    waveform_T = np.asarray(waveform_T, np.float64)
    shortest = _WINDOW + (PATCH_FRAMES - 1) * _HOP
    if waveform_T.ndim != 1 or len(waveform_T) < shortest or not np.isfinite(waveform_T).all():
        raise ValueError(
            f"a waveform of shape {waveform_T.shape}: give {shortest} finite mono samples or more"
        )
    frames_NW = np.lib.stride_tricks.sliding_window_view(waveform_T, _WINDOW)[::_HOP]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_WINDOW) / _WINDOW)
    filters_KF = audio.mel_triangles(NUM_MELS, _FFT, SAMPLE_RATE, _F_MIN, _F_MAX)
    mel_NF = np.abs(np.fft.rfft(frames_NW * hann, _FFT)) @ filters_KF
    log_NF = np.log(mel_NF + _LOG_OFFSET).astype(np.float32)
    num_patches = len(log_NF) // PATCH_FRAMES
    return log_NF[: num_patches * PATCH_FRAMES].reshape(num_patches, PATCH_FRAMES, NUM_MELS)


def embed(params: Mapping[str, Any], waveform_T: np.ndarray) -> np.ndarray:
    """Embeddings f32 [B, 128] of a waveform, see `log_mel_patches`; a new length compiles anew."""
    return np.asarray(_embed(params, log_mel_patches(waveform_T)))


@jax.jit
def _embed(params, patches_BNF):
    return VGGish().apply({"params": params}, patches_BNF)


def load(path: str | os.PathLike[str]) -> dict[str, Mapping[str, np.ndarray]]:
    """The collection "params" of `VGGish` from published weights.

    Args:
      path: `vggish_model.ckpt` as it is published, which takes TensorFlow to read, or a
        `.safetensors` file of the same variables under the same names.

    Raises:
      UserError: the file can't be read, or lacks a variable or has one of another shape.
    """
    path = pathlib.Path(path)
    read = _read_safetensors if path.suffix == ".safetensors" else _read_checkpoint
    try:
        arrays = read(path)
    except UserError:
        raise
    except Exception as error:  # each reader has exceptions of its own
        raise UserError(
            f"cannot read the VGGish weights {str(path)!r} ({first_line(error)}): give "
            "vggish_model.ckpt or a .safetensors file of its variables"
        ) from error
    params = {}
    shapes = jax.eval_shape(
        VGGish().init, jax.random.key(0), jnp.zeros((1, PATCH_FRAMES, NUM_MELS))
    )["params"]
    for name in (*(name for stage in _STAGES for name in stage), *_DENSE):
        params[_module_name(name)] = {
            ours: _take(arrays, f"{_SCOPE}{name}/{theirs}", shapes[_module_name(name)][ours].shape)
            for ours, theirs in (("kernel", "weights"), ("bias", "biases"))
        }
    return params


def _take(arrays: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name not in arrays or arrays[name].shape != shape:
        found = arrays[name].shape if name in arrays else "not there"
        raise UserError(
            f"the VGGish weight {name} must have the shape {shape}, and is {found}: give the "
            "published weights"
        )
    return np.asarray(arrays[name], np.float32)


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(path)


def _read_checkpoint(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        import tensorflow as tf
    except ModuleNotFoundError as error:
        raise UserError(
            "TensorFlow reads VGGish's checkpoint: pip install tensorflow, or give the variables "
            "as a .safetensors file"
        ) from error
    reader = tf.train.load_checkpoint(str(path))
    names = (name for name in reader.get_variable_to_shape_map() if name.startswith(_SCOPE))
    return {name: reader.get_tensor(name) for name in names}


def _module_name(name: str) -> str:
    return name.rpartition("/")[2]
