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
from itertools import chain, islice
from typing import BinaryIO, Final

from vlm_core.catalogue.reading import MOST_ABOVE_NAMES, Columns, Record, Refusal, id_index
from vlm_core.errors import UserError

DELIMITERS: Final = ("\t", ";", "|", ",")  # the first of those that fit equally well
LONGEST_LINE: Final = 1_000_000
SAMPLE_BYTES: Final = 1 << 20
SAMPLE_LINES: Final = 100
TELLING_BYTES: Final = 50_000  # from which an encoding is guessed
MOST_LINES_PER_ROW: Final = 1000  # a quote still open after so many lines is a stray one
FEWEST_LINES_PER_ROW: Final = 50  # each stray quote halves how far the next one is followed
FEWEST_COLUMNS: Final = 4  # of a row; a line of prose may have as many commas as fewer columns need
_BYTE_ORDER_MARKS: Final = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_LATIN: Final = ("cp1252", "cp1250", "cp1254", "cp1257", "mac_roman", "cp850")  # the first where nothing tells
_LEGACY: Final = (
    *_LATIN,
    *("cp1251", "koi8_r", "cp1253", "cp1255", "cp1256", "cp932", "gb18030", "big5", "cp949"),
)
_WORDS: Final = re.compile(r'[^\s,;|"]+')
_IN_WORDS: Final = "’‘–—®™…´`"  # signs that may stand between letters
# Letters of which no language has one of each in one word: Czech that was read as of Western Europe
_NEVER_TOGETHER: Final = re.compile(r"(?=.*[øìòùè])(?=.*[šžáíýú])", re.IGNORECASE)
MOST_MARGIN: Final = 0.05  # by which another encoding must fit a language better than that of Western Europe
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
}
_ESCAPED: Final = re.compile("[\udc80-\udcff]")  # bytes that are no UTF-8, as Python escapes them
_QUOTED: Final = re.compile(r'"[^"]*"')
_SEPARATOR_LINE: Final = re.compile(r'"?sep=(.)"?;*,*', re.IGNORECASE)
_DIGITS, _LETTERS = re.compile(r"\d+"), re.compile(r"[^\W\d_]+")
_NAMES_OF_DELIMITERS: Final = {"\t": "tab", ";": "semicolon", "|": "bar", ",": "comma"}


