"""The chain: stages, seeds, story, continuation, batches, streams, progress, imports."""

import dataclasses
import itertools
import subprocess
import sys

import jax
import numpy as np
import pytest

from musiclm.errors import UserError
from musiclm.sampler.generate import Chain, ChainSampling, Clip, Continuation
from musiclm.sampler.logits import Sampling
from musiclm.sampler.stream import Stream
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

    num_devices = 1

    def __init__(self, name, spec):
        self.layout = StageLayout.of(name, spec)
        self.calls = []

    def generate(self, condition, keys_B, samplings, *, num_frames, prompts, prefilled, progress):
        self.layout.flatten_prefix(condition)  # has the shapes of the layout
        given = [len(prompt) for prompt in prompts]
        assert prefilled <= min(given) < num_frames <= self.layout.target.num_frames
        shape = (self.layout.target.num_frames, self.layout.target_levels)
        codes = np.stack(
            [np.random.default_rng(np.asarray(k)).integers(0, 1000, shape) for k in _data(keys_B)]
        ).astype(np.int32)[:, :num_frames]
        for row, prompt in zip(codes, prompts, strict=True):
            row[: len(prompt)] = prompt[:num_frames]
        self.calls.append(Call(condition, prompts, prefilled, codes, samplings))
        for frames in range(prefilled + 1, num_frames + 1):
            progress(frames)
        return codes


@dataclasses.dataclass
class Call:
    condition: dict
    prompts: list
    prefilled: int
    codes: np.ndarray
    samplings: list


def _data(keys_B):
    return jax.random.key_data(keys_B)


class Texts:
    def encode_text(self, texts):
        return np.array([[len(t), 1, 2] for t in texts], np.int32)


class Codec:
    def decode_stream(self, pieces):
        for self.codes in pieces:
            yield np.repeat(self.codes[:, :, 0].astype(np.float32), SPEC.hop_length, axis=1)


def chain(spec=SPEC, **kwargs):
    stages = {name: Recorder(name, spec) for name in ("semantic", "coarse", "fine", "parallel")}
    return Chain(token_spec=spec, mulan=Texts(), acoustic=Codec(), **stages, **kwargs)


def deaf(music):
    """The same chain with a coarse stage that hears no semantic codes."""
    music.coarse.layout = StageLayout.coarse(SPEC, semantic=False)
    return music


def clip(prompt="a", seconds=1.0, seed=5, **kwargs):
    return Clip(prompt=prompt, seconds=seconds, seed=seed, **kwargs)


def whole_of(music, clip):
    return next(music.generate([music.plan(clip)]))


def stream_of(music, clip):
    return Stream(music, music.plan(clip))


def codes_of(music, *clips):
    return music.compose([music.plan(clip) for clip in clips])


def test_without_a_listener_the_semantic_stage_does_not_run():
    story = clip(seconds=1.0, story=((0.5, "longer"),))
    music, plain = deaf(chain()), chain()
    (codes_TQ,) = codes_of(music, story)
    assert not music.semantic.calls
    (expected_TQ,) = codes_of(plain, story)
    np.testing.assert_array_equal(codes_TQ, expected_TQ)  # a recorder draws by its keys alone
    for ours, theirs in zip(music.coarse.calls, plain.coarse.calls, strict=True):
        assert set(ours.condition) == {"mulan"}
        np.testing.assert_array_equal(ours.condition["mulan"], theirs.condition["mulan"])
    streamed_T = np.concatenate(list(stream_of(deaf(chain()), story)))
    np.testing.assert_array_equal(streamed_T, whole_of(plain, story))


