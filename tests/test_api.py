"""`musiclm.MusicLM`: what a notebook sees."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import musiclm
from musiclm import api, bundle


@pytest.fixture(scope="module")
def model(tiny_bundle):
    return musiclm.MusicLM.from_pretrained(tiny_bundle)


def test_one_prompt_is_one_waveform(model):
    clip = model.generate("slow piano", seconds=0.5, seed=3)
    assert isinstance(clip, musiclm.Waveform)
    assert (clip.samples.shape, clip.sample_rate) == ((800,), 1600)
    assert clip.samples.dtype == np.float32
    assert np.abs(clip.samples).max() <= 1
    assert clip._repr_html_().startswith("<audio controls")


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


def test_sampling_reaches_the_stages(model):
    greedy = {stage: {"temperature": 0} for stage in api.STAGES}
    one = model.generate("slow piano", seconds=0.5, seed=1, sampling=greedy)
    two = model.generate("slow piano", seconds=0.5, seed=2, sampling=greedy)
    np.testing.assert_array_equal(one.samples, two.samples)
    only_one = {stage: {"top_k": 1} for stage in api.STAGES}
    three = model.generate("slow piano", seconds=0.5, seed=2, sampling=only_one)
    np.testing.assert_array_equal(one.samples, three.samples)


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


@pytest.mark.parametrize(
    "sampling",
    [{"medium": {}}, {"fine": {"heat": 1}}, {"fine": {"temperature": -1}}, {"fine": {"top_k": 0}}],
)
def test_wrong_sampling(model, sampling):
    with pytest.raises(musiclm.UserError, match="sampling"):
        model.generate("slow piano", seconds=0.5, sampling=sampling)


@given(
    seconds=st.one_of(
        st.floats(max_value=0),
        st.floats(min_value=math.nextafter(api.MAX_SECONDS, math.inf)),
        st.just(math.nan),
        st.sampled_from(["10", None, True, 1j]),
    )
)
def test_wrong_seconds(seconds):
    with pytest.raises(musiclm.UserError, match="seconds is"):
        api.Request(("piano",), seconds, 0)


@given(
    seconds=st.floats(min_value=0, max_value=api.MAX_SECONDS, exclude_min=True),
    seed=st.integers(min_value=0, max_value=api.MAX_SEED - 1),
)
def test_right_requests(seconds, seed):
    assert api.Request(("piano", "flute"), seconds, seed).seeds == (seed, seed + 1)


@pytest.mark.parametrize("prompts", [(), ("",), (None,), (b"piano",), ("a" * 1001,)])
def test_wrong_prompts(prompts):
    with pytest.raises(musiclm.UserError, match="prompt"):
        api.Request(prompts, 10, 0)


def test_unknown_names():
    with pytest.raises(AttributeError, match="MusicML"):
        _ = musiclm.MusicML
    assert {"MusicLM", "Waveform", "UserError"} <= set(dir(musiclm))
