"""What a gin file hands to the training loop: batches from a step on, without end.

B: rows of a host, S: positions of a sequence, T: samples, L: text tokens.
"""

import weakref
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import seqio

from data_pipelines import manifest
from data_pipelines.feed import tasks
from data_pipelines.feed.converter import AudioConverter, PrefixDecoderConverter, sequence_lengths
from data_pipelines.feed.examples import CAPTION_WEIGHTS
from data_pipelines.feed.source import Place, told_without_tensorflow
from data_pipelines.feed.tasks import Corpus
from musiclm import errors
from musiclm.tokens.layout import StageLayout
from musiclm.tokens.wordpiece import WordPiece

Batch = dict[str, np.ndarray]


def token_sequences(
    *,
    corpora: Sequence[Corpus],
    layout: StageLayout,
    conditioning: str = "audio",
    caption_weights: Mapping[str, float] = CAPTION_WEIGHTS,
    encoder: str | None = None,
    split: str = "train",
    seed: int,
    batch_size: int,
    start_step: int,
    places: Sequence[int] = (0,),
    num_places: int = 1,
) -> Iterator[Batch]:
    """The sequences of a stage.

    Args:
      corpora: of token data sets; several are mixed by their weights.
      layout: of the stage.
      conditioning: where MuLan codes come from: "audio" (the paper), "text" or "mixed".
      caption_weights: of each kind of caption, where codes come from text; as MuLan does.
      encoder: digest of the tokenizers that must have made the tokens; None takes any.
      split: "train" or "validation".
      seed: of the order and of every draw.
      batch_size: rows of all hosts together.
      start_step: where to enter the stream.
      places, num_places: which equal parts of a batch to make, one after another, of how many;
        see `sharding.places_of_rows`.

    Returns:
      Batches {"tokens": int32 [B, S]}.

    Raises:
      shards.ShardError: a data set is missing, damaged, or not for this stage.
    """
    name = tasks.register_tokens(
        corpora,
        layout,
        conditioning=conditioning,
        caption_weights=caption_weights,
        encoder=encoder,
    )
    return _iterate(
        name,
        sequence_lengths(layout),
        PrefixDecoderConverter(layout),
        split,
        seed,
        Place(places[0], num_places, tuple(places), batch_size, start_step),
    )


def audio_crops(
    *,
    corpora: Sequence[Corpus],
    seconds: float,
    sample_rate: int,
    split: str = "train",
    seed: int,
    batch_size: int,
    start_step: int,
    places: Sequence[int] = (0,),
    num_places: int = 1,
) -> Iterator[Batch]:
    """Random crops of sound: batches {"waveform": f32 [B, T]}.

    Args:
      corpora: of sound data sets; several are mixed by their weights.
      seconds: length of a crop.
      sample_rate: of the model, which the data sets must have.
      split, seed, batch_size, start_step, places, num_places: see `token_sequences`.

    Raises:
      shards.ShardError: a data set is missing, damaged, shorter, or of another rate.
    """
    name = tasks.register_audio(corpora, seconds=seconds, sample_rate=sample_rate)
    lengths = {"audio": round(seconds * sample_rate)}
    place = Place(places[0], num_places, tuple(places), batch_size, start_step)
    return _iterate(name, lengths, AudioConverter(with_text=False), split, seed, place)


def audio_text_pairs(
    *,
    corpora: Sequence[Corpus],
    vocabulary: str,
    vocab_size: int,
    max_text_tokens: int,
    seconds: float,
    sample_rate: int,
    split: str = "train",
    seed: int,
    batch_size: int,
    start_step: int,
    places: Sequence[int] = (0,),
    num_places: int = 1,
) -> Iterator[Batch]:
    """Crops and one caption of each: batches {"waveform": f32 [B, T], "text_ids": int32 [B, L]}.

    Args:
      corpora: of sound data sets in which every window has a caption.
      vocabulary: the WordPiece file.
      vocab_size: how many pieces the model takes.
      max_text_tokens: L.
      seconds, sample_rate: see `audio_crops`.
      split, seed, batch_size, start_step, places, num_places: see `token_sequences`.

    Raises:
      shards.ShardError: a data set is missing, damaged, shorter, or of another rate.
      UserError: the vocabulary is none, or larger than the model's.
    """
    name = tasks.register_audio(
        corpora,
        seconds=seconds,
        sample_rate=sample_rate,
        vocabulary=_vocabulary(vocabulary, vocab_size),
        max_text_tokens=max_text_tokens,
    )
    lengths = {"audio": round(seconds * sample_rate), "text_ids": max_text_tokens}
    place = Place(places[0], num_places, tuple(places), batch_size, start_step)
    return _iterate(name, lengths, AudioConverter(with_text=True), split, seed, place)


def texts(
    *,
    corpora: Sequence[Corpus],
    vocabulary: str,
    vocab_size: int,
    max_text_tokens: int,
    split: str = "train",
    seed: int,
    batch_size: int,
    start_step: int,
    places: Sequence[int] = (0,),
    num_places: int = 1,
) -> Iterator[Batch]:
    """Captions without their sound: batches {"text_ids": int32 [B, L]}.

    Args:
      corpora, vocabulary, vocab_size, max_text_tokens: see `audio_text_pairs`.
      split, seed, batch_size, start_step, places, num_places: see `token_sequences`.

    Raises:
      shards.ShardError: a data set is missing or damaged.
      UserError: the vocabulary is none, or larger than the model's.
    """
    name = tasks.register_text(corpora, _vocabulary(vocabulary, vocab_size), max_text_tokens)
    place = Place(places[0], num_places, tuple(places), batch_size, start_step)
    lengths = {"text_ids": max_text_tokens}
    return _iterate(name, lengths, seqio.PassThroughFeatureConverter(), split, seed, place)


def captions(*, corpus: str, split: str = "train") -> list[str]:
    """All captions of a corpus's split, as its manifest has them."""
    clips = manifest.iterate(corpus)
    return [caption.text for clip in clips if clip.split == split for caption in clip.captions]


def _vocabulary(path: str, most: int) -> WordPiece:
    wordpiece = WordPiece.load(path)
    if wordpiece.vocab_size > most:
        raise errors.UserError(
            f"{path} has {wordpiece.vocab_size} pieces, and vocab_size is {most}: give the model's "
            "own vocabulary, or BertConfig a larger vocab_size"
        )
    return wordpiece


def _iterate(
    name: str,
    lengths: Mapping[str, int],
    converter: seqio.FeatureConverter,
    split: str,
    seed: int,
    place: Place,
) -> Iterator[Batch]:
    data = seqio.get_dataset(
        name,
        task_feature_lengths=lengths,
        feature_converter=converter,
        dataset_split=split,
        shuffle=True,
        num_epochs=None,
        shard_info=place,
        seed=seed,
        trim_output_features=False,  # rows are exact already, and seqio would trim their first axis
        verbose=False,
    )
    return _closed_in_time(data.as_numpy_iterator())


def _closed_in_time(iterator: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches; TensorFlow stops making more of them before Python shuts down.

    A thread of TensorFlow that would enter Python after that aborts the process.
    """
    held = [iterator]
    del iterator

    def batches():
        while True:
            with told_without_tensorflow():
                batch = next(held[0])
            yield batch

    stream = batches()
    weakref.finalize(stream, held.clear)  # when it is dropped, or at exit
    return stream
