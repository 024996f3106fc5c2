"""The Audio Spectrogram Transformer of AudioSet (Gong et al., arXiv 2104.01778), for KLD.

A ViT over overlapping patches of ten seconds, with a class and a distillation token. Its weights
are published and not part of this project; those of Hugging Face's ports are read, such as
`MIT/ast-finetuned-audioset-10-10-0.4593`.

Shapes: W windows of 10.24 s, T samples, N frames (1,024 a window), F mel bands (128), K bins,
D width, C classes (527).
"""

import dataclasses
import functools
import hashlib
import os
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from musiclm import audio
from musiclm.errors import UserError, first_line
from musiclm.nn.encoder import Encoder, EncoderConfig

SAMPLE_RATE = 16_000  # Hz
WINDOW_FRAMES = 1_024  # of 10 ms
NUM_MELS = 128

_WINDOW, _HOP, _FFT = 400, 160, 512  # samples
_F_MIN = 20.0  # Hz
_PREEMPHASIS = 0.97
_FLOOR = 2.0**-23  # of energies
_MEAN, _DEVIATION = -4.2677393, 4.5689974  # of AudioSet's log energies
_PATCH = 16
_HEAD_DIM = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class AudioSetAstConfig:
    """Size of the model, as its file has it.

    Attributes:
      encoder: the Transformer.
      stride: frames, and bands, from one patch to the next.
      num_classes: C.
    """

    encoder: EncoderConfig
    stride: int
    num_classes: int


class AudioSetAst(nn.Module):
    """Log-mel windows to logits."""

    config: AudioSetAstConfig

    @nn.compact
    def __call__(self, mel_WNF: jax.Array) -> jax.Array:
        """f32 [W, 1024, 128], see `log_mel_windows`, to f32 [W, C]."""
        config, width = self.config, self.config.encoder.model_dim
        patches = nn.Conv(
            width, (_PATCH, _PATCH), (config.stride, config.stride), padding="VALID", name="patches"
        )(mel_WNF.swapaxes(1, 2)[..., None])
        patches_WPD = patches.reshape(len(patches), -1, width)  # band by band
        tokens = self.param("tokens", nn.initializers.zeros, (2, width))
        tokens_W2D = jnp.broadcast_to(tokens, (len(patches), 2, width))
        x_WLD = jnp.concatenate([tokens_W2D, patches_WPD], axis=1)
        x_WLD += self.param("positions", nn.initializers.zeros, x_WLD.shape[1:])
        everything = jnp.ones(x_WLD.shape[:2], bool)
        x_WLD = Encoder(config.encoder, name="encoder")(x_WLD, everything, train=False)
        pooled_WD = nn.LayerNorm(config.encoder.norm_epsilon, name="norm")(
            (x_WLD[:, 0] + x_WLD[:, 1]) / 2
        )
        return nn.Dense(config.num_classes, name="classes")(pooled_WD)


def log_mel_windows(waveform_T: np.ndarray) -> np.ndarray:
    """The front end: f32 [W, 1024, 128], windows side by side, the last one filled with zeros.

    Kaldi's filter banks: frames of 25 ms every 10 ms, the first at the first sample, each without
    its mean, pre-emphasised and under a symmetric Hann window; log energies of 128 triangles that
    are even on the mel scale. Zeros are put before the mean of AudioSet is taken off, as in
    training.

    Args:
      waveform_T: f32 at 16 kHz, full scale 1; 25 ms or more.

    Raises:
      ValueError: it is shorter, not mono, or not finite.
    """
    waveform_T = np.asarray(waveform_T, np.float64)
    if waveform_T.ndim != 1 or len(waveform_T) < _WINDOW or not np.isfinite(waveform_T).all():
        raise ValueError(
            f"a waveform of shape {waveform_T.shape}: give {_WINDOW} finite mono samples or more"
        )
    frames_NW = np.lib.stride_tricks.sliding_window_view(waveform_T, _WINDOW)[::_HOP]
    frames_NW = frames_NW - frames_NW.mean(axis=1, keepdims=True)
    before_NW = np.concatenate([frames_NW[:, :1], frames_NW[:, :-1]], axis=1)
    frames_NW = (frames_NW - _PREEMPHASIS * before_NW) * np.hanning(_WINDOW)
    filters_KF = audio.mel_triangles(NUM_MELS, _FFT, SAMPLE_RATE, _F_MIN, SAMPLE_RATE / 2)
    energy_NF = np.abs(np.fft.rfft(frames_NW, _FFT)) ** 2 @ filters_KF
    log_NF = np.log(np.maximum(energy_NF, _FLOOR))
    num_windows = -(-len(log_NF) // WINDOW_FRAMES)
    log_NF = np.pad(log_NF, ((0, num_windows * WINDOW_FRAMES - len(log_NF)), (0, 0)))
    normal_NF = ((log_NF - _MEAN) / (2 * _DEVIATION)).astype(np.float32)
    return normal_NF.reshape(num_windows, WINDOW_FRAMES, NUM_MELS)


@dataclasses.dataclass(frozen=True)
class AudioSetTagger:
    """A trained `AudioSetAst`.

    Attributes:
      config: of the model.
      params: its collection "params".
      digest: of the file that they are from.
    """

    config: AudioSetAstConfig
    params: Mapping[str, Any]
    digest: str

    def distribution(self, waveform_T: np.ndarray) -> np.ndarray:
        """What is heard: f32 [C], the softmax over the classes, mean over the windows.

        Args:
          waveform_T: see `log_mel_windows`; a new number of windows compiles anew.
        """
        return np.asarray(self._distribution(self.params, log_mel_windows(waveform_T)))

    @functools.cached_property
    def _distribution(self):
        model = AudioSetAst(self.config)
        return jax.jit(lambda p, x: jax.nn.softmax(model.apply({"params": p}, x)).mean(axis=0))


def load(path: str | os.PathLike[str]) -> AudioSetTagger:
    """The model of a `model.safetensors` file as it is published.

    Raises:
      UserError: the file can't be read, or is of another model.
    """
    try:
        arrays = safetensors.numpy.load_file(path)
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:12]
    except Exception as error:  # the reader has exceptions of its own
        raise UserError(
            f"cannot read the AudioSet classifier {str(path)!r} ({first_line(error)}): give the "
            "model.safetensors of an Audio Spectrogram Transformer"
        ) from error
    try:
        config, params = _from_published(arrays)
    except KeyError as error:
        raise UserError(
            f"{str(path)!r} has no {error.args[0]!r}: give the model.safetensors of an Audio "
            "Spectrogram Transformer"
        ) from error
    shapes = jax.eval_shape(
        AudioSetAst(config).init, jax.random.key(0), jnp.zeros((1, WINDOW_FRAMES, NUM_MELS))
    )["params"]
    wanted, found = (
        {jax.tree_util.keystr(at): leaf.shape for at, leaf in jax.tree.leaves_with_path(tree)}
        for tree in (shapes, params)
    )
    for name, shape in wanted.items():
        if found[name] != shape:
            raise UserError(
                f"{str(path)!r}: the weight {name} must have the shape {shape}, and has "
                f"{found[name]}: give a model as it is published"
            )
    return AudioSetTagger(config, params, digest)


