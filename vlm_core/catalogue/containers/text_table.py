"""A table in a text file, in the encoding and dialect in which programs and people write them.

What was assumed is kept in `notes`. A stray quote, a letter in another encoding and a comma that nobody quoted cost no
more than their own row.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter, deque
from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from typing import BinaryIO, Final

from vlm_core.catalogue.containers.text_lines import LONGEST_LINE, QUOTED, TOO_LONG, TextLines, cut_lines
from vlm_core.catalogue.reading import MOST_ABOVE_NAMES, Columns, Record, Refusal, column_name, id_index, number_of
from vlm_core.errors import UserError

DELIMITERS: Final = ("\t", ";", "|", ",")  # the first of those that fit equally well
SAMPLE_LINES: Final = 100
MOST_LINES_PER_ROW: Final = 1000  # a quote still open after so many lines is a stray one
FEWEST_LINES_PER_ROW: Final = 50  # each stray quote halves how far the next one is followed
FEWEST_COLUMNS: Final = 4  # of a row; a line of prose may have as many commas as fewer columns need
_NO_TEXT: Final = {
    b"PK\3\4": "a zip or an Excel workbook",
    b"\xd0\xcf\x11\xe0": "an Excel workbook of before 2007",
    b"\x1f\x8b": "packed with gzip",
    b"PAR1": "a Parquet file",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"%PDF": "a PDF",
    b"<!DOCTYPE": "a web page",
    b"<!doctype": "a web page",
    b"<html": "a web page",
    b"<table": "a web page",
    b"<?xml": "XML",
    b"{\\rtf": "a text document",
}
_SEPARATOR_LINE: Final = re.compile(r'"?sep=(.)"?;*,*', re.IGNORECASE)
_GUARDED: Final = re.compile(r'="([^"]*)"')
_SINGLE_QUOTES: Final = re.compile(r"\ufeff?'[^'\"]*'(?:[\t;|,]\s?'[^'\"]*')+")  # a line of names
_TURNED: Final = str.maketrans("'\"", "\"'")
_SIGN: Final = re.compile(r"[^\w\s\"'.-]|[\x01-\x08\x1c-\x1f]")  # that may separate fields
_DIGITS, _LETTERS = re.compile(r"\d+"), re.compile(r"[^\W\d_]+")
_BLANKS: Final = "\ue000"  # in their place: a character that no text has
_NAMES_OF_DELIMITERS: Final = {"\t": "tab", _BLANKS: "blank", ";": "semicolon", "|": "bar", ",": "comma"}


class TextTable:
    """A table of lines, opened at its start and read once."""

    picture = ""
    label = ""

    def __init__(self, file: BinaryIO, name: str, needed: Collection[str] = ()) -> None:
        """Read the column names: the first line, or one of the next that has all of the needed ones.

        Raises UserError when there are none, or one stands twice.
        """
        self.name = name
        self._lines = TextLines(file)
        self.notes = self._lines.notes
        for start, kind in _NO_TEXT.items():
            if self._lines.sample.startswith(start):
                raise UserError(
                    f"{name} is {kind}, not text: give it its right ending, or save the table as CSV UTF-8."
                )
        self._rest = cut_lines(self._lines)
        self._waiting = deque(islice(self._rest, SAMPLE_LINES))
        self._has_single_quotes = False
        self._turn_quotes()
        self._has_comments = False
        self._patience = MOST_LINES_PER_ROW
        self.delimiter = ""
        self._needed = set(needed)
        self._unnamed = 0  # columns at the end
        self._skip_preamble(self._waiting)
        self._skip_to_names()
        self.delimiter = self.delimiter or find_delimiter([text for _, text in self._waiting])
        self.names = self._read_names()
        self._note_dialect()

    def records(self, columns: Columns) -> Iterator[Record | Refusal]:
        """Yield each row with as many cells as there are columns, or why it cannot be used.

        Surplus fields belong to the title where that is the last column; a short row is filled, if it reaches to the
        columns that are needed.
        """
        width = len(self.names)
        needed = {columns.id, columns.picture, columns.label}
        shortest = max((place for place, name in enumerate(self.names, 1) if name in needed), default=1)
        repairable = bool(columns.title) and self.names[-1] == columns.title
        for line, cells in self._records(width, id_index(self.names, columns)):
            if cells is None:
                yield Refusal(line, TOO_LONG)
                continue
            if len(cells) == width:
                yield Record(line, cells)
                continue
            if self._unnamed and len(cells) == width + self._unnamed:
                self._cut_unnamed(cells)
            while len(cells) > width and not cells[-1].strip():
                cells.pop()
            if len(cells) > width and repairable:
                yield Record(line, [*cells[: width - 1], self.delimiter.join(cells[width - 1 :])], True)
            elif shortest <= len(cells) <= width:
                yield Record(line, cells + [""] * (width - len(cells)))
            elif any(cell.strip() for cell in cells):
                yield Refusal(line, f"{number_of(len(cells), 'field')} where the header has {width}")

    def _cut_unnamed(self, cells: list[str]) -> None:
        """Drop the cells of the columns at the end that have no name, and note it where there are any."""
        note = "columns at the end without a name are passed over"
        if any(cell.strip() for cell in cells[-self._unnamed :]) and note not in self.notes:
            self.notes.append(note)
        del cells[-self._unnamed :]

    def close(self) -> None:
        """Close the file."""
        self._lines.close()

    def _turn_quotes(self) -> None:
        """Read single quotes as double ones, and these as those, if all names of columns stand in single ones."""
        if self._waiting and _SINGLE_QUOTES.fullmatch(self._waiting[0][1].strip()):
            self._has_single_quotes = True
            self._waiting = deque((number, text.translate(_TURNED)) for number, text in self._waiting)
            self._rest = ((number, text.translate(_TURNED)) for number, text in self._rest)
            self.notes.append("fields stand in single quotes")

    def _skip_preamble(self, head: deque[tuple[int, str]]) -> None:
        """Drop what stands before the column names: Excel's sep=, blank lines, comments and a title."""
        while head and not head[0][1].strip():
            head.popleft()
        if head and (match := _SEPARATOR_LINE.fullmatch(head[0][1].strip("\r\n "))):
            self.delimiter = match[1]
            head.popleft()
        while len(head) > 1 and not self._delimiter_of(head[0][1]):
            if head[0][1].strip() and not self._is_above_names(head):
                break
            head.popleft()

    def _skip_to_names(self) -> None:
        """Drop the lines above the first one that has all needed names, if the table has one near its start."""
        for place, (number, text) in enumerate(islice(self._waiting, MOST_ABOVE_NAMES)):
            delimiter = self._delimiter_of(text)
            has_blanks = not delimiter and len(self._needed) > 1 and self._needed <= _names(text.split())
            if delimiter or has_blanks:
                for _ in range(place):
                    self._waiting.popleft()
                if has_blanks:
                    self._separate_at_blanks()
                elif delimiter in text:
                    self.delimiter = delimiter
                if place:
                    self.notes.append(f"column names in line {number}")
                return

    def _delimiter_of(self, text: str) -> str:
        """Return what separates the needed names in a line, of two or more also any sign; "" if it has them not."""
        signs = (*DELIMITERS, *dict.fromkeys(_SIGN.findall(text) if len(self._needed) > 1 else ()))
        found = (each for each in self.delimiter or signs if self._needed <= _names(text.split(each)))
        return next(found, "") if self._needed else ""

    def _separate_at_blanks(self) -> None:
        """Read the lines as if tabs were in the place of blanks."""
        self._waiting = deque((number, _BLANKS.join(text.split())) for number, text in self._waiting)
        self._rest = ((number, _BLANKS.join(text.split())) for number, text in self._rest)
        self.delimiter = _BLANKS

    def _is_above_names(self, head: deque[tuple[int, str]]) -> bool:
        """Return whether the first line is a comment or a title: fewer fields than in the lines below."""
        first = head[0][1]
        below = [text for _, text in islice(head, 1, None) if text.strip() and not text.startswith("#")]
        if not below:
            return False
        delimiter = self.delimiter or find_delimiter(below)
        fields = _count(first, delimiter)
        if first.startswith("#"):
            is_comment = fields < _count(below[0], delimiter) or fields == 0
            self._has_comments |= is_comment
            return is_comment
        usual = Counter(_count(text, delimiter) for text in below).most_common(1)[0][0]
        return fields == 0 and usual >= 2 and '"' not in first and len(below) > 1

    def _read_names(self) -> list[str]:
        line, cells = next(self._records(0, 0), (0, [""]))
        if cells is None:
            raise UserError(f"Line {line:,} of {self.name}, which must name the columns, is {TOO_LONG}.")
        names = list(map(column_name, cells))
        while names and not names[-1]:
            names.pop()
            self._unnamed += 1
        if not names:
            raise UserError(f"{self.name} is empty: its first line must name the columns.")
        if twice := [name for name, count in Counter(names).items() if name and count > 1]:
            raise UserError(f"{self.name} has more than one column called {', '.join(twice)}: rename all but one.")
        return names

    def _note_dialect(self) -> None:
        assumed = [] if self._lines.is_utf8 else [self._lines.encoding.upper()]
        if self.delimiter != ",":
            assumed.append(f"fields end at a {_NAMES_OF_DELIMITERS.get(self.delimiter, self.delimiter)}")
        if assumed:
            self.notes.insert(0, ", ".join(assumed))

    def _records(self, width: int, id_place: int) -> Iterator[tuple[int, list[str] | None]]:
        """Yield the first line number and the cells of each record; a stray quote affects its own line only.

        A quoted cell may span lines as in RFC 4180, unless one of these lines is a whole row by itself. The cells are
        None where the line is too long.
        """
        waiting, lines, delimiter = self._waiting, self._rest, self.delimiter
        while waiting or (line := next(lines, None)):
            number, text = waiting.popleft() if waiting else line  # type: ignore[misc]
            if self._has_comments and text.startswith("#"):
                continue
            if len(text) >= LONGEST_LINE:
                yield number, None
            elif '"' in text:
                cells, used = self._quoted(text, width, id_place)
                for _ in range(used):
                    waiting.popleft()
                cells = cells or text.rstrip("\r\n").split(delimiter)
                yield number, self._turned(list(map(_unguarded, cells)) if '="' in text else cells)
            elif text.strip():
                yield number, self._turned(text.rstrip("\r\n").split(delimiter))

    def _turned(self, cells: list[str]) -> list[str]:
        return [cell.translate(_TURNED) for cell in cells] if self._has_single_quotes else cells

    def _quoted(self, text: str, width: int, id_place: int) -> tuple[list[str] | None, int]:
        """Return the cells of a record that begins with `text`, and how many of the waiting lines belong to it.

        The cells are None when its quotes do not form a record. Lines that were read ahead stay in `_waiting`.
        """
        parts, quotes, length = [text], text.count('"'), len(text)
        shape = self._shape_of_id(text, id_place)
        for used in range(self._patience):
            if quotes % 2 == 0:
                cells = self._cells("".join(parts), width)
                whole = used == 0 or width == 0 or (cells is not None and len(cells) <= width)
                return (cells, used) if cells and whole else (None, 0)
            if used == len(self._waiting):
                self._waiting.extend(islice(self._rest, 1))
            if used == len(self._waiting):
                break
            line = self._waiting[used][1]
            length += len(line)
            if length >= LONGEST_LINE:
                break
            fields = line.rstrip("\r\n").count(self.delimiter) + 1
            if width >= FEWEST_COLUMNS and fields >= width and self._shape_of_id(line, id_place) == shape:
                if used < FEWEST_LINES_PER_ROW:
                    return None, 0
                break
            parts.append(line)
            quotes += line.count('"')
        self._patience = max(FEWEST_LINES_PER_ROW, self._patience // 2)
        return None, 0

    def _shape_of_id(self, line: str, id_place: int) -> str:
        """Return what the id of a row looks like, if the line is one: AB-17 and XY-4 have the same shape."""
        cells = line.split(self.delimiter, id_place + 1)
        cell = cells[id_place].strip('"\r\n') if id_place < len(cells) else ""
        return _LETTERS.sub("a", _DIGITS.sub("0", cell))

    def _cells(self, text: str, width: int) -> list[str] | None:
        """Return the cells of one record; None where it has stray quotes."""
        first: list[str] | None = None
        spaced = [{"skipinitialspace": True}] if f'{self.delimiter} "' in text else []
        for options in (*spaced, {}, {"escapechar": "\\"}):
            try:
                lines = io.StringIO(text, newline="")
                records = list(csv.reader(lines, delimiter=self.delimiter, strict=True, **options))  # type: ignore[arg-type]
            except csv.Error:
                continue
            if len(records) == 1:
                if width in (0, len(records[0])):
                    return records[0]
                first = first or records[0]
        return first


def find_delimiter(lines: Sequence[str]) -> str:
    """Return what separates the fields, of column names in the first line and of rows; quoted text does not count."""
    header, *rows = [QUOTED.sub("", line) for line in lines if line.strip()] or [""]

    def fit(delimiter: str) -> tuple[bool, float, int]:
        fields = header.count(delimiter)
        share = sum(delimiter in row for row in rows) / len(rows) if rows else 1.0
        return fields > 0, round(share, 1), fields

    best = max(DELIMITERS, key=fit)
    return best if best in header else ","


def _unguarded(cell: str) -> str:
    """Return the text of a cell such as ="007", with which Excel keeps its zeros; any other cell as it is."""
    return match[1] if (match := _GUARDED.fullmatch(cell.strip())) else cell


def _names(cells: Sequence[str]) -> set[str]:
    return {column_name(cell.strip(' "\r\n\ufeff')) for cell in cells}


def _count(line: str, delimiter: str) -> int:
    return QUOTED.sub("", line).count(delimiter)
