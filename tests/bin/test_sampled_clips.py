"""Clips that an untrained bundle samples in some way, measured as by `musiclm evaluate`."""

import numpy as np
import pytest

from musiclm import bundle
from musiclm.bin import clips, sampled_clips
from musiclm.errors import UserError
from musiclm.evaluation import embeddings, figures, suite

HOT = {"semantic": {"temperature": 2.0}}


@pytest.fixture
def make(tiny_bundle, corpus):
    def make(**fields):
        sizes = {"num_clips": 3, "num_fit_clips": 3}
        given = {"corpus": str(corpus), "model": str(tiny_bundle)}
        return sampled_clips.SampledClips(**given | sizes | fields)

    return make


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"sampling": {"semantic": {"temperatur": 1.0}}}, "temperatur"),
        ({"sampling": {"semantics": {}}}, "semantics"),
        ({"sampling": {"fine": {"top_k": 0}}}, "top_k is 0"),
        ({"decoding": "parallel"}, "no SoundStorm"),
        ({"num_clips": 4}, "has 3 validation clips: 4 are needed"),
    ],
)
def test_what_cannot_be_sampled_is_told_without_sampling(make, fields, told):
    with pytest.raises(UserError, match=told):
        make(**fields).data()


def test_the_captions_and_the_clips_to_fit_on_decide(make, corpus):
    first = make().data()
    assert make().data() == first
    manifest = corpus / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace("slow flute", "calm flute"))
    assert make().data() != first


@pytest.mark.slow
def test_the_figures_are_those_of_the_report(make, tiny_bundle, corpus, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    measurement = make(sampling=HOT)
    found = measurement.measure(tmp_path / "hot", cache, seed=1)
    assert set(found) == set(measurement.figures)
    assert found["adherence"].shape == found["mulan_cosine"].shape == (3,)

    model = bundle.load(tiny_bundle)
    train, real = (
        clips.read_real(clips.read_manifest(corpus, 3, split=split), 1_600)
        for split in ("train", "validation")
    )
    arguments = {"seed": 3, "sampling": HOT}
    files = clips.generate(model, real.prompts, tmp_path / "again", "clips", **arguments)
    measured = suite.Suite(
        bundle=model, train=train, held_out=real, cache=embeddings.Cache(cache / "embeddings")
    )
    seen = {"made": measured.look(clips.read_generated(files, 1_600), 3, "made")}

    def row(table):
        return table.record()["figures"]["made"]

    shares, _ = figures.adherence_tables(measured.judge, seen, real.truths, "")
    assert {q: cell["value"] for q, cell in row(shares).items()} == {
        question: pytest.approx(found[question].mean()) for question in row(shares)
    }
    distances = row(measured.distance_table(seen))
    for space in ("timbre", "MuLan"):
        expected = pytest.approx(found[f"fad_{space.lower()}"])
        assert distances[f"FAD {space}"]["value"] == expected
    cosine = row(measured.cosine_table(seen, real.prompts))["own text"]["value"]
    assert cosine == pytest.approx(found["mulan_cosine"].mean(), abs=1e-6)
    (kld,) = measured.divergence_tables({**seen, "real": measured.real})
    assert row(kld)["KL(real ‖ clip)"]["value"] == pytest.approx(found["kld"].mean())

    # Started again it finds its clips; another seed has others.
    other = make(sampling=HOT).measure(tmp_path / "hot", cache, seed=0)
    assert not np.array_equal(other["mulan_cosine"], found["mulan_cosine"])
    monkeypatch.setattr("musiclm.api.MusicLM.generate", None)
    again = make(sampling=HOT).measure(tmp_path / "hot", cache, seed=1)
    assert all(np.array_equal(again[name], found[name]) for name in found)
