"""What people prefer: the answers of a listening test (MusicLM, section 5.1).

A participant hears two clips of one caption and answers on five points; a strong or a weak
preference is a win. For the page that asks see `listening_page`.

N answers, K systems.
"""

import dataclasses
import itertools
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse.csgraph
import scipy.stats

from musiclm.errors import UserError
from musiclm.evaluation import report
from musiclm.evaluation.bootstrap import Estimate

# How far an answer speaks for A, in the words of the page.
SCALE = {
    "strongly prefer A": 2,
    "slightly prefer A": 1,
    "no preference": 0,
    "slightly prefer B": -1,
    "strongly prefer B": -2,
}
# Of the median answer; whoever is faster has not heard much of two clips.
MIN_SECONDS = 10.0

# The same five where it no longer matters which was A.
_POINTS = {
    "strongly first": 2,
    "slightly first": 1,
    "none": 0,
    "slightly second": -1,
    "strongly second": -2,
}
_STEPS = 100_000
_TOLERANCE = 1e-10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Key:
    """What the names in a test's page stand for.

    Attributes:
      test: the test's id.
      systems: all names.
      comparisons: by id, the system of each clip.
    """

    test: str
    systems: tuple[str, ...]
    comparisons: Mapping[str, Mapping[str, str]]

    def to_json(self) -> str:
        """The text of the key's file."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, indent=1) + "\n"


@dataclasses.dataclass(frozen=True)
class Answer:
    """One judgement: `score` is positive where `one` is preferred, from -2 to 2."""

    one: str
    other: str
    score: int
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Participant:
    """Who answered, and how.

    Attributes:
      name: what the page was told, or drew.
      code: that the page showed at the end.
      headphones: whether the check was passed.
      answers: one a comparison.
    """

    name: str
    code: str
    headphones: bool
    answers: tuple[Answer, ...]

    @property
    def median_seconds(self) -> float:
        """How long an answer took."""
        return float(np.median([answer.seconds for answer in self.answers]))


# Files ------------------------------------------------------------------------------------------


def read_key(path: str | os.PathLike[str]) -> Key:
    """Reads the key of a test.

    Raises:
      UserError: the file can't be read, or is none.
    """
    record = _read_object(path)
    try:
        systems = tuple(record["systems"])
        comparisons = {
            str(id): {str(clip): str(system) for clip, system in clips.items()}
            for id, clips in record["comparisons"].items()
        }
        key = Key(test=record["test"], systems=systems, comparisons=comparisons)
        for clips in comparisons.values():
            if len(clips) != 2 or not set(clips.values()) <= set(systems):
                raise ValueError("a comparison has other than two clips of its systems")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{str(path)!r} is no key of a listening test ({error!r}): give the .key.json that "
            "`musiclm listen make` wrote beside the test's folder"
        ) from error
    return key


def read_answers(path: str | os.PathLike[str], key: Key) -> Participant:
    """Reads what a participant downloaded at the end.

    Raises:
      UserError: the file can't be read, is damaged, or belongs to another test.
    """
    record = _read_object(path)
    if record.get("test", key.test) != key.test:
        raise UserError(
            f"{str(path)!r} has answers of test {record['test']!r}, the key is of {key.test!r}: "
            "give the key that belongs to them"
        )
    try:
        _typed(record, "test", str)
        participant = Participant(
            name=_typed(record, "participant", str),
            code=_typed(record, "code", str),
            headphones=_typed(_typed(record, "headphones", dict), "passed", bool),
            answers=tuple(_answer(each, key) for each in _typed(record, "answers", list)),
        )
        ids = [each["id"] for each in record["answers"]]
        if not ids:
            raise ValueError("there are no answers")
        if len(set(ids)) < len(ids):
            raise ValueError("a comparison is answered twice")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        why = f"{error} is missing" if isinstance(error, KeyError) else error
        raise UserError(
            f"the answers {str(path)!r} are damaged ({why}): ask the participant for the file again"
        ) from error
    return participant


def _read_object(path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        record = json.loads(pathlib.Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {str(path)!r} ({error.strerror}): check the path") from error
    except (ValueError, RecursionError) as error:  # of JSON as of UTF-8
        raise UserError(f"{str(path)!r} is no JSON ({error}): give the file as it was") from error
    if not isinstance(record, dict):
        raise UserError(f"{str(path)!r} is no JSON object: give the file as it was")
    return record


def _typed(record: Mapping[str, Any], name: str, kind: type | tuple[type, ...]) -> Any:
    value = record[name]
    if not isinstance(value, kind):
        raise TypeError(f"{name} is {value!r}")
    return value


def _answer(record: Mapping[str, Any], key: Key) -> Answer:
    id = _typed(record, "id", str)
    if id not in key.comparisons:
        raise ValueError(f"the test has no comparison {id!r}")
    clips = key.comparisons[id]
    sides = _typed(record, "a", str), _typed(record, "b", str)
    if set(sides) != set(clips):
        raise ValueError(f"{id} does not compare {sides[0]!r} with {sides[1]!r}")
    word, seconds = _typed(record, "answer", str), _typed(record, "seconds", (int, float))
    if word not in SCALE:
        raise ValueError(f"{id} is answered {word!r}")
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"{id} took {seconds} s")
    return Answer(clips[sides[0]], clips[sides[1]], SCALE[word], float(seconds))


# Statistics -------------------------------------------------------------------------------------


def wilson(successes: int, trials: int, *, level: float = 0.95) -> Estimate:
    """A share and Wilson's interval, which stays within 0 and 1 and has a width at both ends.

    Raises:
      ValueError: there is no trial, or more successes than trials.
    """
    if not 0 <= successes <= trials or not trials:
        raise ValueError(f"{successes} successes of {trials}: give 0 to all of one or more")
    z = scipy.stats.norm.ppf((1 + level) / 2)
    share, weight = successes / trials, z**2 / trials
    centre = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt(share * (1 - share) / trials + weight / (4 * trials)) / (1 + weight)
    return Estimate(share, float(max(0.0, centre - half)), float(min(1.0, centre + half)), trials)


def bradley_terry(wins_KK: np.ndarray) -> np.ndarray:
    """Strengths by which system i is preferred to j with probability s_i / (s_i + s_j), f64 [K].

    The maximum of the likelihood, found by minorisation-maximisation (Hunter, 2004). Strengths are
    known up to a factor: they are scaled to a geometric mean of 1.

    Args:
      wins_KK: how often the system of the row was preferred to that of the column.

    Raises:
      ValueError: it has no finite maximum, since some systems never lost to any of the others
        (Ford, 1957), or the numbers are no counts.
    """
    wins_KK = np.asarray(wins_KK, np.float64)
    if wins_KK.ndim != 2 or len(set(wins_KK.shape)) > 1 or len(wins_KK) < 2:
        raise ValueError(f"wins of shape {wins_KK.shape}: give two or more systems by systems")
    if not (wins_KK >= 0).all():
        raise ValueError(f"wins from {wins_KK.min()}: give counts")
    wins_KK = wins_KK * (1 - np.eye(len(wins_KK)))
    components, _ = scipy.sparse.csgraph.connected_components(
        wins_KK > 0, directed=True, connection="strong"
    )
    if components > 1:
        raise ValueError(
            "some systems never lost to any of the others, or were not compared with them: gather "
            "more answers"
        )
    games_KK, won_K = wins_KK + wins_KK.T, wins_KK.sum(axis=1)
    strength_K = np.ones(len(wins_KK))
    for _ in range(_STEPS):
        before_K = strength_K
        weight_K = (games_KK / (strength_K[:, None] + strength_K)).sum(axis=1)
        strength_K = won_K / weight_K
        strength_K = strength_K / np.exp(np.log(strength_K).mean())
        if np.abs(np.log(strength_K / before_K)).max() < _TOLERANCE:
            return strength_K
    raise ValueError(f"strengths still move after {_STEPS} steps: gather more even answers")


def signed_rank(scores_N: Sequence[int]) -> float:
    """p of Wilcoxon's signed-rank test that preferences are symmetric about none, two-sided.

    Answers without a preference have no rank; where there are no others, p is 1.
    """
    scores_N = np.asarray(scores_N)
    return float(scipy.stats.wilcoxon(scores_N).pvalue) if scores_N.any() else 1.0


# The analysis -----------------------------------------------------------------------------------


def analyse(
    participants: Sequence[Participant], key: Key, *, min_seconds: float = MIN_SECONDS
) -> dict[str, Any]:
    """Wins, preferences between each two systems, and strengths; JSON-ready but for `Estimate`s.

    Left out are participants who failed the headphones check or whose median answer took less than
    `min_seconds`. An answer without a preference is no win; to Bradley and Terry's model it is half
    a win for both. Tests take answers for independent, as the paper does, although a participant
    gives several.

    Raises:
      UserError: two participants have one name, or nobody is left.
    """
    names = [each.name for each in participants]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"participant {name!r} answered in two files: give one of them")
    failed = [each for each in participants if not each.headphones]
    fast = [each for each in participants if each.headphones and each.median_seconds < min_seconds]
    counted = [each for each in participants if each not in failed and each not in fast]
    if not counted:
        raise UserError(
            f"none of {len(names)} participants counts ({len(failed)} failed the headphones check, "
            f"{len(fast)} took less than {min_seconds:g} s an answer): ask more people"
        )
    answers = [answer for each in counted for answer in each.answers]
    pairs = [_compare(one, other, answers) for one, other in itertools.combinations(key.systems, 2)]
    tested = [pair for pair in pairs if pair["answers"]]
    for pair in tested:
        pair["p_bonferroni"] = min(1.0, pair["p"] * len(tested))
    return {
        "test": key.test,
        "answers": len(answers),
        "participants": {
            "counted": {each.name: each.code for each in counted},
            "failed the headphones check": {each.name: each.code for each in failed},
            f"took less than {min_seconds:g} s an answer": {each.name: each.code for each in fast},
        },
        "systems": _systems(key.systems, tested),
        "pairs": tested,
        **_strengths(key.systems, tested),
    }


def _compare(one: str, other: str, answers: Sequence[Answer]) -> dict[str, Any]:
    """Two systems; scores are positive where the first is preferred."""
    scores_N = [
        answer.score if answer.one == one else -answer.score
        for answer in answers
        if {answer.one, answer.other} == {one, other}
    ]
    if not scores_N:
        return {"systems": [one, other], "answers": 0}
    return {
        "systems": [one, other],
        "answers": len(scores_N),
        "wins": [sum(score > 0 for score in scores_N), sum(score < 0 for score in scores_N)],
        "scores": {word: scores_N.count(score) for word, score in _POINTS.items()},
        "mean_score": float(np.mean(scores_N)),
        "p": signed_rank(scores_N),
    }


def _systems(systems: Sequence[str], pairs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    figures = {}
    for system in systems:
        own = [pair for pair in pairs if system in pair["systems"]]
        wins = sum(pair["wins"][pair["systems"].index(system)] for pair in own)
        trials = sum(pair["answers"] for pair in own)
        figures[system] = {
            "answers": trials,
            "wins": wins,
            "win_rate": wilson(wins, trials) if trials else None,
        }
    return figures


def _strengths(systems: Sequence[str], pairs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Bradley–Terry strengths by system, or why there are none."""
    wins_KK = np.zeros((len(systems), len(systems)))
    for pair in pairs:
        one, other = (systems.index(system) for system in pair["systems"])
        ties = pair["answers"] - sum(pair["wins"])
        wins_KK[one, other] = pair["wins"][0] + ties / 2
        wins_KK[other, one] = pair["wins"][1] + ties / 2
    try:
        strength_K = bradley_terry(wins_KK)
    except ValueError as error:
        return {"strengths": None, "no_strengths": str(error)}
    return {"strengths": dict(zip(systems, map(float, strength_K), strict=True))}


