"""Lines of a file of prompts that no person writes, and what becomes of them."""

import functools
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


FOLDER = pathlib.Path("/folder")


def parse(text):
    return prompts.parse(text.encode(), DEFAULTS, FOLDER)


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


def test_a_line_may_say_anything_or_little():
    fine = {"fine": {"temperature": 0.5, "top_k": 9}}
    parse = functools.partial(prompts.parse, defaults=DEFAULTS | {"sampling": fine}, folder=FOLDER)
    line = parse(b'{"prompt": "flute"}')
    assert (line.seconds, line.seed, line.continuation) == (10.0, 0, None)
    assert line.decoding == "autoregressive"
    assert parse(b'{"prompt": "flute", "decoding": "parallel"}').decoding == "parallel"
    line = parse(
        b'{"prompt": "flute", "seconds": 60, "seed": 4, "story": [[15, "drums"]], '
        b'"sampling": {"fine": {"top_k": 3}, "coarse": {"guidance": 2}}, "continuation": "a/b.mp3"}'
    )
    assert line.sampling == {"fine": {"temperature": 0.5, "top_k": 3}, "coarse": {"guidance": 2}}
    assert line.continuation == "/folder/a/b.mp3"
    assert line.story == ((15, "drums"),)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[]", "not an object"),
        ("{}", 'no "prompt"'),
        ('{"prompt": 3}', "a prompt is 3"),
        ('{"prompt": "a", "secnds": 3}', "unknown field 'secnds': did you mean 'seconds'?"),
        ('{"prompt": "a", "x": 3}', "unknown field 'x': give one of prompt, seconds, seed"),
        ('{"prompt": "a", "seconds": -3}', "seconds is -3"),
        ('{"prompt": "a", "seconds": NaN}', "seconds is nan"),
        ('{"prompt": "a", "seconds": 1e9}', "up to 300"),
        ('{"prompt": "a", "seconds": 0.00001}', "from 0.1"),
        ('{"prompt": "a", "seed": 1.5}', "seed is 1.5"),
        ('{"prompt": "a", "sampling": 3}', "sampling is no object"),
        ('{"prompt": "a", "sampling": {"corse": {}}}', "did you mean 'coarse'?"),
        ('{"prompt": "a", "sampling": {"fine": {"topk": 1}}}', "did you mean 'top_k'?"),
        ('{"prompt": "a", "story": "drums"}', "story is no list of pairs"),
        ('{"prompt": "a", "story": [[3]]}', "story is no list of pairs"),
        ('{"prompt": "a", "best_of": 0}', "best_of is 0"),
        ('{"prompt": "a", "decoding": "paralel"}', "give autoregressive or parallel"),
        ('{"prompt": "\\ud800"}', "UTF-8"),
        ("[" * 100_000, "not JSON"),
        ('{"prompt": "a", "story": [[0, "drums"]]}', "starts 'drums' at 0"),
        ('{"prompt": "a", "story": [[12, "drums"]]}', "below 10"),
        ('{"prompt": "a", "story": [[5, "drums"], [4, "b"]]}', "ascending"),
        ('{"prompt": "a", "continuation": 3}', "continuation is 3"),
        ('{"prompt": "a", "melody": [[1]]}', "melody is [[1]]: give the path of a file"),
    ],
)
def test_wrong_lines_are_told(text, told):
    with pytest.raises(errors.UserError) as raised:
        parse(text)
    assert told in str(raised.value)


def test_the_digest_is_of_all_that_decides(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"one")
    texts = [
        '{"prompt": "a"}',
        '{"prompt": "b"}',
        '{"prompt": "a", "seed": 1}',
        '{"prompt": "a", "story": [[1, "b"]]}',
        '{"prompt": "a", "continuation": "a.wav"}',
        '{"prompt": "a", "decoding": "parallel"}',
        '{"prompt": "a", "best_of": 2}',
    ]
    lines = [prompts.parse(text.encode(), DEFAULTS, tmp_path) for text in texts]
    digests = [line.digest("model") for line in lines]
    assert len({*digests, lines[0].digest("another model")}) == 8
    (tmp_path / "a.wav").write_bytes(b"two")
    assert lines[4].digest("model") != digests[4]
    assert lines[3].digest("model") == digests[3]
