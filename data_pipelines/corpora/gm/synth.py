"""Renders composed clips with FluidSynth, one synthesizer kept loaded, bytes repeatable."""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path

import numpy as np

from musiclm import errors

APT_LINE = "sudo apt-get install libfluidsynth3 fluid-soundfont-gm"
SOUNDFONT_VARIABLE = "MUSICLM_SOUNDFONT"
SOUNDFONT_PLACES = (
    "/usr/share/sounds/sf2/FluidR3_GM.sf2",
    "/usr/share/soundfonts/FluidR3_GM.sf2",
    "/usr/local/share/sounds/sf2/FluidR3_GM.sf2",
    "/opt/homebrew/share/sounds/sf2/FluidR3_GM.sf2",
)

BLOCK = 64  # samples FluidSynth computes at once; events fall on these, 2 ms at 32 kHz
PEAK = 10 ** (-1 / 20)  # -1 dB of full scale
RMS_BOUNDS_DB = (-40.0, -8.0)
FADE_SECONDS = 0.02

LEAD_LEVEL_DB = -38.0  # the quietest lead at full channel volume; the others come down to it
BASS_LEVEL_DB = -30.0
# How far each part stays below the lead, by channel volume.
PART_DB = {"lead": 0.0, "chords": -7.0, "bass": -2.0, "drums": -9.0}
CHANNELS = {"lead": 0, "chords": 1, "bass": 2, "drums": 9}
DRUM_BANK = 128


class SynthError(errors.UserError):
    """FluidSynth or the soundfont is missing, or a clip came out wrong; the message says how."""


def find_soundfont(soundfont: str | os.PathLike | None = None) -> Path:
    """The soundfont to play: the one named, else $MUSICLM_SOUNDFONT, else the usual places.

    Raises:
      SynthError: there is none there; the message holds the command that installs one.
    """
    named = soundfont or os.environ.get(SOUNDFONT_VARIABLE)
    for place in [named] if named else SOUNDFONT_PLACES:
        path = Path(place)
        if path.is_file():
            with path.open("rb") as head:
                magic = head.read(12)
            if magic[:4] != b"RIFF" or magic[8:] != b"sfbk":
                raise SynthError(f"{path} is not a soundfont (.sf2): name another")
            return path
    where = f"no soundfont at {named}" if named else "the soundfont FluidR3_GM.sf2 is missing"
    raise SynthError(
        f"{where}: install it with `{APT_LINE}`, or name one with --soundfont "
        f"or {SOUNDFONT_VARIABLE}"
    )


def licence_of(soundfont: str | os.PathLike) -> str:
    """The licence of what a soundfont renders, "" if unknown.

    The program that composes claims nothing of its pieces, so what binds a render is the licence of
    the samples that it is made of: FluidR3_GM is under the MIT licence.
    """
    return "MIT" if Path(soundfont).resolve().stem == "FluidR3_GM" else ""


def load_fluidsynth():
    """Imports the bindings.

    Raises:
      SynthError: the bindings or the library that they bind are missing.
    """
    try:
        import fluidsynth  # here: the import itself fails where the library is missing
    except ModuleNotFoundError:
        raise SynthError(
            "pyfluidsynth is missing: install it with `pip install pyfluidsynth`"
        ) from None
    except (ImportError, OSError):
        raise SynthError(
            f"the FluidSynth library is missing: install it with `{APT_LINE}`"
        ) from None
    return fluidsynth


def _volume(level_db: float, target_db: float) -> int:
    """The channel volume (controller 7) that brings a level to a target; 40 log10 by the spec."""
    return max(1, min(127, round(127 * 10 ** (min(0.0, target_db - level_db) / 40))))