class TextTable:
    """A table of lines, opened at its start and read once."""

    picture = ""
    label = ""

    def __init__(self, file: BinaryIO, name: str, needed: Collection[str] = ()) -> None:
        """Read the column names: the first line, or one of the next that has all of the needed ones.

        Raises UserError when there are none, or one stands twice.
        """
        self.name = name
        self.notes: list[str] = []
        sample, rest = _peek(file)
        for start, kind in _NO_TEXT.items():
            if sample.startswith(start):
                raise UserError(
                    f"{name} is {kind}, not text: give it its right ending, or save the table as CSV UTF-8."
                )
        self._encoding = _encoding_by_bytes(sample)
        self._legacy = ""
        self._sample = sample
        errors = "surrogateescape" if self._is_utf8 else "replace"
        newline = _newline(sample.decode(self._encoding, "replace"))
        self._text = io.TextIOWrapper(rest, self._encoding, errors, newline=newline)
        self._rest = self._lines()
        self._waiting = deque(islice(self._rest, SAMPLE_LINES))
        self._has_comments = False
        self._patience = MOST_LINES_PER_ROW
        self.delimiter = ""
        self._skip_preamble(self._waiting)
        self._skip_to(set(needed))
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
            if len(cells) == width:
                yield Record(line, cells)
                continue
            while len(cells) > width and not cells[-1].strip():
                cells.pop()
            if len(cells) > width and repairable:
                yield Record(line, [*cells[: width - 1], self.delimiter.join(cells[width - 1 :])], True)
            elif shortest <= len(cells) <= width:
                yield Record(line, cells + [""] * (width - len(cells)))
            elif any(cell.strip() for cell in cells):
                yield Refusal(line, f"{len(cells)} fields where the header has {width}")

    def close(self) -> None:
        """Close the file."""
        self._text.close()

    @property
    def _is_utf8(self) -> bool:
        return self._encoding.startswith("utf-8")

    def _lines(self) -> Iterator[tuple[int, str]]:
        """Yield each line's number and text; what is no UTF-8 is read in the encoding that it seems to have."""
        for number, text in enumerate(iter(lambda: self._text.readline(LONGEST_LINE), ""), start=1):
            if "\0" in text:
                text = text.replace("\0", "")
            if not text.isascii() and self._is_utf8 and _ESCAPED.search(text):
                text = self._decode_again(number, text)
            yield number, text

    def _decode_again(self, number: int, text: str) -> str:
        data = text.encode("utf-8", "surrogateescape")
        if not self._legacy:
            self._legacy = guess_legacy_encoding(data if _is_utf8(self._sample) else self._sample)
            self.notes.append(f"read as {self._legacy}, because line {number:,} is no UTF-8")
        return data.decode(self._legacy, "replace")

    def _skip_preamble(self, head: deque[tuple[int, str]]) -> None:
        """Drop what stands before the column names: Excel's sep=, blank lines, comments and a title."""
        while head and not head[0][1].strip():
            head.popleft()
        if head and (match := _SEPARATOR_LINE.fullmatch(head[0][1].strip("\r\n "))):
            self.delimiter = match[1]
            head.popleft()
        while len(head) > 1 and (not head[0][1].strip() or self._is_above_names(head)):
            head.popleft()

    def _skip_to(self, needed: set[str]) -> None:
        """Drop the lines above the first one that has all of these names, if the table has one near its start."""
        for place, (number, text) in enumerate(islice(self._waiting, MOST_ABOVE_NAMES)):
            delimiter = next((each for each in self.delimiter or DELIMITERS if needed <= _names(text.split(each))), "")
            has_blanks = not delimiter and len(needed) > 1 and needed <= _names(text.split())
            if needed and (delimiter or has_blanks):
                for _ in range(place):
                    self._waiting.popleft()
                if has_blanks:
                    self._separate_at_blanks()
                elif place:
                    self.delimiter = delimiter
                if place:
                    self.notes.append(f"column names in line {number}")
                return

    def _separate_at_blanks(self) -> None:
        """Read the lines as if tabs were in the place of blanks."""
        self._waiting = deque((number, "\t".join(text.split())) for number, text in self._waiting)
        self._rest = ((number, "\t".join(text.split())) for number, text in self._rest)
        self.delimiter = "\t"
        self.notes.append("fields end at blanks")

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
        _, cells = next(self._records(0, 0), (0, [""]))
        names = [cell.strip().lstrip("\ufeff") for cell in cells]
        while names and not names[-1]:
            names.pop()
        if not names:
            raise UserError(f"{self.name} is empty: its first line must name the columns.")
        if twice := [name for name, count in Counter(names).items() if name and count > 1]:
            raise UserError(f"{self.name} has more than one column called {', '.join(twice)}: rename all but one.")
        return names

    def _note_dialect(self) -> None:
        assumed = [] if self._is_utf8 else [self._encoding.upper()]
        if self.delimiter != ",":
            assumed.append(f"fields end at a {_NAMES_OF_DELIMITERS.get(self.delimiter, self.delimiter)}")
        if assumed:
            self.notes.insert(0, ", ".join(assumed))

    def _records(self, width: int, id_place: int) -> Iterator[tuple[int, list[str]]]:
        """Yield the first line number and the cells of each record; a stray quote affects its own line only.

        A quoted cell may span lines as in RFC 4180, unless one of these lines is a whole row by itself.
        """
        waiting, lines, delimiter = self._waiting, self._rest, self.delimiter
        while waiting or (line := next(lines, None)):
            number, text = waiting.popleft() if waiting else line  # type: ignore[misc]
            if self._has_comments and text.startswith("#"):
                continue
            if '"' in text:
                cells, used = self._quoted(text, width, id_place)
                for _ in range(used):
                    waiting.popleft()
                yield number, cells or text.rstrip("\r\n").split(delimiter)
            elif text.strip():
                yield number, text.rstrip("\r\n").split(delimiter)

    def _quoted(self, text: str, width: int, id_place: int) -> tuple[list[str] | None, int]:
        """Return the cells of a record that begins with `text`, and how many of the waiting lines belong to it.

        The cells are None when its quotes do not form a record. Lines that were read ahead stay in `_waiting`.
        """
        parts, quotes = [text], text.count('"')
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
    header, *rows = [_QUOTED.sub("", line) for line in lines if line.strip()] or [""]

    def fit(delimiter: str) -> tuple[bool, float, int]:
        fields = header.count(delimiter)
        share = sum(delimiter in row for row in rows) / len(rows) if rows else 1.0
        return fields > 0, round(share, 1), fields

    best = max(DELIMITERS, key=fit)
    return best if best in header else ","


