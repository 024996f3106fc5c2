"""Figures as Markdown tables, and their place in a README."""

from collections.abc import Sequence

from musiclm.errors import UserError
from musiclm.evaluation.bootstrap import Estimate

BEGIN = "<!-- figures:begin -->"
END = "<!-- figures:end -->"


def table(head: Sequence[str], rows: Sequence[Sequence[object]], digits: int = 2) -> str:
    """A Markdown table; an `Estimate` shows as "value (low to high)", a float rounded."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell, digits) for cell in line)} |" for line in lines)


def _cell(cell: object, digits: int) -> str:
    if isinstance(cell, Estimate):
        return f"{cell.value:.{digits}f} ({cell.low:.{digits}f} to {cell.high:.{digits}f})"
    if isinstance(cell, float):
        return f"{cell:.{digits}f}"
    if isinstance(cell, int):
        return f"{cell:,}"
    return str(cell)


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
