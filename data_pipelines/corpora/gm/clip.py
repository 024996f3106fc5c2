"""One clip from (seed, index): drawn, composed, rendered, checked; its WAV and manifest line."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import random
from pathlib import Path

import soundfile

from data_pipelines import manifest
from data_pipelines.corpora.gm import captions as gm_captions
from data_pipelines.corpora.gm import synth as gm_synth
from data_pipelines.corpora.gm.attributes import INSTRUMENTS, Attributes, draw
from data_pipelines.corpora.gm.compose import Piece, compose

# Raised whenever the same (seed, index) would give another clip, so that a half-built corpus is
# never finished with clips of another kind.
RECIPE = 2
VALIDATION = 0.025  # of the clips that training may see


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What a corpus's clips share. `corpus.json` holds it; a worker is told it once."""

    seed: int
    held_out: bool
    seconds: float
    sample_rate: int

    def __post_init__(self):
        if self.seed < 0:
            raise ValueError(f"seed = {self.seed}: must be 0 or more")
        if not 8 <= self.seconds <= 60:
            raise ValueError(f"seconds = {self.seconds}: must be 8 to 60")
        if not 8_000 <= self.sample_rate <= 48_000:
            raise ValueError(f"sample_rate = {self.sample_rate}: must be 8000 to 48000")

    @property
    def side(self) -> str:
        return "held_out" if self.held_out else "train"

    def split(self, index: int) -> str:
        """Clips on the far side of the hold-out are the test's; the others are told by hash."""
        if self.held_out:
            return "test"
        return manifest.split_of(f"gm/{self.seed}/{index}", validation=VALIDATION, test=0.0)

    def chance(self, index: int, purpose: str) -> random.Random:
        """A source of chance of its own for each purpose: new captions leave the music alone."""
        return random.Random(f"gm/{self.side}/{self.seed}/{index}/{purpose}")


def file_name(index: int) -> str:
    return f"{index:06d}.wav"


def make_piece(job: Job, index: int) -> tuple[Attributes, Piece]:
    """Draws and composes clip `index`."""
    attributes = draw(job.chance(index, "attributes"), held_out=job.held_out)
    return attributes, compose(attributes, job.chance(index, "music"), job.seconds)


def make_clip(
    job: Job, index: int, synthesizer: gm_synth.Synthesizer, folder: Path
) -> manifest.Clip:
    """Makes clip `index`, writes its WAV (beside, then renamed) and returns its record.

    Raises:
      SynthError: the rendered clip fails its checks. It is not drawn again: what the composer can
        make passes, so a failure means a broken soundfont or synthesizer.
    """
    attributes, piece = make_piece(job, index)
    instrument = INSTRUMENTS[attributes.instrument]
    samples_T = synthesizer.render(piece.midi, job.seconds, instrument.level_db)
    try:
        pcm_T, rms_db = gm_synth.master(samples_T, (job.seed, index))
    except gm_synth.SynthError as error:
        raise gm_synth.SynthError(f"clip {index} ({attributes.instrument}): {error}") from None
    path = folder / file_name(index)
    partial = path.with_suffix(".wav.tmp")
    soundfile.write(partial, pcm_T, job.sample_rate, format="WAV", subtype="PCM_16")
    sha256 = hashlib.sha256(partial.read_bytes()).hexdigest()
    os.replace(partial, path)
    rng = job.chance(index, "captions")
    captions = tuple(one.caption for one in gm_captions.wordings(attributes, rng))
    return manifest.Clip(
        file=path.name,
        sha256=sha256,
        seconds=job.seconds,
        sample_rate=job.sample_rate,
        channels=1,
        licence=synthesizer.licence,
        split=job.split(index),
        captions=captions,
        attributes={
            "caption": rng.choice(captions).text,
            "instrument": instrument.name,
            "family": instrument.family,
            "program": instrument.program,
            "tonic": attributes.tonic,
            "mode": attributes.mode,
            "bpm": attributes.bpm,
            "tempo": attributes.tempo,
            "notes_per_s": round(piece.notes_per_s, 3),
            "density": attributes.density,
            "register": attributes.register,
            "mean_pitch": round(piece.mean_pitch, 2),
            "chords": attributes.chords,
            "bass": attributes.bass,
            "drums": attributes.drums,
            "articulation": attributes.articulation,
            "mood": attributes.mood,
            "combination": attributes.combination,
            "rms_db": round(rms_db, 2),
            "seed": job.seed,
            "index": index,
        },
    )
