"""Composes a short tune from its attributes: a lead with a motif, a progression, a cadence.

Pitches are handled as scale indices: index 7 * octave + degree, where degree 0 is the tonic,
so every note of lead, chords and bass is in the scale by construction. 4/4 throughout.
"""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pretty_midi

from data_pipelines.corpora.gm.attributes import (
    INSTRUMENTS,
    Attributes,
    density_class,
    register_class,
)

SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}  # natural minor
# Degrees of the triads, from 0. The diminished triads are left out.
PROGRESSIONS = {
    "major": ((0, 3, 4, 0), (0, 5, 3, 4), (0, 4, 5, 3), (0, 3, 0, 4), (0, 5, 1, 4), (0, 2, 3, 4)),
    "minor": ((0, 3, 4, 0), (0, 5, 2, 6), (0, 5, 3, 4), (0, 6, 5, 4), (0, 3, 0, 6), (0, 2, 5, 6)),
}
# Beats between onsets, one bar a cell.
RHYTHMS = {
    "sparse": ((2, 2), (3, 1), (2, 1, 1), (1.5, 2.5)),
    "moderate": (
        (1, 1, 1, 1),
        (1, 0.5, 0.5, 1, 1),
        (1.5, 0.5, 1, 1),
        (1, 1, 0.5, 0.5, 1),
        (1.5, 0.5, 1.5, 0.5),
        (0.5, 0.5, 1, 1, 1),
    ),
    "dense": (
        (0.5,) * 8,
        (0.5, 0.5, 0.5, 0.25, 0.25, 0.5, 0.5, 0.5, 0.5),
        (0.75, 0.25, 0.5, 0.5, 0.75, 0.25, 0.5, 0.5),
        (0.5, 0.25, 0.25, 0.5, 0.5, 0.5, 0.25, 0.25, 1),
    ),
}
FORMS = ("AABA", "ABAB", "AABB", "ABAA")
CENTRE = {"low": 52, "mid": 64, "high": 77}  # MIDI pitch the lead moves about
MAX_STEPS = 4  # scale steps that the lead strays from its centre
LOWEST, HIGHEST = 40, 89  # what that comes to, with strong beats drawn to the chord
# Where the triads lie: under the lead, but for the low one, where they would be mud.
CHORD_CENTRE = {"low": 59, "mid": 54, "high": 62}
BASS_PROGRAM, BASS_LOWEST = 33, 28
KICK, SNARE, HAT, RIDE, CRASH = 36, 38, 42, 51, 49
DRUMS = {
    "rock": ((KICK, (0, 2)), (SNARE, (1, 3)), (HAT, (0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5))),
    "four on the floor": ((KICK, (0, 1, 2, 3)), (SNARE, (1, 3)), (HAT, (0.5, 1.5, 2.5, 3.5))),
    "syncopated": ((KICK, (0, 1.5, 2)), (SNARE, (1, 3)), (HAT, (0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5))),
    "ride": ((KICK, (0, 2, 2.5)), (SNARE, (1, 3)), (RIDE, (0, 1, 2, 3))),
}
END_SILENCE = 0.1  # seconds without a held note, so that the last one is let go


@dataclasses.dataclass(frozen=True, kw_only=True)
class Piece:
    """A composed clip.

    Attributes:
      midi: the notes; tracks are named lead, chords, bass and drums.
      notes_per_s: onsets of the lead a second.
      notes_per_beat: onsets of the lead a beat.
      mean_pitch: mean MIDI pitch of the lead's notes.
    """

    midi: pretty_midi.PrettyMIDI
    notes_per_s: float
    notes_per_beat: float
    mean_pitch: float


@dataclasses.dataclass(frozen=True)
class _Clock:
    """Beats to seconds, where the cadence begins, and how long notes are held."""

    seconds: float
    bpm: int
    staccato: bool

    @property
    def beat(self) -> float:
        return 60 / self.bpm

    @property
    def body(self) -> int:
        """Beats before the closing note, which takes about 1.2 s or more."""
        whole = int(self.seconds / self.beat + 1e-9)
        return whole - max(1, round(1.2 / self.beat))

    def note(self, pitch: int, velocity: float, start: float, beats: float, closing=False):
        """A note that starts at beat `start` and has `beats` until the next."""
        span = beats * self.beat
        if closing:
            span = self.seconds - END_SILENCE - start * self.beat
            held = min(span, 0.7) if self.staccato else span
        else:
            # Never into the next note, which a late note-off of the same key would cut.
            held = min(max(0.4 * span, 0.09), 0.26, 0.97 * span) if self.staccato else 0.97 * span
        begin = start * self.beat
        return pretty_midi.Note(
            velocity=int(min(127, max(1, velocity))), pitch=pitch, start=begin, end=begin + held
        )