def _from_published(arrays: Mapping[str, np.ndarray]) -> tuple[AudioSetAstConfig, dict[str, Any]]:
    """Config and params from arrays under their published names.

    Raises:
      KeyError: one is not there.
      UserError: the number of positions fits no stride.
    """
    tower = "audio_spectrogram_transformer."
    embeddings = f"{tower}embeddings."

    def take(name: str) -> np.ndarray:
        return np.asarray(arrays[name], np.float32)

    def norm(name: str) -> dict[str, np.ndarray]:
        return {"scale": take(f"{name}.weight"), "bias": take(f"{name}.bias")}

    def dense(name: str) -> dict[str, np.ndarray]:
        return {"kernel": take(f"{name}.weight").T, "bias": take(f"{name}.bias")}

    def layer(index: int) -> dict[str, Any]:
        name = f"{tower}encoder.layer.{index}."
        inner = {n: dense(f"{name}attention.attention.{n}") for n in ("query", "key", "value")}
        return {
            "attention_norm": norm(f"{name}layernorm_before"),
            "attention": {**inner, "out": dense(f"{name}attention.output.dense")},
            "ffn_norm": norm(f"{name}layernorm_after"),
            "ffn": {
                "up": dense(f"{name}intermediate.dense"),
                "down": dense(f"{name}output.dense"),
            },
        }

    positions_LD = take(f"{embeddings}position_embeddings")[0]
    tokens = [take(f"{embeddings}{which}_token")[0, 0] for which in ("cls", "distillation")]
    patches = take(f"{embeddings}patch_embeddings.projection.weight")  # [D, 1, F, N]
    in_layers = [re.match(re.escape(tower) + r"encoder\.layer\.(\d+)\.", name) for name in arrays]
    num_layers = 1 + max((int(found[1]) for found in in_layers if found), default=0)
    layers = [layer(index) for index in range(num_layers)]
    strides = [s for s in range(1, _PATCH + 1) if 2 + _num_patches(s) == len(positions_LD)]
    if not strides:
        raise UserError(
            f"an AudioSet classifier with {len(positions_LD)} positions hears no windows of "
            f"{WINDOW_FRAMES} frames: give one that was trained on AudioSet"
        )
    width = positions_LD.shape[1]
    classes = dense("classifier.dense")
    config = AudioSetAstConfig(
        encoder=EncoderConfig(
            num_layers=num_layers,
            model_dim=width,
            num_heads=width // _HEAD_DIM,
            ffn_dim=layers[0]["ffn"]["up"]["kernel"].shape[1],
            norm_first=True,
            norm_epsilon=1e-12,
            dropout_rate=0.0,
        ),
        stride=strides[0],
        num_classes=classes["kernel"].shape[1],
    )
    params = {
        "patches": {
            "kernel": patches.transpose(2, 3, 1, 0),
            "bias": take(f"{embeddings}patch_embeddings.projection.bias"),
        },
        "tokens": np.stack(tokens),
        "positions": positions_LD,
        "encoder": {
            "layers": jax.tree.map(lambda *leaves: np.stack(leaves), *layers),
            "norm": norm(f"{tower}layernorm"),
        },
        "norm": norm("classifier.layernorm"),
        "classes": classes,
    }
    return config, params


def _num_patches(stride: int) -> int:
    """Of a window."""
    along = [(size - _PATCH) // stride + 1 for size in (NUM_MELS, WINDOW_FRAMES)]
    return along[0] * along[1]
