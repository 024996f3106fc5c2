"""Answers, and what is computed of them: by hand, beside scipy, and of planted strengths."""

import dataclasses
import json

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from musiclm.errors import UserError
from musiclm.evaluation import listening, listening_answers
from musiclm.evaluation.listening_answers import Answer

SYSTEMS = ("small", "large", "real")
KEY = listening_answers.Key(
    test="t",
    systems=SYSTEMS,
    comparisons={
        "c1": {"x.wav": "small", "y.wav": "large"},
        "c2": {"x.wav": "small", "z.wav": "real"},
        "c3": {"y.wav": "large", "z.wav": "real"},
    },
)


def participant(name, *answers, headphones=True):
    return listening_answers.Participant(name=name, code="", headphones=headphones, answers=answers)


def between(one, other, *scores, seconds=30.0):
    return [Answer(one, other, score, seconds) for score in scores]


# The analysis -----------------------------------------------------------------------------------


@pytest.fixture
def people():
    """Small and large: 1 win, 2 wins, 1 tie. Small and real: 0 and 2. Large and real: 1 and 1."""
    return [
        participant(
            "p",
            *between("small", "large", 2, -1),
            *between("real", "small", 2),
            *between("large", "real", 1),
        ),
        participant(
            "q",
            *between("large", "small", 0, 1),
            *between("small", "real", -1),
            *between("real", "large", 2),
        ),
    ]


def test_wins_by_hand(people):
    figures = listening.analyse(people, KEY, min_seconds=10)
    assert {name: (own["wins"], own["answers"]) for name, own in figures["systems"].items()} == {
        "small": (1, 6),
        "large": (3, 6),
        "real": (3, 4),
    }
    assert [(pair["systems"], pair["wins"], pair["answers"]) for pair in figures["pairs"]] == [
        (["small", "large"], [1, 2], 4),
        (["small", "real"], [0, 2], 2),
        (["large", "real"], [1, 1], 2),
    ]
    assert list(figures["pairs"][0]["scores"].values()) == [1, 0, 1, 2, 0]
    assert [pair["mean_score"] for pair in figures["pairs"]] == [0.0, -1.5, -0.5]
    assert figures["systems"]["real"]["win_rate"].value == 0.75
    assert figures["answers"] == 8


def test_p_is_scipys_times_the_pairs(people):
    pairs = listening.analyse(people, KEY, min_seconds=10)["pairs"]
    for pair, scores in zip(pairs, ([2, -1, 0, -1], [-2, -1], [1, -2]), strict=True):
        assert pair["p"] == scipy.stats.wilcoxon(scores).pvalue
        assert pair["p_bonferroni"] == min(1.0, 3 * pair["p"])
    many = [participant("p", *between("small", "large", *[1, 2, 2, 1, -1] * 8))]
    (pair,) = listening.analyse(many, KEY, min_seconds=10)["pairs"]
    assert pair["p"] == pair["p_bonferroni"] < 1e-4  # one pair alone has answers


def test_ties_alone_are_no_evidence():
    people = [participant("p", *between("small", "large", 0, 0, 0))]
    figures = listening.analyse(people, KEY, min_seconds=10)
    assert figures["pairs"][0]["p"] == 1.0
    assert figures["systems"]["small"]["wins"] == figures["systems"]["large"]["wins"] == 0
    assert figures["systems"]["real"] == {"answers": 0, "wins": 0, "win_rate": None}


def test_who_heard_badly_or_too_little_is_left_out_and_counted(people):
    deaf = participant("deaf", *between("small", "real", 2, 2, 2), headphones=False)
    hasty = participant("hasty", *between("small", "real", 2, 2, 2, seconds=5))
    both = participant("both", *between("small", "real", 2, seconds=5), headphones=False)
    # It is the median that counts.
    people[0] = participant("p", *people[0].answers[1:], Answer("small", "large", 2, 1.0))
    figures = listening.analyse([deaf, *people, hasty, both], KEY, min_seconds=6)
    assert figures["systems"] == listening.analyse(people, KEY, min_seconds=10)["systems"]
    counts = {why: sorted(names) for why, names in figures["participants"].items()}
    assert counts == {
        "counted": ["p", "q"],
        "failed the headphones check": ["both", "deaf"],
        "took less than 6 s an answer": ["hasty"],
    }
    lenient = listening.analyse([*people, hasty], KEY, min_seconds=0)
    assert lenient["systems"]["small"]["wins"] == 4
    with pytest.raises(UserError, match="none of 2 participants counts"):
        listening.analyse([deaf, hasty], KEY, min_seconds=10)


