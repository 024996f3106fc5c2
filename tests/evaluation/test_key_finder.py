"""Keys of chromas that are made up, and of scales that are heard."""

import numpy as np
import pytest

from musiclm.evaluation import descriptors, key_finder

RATE = 16_000
# Notes of the scales by how much they weigh.
PROFILES = {
    "major": np.array([5, 0, 2, 0, 3, 2, 0, 4, 0, 2, 0, 1.0]),
    "minor": np.array([5, 0, 2, 3, 0, 2, 0, 4, 2, 0, 2, 0.0]),
}


def _chromas(rng, keys, noise=0.3):
    """Two chromas a clip."""
    rows = []
    for key in keys:
        tonic, mode = key.split()
        turned = np.roll(PROFILES[mode], key_finder.TONICS.index(tonic))
        rows.append(np.concatenate([turned, turned]) / 8 + noise * rng.random(24))
    return np.array(rows)


def test_keys_have_names():
    assert key_finder.name(9, "minor") == "A minor"
    assert key_finder.name(0, "major") == "C major"
    assert len(set(key_finder.KEYS)) == 24


def test_what_one_tonic_teaches_holds_for_all():
    rng = np.random.default_rng(0)
    fitted = ["C major", "C minor"] * 20
    finder = key_finder.KeyFinder().fit(_chromas(rng, fitted), fitted)
    keys = [str(key) for key in rng.permutation(np.repeat(key_finder.KEYS, 3))]
    assert (finder.predict(_chromas(rng, keys)) == keys).mean() >= 0.95


def test_chromas_that_are_turned_turn_the_key():
    rng = np.random.default_rng(1)
    fitted = list(rng.choice(key_finder.KEYS, 60))
    finder = key_finder.KeyFinder().fit(_chromas(rng, fitted), fitted)
    chromas_ND = rng.random((40, 24))
    turned_ND = np.roll(chromas_ND.reshape(40, 2, 12), 5, axis=2).reshape(40, 24)
    for one, other in zip(finder.predict(chromas_ND), finder.predict(turned_ND), strict=True):
        tonic, mode = one.split()
        assert other == key_finder.name((key_finder.TONICS.index(tonic) + 5) % 12, mode)


def test_chromas_without_a_key_are_answered_by_chance():
    rng = np.random.default_rng(2)
    keys = rng.choice(key_finder.KEYS, 200)
    finder = key_finder.KeyFinder().fit(rng.random((200, 24)), keys)
    other = rng.choice(key_finder.KEYS, 400)
    assert (finder.predict(rng.random((400, 24))) == other).mean() < 0.12


def test_unknown_keys_are_refused():
    with pytest.raises(ValueError, match="key 'H major': must be one of C major"):
        key_finder.KeyFinder().fit(np.ones((2, 12)), ["H major", "C major"])


def _scale(tonic, mode):
    """A scale that begins and ends on its tonic, with the fifth and third more often."""
    steps = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}[mode]
    tune = [0, steps[1], steps[2], 0, steps[3], 7, steps[2], steps[5], 7, steps[6], steps[1], 0, 0]
    time_T = np.arange(RATE // 4) / RATE
    tones = [
        sum(0.5**k * np.sin(2 * np.pi * (k + 1) * frequency * time_T) for k in range(5))
        for frequency in 440 * 2 ** ((60 + tonic + np.array(tune) - 69) / 12)
    ]
    return np.concatenate(tones).astype(np.float32)


def test_scales_are_heard_in_every_key_when_one_was_fitted():
    def describe(keys):
        return [descriptors.describe(_scale(*key), RATE)["key"] for key in keys]

    fitted = [(0, "major"), (0, "minor"), (7, "major"), (7, "minor")]
    finder = key_finder.KeyFinder().fit(
        np.array(describe(fitted)), [key_finder.name(*key) for key in fitted]
    )
    keys = [(tonic, mode) for tonic in range(12) for mode in key_finder.MODES]
    heard = finder.predict(np.array(describe(keys)))
    assert list(heard) == [key_finder.name(*key) for key in keys]
