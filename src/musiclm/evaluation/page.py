"""A report as one HTML page: tables, a picture of each, and the clips to listen to."""

import html
import io
import urllib.parse
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.figure import Figure

from musiclm.evaluation.bootstrap import Estimate
from musiclm.evaluation.report import Cell, Table, show

_INK, _QUIET, _GRID, _DOT = "#1f2933", "#6b7785", "#e4e8ec", "#2a5d8f"
_STYLE = f"""\
body{{margin:0;background:#f4f6f8;color:{_INK};font:15px/1.5 Helvetica,Arial,sans-serif}}
main{{max-width:1180px;margin:0 auto;padding:32px 20px 60px}}
h1{{margin:0 0 6px;font-size:30px}}h2{{margin:0 0 6px;font-size:18px}}
section{{background:#fff;border-radius:10px;box-shadow:0 1px 3px #0002;padding:18px 22px;
margin-top:16px;overflow-x:auto}}
p{{margin:0 0 10px;max-width:90ch}}.rests{{color:{_QUIET};font-size:13px;overflow-wrap:anywhere}}
table{{border-collapse:collapse;font-size:14px}}th,td{{text-align:left;padding:4px 14px 4px 0;
border-bottom:1px solid {_GRID};vertical-align:top}}th{{color:{_QUIET};font-weight:600}}
svg{{display:block;max-width:100%;height:auto;margin:14px 0 4px}}
audio{{width:230px;height:34px}}
"""
_PLOT = {
    "font.size": 9,
    "text.color": _INK,
    "axes.labelcolor": _QUIET,
    "axes.edgecolor": _GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _QUIET,
    "ytick.color": _INK,
    "ytick.major.size": 0,
    "svg.fonttype": "none",  # text stays text, in the page's font
    "svg.hashsalt": "musiclm",
}
_PER_ROW = 4  # panels


def page(
    title: str,
    opening: str,
    tables: Sequence[Table],
    clips: Mapping[str, Mapping[str, str]],
) -> str:
    """The page, which needs nothing beside it but the clips.

    Args:
      title: of the page.
      opening: words below it.
      tables: each with its picture where it has estimates.
      clips: files to play by prompt and source, as paths from the page's folder.
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>\n{_STYLE}</style></head>\n<body><main>"
        f"<h1>{html.escape(title)}</h1><p>{html.escape(opening)}</p>\n"
        f"{''.join(map(_section, tables))}{_players(clips)}</main></body></html>\n"
    )


def _section(table: Table) -> str:
    rests_on = " · ".join(map(html.escape, table.rests_on))
    return (
        f"<section><h2>{html.escape(table.title)}</h2><p>{html.escape(table.note)}</p>"
        f"{_table(table.head, [[show(cell, table.digits) for cell in row] for row in table.rows])}"
        f'{_picture(table)}<p class="rests">{rests_on}</p></section>\n'
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, escape: bool = True) -> str:
    def line(cells, tag):
        told = (html.escape(cell) if escape or tag == "th" else cell for cell in cells)
        return f"<tr>{''.join(f'<{tag}>{cell}</{tag}>' for cell in told)}</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f"<table><thead>{line(head, 'th')}</thead><tbody>{body}</tbody></table>"


def _picture(table: Table) -> str:
    """A panel for each column that has intervals: a dot a row, with its interval."""
    columns = [
        column
        for column in range(1, len(table.head))
        if any(isinstance(row[column], Estimate) for row in table.rows)
    ]
    if not columns:
        return ""
    wide = min(len(columns), _PER_ROW)
    high = -(-len(columns) // wide)
    height = high * (0.75 + 0.26 * len(table.rows))
    with matplotlib.rc_context(_PLOT):
        figure = Figure(figsize=(2.1 + 2.5 * wide, height), layout="constrained")
        axes = figure.subplots(high, wide, squeeze=False, sharey=True).ravel()
        for panel, column in zip(axes, columns, strict=False):
            _panel(panel, table.head[column], [(row[0], row[column]) for row in table.rows])
        for panel in axes[len(columns) :]:
            panel.remove()
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    label = html.escape(table.title, quote=True)
    return text[text.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def _panel(axes, title: str, cells: Sequence[tuple[Cell, Cell]]) -> None:
    for place, (_, cell) in enumerate(cells):
        if isinstance(cell, Estimate):
            axes.plot([cell.low, cell.high], [place, place], color=_DOT, linewidth=2, alpha=0.45)
            axes.plot(cell.value, place, "o", color=_DOT, markersize=5)
        elif not isinstance(cell, str):
            axes.plot(cell, place, "|", color=_QUIET, markersize=11, markeredgewidth=2)
    axes.set_yticks(range(len(cells)), [str(label) for label, _ in cells])
    axes.set_ylim(len(cells) - 0.5, -0.5)
    axes.set_title(title, fontsize=9, loc="left", parse_math=False)
    axes.grid(axis="x", color=_GRID)
    axes.set_axisbelow(True)


def _players(clips: Mapping[str, Mapping[str, str]]) -> str:
    if not clips:
        return ""
    sources = list(next(iter(clips.values())))
    rows = [
        [
            html.escape(prompt),
            *(
                f'<audio controls preload="none" src="{urllib.parse.quote(files[source])}"></audio>'
                for source in sources
            ),
        ]
        for prompt, files in clips.items()
    ]
    return f"<section><h2>Clips</h2>{_table(['prompt', *sources], rows, escape=False)}</section>\n"
