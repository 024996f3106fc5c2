"""The chain: windows, what each stage is given, seeds, progress, imports."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musiclm.sampler import generate
from musiclm.sampler.generate import Chain, Window
from musiclm.token_spec import TokenSpec
from musiclm.tokens.layout import StageLayout

SPEC = TokenSpec(
    sample_rate=1000,
    num_acoustic_codebooks=5,
    acoustic_codebook_size=1000,
    num_coarse_codebooks=2,
    num_mulan_codebooks=3,
    semantic_window_seconds=0.8,
    coarse_window_seconds=0.4,
    fine_window_seconds=0.2,
)


class Recorder:
    """In place of a stage: draws codes from the rows' keys and keeps what it was given."""

    def __init__(self, name):
        self.layout = StageLayout.of(name, SPEC)
        self.calls = []

    def generate(
        self, condition, keys_B, sampling, *, num_frames=None, prompt_BTQ=None, progress=None
    ):
        self.layout.flatten_prefix(condition)  # has the shapes of the layout
        num_frames = num_frames or self.layout.target.num_frames
        prompted = 0 if prompt_BTQ is None else prompt_BTQ.shape[1]
        assert prompted < num_frames <= self.layout.target.num_frames
        shape = (num_frames, self.layout.target_levels)
        codes = np.stack(
            [np.random.default_rng(np.asarray(k)).integers(0, 1000, shape) for k in _data(keys_B)]
        ).astype(np.int32)
        if prompted:
            codes[:, :prompted] = prompt_BTQ
        self.calls.append((condition, prompt_BTQ, codes, sampling))
        progress((num_frames - prompted) * self.layout.target_levels)
        return codes


def _data(keys_B):
    import jax

    return jax.random.key_data(keys_B)


class Texts:
    def encode_text(self, texts):
        return np.array([[len(t), 1, 2] for t in texts], np.int32)


class Codec:
    def decode(self, codes_BTQ):
        self.codes = codes_BTQ
        return np.repeat(codes_BTQ[:, :, 0].astype(np.float32), SPEC.hop_length, axis=1)


def chain(**kwargs):
    stages = {name: Recorder(name) for name in ("semantic", "coarse", "fine")}
    return Chain(token_spec=SPEC, mulan=Texts(), acoustic=Codec(), **stages, **kwargs)


@settings(max_examples=200, deadline=None)
@given(
    num=st.integers(1, 400),
    window=st.integers(2, 60),
    overlap=st.floats(0, 0.6),
    k=st.integers(1, 4),
)
def test_spread_windows_cover_with_overlap(num, window, overlap, k):
    num, window, overlap = num * k, window * k, int(overlap * (window - 1)) * k
    windows = generate.spread(num, window, overlap, k)
    assert windows[0].start == 0
    assert windows[-1].stop == num
    assert all(w.start % k == 0 for w in windows)
    if num > window:
        assert all(w.stop - w.start == window for w in windows)
    for one, two in itertools.pairwise(windows):
        assert one.start < two.start <= one.stop - overlap


def test_semantic_windows_advance_by_half():
    assert generate.half_overlapping(750, 750) == [Window(0, 750)]
    assert generate.half_overlapping(1500, 750) == [
        Window(0, 750),
        Window(375, 1125),
        Window(750, 1500),
    ]
    assert generate.half_overlapping(800, 750)[-1] == Window(375, 800)


@pytest.mark.parametrize("seconds", [0.05, 0.2, 0.37, 0.4, 1.0, 1.73])
def test_stages_see_what_belongs_to_their_window(seconds):
    music = chain(max_rows=100)
    waves = music.generate(["one", "three"], seconds=seconds, seeds=[3, 4])
    assert [len(wave) for wave in waves] == [round(seconds * SPEC.sample_rate)] * 2

    semantic = _joined(music.semantic.calls)[:, :, 0]
    coarse = _joined(music.coarse.calls)
    for condition, *_ in (*music.semantic.calls, *music.coarse.calls):
        np.testing.assert_array_equal(condition["mulan"], [[3, 1, 2], [5, 1, 2]])
    start = 0
    for condition, prompt, codes, _ in music.coarse.calls:
        start = start if prompt is None else start - prompt.shape[1]
        given_semantic = condition["semantic"]
        first = start // 2
        np.testing.assert_array_equal(
            given_semantic, semantic[:, first : first + given_semantic.shape[1]]
        )
        np.testing.assert_array_equal(codes, coarse[:, start : start + codes.shape[1]])
        start += codes.shape[1]
    # Fine windows in one batch: every coarse frame is in one of them, in order.
    ((condition, _, fine, _),) = music.fine.calls
    frames = SPEC.acoustic_frames(SPEC.fine_window_seconds)
    count = len(fine) // 2
    clip = music.acoustic.codes  # of the second clip, which the codec saw last
    starts = [min(i * frames, clip.shape[1] - frames) for i in range(count)]
    for i, start in enumerate(starts):
        rows = slice(2 * i, 2 * i + 2)
        window = coarse[:, start : start + frames]
        np.testing.assert_array_equal(condition["acoustic"][rows], window)
    np.testing.assert_array_equal(clip[0, starts[-1] :, 2:], fine[-1])
    np.testing.assert_array_equal(clip[0, :, :2], coarse[1])


