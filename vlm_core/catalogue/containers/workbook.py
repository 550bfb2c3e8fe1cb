"""The table in the sheets of an Excel workbook."""

from __future__ import annotations

import datetime
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator
from itertools import islice
from typing import Any, BinaryIO, Final, NamedTuple

from vlm_core.catalogue.containers.json_lines import cell_text
from vlm_core.catalogue.reading import MOST_ABOVE_NAMES, Columns, Record, Refusal, column_name
from vlm_core.errors import MissingExtra, UserError

MOST_UNPACKED_BYTES: Final = 500_000_000
MOST_COLUMNS: Final = 1000


class _Sheet(NamedTuple):
    """A sheet, and the line that names its columns."""

    title: str
    names: list[str]
    rows: Iterator[tuple[int, list[str]]]  # below the names


class Workbook:
    """Sheets one after the other, read row by row; values are those that Excel stored, and no formula is run."""

    picture = ""
    label = ""

    def __init__(self, file: BinaryIO, name: str, needed: Collection[str] = ()) -> None:
        """Read the column names: of each sheet that has all of the needed ones near its top, else of the first sheet.

        A single needed name, as an id, is in sheets of other things, too: then the others must have all columns of the
        first. Raises UserError when there are none or the file is no workbook.
        """
        self.name = name
        self.notes: list[str] = []
        self._file = file
        first, *others = self._open(set(needed))
        if len(set(needed)) == 1:
            others = [sheet for sheet in others if set(first.names) <= set(sheet.names)]
        self._sheets = [first, *others]
        names = (column for sheet in others for column in sheet.names if column)
        self.names = [*first.names, *dict.fromkeys(column for column in names if column not in first.names)]
        for sheet in self._sheets:
            if twice := [cell for cell, count in Counter(sheet.names).items() if cell and count > 1]:
                raise UserError(
                    f"{name} has more than one column called {', '.join(twice)} in sheet {sheet.title}: "
                    "rename all but one."
                )
        if self._count > 1:
            titles = " and ".join(sheet.title for sheet in self._sheets)
            self.notes.insert(0, f"sheet{'s' * bool(others)} {titles}, of {self._count}")

    def records(self, columns: Columns) -> Iterator[Record | Refusal]:
        """Yield each row of the sheets; a column that a sheet lacks is empty there."""
        for sheet in self._sheets:
            width = len(sheet.names)
            title = sheet.title if len(self._sheets) > 1 else ""
            for line, cells in sheet.rows:
                cells = [*cells[:width], *[""] * (width - len(cells))]
                if sheet.names != self.names:
                    named = dict(zip(sheet.names, cells, strict=True))
                    cells = [named.get(column, "") for column in self.names]
                yield Record(line, cells, sheet=title)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _open(self, needed: set[str]) -> list[_Sheet]:
        """Return the sheets with the needed columns, or where there are none the first that is not empty."""
        try:
            import openpyxl
        except ModuleNotFoundError:
            missing = MissingExtra("openpyxl", "excel")
            raise UserError(f"{self.name} is an Excel workbook: save it as CSV UTF-8 in Excel. Or: {missing}") from None
        try:
            with zipfile.ZipFile(self._file) as parts:
                if sum(part.file_size for part in parts.infolist()) > MOST_UNPACKED_BYTES:
                    raise UserError(
                        f"{self.name} unpacks to more than {MOST_UNPACKED_BYTES // 1_000_000} MB: save it as CSV."
                    )
            self._file.seek(0)
            sheets = openpyxl.load_workbook(self._file, read_only=True, data_only=True, keep_links=False).worksheets
            named = [(sheet, line) for sheet in sheets for line in islice(self._lines_with(needed, sheet), 1)]
            first = next((sheet for sheet in sheets if next(sheet.iter_rows(), None)), sheets[0])
        except UserError:
            raise
        except Exception as error:  # openpyxl raises many types for a broken file
            raise UserError(f"{self.name} cannot be read as a workbook ({error}): save it as CSV.") from None
        self._count = len(sheets)
        return [self._named(sheet, line) for sheet, line in named or [(first, 1)]]

    def _named(self, sheet: Any, line: int) -> _Sheet:
        """Return a sheet whose columns are named in its first line with cells from `line` on. Raises UserError."""
        rows = islice(self._read(sheet), line - 1, None)
        names = list(map(column_name, next((cells for _, cells in rows if any(cells)), [])))
        while names and not names[-1]:
            names.pop()
        if not names:
            raise UserError(f"{self.name} is empty: the first row of its first sheet must name the columns.")
        if line > 1:
            self.notes.append(f"column names in line {line}")
        return _Sheet(sheet.title, names, rows)

    def _lines_with(self, needed: set[str], sheet: Any) -> Iterator[int]:
        """Yield the lines near the top of a sheet that have all of these names."""
        for line, cells in islice(self._read(sheet), MOST_ABOVE_NAMES):
            if needed and needed.issubset(map(column_name, cells)):
                yield line

    def _read(self, sheet: Any) -> Iterator[tuple[int, list[str]]]:
        rows = enumerate(sheet.iter_rows(values_only=True, max_col=MOST_COLUMNS), start=1)
        while True:
            try:
                found = next(rows, None)
            except Exception as error:
                raise UserError(f"{self.name} cannot be read as a workbook ({error}): save it as CSV.") from None
            if found is None:
                return
            yield found[0], [_cell(value) for value in found[1]]


def _cell(value: Any) -> str:
    if isinstance(value, datetime.datetime):
        return value.date().isoformat() if value.time() == datetime.time() else value.isoformat(" ")
    return cell_text(value).strip()