class _Scale:
    """Scale indices to MIDI pitches and back."""

    def __init__(self, tonic: int, mode: str):
        self.tonic, self.steps = tonic, SCALES[mode]

    def pitch(self, index: int) -> int:
        return self.tonic + 12 * (index // 7) + self.steps[index % 7]

    def nearest(self, pitch: float, degrees=range(7)) -> int:
        """The index nearest to a pitch among those whose degree is one of `degrees`."""
        indices = [7 * octave + degree for octave in range(-1, 11) for degree in degrees]
        return min(indices, key=lambda index: (abs(self.pitch(index) - pitch), index))


def compose(attributes: Attributes, rng: random.Random, seconds: float = 10.0) -> Piece:
    """Composes a clip.

    Args:
      attributes: what it must be.
      rng: the source of chance; with the attributes it decides every note.
      seconds: its length, 8 or more (a shorter one has no room for motif and cadence).

    Returns:
      The piece; `register_class(mean_pitch)` and `density_class(notes_per_beat)` are those
      asked for, every pitched note is in the scale, and every note ends within `seconds`.

    Raises:
      ValueError: `seconds` is below 8.
    """
    if seconds < 8:
        raise ValueError(f"seconds = {seconds}: a tune needs 8 or more")
    clock = _Clock(float(seconds), attributes.bpm, attributes.articulation == "staccato")
    scale = _Scale(attributes.tonic, attributes.mode)
    harmony = _harmony(attributes, clock, rng)
    lead = _lead(attributes, clock, scale, harmony, rng)
    program = INSTRUMENTS[attributes.instrument].program
    midi = pretty_midi.PrettyMIDI(initial_tempo=attributes.bpm)
    _add(midi, "lead", program, lead)
    # Drawn whether used or not, so that a part's notes do not depend on which others play.
    chords = _chords(attributes, clock, scale, harmony, rng)
    bass = _bass(clock, scale, harmony, rng)
    drums = _drums(clock, rng)
    if attributes.chords:
        _add(midi, "chords", program, chords)
    if attributes.bass:
        _add(midi, "bass", BASS_PROGRAM, bass)
    if attributes.drums:
        _add(midi, "drums", 0, drums, is_drum=True)
    return Piece(
        midi=midi,
        notes_per_s=len(lead) / seconds,
        notes_per_beat=len(lead) * clock.beat / seconds,
        mean_pitch=float(np.mean([note.pitch for note in lead])),
    )


def _add(midi, name: str, program: int, notes, is_drum: bool = False):
    track = pretty_midi.Instrument(program=program, is_drum=is_drum, name=name)
    track.notes = notes
    midi.instruments.append(track)


def _harmony(attributes: Attributes, clock: _Clock, rng: random.Random) -> list[tuple]:
    """(start beat, beats, degree) of each chord; a dominant leads to the tonic at the close."""
    length = {"slow": 2, "medium": rng.choice((2, 4)), "fast": 4}[attributes.tempo]
    progression = rng.choice(PROGRESSIONS[attributes.mode])
    dominant = 4 if attributes.mode == "major" else rng.choice((4, 6))
    starts = list(range(0, clock.body, length))
    slots = [
        (start, min(length, clock.body - start), progression[k % len(progression)])
        for k, start in enumerate(starts)
    ]
    slots[-1] = (*slots[-1][:2], dominant)
    return [*slots, (clock.body, 0, 0)]


def _degree_at(harmony: list[tuple], beat: float) -> int:
    return next(degree for start, _, degree in reversed(harmony) if start <= beat)


def _triad(degree: int) -> tuple[int, ...]:
    return tuple((degree + third) % 7 for third in (0, 2, 4))


def _lead(attributes, clock, scale, harmony, rng) -> list[pretty_midi.Note]:
    for _ in range(64):  # nearly always the first; a mean may stray past its class's edge
        notes = _draw_lead(attributes, clock, scale, harmony, rng)
        register = register_class(np.mean([note.pitch for note in notes]))
        density = density_class(len(notes) * clock.beat / clock.seconds)
        if (register, density) == (attributes.register, attributes.density):
            return notes
    raise RuntimeError(f"no melody keeps to its register and density: {attributes}")


def _draw_lead(attributes, clock, scale, harmony, rng) -> list[pretty_midi.Note]:
    centre = scale.nearest(CENTRE[attributes.register] + rng.randint(-2, 2))
    home = scale.nearest(scale.pitch(centre), degrees=(0,))
    form = rng.choice(FORMS)
    motifs = {}
    for name, rhythm in zip("AB", rng.sample(RHYTHMS[attributes.density], 2), strict=True):
        walk = np.cumsum([rng.choice((-2, -1, -1, 1, 1, 2)) for _ in rhythm])
        motifs[name] = rhythm, [int(step) for step in walk - round(float(walk.mean()))]
    notes = []
    for bar, bar_start in enumerate(range(0, clock.body, 4)):
        rhythm, contour = motifs[form[bar % len(form)]]
        position = float(bar_start)
        for beats, step in zip(rhythm, contour, strict=True):
            if position >= clock.body:
                break
            until = min(position + beats, clock.body)
            index = min(max(centre + step, centre - MAX_STEPS), centre + MAX_STEPS)
            if position == 0:
                index = home
            elif until == clock.body:
                index = home + rng.choice((-1, 1))  # steps to the tonic
            elif position % 2 == 0:  # strong beats sound the chord
                chord = _triad(_degree_at(harmony, position))
                index = scale.nearest(scale.pitch(index), degrees=chord)
            accent = 106 if position % 2 == 0 else 98
            velocity = accent + rng.randint(-5, 5)
            notes.append(clock.note(scale.pitch(index), velocity, position, until - position))
            position = until
    notes.append(clock.note(scale.pitch(home), 106, clock.body, 0, closing=True))
    return notes


def _chords(attributes, clock, scale, harmony, rng) -> list[pretty_midi.Note]:
    centre = CHORD_CENTRE[attributes.register]
    gap = 1 if clock.staccato else 2
    notes = []
    for start, length, degree in harmony:
        pitches = [scale.pitch(scale.nearest(centre, degrees=(tone,))) for tone in _triad(degree)]
        strikes = range(start, start + length, gap) if length else (start,)
        for strike in strikes:
            velocity = 78 + rng.randint(-4, 4)
            beats = min(gap, start + length - strike)
            notes += [clock.note(p, velocity, strike, beats, not length) for p in pitches]
    return notes


def _bass(clock, scale, harmony, rng) -> list[pretty_midi.Note]:
    style = rng.choice(("held", "quarters", "root and fifth"))
    gap = 2 if style == "held" else 1
    notes = []
    for start, length, degree in harmony:
        strikes = range(start, start + length, gap) if length else (start,)
        for count, strike in enumerate(strikes):
            tone = (degree + 4) % 7 if style == "root and fifth" and count % 2 else degree
            pitch_class = scale.pitch(tone) % 12
            pitch = BASS_LOWEST + (pitch_class - BASS_LOWEST) % 12
            beats = min(gap, start + length - strike)
            velocity = 100 + rng.randint(-5, 5)
            notes.append(clock.note(pitch, velocity, strike, beats, not length))
    return notes


def _drums(clock, rng) -> list[pretty_midi.Note]:
    pattern = DRUMS[rng.choice(tuple(DRUMS))]
    hits = [
        (bar + position, key)
        for bar in range(0, clock.body, 4)
        for key, positions in pattern
        for position in positions
        if bar + position < clock.body
    ]
    hits += [(clock.body, KICK), (clock.body, CRASH)]
    notes = []
    for start, key in sorted(hits):
        velocity = {KICK: 105, SNARE: 100, HAT: 76, RIDE: 78, CRASH: 84}[key] + rng.randint(-6, 6)
        begin = start * clock.beat
        notes.append(pretty_midi.Note(velocity=velocity, pitch=key, start=begin, end=begin + 0.1))
    return notes
