"""What people prefer: the analysis of a listening test (MusicLM, section 5.1).

A participant hears two clips of one caption and answers on five points; a strong or a weak
preference is a win. For the page that asks see `listening_page`.

N answers, K systems.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse.csgraph
import scipy.stats

from musiclm.errors import UserError
from musiclm.evaluation import bootstrap, report
from musiclm.evaluation.listening_answers import Answer, Key, Participant

# `listening_answers.SCALE` where it no longer matters which was A.
_POINTS = {
    "strongly first": 2,
    "slightly first": 1,
    "none": 0,
    "slightly second": -1,
    "strongly second": -2,
}
_STEPS = 100_000
_TOLERANCE = 1e-10


# Statistics -------------------------------------------------------------------------------------


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


def analyse(participants: Sequence[Participant], key: Key, *, min_seconds: float) -> dict[str, Any]:
    """Wins, preferences between each two systems, and strengths; JSON-ready but for `Estimate`s.

    Left out are participants who failed the headphones check or whose median answer took less than
    `min_seconds`. An answer without a preference is no win; to Bradley and Terry's model it is half
    a win for both. All that is computed takes answers for independent, although a participant gives
    several.

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
            "win_rate": bootstrap.wilson(wins, trials) if trials else None,
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
