"""Clips to be measured: the real ones of a corpus, those of a folder, and what a bundle makes.

N clips, T samples.
"""

import contextlib
import functools
import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from musiclm import api, audio, errors
from musiclm.bin import folders
from musiclm.bundle import Bundle
from musiclm.evaluation import adherence, sources, suite

SECONDS = 10.0
_LEAST_SECONDS = 9.9  # of a clip that is given: a codec or a change of rate may have cut off some
# Clips generated at once. Part of what decides a clip's rounding, hence no option.
_BATCH = 16
# Of the code that makes clips of a bundle: what another version made is not taken.
_CODE = sources.digest(
    "api.py", "audio.py", "bundle.py", "models", "nn", "sampler", "token_spec.py", "tokens"
)
_MAKE = "make the corpus with `musiclm data gm`"

Entry = dict[str, Any]


def read_manifest(corpus: pathlib.Path, count: int, *, split: str | None = None) -> list[Entry]:
    """The first `count` clips of a corpus "gm", each with the path of its audio.

    Args:
      corpus: its folder.
      count: of clips.
      split: takes those of one, such as "validation"; None takes all.

    Raises:
      UserError: there is no such corpus, a line of it is no clip, or it has fewer clips.
    """
    path = corpus / "manifest.jsonl"
    entries: list[Entry] = []
    for number, line in enumerate(read_text(path, _MAKE).split("\n"), start=1):
        if len(entries) == count:
            break
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            adherence.answers(entry), suite.long_caption(entry)  # what is asked of it later
            if split in (None, entry["split"]):
                entries.append({**entry, "path": corpus / entry["file"]})
        except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
            raise errors.UserError(
                f"line {number} of {path} is no clip of the corpus gm ({error!r}): {_MAKE}"
            ) from error
    if len(entries) < count:
        which = f"{split} clips" if split else "clips"
        raise errors.UserError(
            f"{corpus} has {len(entries)} {which}: {count} are needed, render more or ask for fewer"
        )
    return entries


def digest(entries: Sequence[Entry]) -> str:
    """Of what the clips of a manifest are, wherever they lie."""
    told = [{name: value for name, value in e.items() if name != "path"} for e in entries]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def read_text(path: pathlib.Path, mend: str) -> str:
    """A text file.

    Raises:
      UserError: it can't be read; the message ends with the mend.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise errors.UserError(f"cannot read {path} ({why}): {mend}") from error


def check_classes(entries: Sequence[Entry]) -> None:
    """Sees that classifiers can be fitted on clips.

    Raises:
      UserError: they all have one answer to a question.
    """
    truths = [adherence.answers(entry) for entry in entries]
    for question in adherence.QUESTIONS:
        found = {truth[question] for truth in truths}
        if len(found) < 2:
            raise errors.UserError(
                f"the {len(entries)} clips to fit on have one answer to {question!r}, "
                f"{', '.join(found)}: take more of them"
            )


def choose(folder: pathlib.Path, prompts: Sequence[str]) -> list[pathlib.Path]:
    """The first clip of each prompt in a folder of clips.

    Raises:
      UserError: it can't be read, or lacks a clip.
    """
    clips = folders.read(folder)
    if missing := [prompt for prompt in prompts if (prompt, 0) not in clips]:
        raise errors.UserError(
            f"{folder} lacks clips of {len(missing)} of {len(prompts)} captions, such as "
            f"{missing[0]!r}: make them, or ask for fewer --clips"
        )
    return [clips[prompt, 0] for prompt in prompts]


def read_real(entries: Sequence[Entry], sample_rate: int) -> suite.Clips:
    """The clips of a manifest; see `read_clips`."""
    waveform_NT = read_clips([entry["path"] for entry in entries], sample_rate)
    return suite.Clips(waveform_NT=waveform_NT, entries=entries)


def read_clips(paths: Sequence[pathlib.Path], sample_rate: int) -> np.ndarray:
    """Waveforms of clips that are given, f32 [N, T]: the first `SECONDS` of each.

    Other rates are resampled and channels averaged.

    Raises:
      UserError: one can't be read, is shorter, silent, or has samples that are no numbers.
    """
    read = functools.partial(audio.read_music, min_seconds=_LEAST_SECONDS)
    return _stack(read, paths, sample_rate)


def read_generated(paths: Sequence[pathlib.Path], sample_rate: int) -> np.ndarray:
    """The same of what `generate` made: a model's silence is its own, and counts as it sounds."""
    return _stack(audio.read_audio, paths, sample_rate)


def _stack(
    read: Callable[..., np.ndarray], paths: Sequence[pathlib.Path], sample_rate: int
) -> np.ndarray:
    waveform_NT = np.zeros((len(paths), round(SECONDS * sample_rate)), np.float32)
    for waveform_T, path in zip(waveform_NT, paths, strict=True):
        samples_T = read(path, sample_rate)[: len(waveform_T)]
        waveform_T[: len(samples_T)] = samples_T
    return waveform_NT


def generate(
    bundle: Bundle,
    prompts: Sequence[str],
    folder: pathlib.Path,
    what: str,
    *,
    best_of: int = 1,
    decoding: str = api.DECODINGS[0],
    sampling: Mapping[str, Mapping[str, float | int]] | None = None,
    seed: int = 0,
) -> list[pathlib.Path]:
    """Makes the clip of each prompt unless its file is there already, made by this version.

    The i-th has seed `seed` + i, or is the best of several.

    Args:
      bundle: that makes them.
      prompts: of the clips.
      folder: for the files.
      what: tells the clips of a folder that are made in different ways apart.
      best_of, decoding, sampling: see `api.MusicLM.generate`.
      seed: of the first clip.
    """
    folder.mkdir(parents=True, exist_ok=True)
    of = f"{_CODE} {bundle.digest} {SECONDS} {what}"
    names = [f"{of} {seed + i} {text}" for i, text in enumerate(prompts)]
    files = [folder / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.wav" for name in names]
    model = api.MusicLM(bundle)
    for first in tqdm(range(0, len(prompts), _BATCH), desc=what, unit="batch"):
        batch = slice(first, first + _BATCH)
        if not all(file.is_file() for file in files[batch]):
            clips = model.generate(
                list(prompts[batch]),
                seconds=SECONDS,
                seed=seed + first * best_of,
                best_of=best_of,
                decoding=decoding,
                sampling=sampling,
            )
            for clip, file in zip(clips, files[batch], strict=True):
                clip.save(file)
    return files


class Bars(contextlib.AbstractContextManager):
    """A progress bar for each thing at work."""

    def __init__(self):
        self._bars: dict[str, Any] = {}

    def move(self, what: str, done: int, total: int) -> None:
        """Shows how far something is."""
        if what not in self._bars:
            self._bars[what] = tqdm(total=total, desc=what, unit="clip")
        self._bars[what].update(done - self._bars[what].n)

    def __exit__(self, *_) -> None:
        for bar in self._bars.values():
            bar.close()