def markdown(figures: Mapping[str, Any]) -> str:
    """The tables of `analyse`'s figures."""
    people = figures["participants"]
    left_out = [f"{len(names)} {why}" for why, names in people.items() if why != "counted"]
    strengths = figures["strengths"] or {}
    systems = [
        [
            system,
            own["answers"],
            own["wins"],
            own["win_rate"] or "–",
            strengths.get(system, "–"),
        ]
        for system, own in figures["systems"].items()
    ]
    pairs = [
        [
            " / ".join(pair["systems"]),
            pair["answers"],
            *pair["scores"].values(),
            f"{pair['mean_score']:+.2f}",
            f"{pair['p']:.2g}",
            f"{pair['p_bonferroni']:.2g}",
        ]
        for pair in figures["pairs"]
    ]
    told = [
        f"Listening test {figures['test']}: {figures['answers']:,} answers of "
        f"{len(people['counted'])} participants; left out: {', '.join(left_out)}.",
        report.table(["system", "answers", "wins", "win rate", "strength"], systems),
        "A strong or weak preference is a win, no preference is none; in brackets Wilson's 95 % "
        "interval. Strength: Bradley and Terry's, of geometric mean 1, no preference being half a "
        "win for both.",
    ]
    if "no_strengths" in figures:
        told.append(f"No strengths: {figures['no_strengths']}.")
    told += [
        report.table(["first / second", "answers", *_POINTS, "mean", "p", "p × pairs"], pairs),
        "Mean: from 2, strongly for the first, to -2. p: Wilcoxon's signed-rank test on the five "
        f"points, two-sided; Bonferroni's correction for {len(pairs)} "
        f"pair{'s' if len(pairs) > 1 else ''}. Answers are taken for independent.",
    ]
    return "\n\n".join(told) + "\n"
