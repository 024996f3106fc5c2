"""The seqio registry: one task a corpus and stage, one mixture where there are several corpora.

tasks.register_tokens([Corpus(name="gm", splits={"train": FOLDER})], StageLayout.semantic(spec))
seqio.get_mixture_or_task("gm_semantic").get_dataset(seed=0)
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence

import seqio
import tensorflow as tf

from data_pipelines import shards
from data_pipelines.feed.examples import (
    CAPTION_WEIGHTS,
    AudioExamples,
    Examples,
    TextExamples,
    TokenExamples,
)
from data_pipelines.feed.source import RowMixture, RowSource
from musiclm import errors
from musiclm.tokens.layout import StageLayout
from musiclm.tokens.wordpiece import WordPiece


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
    """A corpus as training knows it.

    Attributes:
      name: of letters, digits and underscores; its tasks are called after it.
      splits: the folder of a data set for each split. Which clips are in which split was decided
        by the corpus's manifest, so that no split holds a window of another's clips.
      weight: its share of a mixture's rows, beside the other corpora's weights.
    """

    name: str
    splits: Mapping[str, str]
    weight: float = 1.0


def digest(corpora: Sequence[Corpus]) -> str:
    """Names what is trained on: the corpora's weights and the content of their training shards.

    Raises:
      shards.ShardError: a corpus has no such data set.
      UserError: it has no split "train".
    """
    for corpus in corpora:
        if "train" not in corpus.splits:
            raise errors.UserError(
                f"Corpus.splits of {corpus.name} are {sorted(corpus.splits)}: give one named train"
            )
    parts = [
        (corpus.name, corpus.weight, shards.dumps(shards.load(corpus.splits["train"])))
        for corpus in corpora
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def register_tokens(
    corpora: Sequence[Corpus],
    layout: StageLayout,
    *,
    conditioning: str = "audio",
    caption_weights: Mapping[str, float] = CAPTION_WEIGHTS,
    encoder: str | None = None,
) -> str:
    """Registers the corpora's tasks of a stage; names that are taken pass to these.

    Args:
      corpora: of token data sets.
      layout: of the stage.
      conditioning, caption_weights, encoder: see `TokenExamples`.

    Returns:
      The name to get: "gm_semantic", or "gm_fma_semantic" for a mixture.

    Raises:
      shards.ShardError: a corpus has no such data set, or not for this stage.
    """
    vocabularies = {
        segment.source: segment.codebook_size for segment in (*layout.prefix, layout.target)
    }
    features = {
        source: seqio.Feature(
            vocabulary=seqio.PassThroughVocabulary(size),
            add_eos=False,
            dtype=tf.uint16,
            rank=2 if source in ("mulan", "semantic") else 3,
        )
        for source, size in vocabularies.items()
    }

    def open_folder(folder: str) -> TokenExamples:
        return TokenExamples(
            folder,
            layout,
            conditioning=conditioning,
            caption_weights=caption_weights,
            encoder=encoder,
        )

    return _register(corpora, layout.stage, features, open_folder)


def register_audio(
    corpora: Sequence[Corpus],
    *,
    seconds: float,
    sample_rate: int,
    vocabulary: WordPiece | None = None,
    max_text_tokens: int = 0,
) -> str:
    """Registers the corpora's tasks of sound, with captions if there is a vocabulary for them.

    Args:
      corpora: of sound data sets.
      seconds, sample_rate, vocabulary, max_text_tokens: see `AudioExamples`.

    Returns:
      The name to get: "gm_audio" or "gm_audio_text", "gm_fma_audio" for a mixture.
    """
    features = {"audio": seqio.ContinuousFeature(dtype=tf.int16, rank=2)}
    if vocabulary is not None:
        features["text_ids"] = _pieces(vocabulary)

    def open_folder(folder: str) -> AudioExamples:
        return AudioExamples(
            folder,
            seconds=seconds,
            sample_rate=sample_rate,
            vocabulary=vocabulary,
            max_text_tokens=max_text_tokens,
        )

    kind = "audio" if vocabulary is None else "audio_text"
    return _register(corpora, kind, features, open_folder)


def register_text(corpora: Sequence[Corpus], vocabulary: WordPiece, max_text_tokens: int) -> str:
    """Registers the corpora's tasks of captions alone.

    Args:
      corpora: of sound data sets.
      vocabulary, max_text_tokens: see `TextExamples`.

    Returns:
      The name to get: "gm_text", "gm_fma_text" for a mixture.
    """

    def open_folder(folder: str) -> TextExamples:
        return TextExamples(folder, vocabulary=vocabulary, max_text_tokens=max_text_tokens)

    return _register(corpora, "text", {"text_ids": _pieces(vocabulary)}, open_folder)


def _pieces(vocabulary: WordPiece) -> seqio.Feature:
    passed = seqio.PassThroughVocabulary(vocabulary.vocab_size)
    return seqio.Feature(vocabulary=passed, add_eos=False, dtype=tf.int32, rank=2)


def _register(
    corpora: Sequence[Corpus],
    kind: str,
    features: Mapping[str, seqio.Feature],
    open_folder: Callable[[str], Examples],
) -> str:
    names = [corpus.name for corpus in corpora]
    if not names or len(set(names)) < len(names):
        raise errors.UserError(
            f"the corpora are named {names}: give one or more, each its own name"
        )
    for corpus in corpora:
        splits = {split: open_folder(folder) for split, folder in corpus.splits.items()}
        task = seqio.Task(
            f"{corpus.name}_{kind}",
            source=RowSource(splits),
            output_features=features,
            shuffle_buffer_size=None,  # the source's order is a permutation of all records
        )
        _put(seqio.TaskRegistry, task)
    if len(corpora) == 1:
        return f"{names[0]}_{kind}"
    rates = [(f"{corpus.name}_{kind}", corpus.weight) for corpus in corpora]
    mixture = RowMixture("_".join([*names, kind]), rates)
    _put(seqio.MixtureRegistry, mixture)
    return mixture.name


def _put(registry: type[seqio.TaskRegistry] | type[seqio.MixtureRegistry], provider) -> None:
    if provider.name in registry.names():
        registry.remove(provider.name)
    registry.add_provider(provider.name, provider)
