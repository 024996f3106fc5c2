"""Semantic clusters of a w2v-BERT that is trained anew, or was."""

import dataclasses

import pytest

from musiclm import bundle
from musiclm.bin import fitted_clusters, trained_clusters


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Clusters(fitted_clusters.FittedClusters):
    """Does not listen to clips: tells what was fitted."""

    figures = ("abx",)

    def data(self):
        return "clips"

    def measure(self, folder, cache, seed):
        return {"fitted": self.fit(component=folder / "w2v_bert", seed=seed), "cache": cache}


@pytest.fixture
def measurement(tiny_bundle):
    def train(*, workdir, component, seed):
        trained.append((workdir, seed))
        untrained = bundle.load_component(tiny_bundle, "w2v_bert")
        bundle.save_component(component.parent, component.name, untrained)

    def fit(*, model, component, seed):
        return bundle.load_component(model.parent, model.name).config, component, seed

    trained = []
    clusters = Clusters(corpus="nowhere", fit=fit, fitted_on="crops")
    return trained, trained_clusters.TrainedClusters(
        clusters=clusters, train=train, trained_on="sound"
    )


def test_clusters_are_fitted_on_what_was_trained(measurement, tiny_bundle, tmp_path):
    trained, measurement = measurement
    assert measurement.figures == ("abx",)
    assert measurement.data() == "sound clips"
    found = measurement.measure(tmp_path / "run", tmp_path / "cache", 3)
    assert trained == [(tmp_path / "run" / "training", 3)]
    config = bundle.load_component(tiny_bundle, "w2v_bert").config
    assert found["fitted"] == (config, tmp_path / "run" / "w2v_bert", 3)
    assert found["cache"] == tmp_path / "cache"


def test_a_model_that_is_there_is_not_trained_again(measurement, tmp_path):
    trained, measurement = measurement
    for _ in range(2):
        measurement.measure(tmp_path, tmp_path, 0)
    assert len(trained) == 1
