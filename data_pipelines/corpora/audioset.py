"""AudioSet: segments of 10 s from YouTube with labels of an ontology of sounds (Google, 2017)."""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path

from data_pipelines.corpora import corpus, segments, tables

EXAMPLES = """\
  musiclm data audioset --segments balanced_train_segments.csv eval_segments.csv \\
      --labels class_labels_indices.csv --audio clips --out corpora/audioset --music

A clip's audio is any file below --audio whose name contains its YouTube id, cut to its segment.
Segments of a table whose name begins with "eval" become the split test, the others train. The
labels' names are tags. --music keeps the segments that bear the label "Music" itself. The tables
tell no licence of the audio.
"""
_MUSIC = "/m/04rlf"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the corpus's arguments to a parser."""
    parser.add_argument(
        "--segments",
        required=True,
        type=Path,
        nargs="+",
        metavar="CSV",
        help="tables of segments, as published",
    )
    parser.add_argument(
        "--labels",
        required=True,
        type=Path,
        metavar="CSV",
        help="class_labels_indices.csv, as published",
    )
    parser.add_argument("--music", action="store_true", help='only segments labelled "Music"')
    corpus.add_arguments(parser, audio="folder of the segments, one file each")


def make(args: argparse.Namespace) -> corpus.Made:
    """Writes the manifest; see `EXAMPLES`."""
    labels = {
        row["mid"]: row["display_name"]
        for row in tables.rows(args.labels, ("index", "mid", "display_name"))
    }
    rows = [
        (table, cells)
        for table in args.segments
        for cells in _segments(table)
        if not args.music or _MUSIC in cells[3].split(",")
    ]
    files = segments.find(args.audio, (cells[0] for _, cells in rows))
    return corpus.write(
        [_listed(table, cells, labels, files.get(cells[0])) for table, cells in rows], args
    )


def _segments(table: Path) -> Iterator[list[str]]:
    """Id, start, end and labels of each segment; the three lines on top begin with #."""
    for cells in tables.lines(table):
        if cells[0].startswith("#"):
            continue
        if len(cells) != 4:
            raise corpus.CorpusError(
                f"{table} has a line of {len(cells)} cells, not YTID, start_seconds, end_seconds, "
                "positive_labels: give a table of segments as published"
            )
        yield cells


def _listed(
    table: Path, cells: list[str], labels: Mapping[str, str], path: Path | None
) -> corpus.Listed:
    ytid, start, end, mids = cells
    start_s, end_s = tables.number(table, start), tables.number(table, end)
    unknown = [mid for mid in mids.split(",") if mid not in labels]
    if unknown:
        raise corpus.CorpusError(
            f"{table} has the label {unknown[0]}, which --labels does not name: give the "
            "class_labels_indices.csv that was published with it"
        )
    return corpus.Listed(
        name=ytid,
        path=path,
        split="test" if table.name.startswith("eval") else "train",
        captions=corpus.tag_captions([labels[mid] for mid in mids.split(",")]),
        attributes={
            "ytid": ytid,
            "start_s": start_s,
            "end_s": end_s,
            "audioset_labels": mids.split(","),
        },
        seconds=end_s - start_s,
    )