def guess_legacy_encoding(data: bytes) -> str:
    """Return the encoding that text which is no UTF-8 seems to have: Windows' of Western Europe if nothing tells.

    Scripts are told apart by charset-normalizer. Among Latin ones it mistakes short texts, so that what looks odd in
    words decides first.
    """
    from charset_normalizer import from_bytes

    telling = b"".join(line for line in data.splitlines(keepends=True) if not _is_utf8(line))[:TELLING_BYTES]
    found = from_bytes(telling, cp_isolation=list(_LEGACY), threshold=0.4)
    best = found.best()
    if best and best.encoding not in _LATIN:
        return best.encoding
    odd = {name: _oddities(telling.decode(name, "replace")) for name in _LATIN}
    fitting = [name for name in _LATIN if odd[name] == min(odd.values())]
    fits = {name: match.coherence for match in found for name in (match.encoding, *match.could_be_from_charset)}
    closest = max(fitting, key=lambda name: fits.get(name, 0.0))
    first = fitting[0]
    return closest if fits.get(closest, 0.0) > fits.get(first, 0.0) + MOST_MARGIN else first


def _oddities(text: str) -> int:
    """Return how much in the words of a text no language has: signs and capitals amid letters, and some pairs."""
    count = 0
    for word in _WORDS.findall(text):
        if word.isascii():
            continue
        count += bool(_NEVER_TOGETHER.search(word)) + word.count("\N{REPLACEMENT CHARACTER}")
        for before, letter, after in zip(word, word[1:], f"{word[2:]} ", strict=False):
            if letter.isalpha():
                count += letter.isupper() and before.islower() and not (letter.isascii() and before.isascii())
            elif not letter.isascii() and before.isalpha() and after.isalpha() and letter not in _IN_WORDS:
                count += 1
    return count


def _names(cells: Sequence[str]) -> set[str]:
    return {cell.strip(' "\r\n\ufeff') for cell in cells}


def _newline(text: str) -> str:
    """Return what ends the lines of a text: a line feed, or a carriage return as in files of old Macs."""
    if "\r" not in text:
        return "\n"
    unquoted = _QUOTED.sub("", text).replace("\r\n", "\n")
    return "\r" if unquoted.count("\r") > unquoted.count("\n") else "\n"


def _count(line: str, delimiter: str) -> int:
    return _QUOTED.sub("", line).count(delimiter)


def _peek(file: BinaryIO) -> tuple[bytes, io.BufferedReader]:
    """Return the first bytes of a file, and the whole file."""
    sample = bytearray()
    while len(sample) < SAMPLE_BYTES and (part := file.read(SAMPLE_BYTES - len(sample))):
        sample += part
    return bytes(sample), io.BufferedReader(_Again(bytes(sample), file), 1 << 16)


class _Again(io.RawIOBase):
    """A file of which the first bytes were read already."""

    def __init__(self, first: bytes, file: BinaryIO) -> None:
        self._parts = chain([first], iter(lambda: file.read(1 << 16), b""))
        self._file, self._part = file, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        target = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        if not self._part:
            self._part = memoryview(next(self._parts, b""))
        count = min(len(target), len(self._part))
        target[:count] = self._part[:count]
        self._part = self._part[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def _is_utf8(data: bytes) -> bool:
    """Return whether bytes, of which the last letter may be cut, are UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.end == len(data) and error.reason == "unexpected end of data"
    return True


def _encoding_by_bytes(sample: bytes) -> str:
    """Return the encoding that a file begins with: UTF-8 unless a mark or every second byte says otherwise."""
    for mark, name in _BYTE_ORDER_MARKS:
        if sample.startswith(mark):
            return name
    even, odd = sample[0::2].count(0), sample[1::2].count(0)
    if max(even, odd) > 0.3 * len(sample) / 2 and min(even, odd) < 0.05 * len(sample):
        return "utf-16-le" if odd > even else "utf-16-be"
    return "utf-8"
