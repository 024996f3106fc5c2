"""The page of a listening test: two clips and a caption at a time (MusicLM, section 5.1).

One folder that any web server, or none, can serve: index.html, which loads nothing but the clips,
and the clips under names that tell nothing. What stands for what is in the key, which stays with
whoever made the test; the page's answers name comparisons and clips alone.
"""

import dataclasses
import hashlib
import html
import itertools
import json
import pathlib
import string
from collections.abc import Mapping, Sequence

import numpy as np

from musiclm import audio
from musiclm.errors import UserError
from musiclm.evaluation import listening_answers

PAGE = "index.html"

# A prompt, and which of a folder's clips of that prompt.
_Take = tuple[str, int]
_Folder = Mapping[_Take, pathlib.Path]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two clips of one prompt.

    Attributes:
      id: tells nothing of the systems.
      prompt: the caption to judge by.
      systems: names, by the name that each one's clip has in the page.
    """

    id: str
    prompt: str
    systems: Mapping[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Test:
    """What is compared, without the sound.

    Attributes:
      title: of the page.
      systems: their names.
      comparisons: in an order that tells nothing.
      clips: files, by the name that each has in the page.
      per_participant: comparisons that each participant hears.
    """

    title: str
    systems: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    clips: Mapping[str, pathlib.Path]
    per_participant: int


def design(
    folders: Mapping[str, _Folder],
    *,
    title: str = "Listening test",
    num_comparisons: int | None = None,
    per_participant: int | None = None,
    seed: int = 0,
) -> Test:
    """Chooses what is compared: each prompt that all systems have, by each pair of systems.

    Args:
      folders: of each system its clips, by prompt and number among those of a prompt. The n-th clip
        of a prompt is compared with the others' n-th.
      title: of the page.
      num_comparisons: so many of them, evenly over the pairs of systems; all where None.
      per_participant: of these, how many each participant hears, drawn anew; all where None.
      seed: of what is drawn and of the names.

    Raises:
      UserError: fewer than two systems, no prompt that all have, or a number out of range.
    """
    if len(folders) < 2:
        plural = "s" * (len(folders) != 1)
        raise UserError(f"{len(folders)} folder{plural} to compare: give two or more")
    if seed < 0:
        raise UserError(f"seed is {seed}: give 0 or more")
    systems = tuple(folders)
    takes = [
        take for take in folders[systems[0]] if all(take in clips for clips in folders.values())
    ]
    if not takes:
        raise UserError(
            f"no prompt is common to {', '.join(systems)}: generate clips of the same prompts"
        )
    rng = np.random.default_rng(seed)
    # Each pair of systems takes the prompts in an order of its own, and the pairs take turns.
    orders = {
        pair: [takes[i] for i in rng.permutation(len(takes))]
        for pair in itertools.combinations(systems, 2)
    }
    pool = [(pair, order[turn]) for turn in range(len(takes)) for pair, order in orders.items()]
    count = _up_to(num_comparisons, len(pool), "comparisons", "can be made of these folders")
    drawn = [pool[i] for i in rng.permutation(count)]
    heard = sorted({(system, *take) for pair, take in drawn for system in pair})
    digits = len(str(len(heard)))
    names = {
        heard[i]: f"clip-{number:0{digits}d}.wav"
        for number, i in enumerate(rng.permutation(len(heard)), start=1)
    }
    comparisons = []
    for number, (pair, take) in enumerate(drawn, start=1):
        # By name, and names are drawn: the order of a pair tells nothing.
        sides = sorted((names[system, *take], system) for system in pair)
        comparisons.append(
            Comparison(id=f"c{number:0{len(str(count))}d}", prompt=take[0], systems=dict(sides))
        )
    return Test(
        title=title,
        systems=systems,
        comparisons=tuple(comparisons),
        clips={name: folders[system][prompt, i] for (system, prompt, i), name in names.items()},
        per_participant=_up_to(per_participant, count, "comparisons a participant", "are there"),
    )


def _up_to(wish: int | None, most: int, what: str, where: str) -> int:
    if wish is None:
        return most
    if not 1 <= wish <= most:
        raise UserError(f"{wish} {what}: {most} {where}, give 1 to {most}")
    return wish


def write(test: Test, folder: pathlib.Path) -> listening_answers.Key:
    """Writes the page and the clips.

    Clips are written anew, mono and 16-bit: a WAV of ours tells in a comment what made it.

    Args:
      test: what is compared.
      folder: that exists, and is empty.

    Returns:
      The key, which does not belong into the folder.

    Raises:
      UserError: a clip can't be read, or two that are compared differ in length or sample rate.
    """
    facts = {name: audio.read_facts(path) for name, path in test.clips.items()}
    for comparison in test.comparisons:
        _check_alike([(test.clips[name], facts[name]) for name in comparison.systems])
    digest = hashlib.sha256()
    for name, path in sorted(test.clips.items()):
        rate = facts[name]["sample_rate"]
        data = audio.wav_bytes(audio.read_audio(path, rate), rate)
        digest.update(hashlib.sha256(data).digest())
        (folder / name).write_bytes(data)
    comparisons = [
        {"id": each.id, "caption": each.prompt, "clips": list(each.systems)}
        for each in test.comparisons
    ]
    content = {
        "title": test.title,
        "scale": list(listening_answers.SCALE),
        "comparisons": comparisons,
        "perParticipant": test.per_participant,
    }
    digest.update(json.dumps(content, sort_keys=True).encode())
    content = {"test": digest.hexdigest()[:16], **content}
    (folder / PAGE).write_text(_page(content), encoding="utf-8")
    return listening_answers.Key(
        test=content["test"],
        systems=test.systems,
        comparisons={each.id: each.systems for each in test.comparisons},
    )


def _check_alike(clips: Sequence[tuple[pathlib.Path, Mapping]]) -> None:
    (one, one_facts), (other, other_facts) = clips
    for fact, unit, mend in (
        ("sample_rate", "Hz", "resample the higher one"),
        ("seconds", "s", "cut the longer one"),
    ):
        if one_facts[fact] != other_facts[fact]:
            raise UserError(
                f"{one} has {one_facts[fact]:g} {unit} and {other} {other_facts[fact]:g} {unit}, "
                f"which would tell them apart: {mend}"
            )


def _page(content: Mapping) -> str:
    """The page with its style, its program and the test inside."""
    source = {
        kind: pathlib.Path(__file__).with_suffix(f".{kind}").read_text(encoding="utf-8")
        for kind in ("html", "css", "js")
    }
    # Within a script element, "<" could begin its end.
    data = json.dumps(content, ensure_ascii=False).replace("<", "\\u003c")
    return string.Template(source["html"]).substitute(
        title=html.escape(content["title"]), style=source["css"], script=source["js"], test=data
    )