class Synthesizer:
    """FluidSynth with a soundfont loaded.

    Rendering runs at twice the output rate where that is 24 kHz or less, and is then brought down
    with a proper filter: FluidSynth's own interpolation does not band-limit what it plays, so at
    16 kHz cymbals and the upper registers would fold back.
    """

    def __init__(self, soundfont: str | os.PathLike, sample_rate: int):
        """Loads the soundfont (0.1 to 0.5 s)."""
        self._bindings = fluidsynth = load_fluidsynth()
        self.licence = licence_of(soundfont)
        self.sample_rate = sample_rate
        self.render_rate = 2 * sample_rate if sample_rate <= 24_000 else sample_rate
        pointer, integer = ctypes.c_void_p, ctypes.c_int
        synth = ("synth", pointer, 1)
        # Without a function to call, a log level is silent; 2 is warnings.
        fluidsynth.cfunc(
            "fluid_set_log_function",
            pointer,
            ("level", integer, 1),
            ("function", pointer, 1),
            ("data", pointer, 1),
        )(2, None, None)
        font = ("font", pointer, 1)
        self._add_font = fluidsynth.cfunc("fluid_synth_add_sfont", integer, synth, font)
        self._remove_font = fluidsynth.cfunc("fluid_synth_remove_sfont", integer, synth, font)
        # The bindings only offer 16-bit samples, which may clip.
        self._write_float = fluidsynth.cfunc(
            "fluid_synth_write_float",
            integer,
            synth,
            ("length", integer, 1),
            ("left", pointer, 1),
            ("left_offset", integer, 1),
            ("left_step", integer, 1),
            ("right", pointer, 1),
            ("right_offset", integer, 1),
            ("right_step", integer, 1),
        )
        self._keeper = fluidsynth.Synth(samplerate=self.render_rate)  # owns the font, never plays
        font_id = self._keeper.sfload(str(soundfont))
        if font_id < 0:
            raise SynthError(f"FluidSynth cannot read {soundfont}: name another soundfont")
        self._font = fluidsynth.cfunc(
            "fluid_synth_get_sfont_by_id", pointer, synth, ("id", integer, 1)
        )(self._keeper.synth, font_id)

    def close(self):
        """Unloads the soundfont."""
        self._keeper.delete()

    @contextlib.contextmanager
    def _fresh(self, midi, lead_level_db: float):
        """A new synthesizer that borrows the loaded font, its channels set up for a piece.

        A used one is not as new after a reset (voices, controllers and reverb carry over), so the
        samples of a clip would depend on the clips before it; a new one costs 2 ms.
        """
        synth = self._bindings.Synth(
            gain=1.0,
            samplerate=self.render_rate,
            channels=16,
            **{
                "synth.chorus.active": 0,
                "synth.reverb.active": 1,
                "synth.reverb.room-size": 0.3,
                "synth.reverb.damp": 0.3,
                "synth.reverb.width": 0.5,
                "synth.reverb.level": 0.3,
                "synth.cpu-cores": 1,
                "synth.polyphony": 128,
            },
        )
        try:
            font_id = self._add_font(synth.synth, self._font)
            for track in midi.instruments:
                channel = CHANNELS[track.name]
                bank = DRUM_BANK if track.is_drum else 0
                synth.program_select(channel, font_id, bank, track.program)
                level = {"bass": BASS_LEVEL_DB, "drums": LEAD_LEVEL_DB}.get(
                    track.name, lead_level_db
                )
                synth.cc(channel, 7, _volume(level, LEAD_LEVEL_DB + PART_DB[track.name]))
                synth.cc(channel, 91, 40)  # reverb send
            yield synth
        finally:
            self._remove_font(synth.synth, self._font)
            synth.delete()

    def _render_into(self, synth, buffer_CT: np.ndarray, start: int, stop: int):
        left, right = (buffer_CT[side, start:].ctypes.data for side in (0, 1))
        self._write_float(synth.synth, stop - start, left, 0, 1, right, 0, 1)

    def render(self, midi, seconds: float, lead_level_db: float) -> np.ndarray:
        """Renders a piece.

        Args:
          midi: a `pretty_midi.PrettyMIDI` whose tracks are named as in `CHANNELS`.
          seconds: length of the result; what sounds longer is faded out.
          lead_level_db: the lead's loudness in this soundfont (`Instrument.level_db`).

        Returns:
          float32 [seconds * sample_rate], mono, not yet normalised. The same piece gives the same
          samples whatever was rendered before.
        """
        # (block, 0 for off or 1 for on, channel, pitch, velocity): sorted, offs come first.
        events = []
        for track in midi.instruments:
            channel = CHANNELS[track.name]
            for note in track.notes:
                on, off = (round(t * self.render_rate / BLOCK) for t in (note.start, note.end))
                events.append((on, 1, channel, note.pitch, note.velocity))
                events.append((max(off, on + 1), 0, channel, note.pitch, 0))
        events.sort()
        blocks = -(-round(seconds * self.render_rate) // BLOCK)
        samples_CT = np.zeros((2, blocks * BLOCK), np.float32)
        with self._fresh(midi, lead_level_db) as synth:
            now = 0
            for block, on, channel, pitch, velocity in events:
                if block >= blocks:
                    break
                if block > now:
                    self._render_into(synth, samples_CT, now * BLOCK, block * BLOCK)
                    now = block
                if on:
                    synth.noteon(channel, pitch, velocity)
                else:
                    synth.noteoff(channel, pitch)
            self._render_into(synth, samples_CT, now * BLOCK, blocks * BLOCK)
        mono_T = samples_CT.mean(axis=0)
        if self.render_rate != self.sample_rate:
            import soxr

            mono_T = soxr.resample(mono_T, self.render_rate, self.sample_rate, quality="HQ")
        wanted = round(seconds * self.sample_rate)
        mono_T = mono_T[:wanted]
        fade = round(FADE_SECONDS * self.sample_rate)
        mono_T[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
        return mono_T


def master(samples_T: np.ndarray, dither_seed: tuple[int, ...]) -> tuple[np.ndarray, float]:
    """Checks a clip, brings its peak to -1 dB and makes it 16-bit, with triangular dither.

    Args:
      samples_T: float32 [T].
      dither_seed: what the dither depends on.

    Returns:
      int16 [T] and its RMS in dB of full scale.

    Raises:
      SynthError: the clip is not finite, silent, or its RMS after normalising lies out of bounds.
    """
    peak = float(np.max(np.abs(samples_T))) if np.isfinite(samples_T).all() else float("nan")
    if not peak > 1e-4:
        raise SynthError(f"peak is {peak}: the clip is silent or not finite")
    scaled_T = samples_T * np.float32(PEAK / peak)
    rms_db = 10 * np.log10(np.mean(np.square(scaled_T, dtype=np.float64)))
    low, high = RMS_BOUNDS_DB
    if not low <= rms_db <= high:
        raise SynthError(f"RMS is {rms_db:.1f} dB, outside {low} to {high} dB")
    rng = np.random.default_rng(dither_seed)
    dither_T = rng.random(len(scaled_T), np.float32) - rng.random(len(scaled_T), np.float32)
    pcm_T = np.clip(np.rint(scaled_T * 32767 + dither_T), -32768, 32767).astype(np.int16)
    return pcm_T, float(rms_db)
