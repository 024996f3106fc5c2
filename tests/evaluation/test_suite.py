"""The suite on arrays in place of models: what it asks of them, and of which clips."""

import numpy as np
import pytest

from musiclm import bundle
from musiclm.evaluation import embeddings, suite

RATE, CLUSTERS, TOKENS = 100, 4, 40


class MuLan:
    """Words and sounds in a plane; codes tell which clip, and whether it was heard or read."""

    def embed_text(self, texts):
        angle_N = np.array([sum(map(ord, text)) for text in texts], float)
        return np.stack([np.cos(angle_N), np.sin(angle_N)], axis=1)

    def quantize(self, embeddings_ND, modality):
        number_N = np.round(10 * embeddings_ND[:, 0]).astype(int)
        return np.stack([number_N, np.full(len(number_N), modality == "audio")], axis=1)

    def encode_text(self, texts):
        return np.zeros((len(texts), 2), int)


class Semantic:
    """Each clip's tokens, which its first sample names."""

    frame_rate, sample_rate = 2, 1600  # the tiny bundle's
    clusters = {"centroids_KD": np.eye(CLUSTERS)}  # noqa: RUF012

    def encode(self, waveform_NT):
        return np.random.default_rng(int(waveform_NT[0, 0])).integers(CLUSTERS, size=(1, TOKENS))


class Fake(suite.Suite):
    """A suite whose models are these, and whose clips have been looked at."""

    mulans = {"MuLan": MuLan()}  # noqa: RUF012
    semantic = Semantic()

    @property
    def fitted(self):
        """Each clip's vector tells its number; so does that of its degraded copy, from 100 on."""
        return [
            {"MuLan": np.array([[number + 100 * copy, 0.0]]) / 10}
            for number in range(len(self.train.entries))
            for copy in (0, 1)
        ]

    @property
    def real(self):
        """Of the held-out clips."""
        return self.fitted[::2]


def entry(number, **fields):
    caption = f"clip {number}"
    told = {
        "split": ("train", "validation")[number % 3 == 1],
        "caption": caption,
        "captions": [{"kind": "long", "text": caption}],
        "instrument": ("flute", "piano")[number % 2],
        "drums": number % 2 == 0,
        "tempo": ("slow", "fast")[number % 2],
        "tonic": number % 2,
        "mode": "minor",
        "register": "low",
        "density": "sparse",
        "bass": True,
        "chords": True,
    }
    return told | fields


@pytest.fixture
def make(tmp_path, tiny_bundle):
    def make(**fields):
        entries = [entry(number, **fields) for number in range(12)]
        waveform_NT = np.arange(12, dtype=np.float32)[:, None] * np.ones(RATE, np.float32)
        return Fake(
            bundle=bundle.load(tiny_bundle),
            train=suite.Clips(waveform_NT=waveform_NT, entries=[entry(n) for n in range(12)]),
            held_out=suite.Clips(waveform_NT=waveform_NT, entries=entries),
            cache=embeddings.Cache(tmp_path),
        )

    return make


def test_questions_with_one_answer_are_not_asked_of_mulan(make):
    def asked(**fields):
        (*_, table) = make(**fields).mulan_tables()
        return table.title, list(table.record()["figures"])

    title = "MuLan as a tagger"
    assert asked() == (title, ["instrument", "drums", "tempo", "key"])
    assert asked(tonic=0, instrument="flute") == (title, ["drums", "tempo"])
    alike = {"tonic": 0, "instrument": "flute", "drums": True, "tempo": "slow"}
    assert asked(**alike)[0] == "MuLan's codes"


def test_semantic_tokens_are_of_sound_at_their_models_rate(make, monkeypatch):
    heard = []
    monkeypatch.setattr(Semantic, "sample_rate", 800)
    monkeypatch.setattr(
        Semantic,
        "encode",
        lambda _, waveform_NT: heard.append(waveform_NT.shape) or np.zeros((1, 1)),
    )
    make().tokens(np.ones((3, RATE), np.float32))
    assert heard == [(1, RATE // 2)] * 3


def test_stages_whose_window_no_clip_fills_are_left_out(make, tiny_bundle):
    """As the paper's semantic stage: it hears 30 s."""
    measured = make()
    spec = measured.bundle.token_spec
    frames = round(spec.fine_window_seconds * spec.acoustic_frame_rate)
    codes_NFQ = np.zeros((12, frames, spec.num_acoustic_codebooks), int)
    table = measured.likelihood_table(measured.held_out, codes_NFQ)
    assert list(table.record()["figures"]) == ["fine"]


def test_memorization_asks_for_training_clips_by_their_sound(make, monkeypatch):
    monkeypatch.setattr("musiclm.evaluation.memorization.PERMUTED_PAIRS", 10_000)
    monkeypatch.setattr(suite, "_MEMORIZED", 6)
    asked = []

    def go_on(condition_NQ, given_NT, num_tokens):
        asked.append((condition_NQ.tolist(), given_NT.tolist()))
        return np.zeros((len(given_NT), num_tokens), int)

    measured = make()
    table = measured.memorization_table(go_on)
    trained_on = [0, 2, 3, 5, 6, 8]
    tokens_NT = measured.tokens(measured.train.waveform_NT)
    for condition, given in asked:
        assert condition == [[number, 1] for number in trained_on]
        assert given == tokens_NT[trained_on, : len(given[0])].tolist()
    assert table.record()["figures"]["0"]["exact"]["n"] == 6
    assert "MuLan's codes of the sound" in table.note
    assert "6 training clips" in table.note
