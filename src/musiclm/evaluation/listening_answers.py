"""The files of a listening test: its key, and the answers that its page saves.

For the page see `listening_page`, for what is made of the answers `listening`.
"""

import dataclasses
import json
import math
import os
import pathlib
import statistics
from collections.abc import Mapping
from typing import Any

from musiclm.errors import UserError

# How far an answer speaks for A, in the words of the page.
SCALE = {
    "strongly prefer A": 2,
    "slightly prefer A": 1,
    "no preference": 0,
    "slightly prefer B": -1,
    "strongly prefer B": -2,
}


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
        return statistics.median(answer.seconds for answer in self.answers)


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