@pytest.mark.parametrize("seconds", [0.05, 0.2, 0.37, 0.4, 1.0, 1.73])
def test_stages_see_what_belongs_to_their_window(seconds):
    music = chain(max_rows=100)
    plans = [music.plan(clip("one", seconds, 3)), music.plan(clip("three", seconds, 4))]
    assert [len(wave) for wave in music.generate(plans)] == [round(seconds * SPEC.sample_rate)] * 2

    semantic = _joined(music.semantic.calls)[:, :, 0]
    coarse = _joined(music.coarse.calls)
    for call in (*music.semantic.calls, *music.coarse.calls):
        np.testing.assert_array_equal(call.condition["mulan"], [[3, 1, 2], [5, 1, 2]])
    stop = 0
    for call in music.coarse.calls:
        start = stop - call.prefilled
        stop = start + call.codes.shape[1]
        given_semantic = call.condition["semantic"]
        np.testing.assert_array_equal(given_semantic, semantic[:, start // 2 : start // 2 + 10])
        np.testing.assert_array_equal(call.codes, coarse[:, start:stop])
    # Fine windows in one batch: every coarse frame is in one of them.
    (call,) = music.fine.calls
    frames = SPEC.acoustic_frames(SPEC.fine_window_seconds)
    made = music.acoustic.codes  # of the second clip, which the codec saw last
    np.testing.assert_array_equal(made[0, :, :2], coarse[1])
    windows = call.condition["acoustic"].reshape(2, -1, frames, 2)
    fine = call.codes.reshape(2, -1, frames, 3)
    length = made.shape[1]
    for i in range(windows.shape[1]):
        start = min(i * frames, length - frames)
        np.testing.assert_array_equal(windows[:, i], coarse[:, start : start + frames])
        np.testing.assert_array_equal(
            made[0, i * frames : start + frames, 2:], fine[1, i, i * frames - start :]
        )


def _joined(calls):
    return np.concatenate([call.codes[:, call.prefilled :] for call in calls], axis=1)


def test_prompts_are_the_end_of_what_is_there():
    music = chain()
    codes_of(music, clip(seconds=2.0))
    # The last coarse window looks at semantic codes beyond the end of the clip.
    assert [call.codes.shape[1] for call in music.semantic.calls] == [20] * 4 + [12]
    assert [call.prefilled for call in music.semantic.calls] == [0, 10, 10, 10, 10]
    assert [call.codes.shape[1] for call in music.coarse.calls] == [20] * 6 + [16]
    assert [call.prefilled for call in music.coarse.calls] == [0] + [6] * 6
    for stage in (music.semantic, music.coarse):
        for before, after in itertools.pairwise(stage.calls):
            (prompt,) = after.prompts
            np.testing.assert_array_equal(prompt, before.codes[0, -after.prefilled :])


def test_soundstorm_stands_for_coarse_and_fine():
    """It sees what the coarse stage sees, in the same windows, and makes all levels."""
    music, plain = chain(), chain()
    story = ((0.35, "three"),)
    (codes,) = codes_of(music, clip("one", 2.0, story=story, decoding="parallel"))
    codes_of(plain, clip("one", 2.0, story=story))
    assert not music.coarse.calls
    assert not music.fine.calls
    np.testing.assert_array_equal(codes, _joined(music.parallel.calls)[0])
    for one, two in zip(music.parallel.calls, plain.coarse.calls, strict=True):
        for source in ("mulan", "semantic"):
            np.testing.assert_array_equal(one.condition[source], two.condition[source])
        assert one.codes.shape[1] == two.codes.shape[1]
        assert one.samplings == [Sampling(temperature=1.0)]
    for before, after in itertools.pairwise(music.parallel.calls):
        np.testing.assert_array_equal(after.prompts[0], before.codes[0, -6:])
    for seconds in (0.4, 0.41, 1.2, 1.99):
        (short,) = codes_of(chain(), clip("one", seconds, story=story, decoding="parallel"))
        np.testing.assert_array_equal(short, codes[: len(short)])


def test_a_clip_is_the_beginning_of_a_longer_one():
    (long,) = codes_of(chain(), clip(seconds=2.7))
    for seconds in (0.2, 0.3, 0.4, 0.41, 0.9, 1.2, 1.99, 2.6):
        (short,) = codes_of(chain(), clip(seconds=seconds))
        np.testing.assert_array_equal(short[:, :2], long[: len(short), :2])
        whole = len(short) // 10 * 10  # frames of fine windows that are not moved back
        np.testing.assert_array_equal(short[:whole], long[:whole])


def test_seeds_decide_and_neighbours_do_not():
    one, two = codes_of(chain(), clip(seconds=0.9), clip("b", 0.9, seed=6))
    (alone,) = codes_of(chain(), clip(seconds=0.9))
    (other,) = codes_of(chain(), clip(seconds=0.9, seed=7))
    np.testing.assert_array_equal(one, alone)
    assert (one != two).any()
    assert (one != other).any()
    # Windows draw anew, though their keys come of one seed.
    music = chain()
    codes_of(music, clip(seconds=0.4))
    first, second = music.fine.calls[0].codes
    assert (first != second).any()


def _various():
    """Clips of all lengths and settings."""
    settings = [
        ChainSampling(),
        ChainSampling(semantic=Sampling(guidance=3.0)),
        ChainSampling(coarse=Sampling(top_k=3), fine=Sampling(temperature=0.1)),
    ]
    return [
        clip(
            "abc" * (i % 3 + 1),
            0.1 + 0.35 * i,
            seed=i,
            sampling=settings[i % 3],
            decoding=("autoregressive", "parallel")[i % 4 == 1],
        )
        for i in range(8)
    ]


def _stages(music):
    return music.semantic, music.coarse, music.fine, music.parallel


@pytest.mark.parametrize("fixed", [False, True])
def test_batches_bound_the_rows_and_change_nothing(fixed):
    clips = _various()
    alone = [codes_of(chain(), clip)[0] for clip in clips]
    music = chain(max_rows=3, fixed_rows=fixed)
    for one, two in zip(codes_of(music, *clips), alone, strict=True):
        np.testing.assert_array_equal(one, two)
    for one, two in zip(codes_of(music, *clips[::-1]), alone[::-1], strict=True):
        np.testing.assert_array_equal(one, two)
    sizes = [{len(call.codes) for call in stage.calls} for stage in _stages(music)]
    assert sizes == [{3}, {3}, {3}, {3 if fixed else 2}]
    for stage in _stages(music):
        for call in stage.calls:  # of one kind
            assert len({sampling.guided for sampling in call.samplings}) == 1
            assert len({sampling.filtered for sampling in call.samplings}) == 1


def test_a_call_of_equal_clips_has_as_many_rows_as_there_are_clips():
    music = chain(max_rows=3)
    codes_of(music, *(clip(seconds=0.5, seed=i) for i in range(5)))
    for stage in (music.semantic, music.coarse, music.fine):
        assert {len(call.codes) for call in stage.calls} == {3}
    music = chain(max_rows=16)
    codes_of(music, *(clip(seconds=0.5, seed=i) for i in range(5)))
    assert {len(call.codes) for call in music.coarse.calls} == {5}


def test_progress_counts_to_the_end_stage_by_stage():
    seen = []
    music = chain(max_rows=2, fixed_rows=True)
    clips = [clip("a", 1.3, 0), clip("b", 0.3, 1), clip("c", 0.7, 2)]
    clips.append(clip("d", 0.9, 3, decoding="parallel"))
    codes = music.compose([music.plan(c) for c in clips], lambda *call: seen.append(call))
    stages = [stage for stage, _, _ in seen]
    order = ["semantic", "coarse", "fine", "parallel"]
    assert sorted(set(stages), key=stages.index) == order
    assert stages == sorted(stages, key=order.index)
    for name in set(stages):
        counts = [(done, total) for stage, done, total in seen if stage == name]
        assert [done for done, _ in counts] == sorted(done for done, _ in counts)
        assert counts[-1][0] == counts[-1][1]
        assert len({total for _, total in counts}) == 1
        if name == "coarse":
            assert counts[-1][1] == 2 * sum(map(len, codes[:3]))
        if name == "parallel":
            assert counts[-1][1] == 5 * len(codes[3])


def test_each_stage_has_its_temperature():
    music = chain()
    codes_of(music, clip(seconds=0.4))
    temperatures = [
        stage.calls[0].samplings[0].temperature
        for stage in (music.semantic, music.coarse, music.fine)
    ]
    assert temperatures == [1.0, 0.95, 0.4]


def _lengths(calls):
    """How long the text of each call is, which is its first code."""
    return [int(call.condition["mulan"][0, 0]) for call in calls]


def test_a_story_swaps_its_texts_at_the_nearest_step():
    # Semantic windows are 0.8 s, steps 0.4 s.
    music = chain()
    told = clip("one", 2.0, story=((0.35, "three"), (0.95, "fifteen"), (1.35, "never heard of")))
    (codes,) = codes_of(music, told)
    # Steps begin at 0, 0.4, 0.8, 1.2, 1.6, 2.0: 0.35 is nearest to 0.4, 0.95 to 0.8.
    assert _lengths(music.semantic.calls) == [3, 5, 7, 14, 14, 14]
    assert [call.codes.shape[1] for call in music.semantic.calls] == [10, 20, 20, 20, 20, 12]
    assert [call.prefilled for call in music.semantic.calls] == [0] + [10] * 5
    # Middles of coarse windows: 0.2, 0.48, 0.76, 1.04, 1.32, 1.6, 1.88.
    assert _lengths(music.coarse.calls) == [3, 5, 5, 7, 14, 14, 14]
    (plain,) = codes_of(chain(), clip("one", 2.0))
    np.testing.assert_array_equal(codes[:20], plain[:20])


def test_a_story_of_one_text_is_no_story():
    (codes,) = codes_of(chain(), clip("one", 2.0, story=((0.4, "one"), (1.2, "one"))))
    (plain,) = codes_of(chain(), clip("one", 2.0))
    np.testing.assert_array_equal(codes, plain)


@pytest.mark.parametrize("decoding", ["autoregressive", "parallel"])
@pytest.mark.parametrize("frames", [2, 6, 14, 20, 26, 40, 96])
def test_a_continuation_keeps_its_frames(frames, decoding):
    rng = np.random.default_rng(frames)
    given = Continuation(
        semantic_T=rng.integers(0, 1000, frames // 2, dtype=np.int32),
        acoustic_TQ=rng.integers(0, 1000, (frames, 5), dtype=np.int32),
    )
    music = chain()
    continued = clip(seconds=2.0, continuation=given, decoding=decoding)
    other = clip(seconds=2.0, decoding=decoding)
    codes, plain = codes_of(music, continued, other)
    assert codes.shape == plain.shape == (100, 5)
    np.testing.assert_array_equal(codes[:frames], given.acoustic_TQ)
    (call,) = [call for call in music.semantic.calls if call.prefilled == 0][:1]
    known = min(20, frames // 2)
    rows = [row for row, prompt in zip(call.codes, call.prompts, strict=True) if len(prompt)]
    if frames // 2 < 20:
        np.testing.assert_array_equal(rows[0][:known, 0], given.semantic_T[:known])
    else:  # a window that is there as a whole is not made again
        assert not rows
    # It makes clips longer and shorter as others.
    (shorter,) = codes_of(chain(), dataclasses.replace(continued, seconds=1.99))
    np.testing.assert_array_equal(shorter[:90], codes[:90])


def test_bad_clips_are_named():
    with pytest.raises(ValueError, match="seconds is 0"):
        clip(seconds=0)
    with pytest.raises(ValueError, match="decoding is 'paralel'"):
        clip(decoding="paralel")
    with pytest.raises(ValueError, match="no stage"):
        dataclasses.replace(chain(), parallel=None).plan(clip(decoding="parallel"))
    with pytest.raises(ValueError, match="story starts texts at"):
        clip(story=((3, "b"), (2, "c")))
    given = Continuation(semantic_T=np.zeros(25, np.int32), acoustic_TQ=np.zeros((50, 5), np.int32))
    with pytest.raises(ValueError, match="50 acoustic frames, and the clip 50"):
        chain().plan(clip(seconds=1.0, continuation=given))
    given = dataclasses.replace(given, semantic_T=np.zeros(3, np.int32))
    with pytest.raises(ValueError, match="2 acoustic frames for each"):
        chain().plan(clip(seconds=2.0, continuation=given))


TUNED = dataclasses.replace(
    SPEC, num_melody_codebooks=2, melody_codebook_size=9, num_melody_embeddings=3
)
MELODY = np.arange(6).reshape(3, 2)


@pytest.mark.parametrize("decoding", ["autoregressive", "parallel"])
def test_a_melody_is_heard_in_every_window_whatever_the_text(decoding):
    music = chain(spec=TUNED)
    told = clip("one", 2.0, story=((0.35, "three"),), melody_EQ=MELODY, decoding=decoding)
    other = clip("one", 1.0, melody_EQ=MELODY + 1, decoding=decoding)
    codes_of(music, told, other)
    tuned = [music.semantic, *([music.coarse] if decoding == "autoregressive" else [])]
    for stage in tuned:
        assert len(stage.calls) > 3
        heard = [row for call in stage.calls for row in call.condition["melody"]]
        assert {row.tobytes() for row in heard} == {MELODY.tobytes(), (MELODY + 1).tobytes()}
        assert any(len(np.unique(call.condition["melody"])) == 7 for call in stage.calls)


def test_a_stream_keeps_its_melody():
    wanted = clip(seconds=1.0, melody_EQ=MELODY)
    whole_T = whole_of(chain(spec=TUNED, fixed_rows=True), wanted)
    heard_T = np.concatenate(list(stream_of(chain(spec=TUNED, fixed_rows=True), wanted)))
    np.testing.assert_array_equal(heard_T, whole_T)


@pytest.mark.parametrize(
    ("spec", "melody", "words"),
    [
        (SPEC, MELODY, "takes none: leave it out"),
        (TUNED, None, r"wants a melody, and none is given: give .* \(3, 2\)"),
        (TUNED, MELODY[:2], r"is int64 \(2, 2\): give codes, integers \(3, 2\)"),
        (TUNED, MELODY[None], r"int64 \(1, 3, 2\)"),
        (TUNED, MELODY.astype(float), "is float64"),
        (TUNED, MELODY - 1, "from -1 to 4: give codes from 0 to 8"),
        (TUNED, MELODY + 4, "from 4 to 9: give codes from 0 to 8"),
    ],
)
def test_wrong_melodies_are_named(spec, melody, words):
    with pytest.raises(UserError, match=words):
        chain(spec=spec).plan(clip(melody_EQ=melody))


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


@pytest.mark.parametrize("seconds", [0.05, 0.4, 1.0, 1.73, 3.3])
@pytest.mark.parametrize("story", [(), ((0.5, "bb"), (1.2, "ccc"))])
@pytest.mark.parametrize("decoding", ["autoregressive", "parallel"])
def test_a_stream_is_the_clip_in_pieces(seconds, story, decoding):
    story = tuple(part for part in story if part[0] < seconds)
    wanted = clip(seconds=seconds, story=story, decoding=decoding)
    whole_T = whole_of(chain(fixed_rows=True), wanted)
    pieces = list(stream_of(chain(fixed_rows=True), wanted))
    np.testing.assert_array_equal(np.concatenate(pieces), whole_T)
    assert len(whole_T) == round(seconds * SPEC.sample_rate)
    if seconds > 1:
        assert len(pieces) > 2


def test_the_first_piece_waits_for_its_windows_alone():
    music = chain()
    stream = stream_of(music, clip(seconds=4.0))
    assert not music.semantic.calls
    next(stream)
    assert len(music.semantic.calls) == len(music.coarse.calls) == len(music.fine.calls) == 1


@pytest.mark.parametrize("given_frames", [0, 10, 36])
def test_a_stream_has_one_shape_of_fine_batches(given_frames):
    """Windows of the coarse stage bring 2, 1, 2, 1 … of the fine one."""
    music = chain()
    codes_TQ = np.zeros((2 * given_frames, 5), np.int32)
    given = Continuation(semantic_T=codes_TQ[::2, 0], acoustic_TQ=codes_TQ)
    for _ in stream_of(music, clip(seconds=4.0, continuation=given)):
        pass
    rows = [len(call.prompts) for call in music.fine.calls]
    assert len(rows) > 5
    assert set(rows) == {2}


def test_a_prompt_changes_what_is_not_made_yet():
    music = chain()
    stream = stream_of(music, clip("a", seconds=4.0, story=((3.0, "cccccc"),)))
    next(stream)
    stream.prompt = "bbb"
    assert stream.prompt == "bbb"
    for _ in stream:
        pass
    for stage in (music.semantic, music.coarse):
        lengths = [int(call.condition["mulan"][0, 0]) for call in stage.calls]
        assert lengths == sorted(lengths)
        assert set(lengths) == {1, 3}


@pytest.mark.parametrize("frames", [5, 15])
def test_a_prompt_that_is_set_at_once_holds_for_all_that_is_made(frames):
    """However much of the first semantic window is given."""
    music = chain()
    semantic_T = np.zeros(frames, np.int32)
    given = Continuation(semantic_T=semantic_T, acoustic_TQ=np.zeros((2 * frames, 5), np.int32))
    stream = stream_of(music, clip("a", seconds=1.5, continuation=given))
    stream.prompt = "bbb"
    next(stream)
    assert [int(call.condition["mulan"][0, 0]) for call in music.semantic.calls] == [3]


def test_a_stream_goes_on_from_what_is_given():
    rng = np.random.default_rng(0)
    given = Continuation(
        semantic_T=rng.integers(1000, size=15).astype(np.int32),
        acoustic_TQ=rng.integers(1000, size=(30, 5)).astype(np.int32),
    )
    wanted = clip(seconds=1.5, continuation=given)
    whole_T = whole_of(chain(fixed_rows=True), wanted)
    heard_T = np.concatenate(list(stream_of(chain(fixed_rows=True), wanted)))
    np.testing.assert_array_equal(heard_T, whole_T)
    np.testing.assert_array_equal(
        heard_T[: 30 * SPEC.hop_length : SPEC.hop_length], given.acoustic_TQ[:, 0]
    )
