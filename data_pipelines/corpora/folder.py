"""Any folder of WAV, FLAC, MP3 and Ogg files, with captions from a JSON beside each or one CSV."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipelines import manifest
from data_pipelines.corpora import corpus, tables

EXAMPLES = """\
  musiclm data folder --audio ~/music --out corpora/mine --licence CC-BY-4.0
  musiclm data folder --audio ~/music --csv captions.csv --out corpora/mine.parquet

Words come from song.json beside song.wav, if there is one:
  {"captions": [{"kind": "long", "text": "A calm tune for piano."}], "artist": "Ann", "bpm": 80}
or from one CSV with the columns file (relative to --audio, with /), kind and text, a line a
caption, and any others (artist, bpm, …), which are kept as attributes. Kinds are short, long,
playlist and tags. "licence" and "split" (train, validation or test), where they are given, hold.
Without a split it is told by the hash of "artist", or of the file's path where that is not given.
"""
_COLUMNS = ("file", "kind", "text")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the corpus's arguments to a parser."""
    parser.add_argument("--csv", type=Path, help="a table of captions (default: JSON files)")
    corpus.add_arguments(parser, audio="folder of the audio, at any depth")


def make(args: argparse.Namespace) -> corpus.Made:
    """Writes the manifest; see `EXAMPLES`."""
    files = corpus.audio_files(args.audio)
    words = _from_csv(args.csv) if args.csv else {}
    strangers = [name for name in words if name not in files]
    listed = [
        _listed(name, path, words.get(name, {}) if args.csv else _from_json(path))
        for name, path in files.items()
    ]
    listed += [_listed(name, None, words[name]) for name in strangers]
    return corpus.write(listed, args)


def _from_json(audio: Path) -> Mapping[str, Any]:
    path = audio.with_suffix(".json")
    if not path.is_file():
        return {}
    try:
        words = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise corpus.CorpusError(f"{path} is no JSON ({error}): mend or remove it") from None
    if not isinstance(words, dict):
        raise corpus.CorpusError(f'{path} holds no object: write {{"captions": […]}}')
    return words


def _from_csv(table: Path) -> dict[str, dict[str, Any]]:
    """What is said of each file; of columns beside the captions', a file's last line holds."""
    words: dict[str, dict[str, Any]] = {}
    for row in tables.rows(table, _COLUMNS):
        of_file = words.setdefault(row.pop("file"), {"captions": []})
        of_file["captions"].append({"kind": row.pop("kind"), "text": row.pop("text")})
        of_file.update({name: cell for name, cell in row.items() if cell})
    return words


def _listed(name: str, path: Path | None, words: Mapping[str, Any]) -> corpus.Listed:
    attributes = dict(words)
    captions = attributes.pop("captions", [])
    licence = attributes.pop("licence", None) or ""
    split = attributes.pop("split", "") or manifest.split_of(str(words.get("artist") or name))
    try:
        return corpus.Listed(
            name=name,
            path=path,
            split=split,
            licence=licence,
            captions=tuple(manifest.Caption(**caption) for caption in captions),
            attributes=attributes,
        )
    except (TypeError, ValueError) as error:
        raise corpus.CorpusError(
            f"the words of {name} are not as they should be ({error}): see "
            "`musiclm data folder --help`"
        ) from None
