"""Reading a products table row by row: rows are repaired where that is safe, else refused with line and reason."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from vlm_core.errors import UserError

MOST_ROWS: Final = 2_000_000
MOST_CELLS: Final = 20_000_000  # of all rows; each takes about 100 bytes of memory
MOST_ABOVE_NAMES: Final = 20  # lines of a table, such as a title, in which its column names are looked for
FURTHER: Final = ", and this is a further picture of it"
REASONS_SHOWN: Final = 3
SHORTENED: Final = (  # of what is said of ids
    "such as {}, which a spreadsheet has shortened: format that column as a number without decimals, and save the "
    "table again, or name another id_column."
)
_WHOLE_NUMBER: Final = re.compile(r"(\d+)(?:\.0+|,00?)")
_SHORTENED: Final = re.compile(r"\d([.,]\d+)?E\+\d{2,}", re.IGNORECASE)


@dataclass(frozen=True)
class Columns:
    """The names of the table's columns; an empty picture column means images/<id>.jpg."""

    id: str
    picture: str
    title: str
    label: str
    attributes: tuple[str, ...]

    def needed(self) -> dict[str, str]:
        """Return the settings whose columns a table must have: a picture, without one an id, and a label if asked."""
        label = {"label": self.label} if self.label else {}
        return label | ({"picture_column": self.picture} if self.picture else {"id_column": self.id})


@dataclass(frozen=True, slots=True)
class Refusal:
    """A row that cannot be used, and why."""

    line: int
    reason: str
    sheet: str = ""  # of a workbook, where several are read

    @property
    def place(self) -> str:
        """Return where it stands, for users."""
        return place(self.line, self.sheet)


@dataclass(frozen=True)
class ReadingReport:
    """How many rows were used, repaired and left out, and why."""

    rows_read: int
    rows_repaired: int
    refused: tuple[Refusal, ...]
    pictures_missing: int
    pictures_unreadable: tuple[Refusal, ...]
    products: int
    missing: tuple[Refusal, ...] = ()  # the rows without a picture
    unlabelled: tuple[Refusal, ...] = ()  # products without a category, which are in the catalogue all the same
    further_pictures: int = 0  # that products have beside the one that is used
    notes: tuple[str, ...] = ()  # what was assumed
    picture_column: str = ""  # the column with the paths of pictures, which the fingerprint leaves out

    def left_out(self) -> list[Refusal]:
        """Return every row or picture that is of no use, in the order of the table."""
        found = [*self.refused, *self.missing, *self.pictures_unreadable, *self.unlabelled]
        return sorted(found, key=lambda each: (each.sheet, each.line))

    def first_reasons(self) -> str:
        """Return why the first few are of no use, in one sentence; empty if all are of use."""
        reasons = self.left_out()
        if not reasons:
            return ""
        more = f"; and {len(reasons) - REASONS_SHOWN:,} more" if len(reasons) > REASONS_SHOWN else ""
        return "; ".join(f"{found.place}: {found.reason}" for found in reasons[:REASONS_SHOWN]) + f"{more}."

    def summary(self) -> str:
        """Return one sentence for users."""
        also = f", {number_of(len(self.unlabelled), 'product')} without a category" if self.unlabelled else ""
        if self.further_pictures:
            also += f", {number_of(self.further_pictures, 'further picture')} of a product not used"
        return (
            f"{number_of(self.products, 'product')} from {number_of(self.rows_read, 'row')}: "
            f"{number_of(self.rows_repaired, 'row')} repaired, "
            f"{len(self.refused):,} refused, {self.pictures_missing:,} without a picture, "
            f"{len(self.pictures_unreadable):,} with an unreadable one{also}."
        )


class Record(NamedTuple):
    """The cells of a row, one for each column."""

    line: int
    cells: list[str]
    repaired: bool = False
    sheet: str = ""  # of a workbook, where several are read


