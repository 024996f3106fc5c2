"""FMA: Creative Commons music of the Free Music Archive, with genres (Defferrard et al., 2017)."""

import argparse
import html
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from data_pipelines import manifest
from data_pipelines.corpora import corpus, tables

EXAMPLES = """\
  musiclm data fma --metadata fma_metadata --audio fma_large --out corpora/fma_large
  musiclm data fma --metadata fma_metadata --audio fma_small --subset small --out fma_small

Audio lies as published: fma_large/000/000002.mp3. Split and licence are the published ones. Titles
are captions of the kind short, a track's description long, its genres and its artist's tags tags.
"""
_SUBSETS = ("small", "medium", "large", "full")  # each holds those before it; full holds all
_SPLITS = {"training": "train", "validation": "validation", "test": "test"}
_COLUMNS = (
    "set/split",
    "set/subset",
    "track/title",
    "track/genres",
    "track/tags",
    "track/information",
    "track/license",
    "artist/name",
    "album/title",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the corpus's arguments to a parser."""
    parser.add_argument(
        "--metadata",
        required=True,
        type=Path,
        metavar="DIR",
        help="folder of tracks.csv and genres.csv, as published (fma_metadata)",
    )
    parser.add_argument(
        "--subset",
        choices=_SUBSETS,
        default="full",
        help="whose tracks to look for (default: full, all of them)",
    )
    corpus.add_arguments(parser, audio="folder of 000, 001, … with the MP3s")


def make(args: argparse.Namespace) -> corpus.Made:
    """Writes the manifest; see `EXAMPLES`."""
    genres = {
        row["genre_id"]: row["title"]
        for row in tables.rows(args.metadata / "genres.csv", ("genre_id", "title"))
    }
    table = args.metadata / "tracks.csv"
    files = corpus.audio_files(args.audio)
    wanted = _SUBSETS[: _SUBSETS.index(args.subset) + 1]
    return corpus.write(
        [
            _listed(table, row, genres, files)
            for row in _tracks(table)
            if args.subset == "full" or row["set/subset"] in wanted
        ],
        args,
    )


def _tracks(table: Path) -> Iterator[dict[str, str]]:
    """The rows of tracks.csv by "group/name".

    Its head has three lines: the groups of the columns, their names, and that of the index.
    """
    lines = tables.lines(table)
    groups, names, index = (next(lines, []) for _ in range(3))
    columns = [f"{group}/{name}" for group, name in zip(groups, names, strict=False)]
    tables.require(table, columns, _COLUMNS)
    tables.require(table, index, ["track_id"])
    columns[0] = "track_id"
    for cells in lines:
        if len(cells) != len(columns):
            raise corpus.CorpusError(
                f"{table}: track {cells[0]} has {len(cells)} cells, not {len(columns)}: fetch the "
                "file again"
            )
        yield dict(zip(columns, cells, strict=True))


def _listed(
    table: Path, row: dict[str, str], genres: Mapping[str, str], files: Mapping[str, Path]
) -> corpus.Listed:
    track = int(tables.number(table, row["track_id"]))
    name = f"{track // 1000:03d}/{track:06d}.mp3"
    if row["set/split"] not in _SPLITS:
        raise corpus.CorpusError(
            f"{table}: track {track} is of the split {row['set/split']!r}, not one of "
            f"{', '.join(_SPLITS)}: give the file as published"
        )
    numbers = tables.python_list(table, row["track/genres"])
    captions = [
        manifest.Caption(kind=kind, text=text)
        for kind, text in (
            ("short", row["track/title"].strip()),
            ("long", _plain(row["track/information"])),
        )
        if text
    ]
    return corpus.Listed(
        name=name,
        path=files.get(name),
        split=_SPLITS[row["set/split"]],
        licence=row["track/license"].strip(),
        captions=(
            *captions,
            *corpus.tag_captions([genres[number] for number in numbers if number in genres]),
            *corpus.tag_captions(tables.python_list(table, row["track/tags"])),
        ),
        attributes={
            "track_id": track,
            "title": row["track/title"],
            "artist": row["artist/name"],
            "album": row["album/title"],
            "subset": row["set/subset"],
        },
    )


def _plain(text: str) -> str:
    """The words of a piece of HTML."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).split())
