"""The bundled model on music that it has never heard: is it whole, and does it do its work?

The README's figures come from many more clips; a dozen will do here.
"""

import json

import numpy as np
import pytest

from musiclm import MusicLM, audio, bundle
from musiclm.evaluation import codec_quality, text_audio
from musiclm.tokens import tokenizers

pytestmark = pytest.mark.slow
PARTS = ("drums", "bass", "chords")


@pytest.fixture(scope="module")
def gm_mini():
    return bundle.load("gm-mini")


@pytest.fixture(scope="module")
def real(held_out_corpus):
    """Held-out clips [N, T], the long caption of each, and who plays."""
    lines = (held_out_corpus / "manifest.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    waveform_NT = np.stack([audio.read_audio(held_out_corpus / e["file"], 16_000) for e in entries])
    texts = [next(c["text"] for c in e["captions"] if c["kind"] == "long") for e in entries]
    plays_NP = np.array([[entry[part] for part in PARTS] for entry in entries])
    return waveform_NT, texts, plays_NP


def test_is_small_enough_for_a_repository():
    folder = bundle.find("gm-mini")
    assert sum(path.stat().st_size for path in folder.iterdir()) < 40e6


def test_codec_keeps_the_spectrum(gm_mini, real):
    codec = tokenizers.AcousticTokenizer.load(gm_mini.components["soundstream"])
    clips_NT = real[0][:4]
    codes_NFQ, length = codec_quality.encode(codec, clips_NT), clips_NT.shape[1]
    one, all_levels = (
        codec_quality.compare(
            clips_NT, codec_quality.decode(codec, codes_NFQ[..., :q], length), codec.sample_rate
        ).log_mel_distance_db_N.mean()
        for q in (1, codec.num_codebooks)
    )
    assert all_levels < 5.0
    assert all_levels < one - 1.0


@pytest.fixture(scope="module", params=["gm-mini", "gm-judge"])
def mulan(request):
    folder = bundle.find_tokenizers(request.param)
    return tokenizers.MuLanTokenizer.load(bundle.load_component(folder, "mulan"))


def test_text_finds_its_music(mulan, real):
    waveform_NT, texts, _ = real
    figures = text_audio.retrieval_figures(
        mulan.embed_text(texts), text_audio.embed_audio(mulan, waveform_NT), k=3
    )
    assert figures["text_to_audio/recall_at_3"].value > 0.8  # chance: 0.25


def test_tells_with_from_without(mulan, real):
    """Retrieval is high too where a text tower only knows which words are there."""
    waveform_NT, _, plays_NP = real
    without_PD, with_PD = (
        mulan.embed_text([f"music {word} {part}" for part in PARTS]) for word in ("without", "with")
    )
    audio_ND = text_audio.embed_audio(mulan, waveform_NT)
    heard_NP = audio_ND @ (with_PD - without_PD).T > 0
    assert (heard_NP == plays_NP).mean() > 0.9  # chance: 0.5


def test_plays_what_it_is_asked_for(gm_mini, real):
    """Its clips are nearer to their own texts than to the others', in two MuLans' ears."""
    texts = real[1][:3]
    clips = MusicLM(gm_mini).generate(texts, seconds=10, seed=0)
    for clip in clips:
        assert clip.samples.shape == (160_000,)
        assert np.isfinite(clip.samples).all()
        assert 0.005 < np.sqrt(np.mean(clip.samples**2)) < 0.5
        assert np.abs(clip.samples).max() <= 1.0
    waveform_NT = np.stack([clip.samples for clip in clips])
    judge = bundle.load_component(bundle.find_tokenizers("gm-judge"), "mulan")
    for component in (gm_mini.components["mulan"], judge):
        mulan = tokenizers.MuLanTokenizer.load(component)
        cosine_NN = mulan.embed_text(texts) @ text_audio.embed_audio(mulan, waveform_NT).T
        matched = np.trace(cosine_NN) / 3
        mismatched = (cosine_NN.sum() - np.trace(cosine_NN)) / 6
        assert matched > mismatched + 0.2
