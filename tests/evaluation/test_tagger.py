"""The tagger of the KLD."""

import numpy as np
import pytest

from musiclm.evaluation import tagger


def clips(rng, count):
    """Descriptions in which the class shows, and the classes."""
    truths = [{"tempo": "slow" if i % 2 else "fast", "drums": "no"[i % 3 :]} for i in range(count)]
    descriptions = [
        {
            "tempo": rng.normal(size=5) + 2 * (truth["tempo"] == "slow"),
            "drums": rng.normal(size=3) + 2 * len(truth["drums"]),
        }
        for truth in truths
    ]
    return descriptions, truths


def test_it_hears_what_it_was_fitted_on_and_is_nearer_to_its_like():
    rng = np.random.default_rng(0)
    fitted = tagger.fit(*clips(rng, 120), ("tempo", "drums"))
    one, truths = clips(rng, 60)
    other, _ = clips(rng, 60)
    p, q = fitted.distributions(one), fitted.distributions(other)
    assert p["drums"].shape == (60, 3)
    np.testing.assert_allclose(p["tempo"].sum(axis=1), 1)
    slow = fitted.classifiers["tempo"].classes_ == "slow"
    said = p["tempo"][:, slow][:, 0] > 0.5
    assert np.mean(said == [truth["tempo"] == "slow" for truth in truths]) > 0.8
    # Row i of both is of one class, and row i + 1 of another.
    alike = tagger.divergences(p, q)
    unlike = tagger.divergences(p, {name: np.roll(rows, 1, axis=0) for name, rows in q.items()})
    assert alike.mean() < 0.5 * unlike.mean()
    assert (alike >= 0).all()


def test_divergences_of_questions_add_up():
    p = {"a": np.array([[0.5, 0.5]]), "b": np.array([[0.9, 0.1]])}
    q = {"a": np.array([[0.25, 0.75]]), "b": np.array([[0.9, 0.1]])}
    expected = 0.5 * np.log(2) + 0.5 * np.log(2 / 3)
    assert tagger.divergences(p, q) == pytest.approx(expected)
    assert tagger.divergences(p, p) == pytest.approx(0)


def test_no_class_is_impossible():
    rng = np.random.default_rng(1)
    descriptions, truths = clips(rng, 60)
    far = [{name: 100 * vector for name, vector in one.items()} for one in descriptions]
    p = tagger.fit(descriptions, truths, ("tempo",)).distributions(far)
    assert p["tempo"].min() > 5e-5
