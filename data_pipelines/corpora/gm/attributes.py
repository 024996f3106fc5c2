"""What a General-MIDI clip can be: twelve instruments, keys, tempi, registers, and the hold-out."""

from __future__ import annotations

import dataclasses
import hashlib
import random

MODES = ("major", "minor")
TEMPI = ("slow", "medium", "fast")
DENSITIES = ("sparse", "moderate", "dense")
REGISTERS = ("low", "mid", "high")
ARTICULATIONS = ("legato", "staccato")

# Beats a minute that are drawn. The classes' cut-offs are 90 and 130; the air around them keeps
# a listener (or a classifier) from being asked what nobody could answer.
BPM_RANGE = {"slow": (60, 84), "medium": (96, 124), "fast": (138, 180)}
TEMPO_CUTS = (90, 130)
# Notes of the melody a beat, counted over the whole clip.
DENSITY_CUTS = (0.85, 1.4)
# Mean MIDI pitch of the melody.
REGISTER_CUTS = (58.0, 71.0)

# One combination in ten never reaches training.
HELD_OUT_ONE_IN = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instrument:
    """One class of timbre.

    Attributes:
      name: the class.
      family: its General-MIDI family.
      program: General-MIDI program number, from 0.
      level_db: how loud the soundfont plays it (mean RMS of a note, dB), so that leads balance.
    """

    name: str
    family: str
    program: int
    level_db: float


# Chosen by ear and by measurement over MIDI pitches 40 to 89, where all twelve sound and are in
# tune; e.g. the drawbar organ is left out since it sounds one or two octaves below the note.
INSTRUMENTS = {
    instrument.name: instrument
    for instrument in (
        Instrument(name="piano", family="piano", program=0, level_db=-38.0),
        Instrument(name="vibraphone", family="mallets", program=11, level_db=-36.0),
        Instrument(name="church organ", family="organ", program=19, level_db=-30.0),
        Instrument(name="acoustic guitar", family="guitar", program=24, level_db=-33.5),
        Instrument(name="distortion guitar", family="guitar", program=30, level_db=-27.0),
        Instrument(name="violin", family="strings", program=40, level_db=-32.0),
        Instrument(name="choir", family="voice", program=52, level_db=-34.0),
        Instrument(name="trumpet", family="brass", program=56, level_db=-32.5),
        Instrument(name="saxophone", family="reed", program=66, level_db=-29.5),
        Instrument(name="flute", family="pipe", program=73, level_db=-31.5),
        Instrument(name="synth lead", family="synth", program=81, level_db=-32.0),
        Instrument(name="sitar", family="world", program=104, level_db=-37.0),
    )
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attributes:
    """What one clip is asked to be; `compose` keeps to it and `captions` speaks of it."""

    instrument: str
    tonic: int  # pitch class, 0 = C
    mode: str
    bpm: int
    density: str
    register: str
    chords: bool
    bass: bool
    drums: bool
    articulation: str

    def __post_init__(self):
        for field, allowed in (
            ("instrument", tuple(INSTRUMENTS)),
            ("mode", MODES),
            ("density", DENSITIES),
            ("register", REGISTERS),
            ("articulation", ARTICULATIONS),
        ):
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field} = {getattr(self, field)!r}: must be one of {allowed}")
        if not 0 <= self.tonic < 12:
            raise ValueError(f"tonic = {self.tonic}: must be a pitch class, 0 (C) to 11 (B)")
        if not 60 <= self.bpm <= 180:
            raise ValueError(f"bpm = {self.bpm}: must be 60 to 180")

    @property
    def tempo(self) -> str:
        return tempo_class(self.bpm)

    @property
    def mood(self) -> str:
        """What mode and tempo together are commonly called."""
        return {
            ("major", "slow"): "calm",
            ("major", "medium"): "cheerful",
            ("major", "fast"): "happy",
            ("minor", "slow"): "sad",
            ("minor", "medium"): "wistful",
            ("minor", "fast"): "tense",
        }[self.mode, self.tempo]

    @property
    def combination(self) -> str:
        """The attributes that the hold-out is made over, as one string."""
        return "|".join(
            (
                self.instrument,
                self.mode,
                self.tempo,
                self.register,
                f"chords={self.chords:d}",
                f"bass={self.bass:d}",
                f"drums={self.drums:d}",
            )
        )


def tempo_class(bpm: float) -> str:
    """slow below 90 beats a minute, medium below 130, else fast."""
    return TEMPI[sum(bpm >= cut for cut in TEMPO_CUTS)]


def density_class(notes_per_beat: float) -> str:
    """sparse below 0.85 melody notes a beat, moderate below 1.4, else dense."""
    return DENSITIES[sum(notes_per_beat >= cut for cut in DENSITY_CUTS)]


def register_class(mean_pitch: float) -> str:
    """low below a mean MIDI pitch of 58, mid below 71, else high."""
    return REGISTERS[sum(mean_pitch >= cut for cut in REGISTER_CUTS)]


def is_held_out(combination: str) -> bool:
    """Whether a combination (`Attributes.combination`) is kept from training, for good.

    The answer comes from a hash of the words alone: no seed or corpus size can move it.
    """
    digest = hashlib.blake2b(combination.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % HELD_OUT_ONE_IN == 0


def draw(rng: random.Random, *, held_out: bool) -> Attributes:
    """Draws a clip's attributes, each uniform, from one side of the hold-out.

    Args:
      rng: the source of chance; it alone decides the result.
      held_out: draw only combinations that training never sees, or only the others.

    Returns:
      The attributes; the tempo class is uniform, and the beats a minute uniform within it.
    """
    while True:
        attributes = Attributes(
            instrument=rng.choice(tuple(INSTRUMENTS)),
            tonic=rng.randrange(12),
            mode=rng.choice(MODES),
            bpm=rng.randint(*BPM_RANGE[rng.choice(TEMPI)]),
            density=rng.choice(DENSITIES),
            register=rng.choice(REGISTERS),
            chords=rng.random() < 0.5,
            bass=rng.random() < 0.5,
            drums=rng.random() < 0.5,
            articulation=rng.choice(ARTICULATIONS),
        )
        if is_held_out(attributes.combination) == held_out:
            return attributes
