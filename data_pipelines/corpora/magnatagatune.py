"""MagnaTagATune: 25,863 clips of 29 s with 188 tags that players of a game agreed on (2009)."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from data_pipelines import manifest
from data_pipelines.corpora import corpus, tables

EXAMPLES = """\
  musiclm data magnatagatune --annotations annotations_final.csv --info clip_info_final.csv \\
      --audio mtat --out corpora/magnatagatune

Audio lies as published: mtat/f/…-30-59.mp3. The split is the customary one by folder: 0 to b
train, c validation, d to f test. Tags are one caption of the kind tags, a title is one of the kind
short. The tables tell no licence: Magnatune, the publisher of the audio, does.
"""
_NOT_TAGS = ("clip_id", "mp3_path")
_INFO = ("clip_id", "title", "artist", "album", "url")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the corpus's arguments to a parser."""
    parser.add_argument(
        "--annotations", required=True, type=Path, help="annotations_final.csv, as published"
    )
    parser.add_argument("--info", required=True, type=Path, help="clip_info_final.csv, likewise")
    corpus.add_arguments(parser, audio="folder of 0, 1, … f with the MP3s")


def make(args: argparse.Namespace) -> corpus.Made:
    """Writes the manifest; see `EXAMPLES`."""
    info = {row["clip_id"]: row for row in tables.rows(args.info, _INFO, "\t")}
    files = corpus.audio_files(args.audio)
    return corpus.write(
        [
            _listed(args.annotations, row, info, files)
            for row in tables.rows(args.annotations, _NOT_TAGS, "\t")
        ],
        args,
    )


def _listed(
    table: Path,
    row: dict[str, str],
    info: Mapping[str, dict[str, str]],
    files: Mapping[str, Path],
) -> corpus.Listed:
    path = row["mp3_path"]
    tags = [name for name, cell in row.items() if name not in _NOT_TAGS and cell == "1"]
    about = info.get(row["clip_id"], {})
    title = about.get("title", "").strip()
    titles = (manifest.Caption(kind="short", text=title),) if title else ()
    return corpus.Listed(
        name=path,
        path=files.get(path),
        split=_split(table, path),
        captions=(*titles, *corpus.tag_captions(tags)),
        attributes={"clip_id": row["clip_id"], "tags": tags}
        | {name: about[name] for name in ("title", "artist", "album", "url") if name in about},
    )


def _split(table: Path, path: str) -> str:
    folder = path.partition("/")[0]
    if len(folder) != 1 or folder not in "0123456789abcdef":
        raise corpus.CorpusError(
            f"{table}: {path!r} lies in none of the folders 0 to f: give the file as published"
        )
    if folder in "def":
        return "test"
    return "validation" if folder == "c" else "train"
