"""One clip from (seed, index): drawn, composed, rendered, checked; its WAV and manifest line."""

from __future__ import annotations

import dataclasses
import os
import random
from pathlib import Path

import soundfile

from data_pipelines.gm import captions as gm_captions
from data_pipelines.gm import synth as gm_synth
from data_pipelines.gm.attributes import INSTRUMENTS, Attributes, draw
from data_pipelines.gm.compose import Piece, compose

# Raised whenever the same (seed, index) would give another clip, so that a half-built corpus is
# never finished with clips of another kind.
RECIPE = 1
SPLITS = ("train", "held_out")


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
    def split(self) -> str:
        return SPLITS[self.held_out]

    def chance(self, index: int, purpose: str) -> random.Random:
        """A source of chance of its own for each purpose: new captions leave the music alone."""
        return random.Random(f"gm/{self.split}/{self.seed}/{index}/{purpose}")


def file_name(index: int) -> str:
    return f"{index:06d}.wav"


def make_piece(job: Job, index: int) -> tuple[Attributes, Piece]:
    """Draws and composes clip `index`."""
    attributes = draw(job.chance(index, "attributes"), held_out=job.held_out)
    return attributes, compose(attributes, job.chance(index, "music"), job.seconds)


def make_clip(job: Job, index: int, synthesizer: gm_synth.Synthesizer, folder: Path) -> dict:
    """Makes clip `index`, writes its WAV (beside, then renamed) and returns its manifest line.

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
    os.replace(partial, path)
    rng = job.chance(index, "captions")
    texts = gm_captions.captions(attributes, rng)
    return {
        "file": path.name,
        "caption": rng.choice(texts)["text"],
        "captions": texts,
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
        "seconds": job.seconds,
        "sample_rate": job.sample_rate,
        "rms_db": round(rms_db, 2),
        "seed": job.seed,
        "index": index,
        "split": job.split,
    }
