"""`musiclm.MusicLM`: what a notebook sees."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import musiclm
from musiclm import api, audio, bundle
from musiclm.sampler import decode, parallel


@pytest.fixture(scope="module")
def model(soundstorm_bundle):
    return musiclm.MusicLM.from_pretrained(soundstorm_bundle)


def test_one_prompt_is_one_waveform(model):
    clip = model.generate("slow piano", seconds=0.5, seed=3)
    assert isinstance(clip, musiclm.Waveform)
    assert (clip.samples.shape, clip.sample_rate) == ((800,), 1600)
    assert clip.samples.dtype == np.float32
    assert np.abs(clip.samples).max() <= 1
    assert clip._repr_html_().startswith("<audio controls")


def test_the_shortest_clip(model):
    clip = model.generate("slow piano", seconds=api.MIN_SECONDS, seed=3, best_of=2)
    assert clip.samples.shape == (160,)
    pieces = list(model.stream("slow piano", seconds=api.MIN_SECONDS, seed=3))
    assert sum(map(len, pieces)) == 160


def test_too_loud_a_clip_is_turned_down_as_a_whole():
    samples_T = np.array([0.5, -2.0, 1.0], np.float32)
    np.testing.assert_array_equal(api._within_full_scale(samples_T), samples_T / 2)
    np.testing.assert_array_equal(api._within_full_scale(samples_T / 4), samples_T / 4)


def test_several_prompts_are_a_list(model):
    clips = model.generate(["slow piano", "fast flute"], seconds=0.5, seed=3)
    assert isinstance(clips, list)
    assert len(clips) == 2
    assert clips._repr_html_().count("<audio") == 2
    # The second clip is the one that its own seed makes alone.
    alone = model.generate("fast flute", seconds=0.5, seed=4)
    np.testing.assert_allclose(clips[1].samples, alone.samples, atol=1e-4)


@pytest.mark.slow
def test_what_is_compiled_ahead_is_all_that_the_stages_need(soundstorm_bundle):
    """For windows that begin a clip and that go on, guided and filtered, in turns and together."""
    three = musiclm.MusicLM.from_pretrained(soundstorm_bundle, rows=3)
    wanted = [
        {"seconds": 0.5},
        {"seconds": 2.5, "sampling": {"semantic": {"guidance": 3}, "coarse": {"top_k": 5}}},
        {"seconds": 2.5, "sampling": {"fine": {"top_p": 0.9}}},
        {"seconds": 2.5, "decoding": "parallel"},
    ]
    plans = [plan for more in wanted for plan in three.plans("slow piano", **more)]
    programs = (decode._start, decode.decode_until, parallel.decode)

    def compiled():
        return [program._cache_size() for program in programs]

    before = compiled()
    three.compile(plans, 3)
    ahead = compiled()
    assert all(was < now for was, now in zip(before, ahead, strict=True))
    assert len(list(three.render(plans))) == 4
    assert compiled() == ahead


def test_sampling_reaches_the_stages(model):
    greedy = {stage: {"temperature": 0} for stage in api.STAGES}
    one = model.generate("slow piano", seconds=0.5, seed=1, sampling=greedy)
    two = model.generate("slow piano", seconds=0.5, seed=2, sampling=greedy)
    np.testing.assert_array_equal(one.samples, two.samples)
    only_one = {stage: {"top_k": 1} for stage in api.STAGES}
    three = model.generate("slow piano", seconds=0.5, seed=2, sampling=only_one)
    np.testing.assert_array_equal(one.samples, three.samples)


@pytest.mark.slow
def test_stages_may_keep_int8(model, tiny_bundle):
    kept = musiclm.MusicLM.from_pretrained(tiny_bundle, int8=["cache", "weights"])
    clip = kept.generate("slow piano", seconds=0.5, seed=1)
    assert clip.provenance["int8"] == ["weights", "cache"]
    assert clip.samples.shape == model.generate("slow piano", seconds=0.5, seed=1).samples.shape
    # It has less to read than another of the same sizes.
    plain = musiclm.MusicLM.from_pretrained(tiny_bundle)
    plain.generate("slow piano", seconds=0.5, seed=1)
    assert all(kept.bytes_read[stage] < read for stage, read in plain.bytes_read.items())


@pytest.mark.parametrize("int8", ["weights", ("weights", "heads"), True, [["cache"]]])
def test_wrong_parts_for_int8(tiny_bundle, int8):
    with pytest.raises(musiclm.UserError, match="give a list of any of weights, cache"):
        musiclm.MusicLM.from_pretrained(tiny_bundle, int8=int8)


def test_a_bundle_may_say_how_it_is_best_sampled(tiny_bundle):
    loaded = bundle.load(tiny_bundle)
    greedy = {stage: {"temperature": 0} for stage in api.STAGES}
    own = musiclm.MusicLM(dataclasses.replace(loaded, sampling=greedy))
    asked = musiclm.MusicLM(loaded).generate("slow piano", seconds=0.5, seed=1, sampling=greedy)
    one = own.generate("slow piano", seconds=0.5, seed=1)
    np.testing.assert_array_equal(one.samples, asked.samples)
    two = own.generate("slow piano", seconds=0.5, seed=1, sampling={"fine": {"temperature": 1}})
    assert (one.samples != two.samples).any()
    with pytest.raises(musiclm.UserError, match="sampling"):
        musiclm.MusicLM(dataclasses.replace(loaded, sampling={"medium": {}}))


@pytest.mark.slow
def test_acoustic_tokens_may_be_decoded_in_parallel(model):
    one = model.generate("slow piano", seconds=2.5, seed=1)
    two = model.generate("slow piano", seconds=2.5, seed=1, decoding="parallel")
    assert one.samples.shape == two.samples.shape == (4000,)
    assert (one.samples != two.samples).any()
    assert two.provenance == {**one.provenance, "decoding": "parallel"}
    # The stages that it does without play no part, and its own does.
    hot = {"temperature": 2.0}
    same = model.generate(
        "slow piano",
        seconds=2.5,
        seed=1,
        decoding="parallel",
        sampling={"coarse": hot, "fine": hot},
    )
    np.testing.assert_array_equal(same.samples, two.samples)
    other = model.generate(
        "slow piano", seconds=2.5, seed=1, decoding="parallel", sampling={"parallel": hot}
    )
    assert (other.samples != two.samples).any()
    streamed_T = np.concatenate(
        list(model.stream("slow piano", seconds=2.5, seed=1, decoding="parallel"))
    )
    assert np.corrcoef(streamed_T[-400:], two.samples[-400:])[0, 1] > 0.999


def test_parallel_decoding_needs_a_soundstorm(tiny_bundle):
    plain = musiclm.MusicLM.from_pretrained(tiny_bundle)
    for ask in (plain.generate, plain.stream, plain.plans):
        with pytest.raises(musiclm.UserError, match="'tiny' has no SoundStorm: take one"):
            ask("slow piano", decoding="parallel")
    with pytest.raises(musiclm.UserError, match="give autoregressive or parallel"):
        plain.generate("slow piano", decoding="paralel")


@pytest.mark.parametrize(
    "sampling",
    [
        {"medium": {}},
        {"fine": {"heat": 1}},
        {"fine": {"temperature": -1}},
        {"fine": {"temperature": 10**400}},
        {"fine": {"top_k": 0}},
    ],
)
def test_wrong_sampling(model, sampling):
    with pytest.raises(musiclm.UserError, match="sampling"):
        model.generate("slow piano", seconds=0.5, sampling=sampling)


@pytest.mark.slow
def test_a_sound_is_continued(model, tmp_path):
    """The clip begins with the tokens of the sound's last whole seconds, at the codec's rate."""
    rng = np.random.default_rng(0)
    sound = musiclm.Waveform(rng.normal(0, 0.1, 5600).astype(np.float32), 1600)
    sound.save(tmp_path / "sound.wav")
    (plan,) = model.plans("slow piano", seconds=5, seed=0, continuation=tmp_path / "sound.wav")
    (samples,) = [audio.read_audio(tmp_path / "sound.wav", 1600)]
    (codes,) = model._acoustic.encode(samples[None, -4800:])
    np.testing.assert_array_equal(plan.acoustic_TQ, codes)
    assert plan.semantic_T.shape == (75,)
    clip = model.generate("slow piano", seconds=5, seed=0, continuation=tmp_path / "sound.wav")
    (kept,) = model._acoustic.decode(codes[None])
    np.testing.assert_allclose(clip.samples[:4700], api._within_full_scale(kept)[:4700], atol=0.2)
    with pytest.raises(musiclm.UserError, match="give more"):
        model.generate("slow piano", seconds=3, continuation=tmp_path / "sound.wav")
    musiclm.Waveform(sound.samples[:4700], 1600).save(tmp_path / "short.wav")
    with pytest.raises(musiclm.UserError, match=r"lasts 2.94 s: give 3 s"):
        model.generate("slow piano", seconds=5, continuation=tmp_path / "short.wav")
    (tmp_path / "none.wav").write_bytes(b"")
    with pytest.raises(musiclm.UserError, match="is empty"):
        model.generate("slow piano", seconds=5, continuation=tmp_path / "none.wav")
    sound = musiclm.Waveform(rng.normal(0, 0.1, 400 * 1600).astype(np.float32), 1600)
    sound.save(tmp_path / "long.wav")
    with pytest.raises(musiclm.UserError, match="lasts 300 s or more"):
        model.read_continuation(tmp_path / "long.wav")


@pytest.mark.slow
def test_what_is_continued_is_heard_in_windows_as_in_training(model, tmp_path):
    """Of 2 s, the last of which ends with the sound."""
    samples_T = np.random.default_rng(0).normal(0, 0.1, round(5.3 * 1600)).astype(np.float32)
    musiclm.Waveform(samples_T, 1600).save(tmp_path / "sound.wav")
    samples_T = audio.read_audio(tmp_path / "sound.wav", 1600)[-5 * 1600 :]
    pieces = np.split(samples_T, [1600, 3 * 1600])
    expected_T = np.concatenate([model._semantic.encode(piece[None])[0] for piece in pieces])
    found_T = model.read_continuation(tmp_path / "sound.wav").semantic_T
    np.testing.assert_array_equal(found_T, expected_T)
    assert (found_T != model._semantic.encode(samples_T[None])[0]).any()


class Pitches:
    """Stands for a melody model: of each third of a second the octave and where in it."""

    sample_rate, window_seconds = 1600, 3.0

    def encode(self, waveform_BT):
        thirds = waveform_BT.reshape(len(waveform_BT), 3, 1600)
        strongest = np.abs(np.fft.rfft(thirds)).argmax(-1)
        return np.stack([strongest // 101, strongest % 101 // 13], axis=-1)


def hummed(path, *frequencies):
    """Writes a second of each."""
    time_T = np.arange(1600) / 1600
    tones = [0.5 * np.sin(2 * np.pi * frequency * time_T) for frequency in frequencies]
    musiclm.Waveform(np.concatenate(tones).astype(np.float32), 1600).save(path)
    return path


@pytest.mark.slow
def test_a_melody_is_followed(melody_bundle, tmp_path):
    model = musiclm.MusicLM.from_pretrained(melody_bundle, melody=Pitches())
    assert model.melody_shape == (3, 2)
    codes = np.array([[1, 0], [2, 0], [1, 3]])
    clip = model.generate("slow piano", seconds=0.5, seed=3, melody=codes)
    np.save(tmp_path / "tune.npy", codes)
    hummed(tmp_path / "tune.wav", 105, 202, 150, 700)
    for file in ("tune.npy", "tune.wav"):
        same = model.generate("slow piano", seconds=0.5, seed=3, melody=tmp_path / file)
        np.testing.assert_array_equal(same.samples, clip.samples)
    (heard,) = model.stream("slow piano", seconds=0.5, seed=3, melody=codes)
    assert heard.shape == clip.samples.shape
    other = model.generate("slow piano", seconds=0.5, seed=3, melody=codes + 1)
    assert (other.samples != clip.samples).any()


def test_wrong_melodies(model, melody_bundle, tmp_path):
    tuned = musiclm.MusicLM.from_pretrained(melody_bundle, melody=Pitches())
    deaf = musiclm.MusicLM.from_pretrained(melody_bundle)
    np.save(tmp_path / "ragged.npy", np.array([[1], "a"], object), allow_pickle=True)
    (tmp_path / "none.npy").write_bytes(b"")
    with open(tmp_path / "huge.npy", "wb") as file:
        header = {"descr": "<i8", "fortran_order": False, "shape": (2**45,)}
        np.lib.format.write_array_header_1_0(file, header)
    (tmp_path / "open.npy").write_bytes(b"\x93NUMPY\x01\x00\x04\x00{'a'")
    tune = hummed(tmp_path / "tune.wav", 200, 300, 400)
    for music, melody, words in (
        (model, np.zeros((3, 2), int), "takes none: leave it out"),
        (model, tune, "has no melody tokenizer"),
        (deaf, tune, "'tiny-melody' has no melody tokenizer to hear .*tune.wav"),
        (deaf, None, "wants a melody"),
        (tuned, [[1, 2, 3]], r"\(1, 3\): give codes, integers \(3, 2\)"),
        (tuned, "nowhere.wav", "nowhere.wav"),
        (tuned, "nowhere.npy", "cannot read nowhere.npy"),
        (tuned, tmp_path / "ragged.npy", "cannot read"),
        (tuned, tmp_path / "none.npy", "cannot read"),
        (tuned, tmp_path / "huge.npy", "cannot read .*huge.npy"),
        (tuned, tmp_path / "open.npy", "cannot read .*open.npy"),
        (tuned, hummed(tmp_path / "short.wav", 200, 300), r"lasts 2.00 s: give 3 s"),
        (tuned, hummed(tmp_path / "silence.wav", 0, 0, 0), "is silent"),
        (tuned, hummed(tmp_path / "late.wav", 0, 0, 0, 200), "is silent"),
    ):
        with pytest.raises(musiclm.UserError, match=words):
            music.plans("slow piano", seconds=0.5, melody=melody)


@pytest.mark.slow
def test_the_best_of_several_is_kept(model):
    kept = model.generate(["slow piano", "fast flute"], seconds=0.5, seed=3, best_of=3)
    for i, clip in enumerate(kept):
        candidates = clip.provenance["candidates"]
        assert [candidate["seed"] for candidate in candidates] == [3 + i, 5 + i, 7 + i]
        best = max(candidates, key=lambda candidate: candidate["score"])
        assert clip.provenance["seed"] == best["seed"]
        assert clip.provenance["score"] == best["score"]
        text_D = model._mulan.embed_text([clip.provenance["prompt"]])[0]
        assert model._mulan.embed_audio(clip.samples[None])[0] @ text_D == pytest.approx(
            best["score"], abs=1e-3
        )
        again = model.generate(clip.provenance["prompt"], seconds=0.5, seed=best["seed"])
        np.testing.assert_allclose(clip.samples, again.samples, atol=1e-3)


@pytest.mark.slow
def test_of_a_story_every_text_counts_as_long_as_it_holds(model):
    """They change at whole seconds here, and the third of these texts never holds."""
    story = [(0.9, "fast flute"), (2.1, "slow flute"), (2.4, "fast piano")]
    clip = model.generate("slow piano", seconds=3.5, seed=3, story=story, best_of=2)
    parts = np.split(clip.samples, [1600, 3200])
    text_SD = model._mulan.embed_text(["slow piano", "fast flute", "fast piano"])
    cosines_SS = np.array([model._mulan.embed_audio(part[None])[0] for part in parts]) @ text_SD.T
    score = np.average(np.diag(cosines_SS), weights=[1, 1, 1.5])
    assert clip.provenance["score"] == pytest.approx(score, abs=2e-4)
    others = np.average(cosines_SS, axis=0, weights=[1, 1, 1.5])
    assert abs(others - score).min() > 1e-3
    # A text that would take over with the last sample or later is not heard.
    model.generate("slow piano", seconds=2.00001, seed=3, story=[(1.9, "fast flute")], best_of=2)


def test_a_clip_knows_what_made_it(model, tmp_path):
    clip = model.generate("slow piano", seconds=0.5, seed=3)
    clip.save(tmp_path / "a.wav")
    told = audio.read_provenance(tmp_path / "a.wav")
    assert told == {
        "generated": True,
        "prompt": "slow piano",
        "seed": 3,
        "seconds": 0.5,
        "model": model.name,
        "model_digest": model.digest,
    }


def test_a_stream_is_music_in_pieces(model):
    stream = model.stream("slow piano", seconds=4.0, seed=3)
    pieces = [next(stream)]
    assert stream.prompt == "slow piano"
    with pytest.raises(musiclm.UserError, match="prompt"):
        stream.prompt = ""
    stream.prompt = "fast flute"
    pieces += list(stream)
    assert stream.sample_rate == 1600
    assert len(pieces) > 1
    samples_T = np.concatenate(pieces)
    assert samples_T.shape == (6400,)
    assert samples_T.dtype == np.float32
    same_T = np.concatenate(list(model.stream("slow piano", seconds=4.0, seed=3)))
    np.testing.assert_array_equal(same_T[: len(pieces[0])], pieces[0])
    assert (same_T != samples_T).any()


def test_a_stream_that_gets_too_loud_is_turned_down_without_a_jump():
    pieces = [np.full(100, level, np.float32) for level in (0.5, 2.0, 1.0, 4.0, 4.0)]
    found = list(api.Stream(iter(pieces), 1600))
    ends = [(piece[0], piece[-1]) for piece in found]
    expected = [(0.5, 0.5), (1.0, 1.0), (0.5, 0.5), (1.0, 1.0), (1.0, 1.0)]
    np.testing.assert_allclose(ends, expected, rtol=1e-6)
    assert found[1][50] == 1  # clipped while the gain still falls
    np.testing.assert_array_equal(found[4], 1.0)


def test_a_story_changes_what_comes_after_it_starts(model):
    (plain,) = model.plans("slow piano", seconds=4)
    (told,) = model.plans("slow piano", seconds=4, story=[(2, "fast flute")])
    assert told.texts[:2] == plain.texts[:2] == ("slow piano",) * 2
    assert set(told.texts[2:]) == {"fast flute"}
    np.testing.assert_array_equal(told.mulan_WQ[:2], plain.mulan_WQ[:2])


@pytest.mark.parametrize(
    "story", [[(0, "a")], [(10, "a")], [(2, "a"), (2, "b")], [(2, "")], [(2,)], [("2", "a")]]
)
def test_wrong_stories(model, story):
    with pytest.raises(musiclm.UserError, match=r"story|prompt"):
        model.generate("slow piano", seconds=10, story=story)


@given(
    seconds=st.one_of(
        st.floats(max_value=api.MIN_SECONDS, exclude_max=True),
        st.floats(min_value=math.nextafter(api.MAX_SECONDS, math.inf)),
        st.just(math.nan),
        st.sampled_from(["10", None, True, 1j]),
    )
)
def test_wrong_seconds(seconds):
    with pytest.raises(musiclm.UserError, match="seconds is"):
        api.Request(("piano",), seconds, 0)


@pytest.mark.parametrize("best_of", [0, 65, 1.5, True])
def test_wrong_numbers_of_candidates(best_of):
    with pytest.raises(musiclm.UserError, match="best_of is"):
        api.Request(("piano",), 10, 0, best_of=best_of)


@given(
    seconds=st.floats(min_value=api.MIN_SECONDS, max_value=api.MAX_SECONDS),
    seed=st.integers(min_value=0, max_value=api.MAX_SEED - 1),
)
def test_right_requests(seconds, seed):
    request = api.Request(("piano", "flute"), seconds, seed)
    assert request.clips == (("piano", seed), ("flute", seed + 1))


@pytest.mark.parametrize("prompts", [(), ("",), (None,), (b"piano",), ("a" * 1001,)])
def test_wrong_prompts(prompts):
    with pytest.raises(musiclm.UserError, match="prompt"):
        api.Request(prompts, 10, 0)


def test_unknown_names():
    with pytest.raises(AttributeError, match="MusicML"):
        _ = musiclm.MusicML
    assert {"MusicLM", "Waveform", "UserError"} <= set(dir(musiclm))