class TableReader(Protocol):
    """The rows of a table, whatever it lies in; they are read once."""

    name: str
    names: list[str]  # of the columns; "" where one has no name
    picture: str  # the column that holds pictures by the container's own rules; "" where it has no such rule
    label: str  # the same for the category
    notes: list[str]  # what was assumed, complete when all rows were read

    def records(self, columns: Columns) -> Iterator[Record | Refusal]:
        """Yield each row, or why it cannot be used."""

    def close(self) -> None:
        """Close the file."""


class TableRow(NamedTuple):
    """One usable row of the table."""

    line: int
    values: dict[str, str]
    repaired: bool
    sheet: str = ""  # as in Record


def place(line: int, sheet: str) -> str:
    """Return where a row stands, for users."""
    return f"line {line:,} of sheet {sheet}" if sheet else f"line {line:,}"


def number_of(count: int, one: str, many: str = "") -> str:
    """Return a number with the word for one or for many, which ends in s unless it is given."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def writable_text(text: str) -> str:
    """Return a text in which what cannot be written in UTF-8, as in names of old files, is shown as \\xff."""
    try:
        data = os.fsencode(text)
    except UnicodeEncodeError:  # half a character, as JSON may hold one
        data = text.encode("utf-8", "backslashreplace")
    return data.decode("utf-8", "backslashreplace")


def column_name(text: str) -> str:
    """Return a column's name in composed letters, without invisible ones, and with one blank for any blanks."""
    if text.isascii() and text.isprintable() and "  " not in text:
        return text.strip()
    seen = "".join(letter for letter in text if unicodedata.category(letter) != "Cf")
    return " ".join(unicodedata.normalize("NFC", seen).split())


def plain_id(text: str) -> str:
    """Return an id without the decimals that spreadsheets give whole numbers: 1001.0 and 1001,00 are 1001."""
    return match[1] if text.endswith("0") and (match := _WHOLE_NUMBER.fullmatch(text)) else text


def is_shortened(text: str) -> bool:
    """Return whether an id is a long number as spreadsheets show it, of which digits are lost: 4.00638E+12."""
    return "E" in text.upper() and _SHORTENED.fullmatch(text) is not None


def id_index(names: Sequence[str], columns: Columns) -> int:
    """Return the place of the column that identifies a product: the id, or the picture where there is none."""
    return next((names.index(name) for name in (columns.id, columns.picture) if name in names), 0)


def read_products(table: TableReader, columns: Columns) -> Iterator[TableRow | Refusal]:
    """Yield each product of a table, or why a row is none; no content of a row raises.

    An id written as 1001.0 is 1001. The first of several rows with one id is the product. Raises UserError for more
    rows than fit in memory.
    """
    most = min(MOST_ROWS, MOST_CELLS // len(table.names))
    at = id_index(table.names, columns)
    picture_at = table.names.index(columns.picture) if columns.picture in table.names else at
    first_rows: dict[str, tuple[int, str, str]] = {}
    for count, record in enumerate(table.records(columns)):
        if count >= most:
            raise UserError(
                f"The table has more than {most:,} rows of {len(table.names):,} columns: give a smaller one."
            )
        if isinstance(record, Refusal):
            yield record
            continue
        cells = [cell.strip() for cell in record.cells]
        if not any(cells):
            continue
        product = cells[at] = plain_id(cells[at])
        if not product:
            yield Refusal(record.line, "the id is empty", record.sheet)
        elif product in first_rows:
            line, sheet, picture = first_rows[product]
            further = "" if cells[picture_at] == picture else FURTHER
            reason = f"the id {product} is already used in {place(line, sheet)}"
            reason += ": a spreadsheet has shortened both" if is_shortened(product) else further
            yield Refusal(record.line, reason, record.sheet)
        else:
            first_rows[product] = record.line, record.sheet, cells[picture_at]
            values = dict(zip(table.names, cells, strict=True))
            values.pop("", None)
            yield TableRow(record.line, values, record.repaired, record.sheet)