def test_a_participant_counts_once(people):
    with pytest.raises(UserError, match="'p' answered in two files"):
        listening.analyse([*people, people[0]], KEY, min_seconds=10)


compared = st.sampled_from([("small", "large"), ("small", "real"), ("large", "real")])
judged = st.tuples(compared, st.integers(-2, 2), st.booleans())


@pytest.mark.slow
@settings(max_examples=30)
@given(st.lists(judged, min_size=1, max_size=40))
def test_sides_change_nothing(drawn):
    straight = [Answer(*pair, score, 30.0) for pair, score, _ in drawn]
    turned = [
        Answer(each.other, each.one, -each.score, 30.0) if turn else each
        for each, (*_, turn) in zip(straight, drawn, strict=True)
    ]
    figures = listening.analyse([participant("p", *straight)], KEY, min_seconds=10)
    assert listening.analyse([participant("p", *turned)], KEY, min_seconds=10) == figures
    wins = sum(own["wins"] for own in figures["systems"].values())
    assert wins == sum(score != 0 for _, score, _ in drawn)


def test_markdown_tells_all(people):
    people.append(participant("deaf", *between("small", "real", 2), headphones=False))
    told = listening.markdown(listening.analyse(people, KEY, min_seconds=10))
    assert "8 answers of 2 participants" in told
    assert "1 failed the headphones check" in told
    assert "| real | 4 | 3 | 0.75 (" in told
    assert "| small / large | 4 | 1 | 0 | 1 | 2 | 0 | +0.00 |" in told
    assert "No strengths" not in told


def test_no_preference_is_half_a_win_to_strengths():
    key = dataclasses.replace(KEY, systems=("small", "large"))
    people = [participant("p", *between("small", "large", 2, 1, 0, 0))]  # 3 to 1
    figures = listening.analyse(people, key, min_seconds=10)
    assert figures["strengths"] == pytest.approx({"small": 3**0.5, "large": 3**-0.5})


def test_a_system_that_won_everything_has_no_strength():
    people = [participant("p", *between("small", "real", -1, -2), *between("large", "real", 1, -1))]
    figures = listening.analyse(people, KEY, min_seconds=10)
    assert figures["strengths"] is None
    assert "| real | 4 | 3 | 0.75 (0.30 to 0.95) | – |" in listening.markdown(figures)
    assert "No strengths: some systems never lost" in listening.markdown(figures)


# Statistics -------------------------------------------------------------------------------------


def test_bradley_terry_of_two_is_the_ratio_of_wins():
    strengths = listening.bradley_terry([[0, 3], [1, 0]])
    assert strengths == pytest.approx([3**0.5, 3**-0.5])


@given(st.lists(st.floats(-2, 2), min_size=2, max_size=5), st.integers(1, 100))
def test_bradley_terry_recovers_planted_strengths(logs, games):
    """Of expected wins, the likeliest strengths are the true ones."""
    planted_K = np.exp(np.array(logs) - np.mean(logs))
    wins_KK = games * planted_K[:, None] / (planted_K[:, None] + planted_K)
    np.testing.assert_allclose(listening.bradley_terry(wins_KK), planted_K, rtol=1e-6)


def test_bradley_terry_is_the_maximum_of_the_likelihood():
    wins_KK = np.array([[0, 7, 2, 0], [3, 0, 5, 1], [1, 4, 0, 6], [0.5, 0, 2, 0]])

    def log_likelihood(logs_K):
        return -np.sum(wins_KK * np.logaddexp(0, logs_K - logs_K[:, None]))

    logs_K = np.log(listening.bradley_terry(wins_KK))
    assert logs_K.sum() == pytest.approx(0)
    for step_K in 1e-3 * np.concatenate([np.eye(4), -np.eye(4)]):
        assert log_likelihood(logs_K + step_K) < log_likelihood(logs_K)


def test_bradley_terry_samples():
    rng = np.random.default_rng(0)
    planted_K = np.array([2.0, 1.0, 0.5])
    chance_KK = planted_K[:, None] / (planted_K[:, None] + planted_K)
    wins_KK = np.zeros((3, 3))
    for i, j in ((0, 1), (0, 2), (1, 2)):
        wins_KK[i, j] = rng.binomial(4000, chance_KK[i, j])
        wins_KK[j, i] = 4000 - wins_KK[i, j]
    np.testing.assert_allclose(listening.bradley_terry(wins_KK), planted_K, rtol=0.1)