def _joined(calls):
    parts = [codes[:, 0 if prompt is None else prompt.shape[1] :] for _, prompt, codes, _ in calls]
    return np.concatenate(parts, axis=1)


def test_prompts_are_the_end_of_what_is_there():
    music = chain()
    music.generate(["a"], seconds=2.0, seeds=[0])
    windows = [codes.shape[1] for _, _, codes, _ in music.semantic.calls]
    prompts = [0 if p is None else p.shape[1] for _, p, _, _ in music.semantic.calls]
    assert windows == [20] * 4
    assert prompts == [0, 10, 10, 10]
    for (_, _, before, _), (_, prompt, after, _) in itertools.pairwise(music.semantic.calls):
        np.testing.assert_array_equal(prompt, before[:, -prompt.shape[1] :])
        np.testing.assert_array_equal(after[:, : prompt.shape[1]], prompt)
    assert all(p.shape[1] >= 0.3 * 20 for _, p, _, _ in music.coarse.calls[1:])


def test_seeds_decide_and_neighbours_do_not():
    one, two = chain().generate(["a", "b"], seconds=0.9, seeds=[5, 6])
    (alone,) = chain().generate(["a"], seconds=0.9, seeds=[5])
    (other,) = chain().generate(["a"], seconds=0.9, seeds=[7])
    np.testing.assert_array_equal(one, alone)
    assert (one != two).any()
    assert (one != other).any()
    # Windows draw anew, though their keys come of one seed.
    music = chain()
    music.generate(["a"], seconds=0.4, seeds=[5])
    first, second = music.fine.calls[0][2]
    assert (first != second).any()


def test_groups_bound_the_rows_and_change_nothing():
    prompts, seeds = list("abcde"), range(5)
    whole = chain(max_rows=100).generate(prompts, seconds=0.5, seeds=seeds)
    small = chain(max_rows=3)
    for one, two in zip(small.generate(prompts, seconds=0.5, seeds=seeds), whole, strict=True):
        np.testing.assert_array_equal(one, two)
    for stage in (small.semantic, small.coarse, small.fine):
        assert {len(codes) for _, _, codes, _ in stage.calls} == {3}


def test_progress_counts_to_the_end_stage_by_stage():
    seen = []
    chain(max_rows=2).generate(
        ["a", "b", "c"], seconds=1.3, seeds=[0, 1, 2], progress=lambda *call: seen.append(call)
    )
    stages = [stage for stage, _, _ in seen]
    assert sorted(set(stages), key=stages.index) == ["semantic", "coarse", "fine"]
    assert stages == sorted(stages, key=["semantic", "coarse", "fine"].index)
    for name in set(stages):
        counts = [(done, total) for stage, done, total in seen if stage == name]
        assert [done for done, _ in counts] == sorted(done for done, _ in counts)
        assert counts[-1][0] == counts[-1][1]
        assert len({total for _, total in counts}) == 1


def test_each_stage_has_its_temperature():
    music = chain()
    music.generate(["a"], seconds=0.4, seeds=[0])
    temperatures = [
        stage.calls[0][3].temperature for stage in (music.semantic, music.coarse, music.fine)
    ]
    assert temperatures == [1.0, 0.95, 0.4]


def test_bad_requests_are_named():
    with pytest.raises(ValueError, match="1 prompts and 2 seeds"):
        chain().generate(["a"], seconds=1, seeds=[0, 1])
    with pytest.raises(ValueError, match="seconds is 0"):
        chain().generate(["a"], seconds=0, seeds=[0])


def test_sampler_needs_nothing_of_training():
    code = (
        "import musiclm.sampler.generate, sys; "
        "print(sorted({'tensorflow', 'seqio', 'musiclm.training', 'data_pipelines'} & "
        "set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
