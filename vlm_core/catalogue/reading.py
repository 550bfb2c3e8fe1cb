"""Reading a products table row by row: rows are repaired where that is safe, else refused with line and reason."""

from __future__ import annotations

import csv
import io
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, Protocol

from vlm_core.errors import UserError

DELIMITERS: Final = ",;\t"
LONGEST_LINE: Final = 1_000_000
MOST_LINES_PER_ROW: Final = 50  # a quote still open after so many lines is a stray one
MOST_ROWS: Final = 2_000_000
MOST_CELLS: Final = 20_000_000  # of all rows; each takes about 100 bytes of memory
FEWEST_COLUMNS: Final = 4  # of a row; a line of prose may have as many commas as fewer columns need


class Table(Protocol):
    """A binary file that is read line by line."""

    def readline(self, limit: int = -1, /) -> bytes:
        """Return the next line, or its first `limit` bytes."""


@dataclass(frozen=True)
class Columns:
    """The names of the table's columns; an empty picture column means images/<id>.jpg."""

    id: str
    picture: str
    title: str
    label: str
    attributes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A row that cannot be used, and why."""

    line: int
    reason: str


@dataclass(frozen=True)
class ReadingReport:
    """How many rows were used, repaired and refused."""

    rows_read: int
    rows_repaired: int
    refused: tuple[Refusal, ...]
    pictures_missing: int
    pictures_unreadable: tuple[Refusal, ...]
    products: int

    def summary(self) -> str:
        """Return one sentence for users."""
        return (
            f"{self.products:,} products from {self.rows_read:,} rows: {self.rows_repaired:,} rows repaired, "
            f"{len(self.refused):,} refused, {self.pictures_missing:,} without a picture, "
            f"{len(self.pictures_unreadable):,} with an unreadable one."
        )


@dataclass(frozen=True, slots=True)
class TableRow:
    """One usable row of the table."""

    line: int
    values: dict[str, str]
    repaired: bool


def read_header(table: Table, name: str) -> tuple[list[str], str]:
    """Return column names and the delimiter of a table that is open at its start.

    Raises UserError when there are no column names.
    """
    line = table.readline(LONGEST_LINE).decode("utf-8-sig", "replace").replace("\0", "")
    delimiter = max(DELIMITERS, key=line.count)
    header = [cell.strip() for cell in _cells(line, delimiter) or line.split(delimiter)]
    if not any(header):
        raise UserError(f"{name} is empty: its first line must name the columns.")
    return header, delimiter


def read_rows(table: Table, header: Sequence[str], delimiter: str, columns: Columns) -> Iterator[TableRow | Refusal]:
    """Yield each row after the header as a usable row or a refusal; no content of a row raises.

    Unquoted delimiters are repaired where the title is the last column: surplus fields belong to it. Raises UserError
    for more rows than fit in memory.
    """
    most = min(MOST_ROWS, MOST_CELLS // len(header))
    seen: set[str] = set()
    id_column = columns.id if columns.id in header else columns.picture
    repairable = bool(columns.title) and header[-1] == columns.title
    for count, (line, cells) in enumerate(_records(table, delimiter, len(header))):
        if count >= most:
            raise UserError(f"The table has more than {most:,} rows of {len(header):,} columns: give a smaller one.")
        if not any(cell.strip() for cell in cells):
            continue
        repaired = len(cells) > len(header) and repairable
        if repaired:
            cells = [*cells[: len(header) - 1], delimiter.join(cells[len(header) - 1 :])]
        if len(cells) != len(header):
            yield Refusal(line, f"{len(cells)} fields where the header has {len(header)}")
            continue
        values = {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
        product = values[id_column]
        if not product or product in seen:
            yield Refusal(
                line, f"the id {product} is already used in an earlier line" if product else "the id is empty"
            )
            continue
        seen.add(product)
        yield TableRow(line, values, repaired)


def _records(table: Table, delimiter: str, width: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the first line number and the cells of each record; a stray quote affects its own line only.

    A quoted cell may span lines as in RFC 4180, unless one of these lines is a whole row by itself.
    """
    waiting: deque[tuple[int, str]] = deque()
    lines = _lines(table)
    while waiting or (waiting := deque(islice(lines, 1))):
        number, text = waiting.popleft()
        if '"' not in text:
            yield number, text.rstrip("\r\n").split(delimiter)
            continue
        cells, used = _quoted(text, waiting, lines, delimiter, width)
        for _ in range(used):
            waiting.popleft()
        yield number, cells or text.rstrip("\r\n").split(delimiter)


def _quoted(
    text: str, waiting: deque[tuple[int, str]], lines: Iterator[tuple[int, str]], delimiter: str, width: int
) -> tuple[list[str] | None, int]:
    """Return the cells of a record that begins with `text`, and how many of the waiting lines belong to it.

    The cells are None when its quotes do not form a record. Lines that were read ahead stay in `waiting`.
    """
    for used in range(MOST_LINES_PER_ROW):
        if text.count('"') % 2 == 0:
            cells = _cells(text, delimiter)
            return cells, used if cells else 0
        if used == len(waiting):
            waiting.extend(islice(lines, 1))
        if used == len(waiting):
            break
        line = waiting[used][1]
        if width >= FEWEST_COLUMNS and line.rstrip("\r\n").count(delimiter) >= width - 1:
            break
        text += line
    return None, 0


def _cells(text: str, delimiter: str) -> list[str] | None:
    """Return the cells of one record; None where it has stray quotes."""
    try:
        records = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error:
        return None
    return records[0] if len(records) == 1 else None


def _lines(table: Table) -> Iterator[tuple[int, str]]:
    """Yield line numbers from 2 on (after the header), and each line's text."""
    for number, data in enumerate(iter(lambda: table.readline(LONGEST_LINE), b""), start=2):
        yield number, data.decode("utf-8", "replace").replace("\0", "")
