"""Rows of a products table, read one by one: repaired where that is safe, refused with line and reason where not."""

from __future__ import annotations

import csv
import io
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Final, Protocol

from vlm_core.errors import UserError

DELIMITERS: Final = ",;\t"
LONGEST_LINE: Final = 1_000_000
MOST_LINES_A_ROW: Final = 50  # a quote still open after so many lines is a stray one
FEWEST_COLUMNS_OF_A_ROW: Final = 4  # with fewer, a line of prose has as many commas as a row


class Table(Protocol):
    """A binary file, as far as it is read here."""

    def readline(self, limit: int = -1, /) -> bytes:
        """Return the next line, or its first `limit` bytes."""


@dataclass(frozen=True)
class Columns:
    """Which column of the table is what; an empty picture column means images/<id>.jpg."""

    id: str
    picture: str
    title: str
    label: str
    attributes: tuple[str, ...]


@dataclass(frozen=True)
class Refusal:
    """A row that is not used, and why."""

    line: int
    reason: str


@dataclass(frozen=True)
class ReadingReport:
    """What became of every row."""

    rows_read: int
    rows_repaired: int
    refused: tuple[Refusal, ...]
    pictures_missing: int
    pictures_unreadable: tuple[Refusal, ...]
    products: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> ReadingReport:
        """What `to_dict` gave."""
        refusals = {
            name: tuple(Refusal(**entry) for entry in content[name]) for name in ("refused", "pictures_unreadable")
        }
        return cls(**{**content, **refusals})

    def summary(self) -> str:
        """One line for people."""
        return (
            f"{self.rows_read:,} rows read, {self.rows_repaired:,} repaired, {len(self.refused):,} refused; "
            f"{self.pictures_missing:,} pictures missing, {len(self.pictures_unreadable):,} unreadable; "
            f"{self.products:,} products."
        )


@dataclass(frozen=True)
class TableRow:
    """One usable line of the table."""

    line: int
    values: dict[str, str]
    repaired: bool


def read_header(table: Table, name: str) -> tuple[list[str], str]:
    """Column names and the delimiter of a table that is open at its start. Raises UserError when there are none."""
    line = table.readline(LONGEST_LINE).decode("utf-8-sig", "replace").replace("\0", "")
    delimiter = max(DELIMITERS, key=line.count)
    header = [cell.strip() for cell in _cells(line, delimiter) or line.split(delimiter)]
    if not any(header):
        raise UserError(f"{name} is empty: its first line must name the columns.")
    return header, delimiter


def read_rows(table: Table, header: Sequence[str], delimiter: str, columns: Columns) -> Iterator[TableRow | Refusal]:
    """Each line after the header as a usable row or a refusal; never raises for what a line holds.

    Unquoted delimiters are mended where the title is the last column: what is too much belongs to it.
    """
    seen: set[str] = set()
    id_column = columns.id if columns.id in header else columns.picture
    mendable = bool(columns.title) and header[-1] == columns.title
    for line, cells in _records(table, delimiter, len(header)):
        if not any(cell.strip() for cell in cells):
            continue
        repaired = len(cells) > len(header) and mendable
        if repaired:
            cells = [*cells[: len(header) - 1], delimiter.join(cells[len(header) - 1 :])]
        if len(cells) != len(header):
            yield Refusal(line, f"{len(cells)} fields where the header has {len(header)}")
            continue
        values = {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
        product = values[id_column]
        if not product or product in seen:
            yield Refusal(line, f"the id {product} stands in an earlier line" if product else "the id is empty")
            continue
        seen.add(product)
        yield TableRow(line, values, repaired)


def _records(table: Table, delimiter: str, width: int) -> Iterator[tuple[int, list[str]]]:
    """The first line number and the cells of each record; a stray quote costs its own line and no other.

    A quoted cell may go on over lines as RFC 4180 has it, unless one of these reads as a whole row by itself.
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
    """The cells of a record that begins with `text`, and how many of the waiting lines belong to it.

    None when its quotes make no record. Lines that are looked at are left waiting.
    """
    for used in range(MOST_LINES_A_ROW):
        if text.count('"') % 2 == 0:
            cells = _cells(text, delimiter)
            return cells, used if cells else 0
        if used == len(waiting):
            waiting.extend(islice(lines, 1))
        if used == len(waiting):
            break
        line = waiting[used][1]
        if width >= FEWEST_COLUMNS_OF_A_ROW and line.rstrip("\r\n").count(delimiter) >= width - 1:
            break
        text += line
    return None, 0


def _cells(text: str, delimiter: str) -> list[str] | None:
    """The cells of one record; None where its quotes are strays."""
    try:
        records = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error:
        return None
    return records[0] if len(records) == 1 else None


def _lines(table: Table) -> Iterator[tuple[int, str]]:
    """Line numbers from 2 on (the header was read), and each line's text."""
    for number, data in enumerate(iter(lambda: table.readline(LONGEST_LINE), b""), start=2):
        yield number, data.decode("utf-8", "replace").replace("\0", "")
