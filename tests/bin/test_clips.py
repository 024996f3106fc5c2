"""Clips to be measured: what is read, what is refused, and what is made once."""

import numpy as np
import pytest
import soundfile

from musiclm import audio
from musiclm.bin import clips, evaluate
from musiclm.errors import UserError
from musiclm.evaluation import suite

RATE = 1_600
TONE_T = 0.5 * np.sin(np.arange(10 * RATE) * 0.2)


def test_another_seed_prompt_bundle_or_version_is_another_file(tmp_path, monkeypatch):
    made = []

    class Model:
        def __init__(self, bundle):
            pass

        def generate(self, prompts, *, seconds, seed, best_of, decoding, sampling):
            made.append((prompts, seed, best_of, decoding))
            return [audio.Waveform(np.zeros(round(seconds * RATE)), RATE) for _ in prompts]

    class Bundle:
        digest = "one"
        components = ("soundstorm",)

    def generate(what):
        options = evaluate.ways(Bundle, 4)[what]
        return clips.generate(Bundle, ["a", "a", "b"], tmp_path, what, **options)

    monkeypatch.setattr("musiclm.api.MusicLM", Model)
    monkeypatch.setattr(clips, "_BATCH", 2)
    files = generate("generated")
    assert len(set(files)) == 3
    assert made == [(["a", "a"], 0, 1, "autoregressive"), (["b"], 2, 1, "autoregressive")]
    files[2].unlink()
    assert generate("generated") == files
    assert made[2:] == [(["b"], 2, 1, "autoregressive")]
    files += generate("best of 4")
    assert made[3:] == [(["a", "a"], 0, 4, "autoregressive"), (["b"], 8, 4, "autoregressive")]
    files += generate("generated, parallel")
    assert made[5:] == [(["a", "a"], 0, 1, "parallel"), (["b"], 2, 1, "parallel")]
    assert len(set(files)) == 9
    Bundle.digest = "two"
    files += generate("generated")
    monkeypatch.setattr(clips, "_CODE", "another version's")
    files += generate("generated")
    assert len(set(files)) == 15


def test_a_missing_or_short_corpus_is_told_in_one_line(corpus, tmp_path):
    with pytest.raises(UserError, match="make the corpus"):
        clips.read_manifest(tmp_path, 3)
    with pytest.raises(UserError, match="has 6 clips: 7 are needed"):
        clips.read_manifest(corpus, 7)


def test_the_caption_with_every_attribute_is_the_prompt():
    captions = [{"kind": "tags", "text": "t"}, {"kind": "long", "text": "l"}]
    assert suite.long_caption({"caption": "c", "captions": captions}) == "l"
    assert suite.long_caption({"caption": "c", "captions": captions[:1]}) == "c"


def test_what_a_folder_lacks_is_told(tmp_path):
    (tmp_path / "manifest.jsonl").write_text('{"prompt": "a", "file": "0.wav"}\n')
    assert clips.choose(tmp_path, ["a"]) == [tmp_path / "0.wav"]
    with pytest.raises(UserError, match="lacks clips of 1 of 2 captions, such as 'b'"):
        clips.choose(tmp_path, ["a", "b"])


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "JSONDecodeError"),
        ("[]", "TypeError"),
        ('{"file": "0.wav", "caption": "a", "captions": []}', "KeyError\\('instrument'\\)"),
    ],
)
def test_a_line_that_is_no_clip_of_the_corpus_is_told(corpus, line, told):
    with (corpus / "manifest.jsonl").open("a") as file:
        file.write(f"\n{line}\n")
    assert len(clips.read_manifest(corpus, 6)) == 6
    with pytest.raises(UserError, match=rf"line 8 of .*manifest.jsonl is no clip .*{told}"):
        clips.read_manifest(corpus, 7)


def test_a_split_of_a_corpus(corpus):
    found = clips.read_manifest(corpus, 3, split="validation")
    assert [entry["file"] for entry in found] == ["1.wav", "2.wav", "5.wav"]
    with pytest.raises(UserError, match="has 3 validation clips: 4 are needed"):
        clips.read_manifest(corpus, 4, split="validation")


def test_rates_and_channels_are_brought_to_the_models(tmp_path):
    """The same tone at another rate, in stereo, and longer than what counts."""
    time_T = np.arange(12 * 8 * RATE) / (8 * RATE)
    tone_T = 0.5 * np.sin(2 * np.pi * 50 * time_T)
    soundfile.write(tmp_path / "plain.wav", tone_T[: 80 * RATE : 8], RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "fast.wav", tone_T, 8 * RATE, subtype="FLOAT")
    stereo_TC = np.stack([1.5 * tone_T, 0.5 * tone_T], axis=1)
    soundfile.write(tmp_path / "stereo.wav", stereo_TC, 8 * RATE, subtype="FLOAT")
    paths = [tmp_path / f"{name}.wav" for name in ("plain", "fast", "stereo")]
    plain_T, fast_T, stereo_T = clips.read_clips(paths, RATE)
    assert len(plain_T) == 10 * RATE
    np.testing.assert_allclose(stereo_T, fast_T, atol=1e-6)
    np.testing.assert_allclose(fast_T[RATE:-RATE], plain_T[RATE:-RATE], atol=1e-3)


@pytest.mark.parametrize(
    ("samples_T", "told"),
    [
        (0 * TONE_T, "is silent"),
        (np.where(np.arange(len(TONE_T)) == 9, np.nan, TONE_T), "no numbers"),
        (TONE_T[: 9 * RATE], "lasts 9.00 s"),
        (np.stack([TONE_T, -TONE_T], axis=1), "is silent"),  # nothing is left in mono
    ],
)
def test_a_clip_that_says_nothing_is_refused_by_name(tmp_path, samples_T, told):
    soundfile.write(tmp_path / "good.wav", TONE_T, RATE)
    soundfile.write(tmp_path / "bad.wav", samples_T, RATE, subtype="FLOAT")
    with pytest.raises(UserError, match=rf"bad.wav .*{told}"):
        clips.read_clips([tmp_path / "good.wav", tmp_path / "bad.wav"], RATE)


def test_one_file_is_no_folder_of_clips(tmp_path):
    audio.write_wav(tmp_path / "one.wav", TONE_T, RATE)
    with pytest.raises(UserError, match=r"cannot read .*one.wav/manifest.jsonl.* give a folder"):
        clips.choose(tmp_path / "one.wav", ["a"])


def test_what_a_model_made_counts_as_it_sounds(tmp_path):
    audio.write_wav(tmp_path / "silent.wav", np.zeros(10 * RATE), RATE)
    assert not clips.read_generated([tmp_path / "silent.wav"], RATE).any()


def test_clips_that_are_all_alike_teach_nothing(corpus):
    entries = clips.read_manifest(corpus, 6)
    clips.check_classes(entries)
    for alike, told in (
        ({"bass": False}, "'bass', no bass"),
        ({"tonic": 0, "mode": "minor"}, "'key', C minor"),  # the tagger needs two
    ):
        with pytest.raises(UserError, match=f"6 clips to fit on have one answer to {told}"):
            clips.check_classes([{**entry, **alike} for entry in entries])
