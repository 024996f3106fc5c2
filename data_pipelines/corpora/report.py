"""The page that shows a corpus: one HTML file that needs nothing beside it."""

import html
import io
from pathlib import Path

from matplotlib.figure import Figure

from data_pipelines.corpora import corpus, facts, plots
from musiclm import bundle

_SHOWN = 20  # names in a list, before "and … more"
_STYLE = """\
body{margin:0;background:#f4f6f8;color:#1f2933;font:15px/1.5 Helvetica,Arial,sans-serif}
main{max-width:1180px;margin:0 auto;padding:32px 20px 60px}
h1{margin:0;font-size:30px}h2{margin:0 0 10px;font-size:16px}
.where{color:#6b7785;margin:2px 0 22px;overflow-wrap:anywhere}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:14px}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:14px;
margin-top:14px}
.tile,.card{background:#fff;border-radius:10px;box-shadow:0 1px 3px #0002;padding:16px 20px}
.tile b{display:block;font-size:28px;line-height:1.2}.tile span{color:#6b7785}
.bad b{color:#b5523b}
.card svg{display:block;width:100%;height:auto}
.card svg text{font-family:Helvetica,Arial,sans-serif}
.words{line-height:1.9;text-align:justify}.words span{margin-right:.55em;color:#2a5d8f}
summary{cursor:pointer}ul{margin:6px 0 12px;padding-left:20px;overflow-wrap:anywhere}
code{font-size:13px}
"""


def write(made: corpus.Made, *, name: str) -> Path:
    """Writes the page beside the manifest: report.html beside manifest.jsonl.

    Args:
      made: the corpus.
      name: what to call it.

    Returns:
      The page's path.
    """
    own = made.manifest.stem
    path = made.manifest.with_name("report.html" if own == "manifest" else f"{own}.report.html")
    text = page(facts.count(made.manifest, made.left_out), name=name, where=str(made.manifest))
    # Names of files need not be Unicode.
    bundle.write_beside(path, text.encode("utf-8", "backslashreplace"))
    return path


def page(told: facts.Facts, *, name: str, where: str) -> str:
    """The page as HTML.

    Args:
      told: of the corpus.
      name: what to call it.
      where: the manifest's place, below the title.
    """
    pictures = "".join(
        _card(title, _svg(figure, title)) for title, figure in plots.draw(told).items()
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(name)}</title><style>\n{_STYLE}</style></head>\n<body><main>"
        f'<h1>{html.escape(name)}</h1><p class="where">{html.escape(where)}</p>'
        f'<div class="tiles">{_tiles(told)}</div>\n'
        f'<div class="cards">{pictures}{_words(told)}{_copies(told)}{_left_out(told)}</div>'
        "</main></body></html>\n"
    )


def _tiles(told: facts.Facts) -> str:
    left_out = sum(map(len, told.left_out.values()))
    missing = len(told.left_out.get(corpus.MISSING, ()))
    tiles = [
        (f"{told.clips:,}", "clips", False),
        (f"{told.hours:,.1f}", "hours", False),
        (f"{told.with_captions / told.clips:.0%}", "have captions", False),
        (f"{told.superfluous:,}", "exact copies", told.superfluous),
        (f"{missing:,}", "not on disk", missing),
        (f"{left_out - missing:,}", "unusable", left_out - missing),
    ]
    return "".join(
        f'<div class="tile{" bad" if bad else ""}"><b>{value}</b><span>{what}</span></div>'
        for value, what, bad in tiles
    )


def _card(title: str, body: str) -> str:
    return f'<section class="card"><h2>{html.escape(title)}</h2>{body}</section>\n'


def _svg(figure: Figure, title: str) -> str:
    """The figure as an element of the page."""
    out = io.StringIO()
    with plots.style():
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    element = text[text.index("<svg") :]
    return element.replace("<svg", f'<svg role="img" aria-label="{html.escape(title)}"', 1)


def _words(told: facts.Facts) -> str:
    """Frequent words, the more frequent the larger, by alphabet."""
    if not told.words:
        return ""
    most = max(told.words.values())
    words = "".join(
        f'<span style="font-size:{12 + 22 * (count / most) ** 0.7:.0f}px" '
        f'title="in {count:,} captions">{html.escape(word)}</span> '
        for word, count in sorted(told.words.items())
    )
    return _card("What the captions speak of", f'<p class="words">{words}</p>')


def _copies(told: facts.Facts) -> str:
    if not told.copies:
        return ""
    leaks = f" {told.leaks:,} of them lie in more than one split." if told.leaks else ""
    groups = [
        " = ".join(f"<code>{html.escape(file)}</code> ({split})" for split, file in files)
        for files in told.copies.values()
    ]
    return _card(
        "Exact copies", f"<p>{len(told.copies):,} groups of equal files.{leaks}</p>{_list(groups)}"
    )


def _left_out(told: facts.Facts) -> str:
    if not told.left_out:
        return ""
    reasons = (
        f"<details><summary>{html.escape(reason)} ({len(names):,})</summary>"
        f"{_list([f'<code>{html.escape(name)}</code>' for name in names])}</details>"
        for reason, names in told.left_out.items()
    )
    return _card("Left out", "".join(reasons))


def _list(items: list[str]) -> str:
    more = f"<li>and {len(items) - _SHOWN:,} more</li>" if len(items) > _SHOWN else ""
    return f"<ul>{''.join(f'<li>{item}</li>' for item in items[:_SHOWN])}{more}</ul>"
