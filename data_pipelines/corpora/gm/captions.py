"""Words for a clip: sentences that tell all, short descriptions, tags, playlist titles.

Whatever a caption says is true of the clip; all kinds but `long` leave attributes out at random.
"""

from __future__ import annotations

import dataclasses
import random

from data_pipelines import manifest
from data_pipelines.corpora.gm.attributes import Attributes

# Of each kind, in the order in which they are drawn.
COUNTS = {"long": 3, "short": 4, "tags": 2, "playlist": 1}
# The attributes that a caption may speak of.
NAMES = (
    "instrument",
    "key",
    "tempo",
    "density",
    "register",
    "chords",
    "bass",
    "drums",
    "articulation",
)

INSTRUMENT_WORDS = {
    "piano": ("piano", "piano", "piano", "grand piano"),
    "vibraphone": ("vibraphone", "vibraphone", "vibraphone", "vibes"),
    "church organ": ("church organ", "church organ", "pipe organ", "organ"),
    "acoustic guitar": ("acoustic guitar", "acoustic guitar", "nylon guitar", "classical guitar"),
    "distortion guitar": (
        "distortion guitar",
        "distorted electric guitar",
        "distorted guitar",
        "overdriven rock guitar",
    ),
    "violin": ("violin", "violin", "violin", "fiddle"),
    "choir": ("choir", "choir", "vocal choir", "choir of voices"),
    "trumpet": ("trumpet", "trumpet", "trumpet", "brass trumpet"),
    "saxophone": ("saxophone", "saxophone", "sax", "tenor saxophone"),
    "flute": ("flute", "flute", "flute", "concert flute"),
    "synth lead": ("synth lead", "synth lead", "synthesizer", "synth", "electronic synth lead"),
    "sitar": ("sitar", "sitar", "sitar", "Indian sitar"),
}
# (spelling, spelling, …) by mode and pitch class.
TONIC_WORDS = {
    "major": (
        ("C",),
        ("D flat", "Db", "C sharp"),
        ("D",),
        ("E flat", "Eb"),
        ("E",),
        ("F",),
        ("F sharp", "F#", "G flat"),
        ("G",),
        ("A flat", "Ab"),
        ("A",),
        ("B flat", "Bb"),
        ("B",),
    ),
    "minor": (
        ("C",),
        ("C sharp", "C#"),
        ("D",),
        ("E flat", "Eb", "D sharp"),
        ("E",),
        ("F",),
        ("F sharp", "F#"),
        ("G",),
        ("G sharp", "G#", "A flat"),
        ("A",),
        ("B flat", "Bb"),
        ("B",),
    ),
}
TEMPO_WORDS = {
    "slow": ("slow", "slow", "slow-paced", "unhurried", "slow-tempo"),
    "medium": ("medium-tempo", "mid-tempo", "moderately paced", "medium-paced"),
    "fast": ("fast", "fast", "fast-paced", "quick", "up-tempo"),
}
MOOD_WORDS = {
    "calm": ("calm", "peaceful", "gentle", "relaxing", "tender"),
    "cheerful": ("cheerful", "bright", "pleasant", "carefree"),
    "happy": ("happy", "upbeat", "joyful", "energetic"),
    "sad": ("sad", "melancholic", "gloomy", "mournful"),
    "wistful": ("wistful", "moody", "brooding", "bittersweet"),
    "tense": ("tense", "dramatic", "urgent", "agitated"),
}
DENSITY_PHRASES = {
    "sparse": ("few notes", "sparse notes", "a sparse melody", "long pauses between notes"),
    "moderate": ("a moderate number of notes", "a steady flow of notes", "an even melody"),
    "dense": ("many notes", "a dense melody", "a busy melody", "a flurry of notes"),
}
REGISTER_ADJECTIVES = {
    "low": ("low", "deep", "low-pitched"),
    "mid": ("mid-range", "mid-register"),
    "high": ("high", "high", "high-pitched"),
}
DENSITY_ADJECTIVES = {
    "sparse": ("sparse", "spacious"),
    "moderate": ("moderately busy", "even"),
    "dense": ("busy", "dense"),
}
REGISTER_WORDS = {
    "low": ("low", "low", "deep"),
    "mid": ("middle", "mid-range", "mid"),
    "high": ("high", "high", "upper"),
}
ARTICULATION_WORDS = {
    "legato": ("legato", "smooth", "smooth legato", "flowing, connected"),
    "staccato": ("staccato", "short detached", "crisp staccato", "clipped, detached"),
}
PART_WORDS = {
    "chords": ("chords", "chord accompaniment", "backing chords"),
    "bass": ("bass", "a bass line", "bass guitar"),
    "drums": ("drums", "a drum beat", "a drum kit"),
}
PLAIN_PARTS = {"chords": "chords", "bass": "bass", "drums": "drums"}
PLACES = {
    "calm": ("late at night", "for a quiet evening", "for a lullaby"),
    "cheerful": ("for a sunny morning", "for a walk in the park", "for a coffee break"),
    "happy": ("for a party", "for dancing", "for a summer day"),
    "sad": ("for a rainy day", "for a lonely night", "after a farewell"),
    "wistful": ("for an autumn afternoon", "for thinking of old days", "for a grey morning"),
    "tense": ("for a chase scene", "for a thriller", "for a storm"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wording:
    """A caption, and which of `NAMES` its words settle.

    A word of mood settles none by itself: it follows from mode and tempo.
    """

    caption: manifest.Caption
    names: tuple[str, ...]


def wordings(attributes: Attributes, rng: random.Random) -> list[Wording]:
    """Describes a clip in many ways.

    Args:
      attributes: the clip's.
      rng: the source of chance.
    """
    makers = {"long": _long, "short": _short, "tags": _tags, "playlist": _playlist}
    made = []
    for kind, count in COUNTS.items():
        for _ in range(count):
            text, names = makers[kind](_Words(attributes, rng))
            caption = manifest.Caption(kind=kind, text=text)
            made.append(Wording(caption=caption, names=tuple(n for n in NAMES if n in names)))
    return made


class _Words:
    """Draws a wording for one attribute after another."""

    def __init__(self, attributes: Attributes, rng: random.Random):
        self.attributes, self.rng = attributes, rng
        self.instrument = rng.choice(INSTRUMENT_WORDS[attributes.instrument])
        tonic = rng.choice(TONIC_WORDS[attributes.mode][attributes.tonic])
        self.key = f"{tonic} {attributes.mode}"
        self.tempo = rng.choice(TEMPO_WORDS[attributes.tempo])
        self.bpm = f"{attributes.bpm} {rng.choice(('bpm', 'BPM', 'beats per minute'))}"
        self.mood = rng.choice(MOOD_WORDS[attributes.mood])
        self.notes = rng.choice(DENSITY_PHRASES[attributes.density])
        self.density = rng.choice(DENSITY_ADJECTIVES[attributes.density])
        self.register = rng.choice(REGISTER_WORDS[attributes.register])
        self.pitched = rng.choice(REGISTER_ADJECTIVES[attributes.register])
        self.articulation = rng.choice(ARTICULATION_WORDS[attributes.articulation])
        self.place = rng.choice(PLACES[attributes.mood])

    def parts(self, named=("chords", "bass", "drums")) -> str:
        """Says of each part named whether it plays: "with drums and bass but no chords"."""
        named = self.rng.sample(list(named), len(named))
        present = [part for part in named if getattr(self.attributes, part)]
        absent = [part for part in named if part not in present]
        words = [self.rng.choice(PART_WORDS[part]) for part in present]
        missing = [PLAIN_PARTS[part] for part in absent]
        if not absent:
            return f"{self.rng.choice(('with', 'with', 'backed by'))} {_list(words)}"
        if not present:
            if len(named) == 3 and self.rng.random() < 0.5:
                return f"{self.rng.choice(('solo', 'unaccompanied'))}, " + self._without(missing)
            return self._without(missing)
        but = self.rng.choice((" but no ", " and no ", " but without "))
        return f"with {_list(words)}{but}{_list(missing, 'or')}"

    def _without(self, missing: list[str]) -> str:
        return f"{self.rng.choice(('without', 'with no'))} {_list(missing, 'or')}"


def _list(words: list[str], joint: str = "and") -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {joint} {words[-1]}"


def _a(text: str) -> str:
    return f"{'an' if text[0].lower() in 'aeiou' else 'a'} {text}"


def _long(words: _Words) -> tuple[str, set[str]]:
    rng = words.rng
    tempo = rng.choice((words.tempo, f"{words.tempo} {words.mood}", f"{words.mood}, {words.tempo}"))
    tune = rng.choice(("melody", "tune", "piece"))
    at = rng.choice((f" at {words.bpm}", ""))
    text = rng.choice(
        (
            f"{_a(f'{tempo} {words.instrument} {tune}')} in {words.key}{at}, "
            f"{words.articulation}, in the {words.register} register with {words.notes}, "
            f"{words.parts()}.",
            f"{_a(words.instrument)} plays {_a(f'{tempo} {tune}')} in {words.key}{at}. "
            f"It is {words.articulation} and {words.pitched}, has {words.notes}, "
            f"and is played {words.parts()}.",
            f"{_a(f'{tempo} {tune}')} for {words.instrument} in the key of {words.key}, "
            f"{words.parts()}. The {words.articulation} playing stays in the {words.register} "
            f"register with {words.notes}{f', {words.bpm}' if at else ''}.",
            f"this is {_a(f'{words.density}, {tempo} {words.instrument} {tune}')} in {words.key}"
            f"{at}. The notes are {words.articulation} and {words.pitched}. "
            f"It is played {words.parts()}.",
        )
    )
    return text[0].upper() + text[1:], set(NAMES)


def _short(words: _Words) -> tuple[str, set[str]]:
    """The lead and one to three more, in the order English puts them."""
    rng = words.rng
    names = {"instrument", *rng.sample(NAMES[1:], rng.choice((1, 2, 2, 3)))}
    parts = [part for part in ("chords", "bass", "drums") if part in names]
    before = []
    if "tempo" in names:
        before.append(words.tempo)
    if "density" in names:
        before.append(words.density)
    if rng.random() < 0.5:
        before.append(words.mood)
    if "articulation" in names:
        before.append(words.articulation)
    if "register" in names:
        before.append(words.pitched)
    noun = rng.choice(("melody", "melody", "tune", "music", "solo" if not parts else "line"))
    if noun == "solo" and (
        words.attributes.chords or words.attributes.bass or words.attributes.drums
    ):
        noun = "melody"
    text = " ".join([*before, words.instrument, noun])
    if noun != "music" and rng.random() < 0.6:
        text = _a(text)
    if "key" in names:
        text += f" in {words.key}"
    if "tempo" in names and rng.random() < 0.25:
        text += f" at {words.bpm}"
    if parts:
        text += (", " if rng.random() < 0.3 else " ") + words.parts(parts)
    return text, names


def _tags(words: _Words) -> tuple[str, set[str]]:
    rng = words.rng
    names = {name for name in NAMES if rng.random() < (0.9 if name == "instrument" else 0.5)}
    names = names or {"instrument"}
    attributes = words.attributes
    tags = {
        "instrument": words.instrument,
        "key": words.key,
        "tempo": rng.choice((words.tempo, words.tempo, words.bpm)),
        "density": words.density,
        "register": f"{words.register} register",
        "articulation": words.articulation.replace(",", ""),
    }
    for part, plain in PLAIN_PARTS.items():
        tags[part] = plain if getattr(attributes, part) else f"no {plain}"
    chosen = [tags[name] for name in NAMES if name in names]
    if rng.random() < 0.4:
        chosen.append(words.mood)
    rng.shuffle(chosen)
    return ", ".join(chosen), names


def _playlist(words: _Words) -> tuple[str, set[str]]:
    rng = words.rng
    instrument = words.instrument[0].upper() + words.instrument[1:]
    mood = words.mood[0].upper() + words.mood[1:]
    tempo = words.tempo[0].upper() + words.tempo[1:]
    return rng.choice(
        (
            (f"{mood} {words.instrument} {words.place}", {"instrument"}),
            (f"{instrument} {words.place}", {"instrument"}),
            (f"{tempo} {words.instrument} {words.place}", {"instrument", "tempo"}),
            (f"{mood} {words.instrument} in {words.key}", {"instrument", "key"}),
            (f"{mood} instrumental music {words.place}", set()),
        )
    )
