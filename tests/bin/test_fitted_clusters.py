"""Semantic clusters fitted anew on an untrained w2v-BERT, and what their tokens tell."""

import functools

import jax
import numpy as np
import pytest

from musiclm import bundle
from musiclm.bin import clips, fitted_clusters
from musiclm.evaluation import figures
from musiclm.tokens import tokenizers
from musiclm.training import quantizers


@pytest.fixture
def measurement(tiny_bundle, corpus, tmp_path):
    """On the corpus's own clips; four batches of noise are what clusters are fitted on."""
    untrained = bundle.load_component(tiny_bundle, "w2v_bert")
    stats = jax.tree.map(np.abs, untrained.variables["batch_stats"])  # variances are
    variables = {"params": untrained.variables["params"], "batch_stats": stats}
    bundle.save_component(tmp_path, "w2v_bert", bundle.Component(untrained.config, variables))

    def noise(*, seed, batch_size, start_step):
        rng = np.random.default_rng(seed)
        while True:
            yield {"waveform": rng.normal(size=(batch_size, 3_200)).astype(np.float32)}

    manifest = corpus / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace('"train"', '"validation"'))
    fit = functools.partial(
        quantizers.fit_semantic_clusters,
        model=tmp_path / "w2v_bert",
        dataset=noise,
        num_clusters=5,
        num_batches=4,
        batch_size=2,
    )
    return fitted_clusters.FittedClusters(
        corpus=str(corpus), fit=fit, fitted_on="noise", num_clips=6
    )


@pytest.mark.slow
def test_the_figures_are_means_over_the_reports(measurement, tmp_path):
    found = measurement.measure(tmp_path / "run", tmp_path / "cache", seed=1)
    assert set(found) == set(measurement.figures)
    component = bundle.load_component(tmp_path / "run", "w2v_bert")
    semantic = tokenizers.SemanticTokenizer.load(component)
    assert semantic.codebook_size == 5
    real = clips.read_real(measurement._entries(), semantic.sample_rate)
    assert {"instrument", "tempo"} <= set(real.questions)
    assert "key" not in real.questions  # a clip of each
    tokens_NT = np.concatenate([semantic.encode(x_T[None]) for x_T in real.waveform_NT])
    centroids_KD = semantic.clusters["centroids_KD"]
    rows = figures.semantic_table(tokens_NT, centroids_KD, real.truths, real.questions, "").rows
    _, pnmi, by_chance, purity, abx = zip(*rows, strict=True)
    assert found["pnmi"] == pytest.approx(np.mean(pnmi))
    assert found["pnmi_above_chance"] == pytest.approx(np.mean(pnmi) - np.mean(by_chance))
    assert found["purity"] == pytest.approx(np.mean([share.value for share in purity]))
    assert found["abx"] == pytest.approx(np.mean([error.value for error in abx]))
    assert found != measurement.measure(tmp_path / "other", tmp_path / "cache", seed=2)


@pytest.mark.slow
def test_another_layer_is_clustered(measurement, tmp_path):
    """The tokenizer that comes of it listens to that layer."""
    config = bundle.load_component(measurement.fit.keywords["model"].parent, "w2v_bert").config
    assert config.feature_layer == 1
    measurement.fit(component=tmp_path / "own")
    measurement.fit(component=tmp_path / "other", feature_layer=0)
    own, other = (bundle.load_component(tmp_path, name) for name in ("own", "other"))
    assert (own.config.feature_layer, other.config.feature_layer) == (1, 0)
    means = [part.variables["clusters"]["mean_D"] for part in (own, other)]
    assert not np.allclose(*means)
