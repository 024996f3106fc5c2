"""MusicCaps: musicians' descriptions of 5,521 segments of 10 s from YouTube (Google, 2023)."""

import argparse
from pathlib import Path

from data_pipelines import manifest
from data_pipelines.corpora import corpus, segments, tables

EXAMPLES = """\
  musiclm data musiccaps --csv musiccaps-public.csv --audio clips --out corpora/musiccaps

A clip's audio is any file below --audio whose name contains its YouTube id, cut to its segment.
Clips of AudioSet's evaluation set become the split test, the others train. The caption is of the
kind long, the aspects are tags. The table tells no licence of the audio.
"""
_COLUMNS = (
    "ytid",
    "start_s",
    "end_s",
    "audioset_positive_labels",
    "aspect_list",
    "caption",
    "author_id",
    "is_balanced_subset",
    "is_audioset_eval",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the corpus's arguments to a parser."""
    parser.add_argument(
        "--csv", required=True, type=Path, help="musiccaps-public.csv, as published"
    )
    corpus.add_arguments(parser, audio="folder of the segments, one file each")


def make(args: argparse.Namespace) -> corpus.Made:
    """Writes the manifest; see `EXAMPLES`."""
    rows = list(tables.rows(args.csv, _COLUMNS))
    files = segments.find(args.audio, (row["ytid"] for row in rows))
    return corpus.write([_listed(args.csv, row, files.get(row["ytid"])) for row in rows], args)


def _listed(csv: Path, row: dict[str, str], path: Path | None) -> corpus.Listed:
    start_s, end_s = (tables.number(csv, row[name]) for name in ("start_s", "end_s"))
    aspects = tables.python_list(csv, row["aspect_list"])
    return corpus.Listed(
        name=row["ytid"],
        path=path,
        split="test" if row["is_audioset_eval"] == "True" else "train",
        captions=(
            manifest.Caption(kind="long", text=row["caption"].strip()),
            *corpus.tag_captions(aspects),
        ),
        attributes={
            "ytid": row["ytid"],
            "start_s": start_s,
            "end_s": end_s,
            "audioset_labels": row["audioset_positive_labels"].split(","),
            "author_id": row["author_id"],
            "is_balanced_subset": row["is_balanced_subset"] == "True",
        },
        seconds=end_s - start_s,
    )
