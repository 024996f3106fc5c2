"""Frozen models that turn sound and words into tokens, all with one surface.

Each is built from a bundle's component (`load`), takes and gives host arrays, and pads batches to
nothing: a new shape compiles anew, so feed fixed shapes.

B: batch, T: samples or frames, Q: levels, D: width.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from musiclm import bundle
from musiclm.models import mulan, soundstream, w2v_bert
from musiclm.nn import kmeans, quantization
from musiclm.tokens import wordpiece


@dataclasses.dataclass(frozen=True, eq=False)
class AcousticTokenizer:
    """SoundStream: waveform to acoustic tokens and back (MusicLM 3.1)."""

    config: soundstream.SoundStreamConfig
    variables: Mapping[str, Any]

    @classmethod
    def load(cls, component: bundle.Component) -> "AcousticTokenizer":
        """From the component "soundstream"."""
        return cls(component.config, component.variables)

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return self.config.sample_rate

    @property
    def frame_rate(self) -> int:
        """Frames a second."""
        return self.config.frame_rate

    @property
    def num_codebooks(self) -> int:
        """Levels."""
        return self.config.num_codebooks

    @property
    def codebook_size(self) -> int:
        """Codes a level."""
        return self.config.codebook_size

    @functools.cached_property
    def _encode(self):
        model = soundstream.SoundStream(self.config)
        return jax.jit(lambda v, x, denoise_B: model.apply(v, x, denoise_B, method="encode"))

    def encode(self, waveform_BT: np.ndarray, *, denoise: bool = False) -> np.ndarray:
        """f32 samples at `sample_rate` to int32 codes [B, frames, Q].

        A codec that was trained with `config.denoise` can be asked for codes of the sound without
        its noise; of others a ValueError tells.
        """
        denoise_B = np.ones(len(waveform_BT), bool) if denoise else None
        return np.asarray(self._encode(self.variables, waveform_BT, denoise_B))

    def decode(self, codes_BTQ: np.ndarray) -> np.ndarray:
        """int32 codes [B, frames, Q] to f32 samples."""
        return np.asarray(_decode(self.config, self.variables, codes_BTQ))

    def decode_stream(
        self, pieces: Iterable[np.ndarray], *, piece_frames: int = 50
    ) -> Iterator[np.ndarray]:
        """Decodes codes as they come, in pieces of one shape, with memory for one piece.

        The sound depends on the codes alone, not on how they are divided.

        Args:
          pieces: int32 codes [B, frames, Q], any number of frames each.
          piece_frames: frames that are decoded at once; a second of them by default.

        Yields:
          f32 samples [B, samples], as soon as their codes and `config.delay` samples more have
          come; in all as many as `decode` makes.
        """
        length = self.config.hop_length
        state, skip, due = None, self.config.delay, 0
        for codes_BTQ, num_new in _in_pieces(pieces, piece_frames, -(-skip // length)):
            if state is None:
                state = soundstream.decoder_state(self.config, len(codes_BTQ))
            due += num_new * length
            waveform_BT, state = _decode_piece(self.config, self.variables, codes_BTQ, state)
            sound_BT = np.asarray(waveform_BT)[:, skip:][:, :due]
            skip = max(0, skip - waveform_BT.shape[1])
            due -= sound_BT.shape[1]
            if sound_BT.size:
                yield sound_BT


# Of no instance: threads that decode at once then share one compilation.
@functools.partial(jax.jit, static_argnums=0)
def _decode(config, variables, codes_BTQ):
    return soundstream.SoundStream(config).apply(variables, codes_BTQ, method="decode")


@functools.partial(jax.jit, static_argnums=0)
def _decode_piece(config, variables, codes_BTQ, state):
    model = soundstream.SoundStream(config)
    return model.apply(variables, codes_BTQ, state, method="decode_piece")


def _in_pieces(
    pieces: Iterable[np.ndarray], size: int, num_more: int
) -> Iterator[tuple[np.ndarray, int]]:
    """Divides a stream of codes [B, T, Q] anew.

    Args:
      pieces: of any lengths.
      size: frames of every new piece.
      num_more: frames, at least, to follow the last one, which is repeated.

    Yields:
      A new piece, and how many of its frames are the stream's own.
    """
    rest_BTQ = last_B1Q = None
    for piece_BTQ in pieces:
        rest_BTQ = piece_BTQ if rest_BTQ is None else np.concatenate([rest_BTQ, piece_BTQ], axis=1)
        last_B1Q = rest_BTQ[:, -1:] if rest_BTQ.shape[1] else last_B1Q
        while rest_BTQ.shape[1] >= size:
            yield rest_BTQ[:, :size], size
            rest_BTQ = rest_BTQ[:, size:]
    if last_B1Q is None:
        return
    left = rest_BTQ.shape[1]
    num_filled = num_more + -(left + num_more) % size
    end_BTQ = np.concatenate([rest_BTQ, np.repeat(last_B1Q, num_filled, axis=1)], axis=1)
    for start in range(0, end_BTQ.shape[1], size):
        yield end_BTQ[:, start : start + size], min(size, max(0, left - start))


@dataclasses.dataclass(frozen=True, eq=False)
class SemanticTokenizer:
    """w2v-BERT features, standardised per dimension, to k-means clusters (MusicLM 3.1).

    `clusters` holds `mean_D`, `std_D` and `centroids_KD`.
    """

    config: w2v_bert.W2vBertConfig
    variables: Mapping[str, Any]
    clusters: Mapping[str, np.ndarray]

    num_codebooks = 1

    @classmethod
    def load(cls, component: bundle.Component) -> "SemanticTokenizer":
        """From the component "w2v_bert"."""
        variables = dict(component.variables)
        clusters = variables.pop("clusters")
        return cls(component.config, variables, clusters)

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return self.config.sample_rate

    @property
    def frame_rate(self) -> int:
        """Tokens a second."""
        return self.config.frame_rate

    @property
    def codebook_size(self) -> int:
        """Clusters."""
        return len(self.clusters["centroids_KD"])

    @functools.cached_property
    def _encode(self):
        model = w2v_bert.W2vBert(self.config)

        def encode(variables, clusters, waveform_BT):
            features_BTD = model.apply(variables, waveform_BT, method="features")
            standard_BTD = (features_BTD - clusters["mean_D"]) / clusters["std_D"]
            return kmeans.assign(clusters["centroids_KD"], standard_BTD)

        return jax.jit(encode)

    def encode(self, waveform_BT: np.ndarray) -> np.ndarray:
        """f32 samples at `sample_rate` to int32 tokens [B, frames]."""
        return np.asarray(self._encode(self.variables, self.clusters, waveform_BT))


# Windows of sound that MuLan hears at once.
_WINDOWS_AT_ONCE = 16


@dataclasses.dataclass(frozen=True, eq=False)
class MuLanTokenizer:
    """MuLan embeddings of sound and of words, to the codes of one quantizer (MusicLM 3.1, 3.3).

    The two towers' embeddings lie in two separate cones, so the same meaning would fall on other
    codes: each modality's own mean is taken off before the quantizer.

    `quantizer` holds `audio_mean_D`, `text_mean_D` and `codebooks_QKD`.
    """

    config: mulan.MuLanConfig
    params: Mapping[str, Any]
    vocabulary: wordpiece.WordPiece
    quantizer: Mapping[str, np.ndarray]

    @classmethod
    def load(cls, component: bundle.Component) -> "MuLanTokenizer":
        """From the component "mulan"."""
        return cls(
            component.config["model"],
            component.variables["params"],
            wordpiece.WordPiece(component.config["vocabulary"]),
            component.variables["quantizer"],
        )

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return self.config.sample_rate

    @property
    def num_codebooks(self) -> int:
        """Levels."""
        return len(self.quantizer["codebooks_QKD"])

    @property
    def codebook_size(self) -> int:
        """Codes a level."""
        return self.quantizer["codebooks_QKD"].shape[1]

    @functools.cached_property
    def _embed_windows(self):
        model = mulan.MuLan(self.config)
        return jax.jit(lambda p, x: model.apply({"params": p}, x, method="embed_windows"))

    @functools.cached_property
    def _embed_text(self):
        model = mulan.MuLan(self.config)
        return jax.jit(lambda p, x: model.apply({"params": p}, x, method="embed_text"))

    def embed_audio(self, waveform_BT: np.ndarray) -> np.ndarray:
        """f32 samples at `sample_rate`, of any one length, to unit vectors f32 [B, D].

        Windows start every `window_stride_seconds`; their embeddings are averaged and normalised
        again (MusicLM 3.1). What is left after the last whole window is not heard. A waveform
        shorter than a window is repeated from its start until it fills one: silence would change
        the spectrogram's mean, and with it the embedding.

        Of long ones, up to 16 windows are heard at once: with the memory and the compiled shapes of
        those.
        """
        window, stride = self.config.window_samples, self.config.stride_samples
        length = waveform_BT.shape[1]
        if length < window:
            waveform_BT = np.tile(waveform_BT, (1, -(-window // length)))[:, :window]
        count = 1 + max(0, length - window) // stride
        embeddings = []
        for first in range(0, count, _WINDOWS_AT_ONCE):
            num = min(_WINDOWS_AT_ONCE, count - first)
            begin = first * stride
            # A power of two of windows: few shapes.
            end = begin + window + ((1 << (num - 1).bit_length()) - 1) * stride
            piece_BT = waveform_BT[:, begin:end]
            piece_BT = np.pad(piece_BT, ((0, 0), (0, end - begin - piece_BT.shape[1])))
            embeddings.append(np.asarray(self._embed_windows(self.params, piece_BT))[:, :num])
        return np.asarray(mulan.unit(np.concatenate(embeddings, axis=1).mean(axis=1)))

    def embed_text(self, texts: Sequence[str], *, overlong: str = "error") -> np.ndarray:
        """Texts to unit vectors f32 [B, D]; for `overlong` see `WordPiece.encode`."""
        ids_BL = self.vocabulary.encode(texts, self.config.bert.max_length, overlong=overlong)
        return np.asarray(self._embed_text(self.params, ids_BL))

    def quantize(self, embeddings_BD: np.ndarray, modality: str) -> np.ndarray:
        """Unit vectors of a modality, "audio" or "text", to int32 codes [B, Q]."""
        centred_BD = embeddings_BD - self.quantizer[f"{modality}_mean_D"]
        codebooks_QKD = jnp.asarray(self.quantizer["codebooks_QKD"])
        return np.asarray(quantization.rvq_encode(codebooks_QKD, jnp.asarray(centred_BD)))

    def encode_audio(self, waveform_BT: np.ndarray) -> np.ndarray:
        """f32 samples at `sample_rate` to int32 codes [B, Q]."""
        return self.quantize(self.embed_audio(waveform_BT), "audio")

    def encode_windows(self, waveform_BT: np.ndarray) -> np.ndarray:
        """f32 samples at `sample_rate` to int32 codes [B, W, Q], of each window on its own.

        Windows start every `window_stride_seconds`; the waveforms hold at least one.
        """
        embeddings_BWD = np.asarray(self._embed_windows(self.params, waveform_BT))
        batch, windows, _ = embeddings_BWD.shape
        codes = self.quantize(embeddings_BWD.reshape(batch * windows, -1), "audio")
        return codes.reshape(batch, windows, -1)

    def encode_text(self, texts: Sequence[str], *, overlong: str = "error") -> np.ndarray:
        """Texts to int32 codes [B, Q]; for `overlong` see `WordPiece.encode`."""
        return self.quantize(self.embed_text(texts, overlong=overlong), "text")


class MelodyTokenizer(Protocol):
    """What a melody model has to be for stages that are conditioned on one; there is none here.

    MusicLM's embeds 4 s every 3 s, so that three embeddings tell of 10 s, and quantizes them.

    Attributes:
      sample_rate: Hz.
      window_seconds: of sound that it takes.
    """

    sample_rate: int
    window_seconds: float

    def encode(self, waveform_BT: np.ndarray) -> np.ndarray:
        """f32 windows at `sample_rate` to int32 codes [B, embeddings, Q]."""
