"""Reads the tables that corpora are published with, and says what is wrong with one that is not."""

import ast
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_pipelines.corpora.corpus import CorpusError

# FMA's biographies are longer than csv's default of 131,072 characters.
csv.field_size_limit(1 << 24)


def lines(path: Path, delimiter: str = ",") -> Iterator[list[str]]:
    """The cells of each line that has any.

    Raises:
      CorpusError: no such file, or it is no such table.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, skipinitialspace=True)
            yield from filter(None, reader)
    except OSError as error:
        raise CorpusError(
            f"cannot read {path} ({error.strerror}): give the corpus's own metadata file"
        ) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise CorpusError(f"{path} is no table of text ({error}): fetch it again") from None


def rows(path: Path, columns: Sequence[str], delimiter: str = ",") -> Iterator[dict[str, str]]:
    """The rows of a table whose first line names its columns, as dicts.

    Args:
      path: the file, in UTF-8.
      columns: those that it must have.
      delimiter: between cells.

    Raises:
      CorpusError: no such file, a column is missing, or a row is short of cells.
    """
    table = lines(path, delimiter)
    names = next(table, [])
    require(path, names, columns)
    for cells in table:
        if len(cells) != len(names):
            raise CorpusError(
                f"{path}: a row has {len(cells)} cells, not {len(names)} (it begins with "
                f"{cells[0]!r}): fetch the file again"
            )
        yield dict(zip(names, cells, strict=True))


def require(path: Path, names: Sequence[str], columns: Sequence[str]) -> None:
    """Raises CorpusError unless all columns are among a table's names."""
    if lacking := [column for column in columns if column not in names]:
        found = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
        raise CorpusError(
            f"{path} lacks the columns {', '.join(lacking)} (it has {found or 'none'}): give the "
            "file as published"
        )


def python_list(path: Path, cell: str) -> list[str]:
    """A cell that holds a list in Python's spelling, such as "['slow', 'piano']" or "[21, 4]".

    Raises:
      CorpusError: it does not.
    """
    try:
        value = ast.literal_eval(cell or "[]")
    except (ValueError, SyntaxError):
        value = None
    if not isinstance(value, list):
        raise CorpusError(f"{path}: {cell!r} is no list: give the file as published")
    return [str(item) for item in value]


def number(path: Path, cell: str) -> float:
    """A cell that holds a number.

    Raises:
      CorpusError: it does not.
    """
    try:
        return float(cell)
    except ValueError:
        raise CorpusError(f"{path}: {cell!r} is no number: give the file as published") from None
