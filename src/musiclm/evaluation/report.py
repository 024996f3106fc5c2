"""A report: tables of figures, as Markdown, as JSON, and their place in a README."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from musiclm.errors import UserError
from musiclm.evaluation.bootstrap import Estimate

BEGIN = "<!-- figures:begin -->"
END = "<!-- figures:end -->"

Cell = Estimate | float | int | str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """Figures that belong together.

    Attributes:
      title: what they are of, unique in a report.
      note: how they are measured, and which way is better.
      rests_on: the models and data that the figures depend on, with their digests.
      head: names of the columns, each once; the first is of the rows' labels.
      rows: a label and a cell for each further column; "" where there is no figure.
      digits: behind the point.
    """

    title: str
    note: str
    rests_on: tuple[str, ...] = ()
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    digits: int = 2

    def __post_init__(self):
        if len(set(self.head)) < len(self.head):
            raise ValueError(f"Table {self.title!r}: the head {self.head} names a column twice")
        if wrong := [row[0] for row in self.rows if len(row) != len(self.head)]:
            raise ValueError(
                f"Table {self.title!r}: the row {wrong[0]!r} has not the {len(self.head)} cells of "
                f"the head {self.head}"
            )

    def markdown(self) -> str:
        """Title, note and table; an `Estimate` shows as "value (low to high)"."""
        rests_on = f" Rests on {' and '.join(self.rests_on)}." if self.rests_on else ""
        return f"**{self.title}**: {self.note}{rests_on}\n\n" + table(
            self.head, self.rows, self.digits
        )

    def record(self) -> dict[str, Any]:
        """The same for JSON: figures by row and column, an `Estimate` as its fields."""
        return {
            "title": self.title,
            "note": self.note,
            "rests_on": list(self.rests_on),
            "figures": {
                str(label): {
                    name: dataclasses.asdict(cell) if isinstance(cell, Estimate) else cell
                    for name, cell in zip(self.head[1:], cells, strict=True)
                    if cell != ""
                }
                for label, *cells in self.rows
            },
        }


def table(head: Sequence[str], rows: Sequence[Sequence[Cell]], digits: int = 2) -> str:
    """A Markdown table; see `show`."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(show(cell, digits) for cell in line)} |" for line in lines)


def show(cell: Cell, digits: int = 2) -> str:
    """A cell in words: "value (low to high)" of an `Estimate`."""
    if isinstance(cell, Estimate):
        value, low, high = (f"{x:.{digits}f}" for x in (cell.value, cell.low, cell.high))
        return f"{value} ({low} to {high})"
    if isinstance(cell, float):
        return f"{cell:.{digits}f}"
    if isinstance(cell, int):
        return f"{cell:,}"
    return str(cell)


def markdown(opening: str, tables: Sequence[Table]) -> str:
    """A report that begins with some words."""
    return "\n\n".join([opening, *(table.markdown() for table in tables)])


def insert(document: str, section: str) -> str:
    """The document with the section in place of what stood between the markers.

    Raises:
      UserError: the markers are not there, once each and in order.
    """
    if document.count(BEGIN) != 1 or document.count(END) != 1:
        raise UserError(f"the document lacks its markers: put {BEGIN} and {END} into it, once each")
    before, _, rest = document.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise UserError(f"{END} stands before {BEGIN}: exchange them")
    return f"{before}{BEGIN}\n{section.strip()}\n{END}{after}"
