"""The table in the sheets of an Excel workbook."""

from __future__ import annotations

import datetime
import re
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator
from itertools import islice
from typing import Any, BinaryIO, Final, NamedTuple

from vlm_core.catalogue.containers.json_lines import cell_text
from vlm_core.catalogue.reading import MOST_ABOVE_NAMES, Columns, Record, Refusal, column_name, number_of
from vlm_core.catalogue.reading import place as place_of
from vlm_core.errors import MissingExtra, UserError

_STORE: Final = "open the workbook in Excel or LibreOffice, and save it"
MOST_UNPACKED_BYTES: Final = 500_000_000
MOST_COLUMNS: Final = 1000
_OLD: Final = b"\xd0\xcf\x11\xe0"  # how workbooks with a password begin, and those of before 2007
_MERGED: Final = re.compile(rb'<mergeCell [^>]*?ref="([A-Z]+)(\d+):([A-Z]+)(\d+)"')  # cells that are shown as one
_LINK: Final = re.compile(  # a formula that names a picture
    r'=(?:_xlfn\.)?(?:IMAGE|HYPERLINK)\(\s*"([^"]+)"\s*[,;)].*', re.IGNORECASE | re.DOTALL
)


class _Sheet(NamedTuple):
    """A sheet, and the line that names its columns."""

    title: str
    names: list[str]
    rows: Iterator[tuple[int, list[str]]]  # below the names


class _Formula(str):
    """The value of a formula, as the program stored it that saved the workbook; empty where it stored none."""

    formula = ""
    is_stored = True


