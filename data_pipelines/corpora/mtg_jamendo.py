"""MTG-Jamendo: 55,000 full Creative Commons tracks with tags (Bogdanov et al., 2019)."""

import argparse
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from data_pipelines import manifest
from data_pipelines.corpora import corpus, tables

EXAMPLES = """\
  musiclm data mtg_jamendo --tsv data/autotagging.tsv --audio raw_30s --out corpora/jamendo \\
      --licences audio_licenses.txt
  musiclm data mtg_jamendo --tsv data/autotagging.tsv --audio raw_30s --out corpora/jamendo \\
      --splits data/splits/split-0

Audio lies as published: raw_30s/14/214.mp3, or 214.low.mp3. With --splits, the split is that of
autotagging-train.tsv, -validation.tsv and -test.tsv there, and tracks in none of them are not
listed; without, it is told by the hash of the artist. Tags are one caption of the kind tags.
"""
_COLUMNS = ("TRACK_ID", "ARTIST_ID", "ALBUM_ID", "PATH", "DURATION", "TAGS")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the corpus's arguments to a parser."""
    parser.add_argument("--tsv", required=True, type=Path, help="a table of tags, as published")
    parser.add_argument(
        "--splits", type=Path, metavar="DIR", help="folder of published splits of that table"
    )
    parser.add_argument(
        "--licences", type=Path, metavar="FILE", help="audio_licenses.txt, as published"
    )
    corpus.add_arguments(parser, audio="folder of 00, 01, … with the MP3s")


def make(args: argparse.Namespace) -> corpus.Made:
    """Writes the manifest; see `EXAMPLES`."""
    splits = _published_splits(args.splits, args.tsv.stem) if args.splits else None
    licences = _licences(args.licences) if args.licences else {}
    files = corpus.audio_files(args.audio)
    return corpus.write(
        [
            _listed(row, files, splits, licences.get(row["PATH"], ""))
            for row in _tracks(args.tsv)
            if splits is None or row["TRACK_ID"] in splits
        ],
        args,
    )


def _tracks(table: Path) -> Iterator[dict]:
    """The rows by the names in the head; a row has as many cells of TAGS as it has tags."""
    lines = tables.lines(table, "\t")
    head = next(lines, [])
    tables.require(table, head, _COLUMNS)
    for cells in lines:
        if len(cells) < len(_COLUMNS):
            raise corpus.CorpusError(
                f"{table}: track {cells[0]} has {len(cells)} cells, fewer than {len(_COLUMNS)}: "
                "fetch the file again"
            )
        yield dict(zip(_COLUMNS[:-1], cells, strict=False)) | {"TAGS": cells[len(_COLUMNS) - 1 :]}


def _published_splits(folder: Path, stem: str) -> dict[str, str]:
    """The split of each track that has one: a few tracks of the whole table have none."""
    return {
        row["TRACK_ID"]: split
        for split in manifest.SPLITS
        for row in _tracks(folder / f"{stem}-{split}.tsv")
    }


def _licences(file: Path) -> dict[str, str]:
    """The licence of each path, from blocks of path, credits and licence with its address."""
    licences = {}
    try:
        for block in file.read_text(encoding="utf-8").strip().split("\n\n"):
            path, *_, licence = block.strip().splitlines()
            licences[path.strip()] = _spdx(licence.strip())
    except (OSError, ValueError) as error:
        raise corpus.CorpusError(
            f"cannot read {file} ({error}): give audio_licenses.txt as published"
        ) from None
    return licences


def _spdx(licence: str) -> str:
    """The identifier of an unported Creative Commons licence; another as published."""
    found = re.search(r"creativecommons\.org/licenses/([a-z-]+)/(\d\.\d)/?$", licence)
    return f"CC-{found[1].upper()}-{found[2]}" if found else licence


def _listed(
    row: dict, files: Mapping[str, Path], splits: Mapping[str, str] | None, licence: str
) -> corpus.Listed:
    path = row["PATH"]
    tags: dict[str, list[str]] = {}
    for tag in row["TAGS"]:
        category, _, name = tag.partition("---")
        tags.setdefault(category, []).append(name)
    return corpus.Listed(
        name=path,
        path=files.get(path) or files.get(path.removesuffix(".mp3") + ".low.mp3"),
        split=splits[row["TRACK_ID"]] if splits else manifest.split_of(row["ARTIST_ID"]),
        licence=licence,
        captions=corpus.tag_captions([name for names in tags.values() for name in names]),
        attributes={
            "track_id": row["TRACK_ID"],
            "artist_id": row["ARTIST_ID"],
            "album_id": row["ALBUM_ID"],
            "tags": tags,
        },
    )
