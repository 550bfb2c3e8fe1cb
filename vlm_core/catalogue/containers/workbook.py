"""A table in a sheet of an Excel workbook."""

from __future__ import annotations

import datetime
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator
from itertools import islice
from typing import Any, BinaryIO, Final

from vlm_core.catalogue.containers.json_lines import cell_text
from vlm_core.catalogue.reading import MOST_ABOVE_NAMES, Columns, Record, Refusal
from vlm_core.errors import MissingExtra, UserError

MOST_UNPACKED_BYTES: Final = 500_000_000
MOST_COLUMNS: Final = 1000


class Workbook:
    """One sheet, read row by row; values are those that Excel stored, and no formula is run."""

    picture = ""
    label = ""

    def __init__(self, file: BinaryIO, name: str, needed: Collection[str] = ()) -> None:
        """Read the column names: of the first sheet that has all of the needed ones near its top, else of the first.

        Raises UserError when there are none or the file is no workbook.
        """
        self.name = name
        self.notes: list[str] = []
        self._file = file
        self._rows = self._open(set(needed))
        names = next((cells for _, cells in self._rows if any(cells)), [])
        while names and not names[-1]:
            names.pop()
        if not names:
            raise UserError(f"{name} is empty: the first row of its first sheet must name the columns.")
        if twice := [cell for cell, count in Counter(names).items() if cell and count > 1]:
            raise UserError(f"{name} has more than one column called {', '.join(twice)}: rename all but one.")
        self.names = names

    def records(self, columns: Columns) -> Iterator[Record | Refusal]:
        """Yield each row of the sheet."""
        width = len(self.names)
        for line, cells in self._rows:
            yield Record(line, [*cells[:width], *[""] * (width - len(cells))])

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _open(self, needed: set[str]) -> Iterator[tuple[int, list[str]]]:
        """Return the rows of a sheet from its column names on."""
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
            named = ((sheet, line) for sheet in sheets for line in self._lines_with(needed, sheet))
            first = next((sheet for sheet in sheets if next(sheet.iter_rows(), None)), sheets[0])
            sheet, above = next(named, (first, 1))
        except UserError:
            raise
        except Exception as error:  # openpyxl raises many types for a broken file
            raise UserError(f"{self.name} cannot be read as a workbook ({error}): save it as CSV.") from None
        if len(sheets) > 1:
            self.notes.append(f"sheet {sheet.title}, of {len(sheets)}")
        if above > 1:
            self.notes.append(f"column names in line {above}")
        return islice(self._read(sheet), above - 1, None)

    def _lines_with(self, needed: set[str], sheet: Any) -> Iterator[int]:
        """Yield the lines near the top of a sheet that have all of these names."""
        for line, cells in islice(self._read(sheet), MOST_ABOVE_NAMES):
            if needed and needed.issubset(cells):
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
