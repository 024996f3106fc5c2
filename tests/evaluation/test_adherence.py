"""The judge on synthetic music: plucks of two timbres in all keys, with or without other parts.

The real corpus needs a soundfont; what is tested here is that each question is answered by what it
asks for, through loudness changes and poor channels.
"""

import itertools

import numpy as np
import pytest

from musiclm.evaluation import adherence, descriptors, key_finder

RATE = 16_000
BPM = {"slow": (62, 82), "medium": (98, 122), "fast": (140, 178)}
PARTIALS = {"dull": (1.0, 0.2), "bright": (1.0, 0.1, 0.8, 0.1, 0.6, 0.05, 0.5, 0.02, 0.4)}
LOWEST_NOTE = {"low": 40, "mid": 58, "high": 76}
SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}


def _truth(rng):
    return {
        "instrument": str(rng.choice(list(PARTIALS))),
        "tempo": str(rng.choice(list(BPM))),
        "key": str(rng.choice(key_finder.KEYS)),
        "register": str(rng.choice(list(LOWEST_NOTE))),
        "density": str(rng.choice(["moderate", "dense"])),
        **{part: str(rng.choice([part, f"no {part}"])) for part in ("drums", "bass", "chords")},
    }


def _clip(rng, seconds=5.0):
    """A clip and its true classes: notes of a scale on the beat, and between beats where dense."""
    truth = _truth(rng)
    beat = 60 / rng.uniform(*BPM[truth["tempo"]])
    tonic_name, mode = truth["key"].split()
    tonic, scale = key_finder.TONICS.index(tonic_name), SCALES[mode]
    waveform_T = np.zeros(round(seconds * RATE))

    def add(onset, sound_T):
        first = round(onset * RATE)
        room = len(waveform_T) - first
        waveform_T[first : first + len(sound_T)] += sound_T[:room]

    def pluck(onset, pitch, partials, gain=1.0):
        cycles_T = 440 * 2 ** ((pitch - 69) / 12) * np.arange(RATE) / RATE
        tones = [g * np.sin(2 * np.pi * (k + 1) * cycles_T) for k, g in enumerate(partials)]
        add(onset, gain * sum(tones) * np.exp(-np.arange(RATE) / (0.3 * RATE)))

    above = (tonic - LOWEST_NOTE[truth["register"]]) % 12 + LOWEST_NOTE[truth["register"]]
    onsets = np.arange(rng.uniform(0, beat), seconds - 0.1, beat)
    for number, onset in enumerate(onsets):
        last = number in (0, len(onsets) - 1)
        pluck(onset, above + (0 if last else rng.choice(scale)), PARTIALS[truth["instrument"]])
        if truth["density"] == "dense" and onset + beat / 2 < seconds - 0.1:
            pluck(onset + beat / 2, above + rng.choice(scale), PARTIALS[truth["instrument"]], 0.6)
        if truth["bass"] == "bass":
            pluck(onset, 28 + (tonic - 28) % 12, (1.0, 0.5, 0.2))
        if truth["chords"] == "chords":
            for degree in (0, 2, 4):
                pluck(onset, 54 + (tonic + scale[degree] - 54) % 12, PARTIALS["dull"], 0.6)
        if truth["drums"] == "drums":
            decay_T = np.exp(-np.arange(RATE // 4) / (0.03 * RATE))
            add(onset, 2 * rng.standard_normal(len(decay_T)) * decay_T)
    return (0.5 * waveform_T / np.abs(waveform_T).max()).astype(np.float32), truth


def fit_on_clips(clips):
    """Each as it is and degraded."""
    rng = np.random.default_rng(0)
    descriptions, truths = [], []
    for waveform_T, truth in clips:
        for heard_T in (waveform_T, adherence.degrade(waveform_T, RATE, rng)):
            descriptions.append(descriptors.describe(heard_T, RATE))
            truths.append(truth)
    return adherence.fit(descriptions, truths)


@pytest.fixture(scope="module")
def judge():
    rng = np.random.default_rng(0)
    return fit_on_clips(_clip(rng) for _ in range(100))


@pytest.fixture(scope="module")
def others():
    """Clips that the judge was not fitted on."""
    rng = np.random.default_rng(1)
    return [_clip(rng) for _ in range(24)]


@pytest.mark.slow
@pytest.mark.parametrize("channel", ["as it is", "quiet", "low-pass", "noise", "mu-law"])
def test_classes_are_told_apart_through_every_channel(judge, others, channel):
    rng = np.random.default_rng(2)
    through = {
        "as it is": lambda x: x,
        "quiet": lambda x: x / 30,
        "low-pass": lambda x: adherence.low_pass(x, RATE, 4_000.0),
        "noise": lambda x: adherence.add_noise(x, 25.0, rng),
        "mu-law": lambda x: adherence.mu_law(x, 7),
    }[channel]
    described = [descriptors.describe(through(waveform_T), RATE) for waveform_T, _ in others]
    right = judge.right(described, [truth for _, truth in others])
    assert right["instrument"].mean() >= 0.9
    assert right["drums"].mean() >= 0.9
    assert right["tempo"].mean() >= 0.8
    assert right["key"].mean() >= 0.8  # chance: 0.04
    assert right["register"].mean() >= 0.9
    assert right["density"].mean() >= 0.8
    assert right["bass"].mean() >= 0.9
    assert right["chords"].mean() >= 0.8


@pytest.mark.slow
def test_fitting_twice_gives_the_same_answers():
    def fitted():
        rng = np.random.default_rng(3)
        return fit_on_clips(_clip(rng, 2.5) for _ in range(20))

    rng = np.random.default_rng(4)
    described = [descriptors.describe(_clip(rng, 2.5)[0], RATE) for _ in range(10)]
    one, other = fitted().answer(described), fitted().answer(described)
    assert all((one[question] == other[question]).all() for question in adherence.QUESTIONS)


def test_the_order_of_clips_does_not_matter():
    rng = np.random.default_rng(7)
    clips = [_clip(rng, 2.5) for _ in range(30)]
    described = [descriptors.describe(waveform_T, RATE) for waveform_T, _ in clips]
    truths = [truth for _, truth in clips]
    asked, order = described[20:], rng.permutation(20)
    fitted = adherence.fit(described[:20], truths[:20])
    refitted = adherence.fit([described[i] for i in order], [truths[i] for i in order])
    one, other, backwards = fitted.answer(asked), refitted.answer(asked), fitted.answer(asked[::-1])
    for question in adherence.QUESTIONS:
        np.testing.assert_array_equal(other[question], one[question], question)
        np.testing.assert_array_equal(backwards[question][::-1], one[question], question)


def test_the_codec_is_one_of_the_channels():
    calls = []

    def codec(waveform_BT):
        calls.append(waveform_BT.shape)
        return 0 * waveform_BT

    rng = np.random.default_rng(0)
    ones_T = np.ones(100, np.float32)
    silent = [not adherence.degrade(ones_T, RATE, rng, codec).any() for _ in range(200)]
    assert calls == [(1, 100)] * sum(silent)
    assert 30 <= sum(silent) <= 70


def test_low_pass_keeps_what_is_below_and_takes_what_is_above():
    time_T = np.arange(RATE) / RATE
    low_T, high_T = (np.sin(2 * np.pi * f * time_T).astype(np.float32) for f in (500, 6_000))
    np.testing.assert_allclose(adherence.low_pass(low_T + high_T, RATE, 3_000), low_T, atol=1e-4)


def test_noise_has_the_level_that_was_asked_for():
    rng = np.random.default_rng(0)
    clip_T = rng.standard_normal(RATE).astype(np.float32)
    noise_T = adherence.add_noise(clip_T, 20.0, rng) - clip_T
    assert 20 * np.log10(clip_T.std() / noise_T.std()) == pytest.approx(20, abs=0.2)


def test_mu_law_rounds_more_with_fewer_bits():
    clip_T = 0.2 * np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    errors = [np.abs(adherence.mu_law(clip_T, bits) - clip_T).mean() for bits in (4, 6, 8, 10)]
    assert (np.diff(errors) < 0).all()
    assert errors[-1] < 0.002


def test_descriptions_have_one_length_at_any_rate():
    rng = np.random.default_rng(0)
    one = descriptors.describe(_clip(rng)[0], RATE)
    other = descriptors.describe(rng.standard_normal(24_000 * 4).astype(np.float32), 24_000)
    assert {k: v.shape for k, v in one.items()} == {k: v.shape for k, v in other.items()}
    assert all(np.isfinite(vector).all() for vector in (*one.values(), *other.values()))


def test_descriptions_are_blind_to_loudness():
    rng = np.random.default_rng(5)
    waveform_T = adherence.add_noise(_clip(rng)[0], 40.0, rng)
    one, other = (descriptors.describe(gain * waveform_T, RATE) for gain in (1.0, 0.03))
    for question in adherence.QUESTIONS:
        np.testing.assert_allclose(other[question], one[question], rtol=2e-3, atol=2e-3)


def test_silence_is_described_and_nan_is_refused():
    assert all(np.isfinite(v).all() for v in descriptors.describe(np.zeros(40_000), RATE).values())
    with pytest.raises(ValueError, match="finite mono samples"):
        descriptors.describe(np.full(40_000, np.nan), RATE)
    with pytest.raises(ValueError, match="two seconds"):
        descriptors.describe(np.zeros(10), RATE)


def test_answers_are_read_from_the_manifest():
    entry = {
        "instrument": "flute",
        "tempo": "slow",
        "bpm": 70,
        "tonic": 9,
        "mode": "minor",
        "register": "high",
        "density": "sparse",
        "drums": False,
        "bass": True,
        "chords": False,
    }
    assert adherence.answers(entry) == {
        "instrument": "flute",
        "tempo": "slow",
        "key": "A minor",
        "register": "high",
        "density": "sparse",
        "drums": "no drums",
        "bass": "bass",
        "chords": "no chords",
    }
    assert set(adherence.answers(entry)) == set(adherence.QUESTIONS)


def _p(heard, truth, **options):
    """Of a single question."""
    truths = [{"drums": each} for each in truth]
    return adherence.permutation_p({"drums": np.array(heard)}, truths, **options)["drums"]


@pytest.mark.parametrize(
    ("heard", "truth"), [("aabbb", "aabbb"), ("ababb", "aabbb"), ("abcca", "abcab")]
)
def test_p_is_the_share_of_deals_with_as_many_right_answers(heard, truth):
    heard, truth = list(heard), list(truth)
    right = sum(map(str.__eq__, heard, truth))
    deals = [sum(map(str.__eq__, heard, dealt)) >= right for dealt in itertools.permutations(truth)]
    assert _p(heard, truth) == pytest.approx(np.mean(deals), abs=0.015)


def test_p_of_what_is_always_right_of_what_is_always_wrong_and_of_a_single_class():
    truth = ["drums", "no drums"] * 20
    assert _p(truth, truth) == 1 / 10_000  # never 0
    assert _p(truth[::-1], truth) == 1
    assert _p(["drums"] * 40, truth) == 1  # half of them right, as any deal would be
    assert _p(truth, ["drums"] * 40) == 1


def test_p_of_clips_without_their_prompts_is_small_as_seldom_as_it_says():
    rng = np.random.default_rng(0)
    # Commoner classes are heard more often too, which makes answers right, but not for the prompt.
    p = np.array([_p(*rng.choice(list("aaaab"), (2, 12)), seed=seed) for seed in range(40)])
    assert (p <= 0.1).mean() <= 0.15
    assert (p > 0.5).mean() > 0.4


def test_questions_are_permuted_alike_and_a_seed_repeats_them():
    rng = np.random.default_rng(1)
    truths = [{"drums": d, "tempo": d} for d in rng.choice(["x", "y"], 15)]
    heard_N = np.where(rng.random(15) < 0.7, [t["drums"] for t in truths], "y")
    heard = {"drums": heard_N, "tempo": heard_N}
    one = adherence.permutation_p(heard, truths)
    assert one["drums"] == one["tempo"]
    assert one == adherence.permutation_p(heard, truths)
    assert one != adherence.permutation_p(heard, truths, seed=1)


@pytest.mark.parametrize(("heard", "truth"), [(["a", "b"], ["a"]), ([], []), ([["a"]], ["a"])])
def test_p_needs_a_clip_for_every_prompt(heard, truth):
    with pytest.raises(ValueError, match="drums: answers of shape"):
        _p(heard, truth)
