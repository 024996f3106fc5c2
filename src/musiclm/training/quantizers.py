"""What is fitted on frozen models: semantic clusters, and the quantizer of MuLan embeddings.

B: batch, T: samples or frames, D: width.
"""

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from musiclm import bundle, errors
from musiclm.models import mulan, w2v_bert
from musiclm.nn import kmeans, quantization
from musiclm.tokens import wordpiece

Dataset = Callable[..., Iterator[Mapping[str, np.ndarray]]]


def sample_batches(
    dataset: Dataset, num_batches: int, batch_size: int, seed: int
) -> Iterable[Mapping[str, np.ndarray]]:
    """The first batches of a data set, with a progress bar."""
    batches = dataset(seed=seed, batch_size=batch_size, start_step=0)
    return tqdm.tqdm(itertools.islice(batches, num_batches), total=num_batches, unit="batch")


def fit_semantic_clusters(
    *,
    model: str | os.PathLike,
    component: str | os.PathLike,
    dataset: Dataset,
    num_clusters: int,
    num_batches: int,
    batch_size: int,
    num_iters: int = 50,
    feature_layer: int | None = None,
    seed: int = 0,
) -> None:
    """Clusters the standardised features of a trained w2v-BERT (MusicLM 3.1).

    Args:
      model: component file of the trained model, without its suffix.
      component: where the tokenizer's component goes.
      dataset: of {"waveform": f32 [B, T]}.
      num_clusters: semantic tokens.
      num_batches, batch_size: how much to fit on.
      num_iters: of k-means.
      feature_layer: instead of the one that the model was trained for, see `W2vBertConfig`; blocks
        above that one are not in its file.
      seed: of the batches and of k-means.

    Raises:
      UserError: the batches have fewer frames than there are to be clusters.
    """
    trained = bundle.load_component(*os.path.split(model))
    config = trained.config
    if feature_layer is not None:
        config = dataclasses.replace(config, feature_layer=feature_layer)
    network = w2v_bert.W2vBert(config)
    features = jax.jit(lambda v, x: network.apply(v, x, method="features"))
    features_ND = np.concatenate(
        [
            np.asarray(features(trained.variables, batch["waveform"])).reshape(-1, config.model_dim)
            for batch in sample_batches(dataset, num_batches, batch_size, seed)
        ]
    )
    if len(features_ND) < num_clusters:
        raise errors.UserError(
            f"num_clusters is {num_clusters}, and {num_batches} batches of {batch_size} have "
            f"{len(features_ND)} frames: give more, or ask for fewer clusters"
        )
    mean_D, std_D = features_ND.mean(0), features_ND.std(0) + 1e-6
    centroids_KD = kmeans.kmeans(
        jax.random.key(seed), jnp.asarray((features_ND - mean_D) / std_D), num_clusters, num_iters
    )
    clusters = {"mean_D": mean_D, "std_D": std_D, "centroids_KD": np.asarray(centroids_KD)}
    bundle.save_component(
        *os.path.split(component),
        bundle.Component(config, {**trained.variables, "clusters": clusters}),
    )


def fit_mulan_quantizer(
    *,
    model: str | os.PathLike,
    component: str | os.PathLike,
    vocabulary: str | os.PathLike,
    dataset: Dataset,
    num_codebooks: int,
    codebook_size: int,
    num_batches: int,
    batch_size: int,
    num_iters: int = 50,
    seed: int = 0,
) -> None:
    """Fits the residual quantizer on a trained MuLan's embeddings (MusicLM 3.1).

    It is fitted on sound and words alike, each with its own mean taken off, since the stages are
    trained on codes of the one and sampled with codes of the other. The paper tells of neither.

    Args:
      model: component file of the trained model, without its suffix.
      component: where the tokenizer's component goes.
      vocabulary: the WordPiece file that the model was trained with.
      dataset: of {"waveform": f32 [B, T], "text_ids": int32 [B, L]}.
      num_codebooks, codebook_size: of the quantizer.
      num_batches, batch_size: how much to fit on.
      num_iters: of k-means, at every level.
      seed: of the batches and of the fit.
    """
    trained = bundle.load_component(*os.path.split(model))
    network = mulan.MuLan(trained.config)
    params = trained.variables["params"]

    @jax.jit
    def embed(params, batch):
        audio_BD = network.apply({"params": params}, batch["waveform"], method="embed_audio")
        text_BD = network.apply({"params": params}, batch["text_ids"], method="embed_text")
        return audio_BD, text_BD

    pairs = [
        jax.device_get(embed(params, batch))
        for batch in sample_batches(dataset, num_batches, batch_size, seed)
    ]
    audio_ND, text_ND = (np.concatenate(side) for side in zip(*pairs, strict=True))
    audio_mean_D, text_mean_D = audio_ND.mean(0), text_ND.mean(0)
    codebooks_QKD = quantization.fit_rvq(
        jax.random.key(seed),
        jnp.concatenate([audio_ND - audio_mean_D, text_ND - text_mean_D]),
        num_codebooks=num_codebooks,
        codebook_size=codebook_size,
        num_iters=num_iters,
    )
    quantizer = {
        "audio_mean_D": audio_mean_D,
        "text_mean_D": text_mean_D,
        "codebooks_QKD": np.asarray(codebooks_QKD),
    }
    config = {"model": trained.config, "vocabulary": wordpiece.WordPiece.load(vocabulary).vocab}
    bundle.save_component(
        *os.path.split(component),
        bundle.Component(config, {"params": params, "quantizer": quantizer}),
    )
