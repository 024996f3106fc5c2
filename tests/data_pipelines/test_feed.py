"""Batches as functions of (seed, step): resuming, epochs, crops, captions and token windows."""

import itertools
import json

import numpy as np
import pytest
import soundfile

from data_pipelines import feed, manifest
from musiclm.tokens import wordpiece

RATE = 1_000


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Ten clips of 4 s; sample t of clip i is (i + t / 10,000) / 16."""
    root = tmp_path_factory.mktemp("corpus")
    entries = []
    for i in range(10):
        samples = (i + np.arange(4 * RATE) / 10_000) / 16
        soundfile.write(root / f"{i}.wav", samples, RATE, subtype="FLOAT")
        captions = [
            {"kind": kind, "text": f"{kind} clip {i}"} for kind in ("long", "short", "tags")
        ]
        entries.append(
            {
                "file": f"{i}.wav",
                "caption": captions[0]["text"],
                "captions": captions,
                "seconds": 4.0,
                "sample_rate": RATE,
                "split": "train",
            }
        )
    manifest.write(root, entries)
    return root


def crops(corpus, start_step=0, **options):
    options = {
        "seconds": 1,
        "sample_rate": RATE,
        "validation": 2,
        "seed": 3,
        "batch_size": 4,
    } | options
    return feed.audio_crops(corpus=str(corpus), start_step=start_step, **options)


def test_a_batch_depends_on_seed_and_step_alone(corpus):
    from_start = list(itertools.islice(crops(corpus), 7))
    resumed = list(itertools.islice(crops(corpus, start_step=5), 2))
    for a, b in zip(from_start[5:], resumed, strict=True):
        np.testing.assert_array_equal(a["waveform"], b["waveform"])
    other = next(crops(corpus, seed=4))
    assert not np.array_equal(from_start[0]["waveform"], other["waveform"])


def test_an_epoch_holds_every_training_clip_once_and_no_other(corpus):
    batches = itertools.islice(crops(corpus), 4)  # two epochs of eight clips
    clips = np.concatenate([batch["waveform"][:, 0] * 16 for batch in batches]).astype(int)
    assert sorted(clips[:8]) == sorted(clips[8:]) == list(range(8))
    assert list(clips[:8]) != list(clips[8:])
    held_back = next(crops(corpus, part="validation"))["waveform"][:, 0] * 16
    assert set(held_back.astype(int)) == {8, 9}


def test_crops_are_contiguous_and_start_anywhere(corpus):
    batches = list(itertools.islice(crops(corpus), 8))
    waveform_NT = np.concatenate([batch["waveform"] for batch in batches])
    assert waveform_NT.dtype == np.float32
    assert waveform_NT.shape == (32, RATE)
    np.testing.assert_allclose(np.diff(waveform_NT), 1 / 160_000, atol=1e-7)
    starts = np.round((waveform_NT[:, 0] * 16 % 1) * 10_000)
    assert starts.min() < 600
    assert starts.max() > 2_400


def test_a_short_file_is_padded_with_silence(corpus):
    waveform_T = feed.read_crop(corpus / "1.wav", 5 * RATE, np.random.default_rng(0))
    assert (waveform_T[: 4 * RATE] > 0).all()
    assert (waveform_T[4 * RATE :] == 0).all()


def test_captions_are_drawn_by_kind():
    captions = [{"kind": kind} for kind in ("long", "long", "short", "tags", "playlist")]
    rng = np.random.default_rng(0)
    drawn = np.bincount([feed.draw_caption(captions, rng) for _ in range(6_000)]) / 1_000
    np.testing.assert_allclose(drawn, [1, 1, 2, 1, 1], atol=0.12)


def test_pairs_belong_together(corpus, tmp_path):
    wordpiece.fit(
        captions=feed.captions(corpus=str(corpus)),
        vocab_size=120,
        path=tmp_path / "vocabulary.json",
    )
    tokenizer = wordpiece.WordPiece.load(tmp_path / "vocabulary.json")
    pairs = feed.audio_text_pairs(
        corpus=str(corpus),
        vocabulary=str(tmp_path / "vocabulary.json"),
        max_text_tokens=16,
        seconds=4,
        sample_rate=RATE,
        validation=2,
        seed=0,
        batch_size=8,
        start_step=0,
    )
    batch = next(pairs)
    texts = tokenizer.decode(batch["text_ids"])
    assert [int(text.split()[-1]) for text in texts] == list(
        (batch["waveform"][:, 0] * 16).astype(int)
    )


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """Two shards of three clips, 4 s each; codes tell their clip, frame and source."""
    root = tmp_path_factory.mktemp("tokens")
    for shard in range(2):
        clips = np.arange(3) + 3 * shard
        np.savez(
            root / f"tokens-{shard:05d}.npz",
            captions=json.dumps([[{"kind": "long"}, {"kind": "tags"}]] * 3),
            mulan_audio=np.stack([clips, 0 * clips], 1).astype(np.uint16),
            mulan_text=np.stack([[[c, 1], [c, 2]] for c in clips]).astype(np.uint16),
            semantic=(clips[:, None] * 1000 + np.arange(100)).astype(np.uint16),
            acoustic=(clips[:, None] * 1000 + np.arange(200))[..., None].astype(np.uint16),
        )
    return str(root)


@pytest.mark.parametrize(
    ("conditioning", "sources"), [("audio", {0}), ("text", {1, 2}), ("mixed", {0, 1, 2})]
)
def test_windows_are_aligned_and_conditioned_as_asked(tokens, conditioning, sources):
    windows = feed.token_windows(
        tokens=tokens, seconds=1, conditioning=conditioning, validation=1, seed=0, batch_size=32,
        start_step=0,
    )  # fmt: skip
    batch = next(windows)
    assert batch["semantic"].shape == (32, 25)
    assert batch["acoustic"].shape == (32, 50, 1)
    clip_B, frame_B = np.divmod(batch["semantic"][:, 0], 1000)
    assert set(clip_B) == {0, 1, 2, 3, 4}
    np.testing.assert_array_equal(batch["acoustic"][:, 0, 0], clip_B * 1000 + 2 * frame_B)
    np.testing.assert_array_equal(batch["mulan"][:, 0], clip_B)
    assert set(batch["mulan"][:, 1]) == sources


def test_unknown_parts_and_sources_are_refused(corpus, tokens):
    with pytest.raises(ValueError, match="'test'"):
        next(crops(corpus, part="test"))
    with pytest.raises(ValueError, match="'both'"):
        feed.token_windows(
            tokens=tokens, seconds=1, conditioning="both", seed=0, batch_size=1, start_step=0
        )
