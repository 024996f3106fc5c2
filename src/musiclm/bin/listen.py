"""Asks people which of two clips fits its text better: makes the page, and reads the answers.

The listening test of MusicLM (section 5.1): two clips and a caption, five points from "strongly
prefer A" to "strongly prefer B".
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence

from musiclm import errors
from musiclm.bin import folders, staging

HELP = "listening tests: make the page that asks, count the answers"
EPILOG = """\
examples:
  musiclm listen make --folder small=songs/small --folder large=songs/large --out test
  musiclm listen analyse --key test.key.json answers/*.json --out results

`musiclm listen make --help` and `musiclm listen analyse --help` tell more.
"""
_MAKE = """\
Makes a folder that any web server, or none, can serve: index.html and the clips, whose names don't
tell where they come from. The key to the names is written beside it, OUT.key.json: keep it.
"""
_MAKE_EPILOG = """\
examples:
  musiclm generate "calm flute" "fast drums" --model small --out songs/small
  musiclm generate "calm flute" "fast drums" --model large --out songs/large
  musiclm listen make --folder small=songs/small --folder large=songs/large --out test
  musiclm listen make --folder a=A --folder b=B --folder real=REAL --out test \\
      --comparisons 600 --per-participant 30 --title "Music and words"

Every DIR has a manifest.jsonl as `musiclm generate` writes it, a line a clip with "prompt" and
"file". Clips of one prompt are compared: they must have one length and one sample rate.
Participants open test/index.html?participant=NAME, each with a NAME of their own, which decides the
order and the sides; without one the page draws a name. They need headphones, which the page checks,
and send back the file that it saves at the end. Clips are copied in mono and 16 bits, without the
comment that tells what made them; their loudness stays as it is.
"""
_ANALYSE = """\
Counts the answers: wins of each system with Wilson's intervals and Bradley and Terry's strengths;
for each two systems Wilcoxon's signed-rank test with Bonferroni's correction. Who failed the
headphones check, or answered too fast, is left out.
"""
_ANALYSE_EPILOG = """\
examples:
  musiclm listen analyse --key test.key.json answers/*.json
  musiclm listen analyse --key test.key.json answers/*.json --out results --min-seconds 15

The tables are printed as Markdown; with --out they are in DIR/listening.md as well, and all numbers
in DIR/listening.json, with the completion code of each participant.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `musiclm listen make` and `musiclm listen analyse`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    make = _add(actions, "make", "make the page", _MAKE, _MAKE_EPILOG)
    folders.add_argument(make, "clips of a system, with a manifest.jsonl; two or more times")
    make.add_argument("--out", required=True, metavar="DIR", help="a new folder for the page")
    make.add_argument(
        "--comparisons",
        type=int,
        metavar="N",
        help="draw so many, evenly over the pairs of systems (default: every prompt by every pair)",
    )
    make.add_argument(
        "--per-participant",
        type=int,
        metavar="N",
        help="of these, draw so many for each participant (default: all)",
    )
    make.add_argument("--title", default="Listening test", help="of the page (%(default)s)")
    make.add_argument("--seed", type=int, default=0, help="of what is drawn (default: 0)")
    analyse = _add(actions, "analyse", "count the answers", _ANALYSE, _ANALYSE_EPILOG)
    analyse.add_argument("answers", nargs="+", metavar="ANSWERS", help="files of the participants")
    analyse.add_argument("--key", required=True, metavar="JSON", help="of the test: OUT.key.json")
    analyse.add_argument("--out", metavar="DIR", help="folder for listening.md and listening.json")
    analyse.add_argument(
        "--min-seconds",
        type=float,
        default=10.0,
        metavar="S",
        help="leave out whose median answer took less (default: 10)",
    )


def _add(actions, name: str, help: str, description: str, epilog: str) -> argparse.ArgumentParser:
    return actions.add_parser(
        name,
        help=help,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command; see the top of the file."""
    if args.action == "make":
        make(
            folders.named(args.folder),
            args.out,
            num_comparisons=args.comparisons,
            per_participant=args.per_participant,
            title=args.title,
            seed=args.seed,
        )
    else:
        analyse(args.key, args.answers, args.out, min_seconds=args.min_seconds)
    return 0


def make(systems: dict[str, pathlib.Path], out: str, **choices) -> None:
    """Makes the folder of a test, and its key beside it.

    Args:
      systems: folders of clips by name.
      out: that does not exist, or is empty.
      **choices: see `listening_page.design`.

    Raises:
      UserError: the clips can't be compared, or there is a test already.
    """
    from musiclm import bundle
    from musiclm.evaluation import listening_page

    folder = pathlib.Path(out).absolute()
    key_path = folder.with_name(f"{folder.name}.key.json")
    # A page that is in use, or the only key to its answers, must not be lost.
    if key_path.exists() or (folder.is_dir() and any(folder.iterdir())):
        raise errors.UserError(
            f"{out!r} or {key_path.name} is there already: choose another folder with --out, or "
            "move them away"
        )
    clips = {name: folders.read(path) for name, path in systems.items()}
    test = listening_page.design(clips, **choices)
    with staging.staged(folder, last=listening_page.PAGE) as unfinished:
        key = listening_page.write(test, unfinished)
        bundle.write_beside(key_path, key.to_json().encode())
    print(f"{folder / listening_page.PAGE}  (test {key.test})")
    print(f"{key_path}  (keep it to yourself)")
    print(
        f"{len(test.comparisons)} comparisons of {len(test.clips)} clips, {test.per_participant} "
        "for each participant"
    )


def analyse(
    key_path: str, answer_paths: Sequence[str], out: str | None, *, min_seconds: float
) -> None:
    """Counts the answers and says, or writes, what came of them.

    Raises:
      UserError: a file is damaged or of another test, or no participant counts.
    """
    from musiclm.evaluation import listening, listening_answers

    if not min_seconds >= 0:
        raise errors.UserError(f"--min-seconds is {min_seconds}: give 0 or more")
    key = listening_answers.read_key(key_path)
    participants = [listening_answers.read_answers(path, key) for path in answer_paths]
    figures = listening.analyse(participants, key, min_seconds=min_seconds)
    text = listening.markdown(figures)
    if out is not None:
        with staging.staged(out, last="listening.md") as folder:
            record = json.dumps(figures, ensure_ascii=False, indent=2, default=vars) + "\n"
            (folder / "listening.json").write_text(record, encoding="utf-8")
            (folder / "listening.md").write_text(text, encoding="utf-8")
    sys.stdout.write(text)
