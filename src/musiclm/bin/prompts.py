"""A file of prompts, one JSON object a line."""

import dataclasses
import difflib
import hashlib
import json
import numbers
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from musiclm import api, errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """One line: the arguments of `api.MusicLM.plans`, of which only the prompt must be there."""

    prompt: str
    seconds: float
    seed: int
    sampling: Mapping[str, Mapping[str, float | int]]
    decoding: str
    best_of: int
    story: Sequence[tuple[float, str]] = ()
    continuation: str | None = None
    melody: str | None = None

    def digest(self, model: str) -> str:
        """SHA-256 of all that decides how it sounds.

        Args:
          model: digest of the bundle, and what of it is not as it was trained.

        Raises:
          UserError: a file that it names can't be read.
        """
        record = dataclasses.asdict(self) | {"model": model}
        for name in FILES:
            if record[name] is None:
                continue
            try:
                content = pathlib.Path(record[name]).read_bytes()
            except (OSError, ValueError) as error:  # ValueError: no file could have such a name
                raise errors.UserError(
                    f"cannot read {record[name]!r} ({error}): check the path"
                ) from error
            record[name] = hashlib.sha256(content).hexdigest()
        return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


FIELDS = tuple(field.name for field in dataclasses.fields(Line))
# Those that a job says for the lines that do not.
DEFAULTS = ("seconds", "seed", "sampling", "decoding", "best_of")
# Those that name a file.
FILES = ("continuation", "melody")
# Of sampling: those that may be null, for all codes.
_LIMITS = ("top_k", "top_p")


def read(path: str) -> list[bytes]:
    """The lines of a file.

    Raises:
      UserError: it can't be read.
    """
    try:
        return pathlib.Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise errors.UserError(
            f"cannot read the prompts {path!r} ({error.strerror}): check the path"
        ) from error


def parse(text: bytes, defaults: Mapping[str, Any], folder: pathlib.Path) -> Line:
    """Reads one line.

    Args:
      text: of the line.
      defaults: of its fields in `DEFAULTS`.
      folder: that paths start from.

    Raises:
      UserError: it is no JSON, or says what can't be done.
    """
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:  # of JSON as of UTF-8
        raise errors.UserError(f"not JSON ({error}): give one object a line") from error
    if not isinstance(record, dict):
        raise errors.UserError('not an object: write it like {"prompt": "calm flute"}')
    _check_names(record, FIELDS, "field")
    if "prompt" not in record:
        raise errors.UserError('no "prompt": say what to play')
    sampling = {stage: dict(options) for stage, options in defaults["sampling"].items()}
    given = record.get("sampling", {})
    if not isinstance(given, dict) or not all(isinstance(part, dict) for part in given.values()):
        raise errors.UserError(
            'sampling is no object of objects: write it like {"fine": {"temperature": 0.5}}'
        )
    _check_names(given, api.STAGES, "stage of sampling")
    for stage, options in given.items():
        _check_names(options, api.SAMPLING, f"field of sampling.{stage}")
        _check_values(options, stage)
        sampling[stage] = sampling.get(stage, {}) | options
    story = record.get("story", [])
    if not isinstance(story, list) or not all(isinstance(part, list) for part in story):
        raise errors.UserError('story is no list of pairs: write it like [[15, "louder"]]')
    fields = {**defaults, **record, "sampling": sampling, "story": tuple(map(tuple, story))}
    for name in FILES:
        path = record.get(name)
        if not isinstance(path, str | None):
            raise errors.UserError(f"{name} is {path!r}: give the path of a file")
        if path is not None:
            fields[name] = str(folder / path)
    request = api.Request(
        (fields["prompt"],),
        fields["seconds"],
        fields["seed"],
        fields["story"],
        fields["best_of"],
        fields["decoding"],
    )  # checks them
    # 10 and 10.0 are one clip.
    return Line(**fields | {"seconds": float(request.seconds)})


def _check_names(given: Mapping[str, Any], known: Sequence[str], what: str) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"give one of {', '.join(known)}"
            raise errors.UserError(f"unknown {what} {name!r}: {hint}")


def _check_values(options: Mapping[str, Any], stage: str) -> None:
    """Of the right type: how large they may be the chain says."""
    for name, value in options.items():
        if value is None and name in _LIMITS:
            continue
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise errors.UserError(
                f"sampling.{stage}.{name} is no number: write it like "
                '{"fine": {"temperature": 0.5}}'
            )
