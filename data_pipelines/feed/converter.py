"""What the models take: one flat sequence a row, or a waveform; word pieces as they are.

A batch leaves here as it is trained on. The sequence is laid out here and not on the device: there
is one layout, and int32 [B, S] is less to carry than all levels of the raw codes.
"""

from collections.abc import Mapping
from typing import ClassVar

import seqio
import tensorflow as tf

from musiclm.tokens.layout import StageLayout

_Spec = seqio.FeatureConverter.FeatureSpec
PCM_SCALE = 1 / 32768


class PrefixDecoderConverter(seqio.FeatureConverter):
    """Raw codes to the sequence of a decoder that is given a prefix: {"tokens": int32 [B, S]}.

    Prefix and target have fixed lengths, so there is nothing to pad, to pack or to mask: the layout
    says which positions are the target's.
    """

    MODEL_FEATURES: ClassVar = {"tokens": _Spec(dtype=tf.int32, rank=2, sequence_dim=1)}

    def __init__(self, layout: StageLayout):
        """Takes the layout of the stage."""
        self.layout = layout
        self.TASK_FEATURES = {
            name: _Spec(
                dtype=tf.uint16, rank=2 if name in ("mulan", "semantic") else 3, sequence_dim=1
            )
            for name in sequence_lengths(layout)
        }
        super().__init__(pack=False)

    def _convert_features(
        self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
    ) -> tf.data.Dataset:
        names = sorted(self.TASK_FEATURES)

        def flatten(codes):
            tokens = tf.numpy_function(
                lambda *arrays: self.layout.flatten(dict(zip(names, arrays, strict=True))),
                [codes[name] for name in names],
                tf.int32,
            )
            tokens.set_shape((None, self.layout.sequence_length))
            return {"tokens": tokens}

        return ds.map(flatten)

    def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]) -> dict[str, int]:
        """The whole sequence's length, whatever its parts'."""
        return {"tokens": self.layout.sequence_length}


class AudioConverter(seqio.FeatureConverter):
    """PCM to {"waveform": f32 [B, T]}; word pieces, where there are some, pass through."""

    MODEL_FEATURES: ClassVar = {"waveform": _Spec(dtype=tf.float32, rank=2, sequence_dim=1)}
    TASK_FEATURES: ClassVar = {"audio": _Spec(dtype=tf.int16, rank=2, sequence_dim=1)}

    def __init__(self, *, with_text: bool):
        """Says whether the task has captions."""
        text = {"text_ids": _Spec(dtype=tf.int32, rank=2, sequence_dim=1)} if with_text else None
        super().__init__(pack=False, passthrough_features=text)

    def _convert_features(
        self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
    ) -> tf.data.Dataset:
        def convert(batch):
            rest = {name: array for name, array in batch.items() if name != "audio"}
            return {"waveform": tf.cast(batch["audio"], tf.float32) * PCM_SCALE, **rest}

        return ds.map(convert)

    def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]) -> dict[str, int]:
        """As they were."""
        lengths = dict(task_feature_lengths)
        return {"waveform": lengths.pop("audio"), **lengths}


def sequence_lengths(layout: StageLayout) -> dict[str, int]:
    """Frames of each source in a stage's window; of MuLan its levels, since it has no time."""
    return {
        segment.source: segment.num_levels if segment.source == "mulan" else segment.num_frames
        for segment in (*layout.prefix, layout.target)
    }
