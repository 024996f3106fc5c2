"""What is fitted on frozen models, against what it is by hand."""

import functools

import jax
import numpy as np
import pytest

from musiclm import bundle, errors
from musiclm.models.mulan import MuLan
from musiclm.tokens import tokenizers
from musiclm.training import quantizers


@pytest.fixture(scope="module")
def mulan(tiny_bundle):
    return tokenizers.MuLanTokenizer.load(bundle.load_component(tiny_bundle, "mulan"))


def pairs(mulan, *, seed, batch_size, start_step):
    """Noise of different colours, and texts."""
    rng = np.random.default_rng(seed + start_step)
    texts = ["slow piano", "fast flute", "fast piano", "slow flute", "piano", "flute"]
    while True:
        waveform_BT = rng.normal(size=(batch_size, mulan.config.window_samples))
        brown_BT = np.cumsum(waveform_BT, axis=1) * rng.uniform(size=(batch_size, 1))
        text_ids_BL = mulan.vocabulary.encode(rng.choice(texts, batch_size).tolist(), 8)
        yield {"waveform": (waveform_BT + brown_BT).astype(np.float32), "text_ids": text_ids_BL}


@pytest.mark.slow
def test_mulans_quantizer_is_fitted_on_sound_and_words_about_their_means(mulan, tmp_path):
    bundle.save_component(
        tmp_path, "trained", bundle.Component(mulan.config, {"params": mulan.params}), np.float32
    )
    mulan.vocabulary.save(tmp_path / "vocabulary.json")
    dataset = functools.partial(pairs, mulan)
    quantizers.fit_mulan_quantizer(
        model=tmp_path / "trained",
        component=tmp_path / "mulan",
        vocabulary=tmp_path / "vocabulary.json",
        dataset=dataset,
        num_codebooks=3,
        codebook_size=4,
        num_batches=3,
        batch_size=8,
        num_iters=10,
        seed=5,
    )
    fitted = tokenizers.MuLanTokenizer.load(bundle.load_component(tmp_path, "mulan"))
    assert fitted.vocabulary.vocab == mulan.vocabulary.vocab
    batches = dataset(seed=5, batch_size=8, start_step=0)
    embed = jax.jit(functools.partial(MuLan(mulan.config).apply, train=False))
    output = [
        embed({"params": mulan.params}, batch["waveform"], batch["text_ids"])
        for batch, _ in zip(batches, range(3), strict=False)
    ]
    vectors = {
        name: np.concatenate([getattr(one, f"{name}_BD") for one in output])
        for name in ("audio", "text")
    }
    rest = {}
    for name, vectors_ND in vectors.items():
        # Bundles keep halves.
        mean_D = fitted.quantizer[f"{name}_mean_D"]
        np.testing.assert_allclose(mean_D, vectors_ND.mean(0), atol=1e-3)
        codes_NQ = fitted.quantize(vectors_ND, name)
        entries_NQD = fitted.quantizer["codebooks_QKD"][np.arange(3), codes_NQ]
        rest[name] = [
            ((vectors_ND - mean_D - entries_NQD[:, :q].sum(1)) ** 2).sum() for q in range(4)
        ]
    total = np.sum(list(rest.values()), axis=0)
    assert all(total[1:] < 0.7 * total[:-1])  # each level tells of what those before left
    assert all(errors_Q[3] < 0.5 * errors_Q[0] for errors_Q in rest.values())


def test_fewer_frames_than_clusters_are_told(tiny_bundle, tmp_path):
    component = bundle.load_component(tiny_bundle, "w2v_bert")

    def noise(*, seed, batch_size, start_step):
        while True:
            yield {"waveform": np.zeros((batch_size, component.config.sample_rate), np.float32)}

    with pytest.raises(errors.UserError, match="num_clusters is 99, and 1 batches of 2 have 50"):
        quantizers.fit_semantic_clusters(
            model=tiny_bundle / "w2v_bert", component=tmp_path / "x", dataset=noise,
            num_clusters=99, num_batches=1, batch_size=2,
        )  # fmt: skip
