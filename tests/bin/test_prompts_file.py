"""Lines of a file of prompts that no person writes, and what becomes of them."""

import json
import pathlib

import pytest

from musiclm import errors
from musiclm.bin import prompts, sampled

DEFAULTS = {
    "seconds": 10.0,
    "seed": 0,
    "sampling": {},
    "decoding": "autoregressive",
    "best_of": 1,
}


def parse(text):
    return prompts.parse(text.encode(), DEFAULTS, pathlib.Path("/folder"))


def sampling(name, value):
    return f'{{"prompt": "a", "sampling": {{"fine": {{"{name}": {value}}}}}}}'


def nested(depth):
    return "[" * depth + "]" * depth


@pytest.mark.parametrize("value", ["[0.5]", '"0.5"', "true", "null", "{}", nested(600)])
def test_a_temperature_is_a_number(value):
    with pytest.raises(errors.UserError, match=r"sampling\.fine\.temperature is no number"):
        parse(sampling("temperature", value))


@pytest.mark.parametrize(
    ("name", "value"),
    [("top_k", None), ("top_p", None), ("top_k", 3), ("top_p", 0.5), ("guidance", 2)],
)
def test_numbers_and_no_limit_are_taken(name, value):
    line = parse(sampling(name, json.dumps(value)))
    assert line.sampling == {"fine": {name: value}}
    assert line.digest("model")


@pytest.mark.parametrize("depth", [600, 100_000])
@pytest.mark.parametrize(
    "text",
    [
        sampling("temperature", "%s"),
        '{"prompt": "a", "sampling": %s}',
        '{"prompt": "a", "story": [[1, %s]]}',
        '{"prompt": "a", "seconds": %s}',
        '{"prompt": "a", "melody": %s}',
        '{"prompt": %s}',
    ],
)
def test_a_deep_line_is_rejected_alone(tmp_path, text, depth):
    folder = sampled.Folder(tmp_path)
    for number, line in enumerate((text % nested(depth), '{"prompt": "a"}'), start=1):
        with folder.rejecting(number):
            parse(line).digest("model")
    rejected = (tmp_path / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(record)["line"] for record in rejected] == [1]