class Workbook:
    """Sheets one after the other, read row by row; values are those that Excel stored, and no formula is run.

    Of a formula that names a picture, as =IMAGE("1.jpg"), the name is read. One whose value was not stored costs its
    row in a column that is needed; elsewhere it is an empty cell, which is noted.
    """

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
        self._merged: dict[str, dict[int, dict[int, int]]] = {}  # by sheet: by column, from each first row to the last
        self._lost: list[str] = []  # where formulas without a value were
        self._formulas: dict[str, Any] = {}  # the sheets once more, with formulas in the place of values
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
                yield self._record(Record(line, cells, sheet=title), columns)
        if self._lost:
            number = number_of(len(self._lost), "formula has", "formulas have")
            self.notes.append(f"{number} no stored value and an empty cell, first the {self._lost[0]}: {_STORE}")

    def _record(self, record: Record, columns: Columns) -> Record | Refusal:
        """Return a row with the names of pictures in formulas, or why it cannot be used."""
        for place, (name, cell) in enumerate(zip(self.names, record.cells, strict=True)):
            if not isinstance(cell, _Formula):
                continue
            if name == columns.picture and (match := _LINK.fullmatch(cell.formula)):
                record.cells[place] = match[1]
            elif not cell.is_stored and name and name in (columns.id, columns.picture, columns.label):
                reason = f"the formula in the column {name} has no stored value: {_STORE}"
                return Refusal(record.line, reason, record.sheet)
            elif not cell.is_stored:
                self._lost.append(f"column {name} of {place_of(record.line, record.sheet)}")
        return record

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _open(self, needed: set[str]) -> list[_Sheet]:
        """Return the sheets with the needed columns, or where there are none the first that is not empty."""
        try:
            import openpyxl  # noqa: F401
        except ModuleNotFoundError:
            missing = MissingExtra("openpyxl", "excel")
            raise UserError(f"{self.name} is an Excel workbook: save it as CSV UTF-8 in Excel. Or: {missing}") from None
        start = self._file.read(len(_OLD))
        self._file.seek(0)
        if start == _OLD:
            raise UserError(
                f"{self.name} has a password, or is a workbook of before 2007: save it without one as .xlsx, or as CSV "
                "UTF-8."
            )
        try:
            with zipfile.ZipFile(self._file) as parts:
                if sum(part.file_size for part in parts.infolist()) > MOST_UNPACKED_BYTES:
                    raise UserError(
                        f"{self.name} unpacks to more than {MOST_UNPACKED_BYTES // 1_000_000} MB: save it as CSV."
                    )
                found = {name: _read_beforehand(parts, name) for name in parts.namelist() if _is_sheet(name)}
                inside = sum(name.startswith("xl/media/") for name in parts.namelist())
            self._file.seek(0)
            sheets = self._load(data_only=True)
            self._merged = {name: merged for name, (_, merged) in found.items() if merged}
            if any(has_formulas for has_formulas, _ in found.values()):
                self._formulas = {sheet.title: sheet for sheet in self._load(data_only=False)}
            named = [(sheet, line) for sheet in sheets for line in islice(self._lines_with(needed, sheet), 1)]
            first = next((sheet for sheet in sheets if next(sheet.iter_rows(), None)), sheets[0])
        except UserError:
            raise
        except Exception as error:  # openpyxl raises many types for a broken file
            raise UserError(f"{self.name} cannot be read as a workbook ({error}): save it as CSV.") from None
        self._count = len(sheets)
        if inside:
            number = number_of(inside, "picture")
            self.notes.append(f"{number} in the workbook itself not read: save each as a file, and name it in a column")
        if self._merged:
            self.notes.append("cells that are merged downwards have their text in each row")
        return [self._named(sheet, line) for sheet, line in named or [(first, 1)]]

    def _load(self, *, data_only: bool) -> list[Any]:
        """Return the sheets, with values or with formulas; whatever size they say that they have, all is read."""
        import openpyxl

        book = openpyxl.load_workbook(self._file, read_only=True, data_only=data_only, keep_links=False)
        for sheet in book.worksheets:
            sheet.reset_dimensions()
        return list(book.worksheets)

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
        rows = enumerate(self._cells(sheet), start=1)
        merged = self._merged.get(str(getattr(sheet, "_worksheet_path", "")).lstrip("/"), {})
        shown: dict[int, tuple[int, str]] = {}  # by column: the last row of merged cells, and their text
        while True:
            try:
                found = next(rows, None)
            except Exception as error:
                raise UserError(f"{self.name} cannot be read as a workbook ({error}): save it as CSV.") from None
            if found is None:
                return
            line, cells = found
            for column, last_lines in merged.items():
                if line in last_lines and column < len(cells):
                    shown[column] = last_lines[line], cells[column]
                elif column in shown and line <= shown[column][0] and column < len(cells):
                    cells[column] = shown[column][1]
            yield line, cells

    def _cells(self, sheet: Any) -> Iterator[list[str]]:
        """Yield the cells of each row as text, those of formulas as `_Formula`."""
        if sheet.title not in self._formulas:
            for values in sheet.iter_rows(values_only=True, max_col=MOST_COLUMNS):
                yield [_cell(value) for value in values]
            return
        formulas = self._formulas[sheet.title].iter_rows(values_only=True, max_col=MOST_COLUMNS)
        for cells, row_formulas in zip(sheet.iter_rows(max_col=MOST_COLUMNS), formulas, strict=True):
            yield [_computed(cell, formula) for cell, formula in zip(cells, row_formulas, strict=True)]


def _is_sheet(name: str) -> bool:
    return name.startswith("xl/worksheets/") and name.endswith(".xml")


def _read_beforehand(parts: zipfile.ZipFile, name: str) -> tuple[bool, dict[int, dict[int, int]]]:
    """Return whether a sheet has formulas, and its cells merged downwards: by column, each first row's last one."""
    from openpyxl.utils import column_index_from_string

    has_formulas = False
    merged: dict[int, dict[int, int]] = {}
    with parts.open(name) as file:
        before = b""
        while part := file.read(1 << 20):
            text = before + part
            has_formulas |= b"<f>" in text or b"<f " in text
            for left, top, right, bottom in _MERGED.findall(text):
                if left == right:
                    merged.setdefault(column_index_from_string(left.decode()) - 1, {})[int(top)] = int(bottom)
            before = text[-100:]
    return has_formulas, merged


def _computed(cell: Any, formula: Any) -> str:
    """Return the text of a cell, which is a `_Formula` where it holds one."""
    written = getattr(formula, "text", formula)  # of an array's formula
    if not (isinstance(written, str) and written.startswith("=")):
        return _cell(cell.value)
    text = _Formula(_cell(cell.value))
    text.formula = written
    text.is_stored = cell.value is not None or cell.data_type == "str"  # Excel says so of an empty text
    return text


def _cell(value: Any) -> str:
    if isinstance(value, datetime.datetime):
        return value.date().isoformat() if value.time() == datetime.time() else value.isoformat(" ")
    return cell_text(value).strip()