@pytest.mark.parametrize(
    ("wins", "told"),
    [
        ([[0, 2], [0, 0]], "never lost"),
        ([[0, 1, 1], [1, 0, 1], [0, 0, 0]], "never lost"),  # two that never lost to the third
        ([[0, 0], [0, 0]], "not compared"),
        ([[0, 1]], "shape"),
        ([[0, -1], [1, 0]], "counts"),
    ],
)
def test_no_strengths_without_a_maximum(wins, told):
    with pytest.raises(ValueError, match=told):
        listening.bradley_terry(wins)


# Files ------------------------------------------------------------------------------------------


@pytest.fixture
def answers():
    """What the page saves."""
    return {
        "test": "t",
        "participant": "p",
        "code": "ABCD-EFGH",
        "headphones": {"passed": True, "correct": 6, "trials": 6, "attempts": 1},
        "answers": [
            {"id": "c1", "a": "y.wav", "b": "x.wav", "answer": "strongly prefer A", "seconds": 21},
            {"id": "c2", "a": "x.wav", "b": "z.wav", "answer": "slightly prefer B", "seconds": 9.5},
        ],
    }


def write(path, record):
    path.write_text(json.dumps(record))
    return path


def test_answers_are_read_by_their_sides(answers, tmp_path):
    read = listening_answers.read_answers(write(tmp_path / "a.json", answers), KEY)
    assert read == listening_answers.Participant(
        name="p",
        code="ABCD-EFGH",
        headphones=True,
        answers=(Answer("large", "small", 2, 21.0), Answer("small", "real", -1, 9.5)),
    )
    assert read.median_seconds == 15.25


def test_a_key_survives_its_file(tmp_path):
    (tmp_path / "key.json").write_text(KEY.to_json())
    assert listening_answers.read_key(tmp_path / "key.json") == KEY


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda r: r.update(test="u"), "answers of test 'u', the key is of 't'"),
        (lambda r: r.pop("test"), "'test' is missing"),
        (lambda r: r.pop("participant"), "'participant' is missing"),
        (lambda r: r.update(headphones=None), "headphones is None"),
        (lambda r: r["headphones"].update(passed="yes"), "passed is 'yes'"),
        (lambda r: r.update(answers=[]), "there are no answers"),
        (lambda r: r.update(answers=[3]), "damaged"),
        (lambda r: r["answers"].append(r["answers"][0]), "answered twice"),
        (lambda r: r["answers"][0].update(id="c9"), "no comparison 'c9'"),
        (lambda r: r["answers"][0].update(a="z.wav"), "c1 does not compare 'z.wav'"),
        (lambda r: r["answers"][0].update(b="y.wav"), "c1 does not compare"),
        (lambda r: r["answers"][0].update(answer="A"), "c1 is answered 'A'"),
        (lambda r: r["answers"][0].update(seconds=-1), "c1 took -1 s"),
        (lambda r: r["answers"][0].update(seconds=float("nan")), "c1 took nan s"),
        (lambda r: r["answers"][0].update(seconds=10**400), "damaged"),
    ],
)
def test_damaged_answers_are_told(answers, tmp_path, damage, told):
    damage(answers)
    with pytest.raises(UserError, match=told):
        listening_answers.read_answers(write(tmp_path / "a.json", answers), KEY)


@pytest.mark.parametrize("text", ["", "[", "3", "\xff", "[" * 100_000])
@pytest.mark.parametrize(
    "read", [listening_answers.read_key, lambda p: listening_answers.read_answers(p, KEY)]
)
def test_what_is_no_json_is_told(tmp_path, text, read):
    (tmp_path / "a.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"a\.json' is no JSON"):
        read(tmp_path / "a.json")


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"test": "t", "systems": ["a", "b"], "comparisons": []},
        {"test": "t", "systems": ["a", "b"], "comparisons": {"c": {"x": "a"}}},
        {"test": "t", "systems": ["a", "b"], "comparisons": {"c": {"x": "a", "y": "z"}}},
    ],
)
def test_what_is_no_key_is_told(tmp_path, record):
    with pytest.raises(UserError, match="no key of a listening test"):
        listening_answers.read_key(write(tmp_path / "k.json", record))


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        listening_answers.read_key(tmp_path / "none.json")
