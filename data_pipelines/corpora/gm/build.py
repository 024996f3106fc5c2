"""Builds the corpus: resumable after any kill, and never a half-written file under its name.

In the folder: `corpus.json` (what is being built), WAVs, `manifest.jsonl.part` (a line a finished
clip, in any order) and, once all are there, `manifest.jsonl` in its place.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
from pathlib import Path

import tqdm

from data_pipelines import manifest
from data_pipelines.corpora.gm import clip as gm_clip
from data_pipelines.corpora.gm import synth as gm_synth
from data_pipelines.corpora.gm.worker import Worker, make_all
from musiclm import errors

MAX_CLIPS = 1_000_000  # file names hold six digits


class BuildError(errors.UserError):
    """The corpus cannot be built as asked; the message says why, and the mend."""


def build(
    out: str | os.PathLike,
    clips: int,
    seed: int = 0,
    held_out: bool = False,
    seconds: float = 10.0,
    sample_rate: int = 16_000,
    workers: int | None = None,
    soundfont: str | os.PathLike | None = None,
    timeout: float = 60.0,
    progress: bool = True,
) -> Path:
    """Builds, continues or enlarges a corpus.

    Clip i depends on the seed, the side of the hold-out and i alone, so an interrupted build goes
    on where it was, and a finished one can be made longer.

    Args:
      out: the folder; made if need be.
      clips: how many.
      seed: 0 or more.
      held_out: draw only attribute combinations that training never sees, instead of the others.
      seconds: length of each clip, 8 to 60.
      sample_rate: Hz, 8000 to 48000; 16-bit mono.
      workers: processes that render, each about 300 MB; by default one a core.
      soundfont: a General-MIDI .sf2; by default FluidR3_GM, see `synth.find_soundfont`.
      timeout: seconds after which a clip's renderer is killed (and tried once more).
      progress: show a progress bar.

    Returns:
      The manifest's path.

    Raises:
      BuildError: bad arguments, or the folder holds another corpus.
      SynthError: FluidSynth or the soundfont is missing.
      WorkerError: a clip cannot be rendered.
      OSError: the folder cannot be written.
    """
    if not 0 < clips <= MAX_CLIPS:
        raise BuildError(f"clips = {clips}: must be 1 to {MAX_CLIPS}")
    workers = workers or os.cpu_count() or 1
    if workers < 0:
        raise BuildError(f"workers = {workers}: must be 1 or more")
    try:
        job = gm_clip.Job(
            seed=seed, held_out=held_out, seconds=float(seconds), sample_rate=sample_rate
        )
    except ValueError as error:
        raise BuildError(str(error)) from None
    gm_synth.load_fluidsynth()
    font = gm_synth.find_soundfont(soundfont)
    out = Path(out)
    _claim(out, job, font)

    final = out / manifest.NAME
    part = out / f"{manifest.NAME}.part"
    made = _finished(out, final, part)
    if final.is_file():
        if len(made) > clips:
            raise BuildError(f"{out} already holds {len(made)} clips: ask for as many or more")
        if len(made) == clips and not part.is_file():
            return final
    missing = [index for index in range(clips) if index not in made]
    pool = [Worker(job, font, out, timeout) for _ in range(min(workers, len(missing)))]
    bar = tqdm.tqdm(
        total=clips, initial=clips - len(missing), unit="clip", desc="gm", disable=not progress
    )
    with bar, part.open("a", encoding="utf-8") as lines:
        for clip in make_all(pool, missing):
            lines.write(manifest.dumps(clip) + "\n")
            lines.flush()
            made[clip.attributes["index"]] = clip
            bar.update()
    manifest.write(final, (made[index] for index in range(clips)))
    part.unlink()
    return final


def _claim(out: Path, job: gm_clip.Job, font: Path) -> None:
    """Makes the folder this job's, or checks that it is; leaves nothing behind if it cannot."""
    with font.open("rb") as data:
        digest = hashlib.file_digest(data, "blake2b").hexdigest()[:32]
    record = {
        "corpus": "gm",
        "recipe": gm_clip.RECIPE,
        **dataclasses.asdict(job),
        "soundfont": font.name,
        "soundfont_blake2b": digest,
    }
    path = out / "corpus.json"
    if path.is_file():
        try:
            there = dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            raise BuildError(f"{path} is damaged: choose another folder or empty it") from None
        differs = [k for k, v in record.items() if k != "soundfont" and there.get(k) != v]
        if differs:
            told = ", ".join(f"{k} = {there.get(k)!r}, not {record[k]!r}" for k in differs)
            raise BuildError(f"{out} holds another corpus ({told}): choose another folder")
        return
    if out.is_dir() and any(out.iterdir()):
        raise BuildError(f"{out} is not empty and holds no gm corpus: choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=out, suffix=".tmp", delete=False) as partial:
        json.dump(record, partial, indent=1)
    os.chmod(partial.name, 0o644)
    os.replace(partial.name, path)


def _finished(out: Path, final: Path, part: Path) -> dict[int, manifest.Clip]:
    """The clips that are done, by index; clears away what a kill left half-written."""
    clips = manifest.read(final) if final.is_file() else []
    if part.is_file():
        whole = part.read_text(encoding="utf-8", errors="replace")
        whole = whole[: whole.rfind("\n") + 1]  # a kill may have cut the last line short
        clips += map(manifest.loads, whole.splitlines())
        cut = part.with_name(part.name + ".tmp")
        cut.write_text(whole, encoding="utf-8")
        os.replace(cut, part)
    for stray in out.glob("*.tmp"):
        stray.unlink()
    return {clip.attributes["index"]: clip for clip in clips if (out / clip.file).is_file()}
