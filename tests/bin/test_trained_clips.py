"""Clips of a bundle, one stage of which is trained anew, or was."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from musiclm import bundle
from musiclm.bin import sampled_clips, trained_clips
from musiclm.tokens.layout import StageLayout


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Clips:
    """In place of sampled clips: gives what it was asked to measure."""

    model: str
    figures = ("adherence",)

    def data(self):
        return "clips"

    def measure_of(self, model, folder, cache, seed):
        return {"bundle": model, "folder": folder, "cache": cache, "seed": seed}


@pytest.fixture
def make(tiny_bundle):
    trained = []

    def train(*, workdir, component, seed):
        trained.append((workdir, seed))
        coarse = bundle.load_component(tiny_bundle, "coarse")
        layout = StageLayout.coarse(bundle.load(tiny_bundle).token_spec, semantic=False)
        config = dataclasses.replace(coarse.config, layout=layout)
        trained_stage = bundle.Component(config, coarse.variables)
        bundle.save_component(component.parent, component.name, trained_stage)

    def make(**fields):
        given = {"clips": Clips(model=str(tiny_bundle)), "stage": "coarse", "train": train}
        given |= {"trained_on": "tokens", "tokenizers": str(tiny_bundle)}
        return trained_clips.TrainedClips(**given | fields)

    make.trained = trained
    return make


def test_the_trained_stage_takes_the_place_of_the_bundles(make, tiny_bundle, tmp_path):
    measurement = make()
    assert measurement.figures == ("adherence",)
    assert measurement.data() == "tokens clips"
    found = measurement.measure(tmp_path / "run", tmp_path / "cache", 3)
    assert make.trained == [(tmp_path / "run" / "training", 3)]
    assert (found["folder"], found["cache"], found["seed"]) == (
        tmp_path / "run",
        tmp_path / "cache",
        3,
    )
    plain, used = bundle.load(tiny_bundle), found["bundle"]
    assert [part.source for part in used.components["coarse"].config.layout.prefix] == ["mulan"]
    for name in set(plain.components) - {"coarse"}:
        assert used.components[name].config == plain.components[name].config


def test_a_stage_that_is_there_is_not_trained_again(make, tiny_bundle, tmp_path):
    shutil.copy(tiny_bundle / "coarse.safetensors", tmp_path)
    make().measure(tmp_path, tmp_path, 0)
    assert not make.trained


def test_tokens_of_other_tokenizers_are_refused(make, tiny_bundle, tmp_path):
    for name in bundle.TOKENIZERS:
        shutil.copy(tiny_bundle / f"{name}.safetensors", tmp_path)
    mulan = bundle.load_component(tmp_path, "mulan")
    others = jax.tree.map(lambda x: 2 * x, mulan.variables)
    bundle.save_component(tmp_path, "mulan", bundle.Component(mulan.config, others))
    with pytest.raises(bundle.BundleError, match="give a bundle with these tokenizers"):
        make(tokenizers=str(tmp_path)).data()


@pytest.mark.parametrize("stage", ["rough", "mulan", "w2v_bert", "soundstream"])
def test_what_no_bundle_has_and_what_clips_are_measured_by_is_refused(make, stage):
    told = f"stage is '{stage}': give one of semantic, coarse, fine, soundstorm; .* tokenizers"
    with pytest.raises(ValueError, match=told):
        make(stage=stage)


@pytest.mark.slow
def test_clips_without_semantic_tokens(make, tiny_bundle, corpus, tmp_path):
    """From the stage to the figures, by an untrained bundle."""
    sizes = {"num_clips": 3, "num_fit_clips": 3}
    clips = sampled_clips.SampledClips(corpus=str(corpus), model=str(tiny_bundle), **sizes)
    found = make(clips=clips).measure(tmp_path / "run", tmp_path / "cache", seed=0)
    assert set(found) == set(clips.figures)
    assert np.isfinite(found["mulan_cosine"]).all()
    # Beside the bundle's own clips, with the cache that runs share, each keeps its own.
    own = clips.measure(tmp_path / "own", tmp_path / "cache", seed=0)
    made = [
        {path.read_bytes() for path in (tmp_path / name / "clips").iterdir()}
        for name in ("run", "own")
    ]
    assert [len(clips) for clips in made] == [3, 3]
    assert not made[0] & made[1]
    assert not np.isin(found["mulan_cosine"], own["mulan_cosine"]).any()
    again = make(clips=clips).measure(tmp_path / "run", tmp_path / "cache", seed=0)
    assert all(np.array_equal(again[name], found[name]) for name in found)
