"""The lines of a text file, in the encoding in which programs of any time and country write them."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from itertools import chain, groupby, islice
from typing import BinaryIO, Final

LONGEST_LINE: Final = 1_000_000
TOO_LONG: Final = (  # of a line
    f"longer than {LONGEST_LINE:,} characters: save what it holds, such as a picture, as a file, and name that file"
)
SAMPLE_BYTES: Final = 1 << 20
TELLING_BYTES: Final = 50_000  # from which an encoding is guessed
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
_NEVER_TOGETHER: Final = frozenset("øìòùè"), frozenset("šžáíýú")
MOST_MARGIN: Final = 0.05  # by which another encoding must fit a language better than that of Western Europe
_ESCAPED: Final = re.compile("[\udc80-\udcff]")  # bytes that are no UTF-8, as Python escapes them
QUOTED: Final = re.compile(r'"[^"]*"')


class TextLines:
    """The lines of a file, with their numbers, read once; what was assumed is added to `notes` as they are read."""

    def __init__(self, file: BinaryIO) -> None:
        """Look at the first bytes of the file for its encoding and its line ends."""
        self.sample, rest = _peek(file)
        self.encoding = _encoding_by_bytes(self.sample)
        self.notes: list[str] = []
        self._legacy = ""
        self._has_nulls = False
        self._newline = _newline(self.sample.decode(self.encoding, "replace"))
        errors = "surrogateescape" if self.is_utf8 else "replace"
        self._text = io.TextIOWrapper(rest, self.encoding, errors, newline=self._newline)

    def __iter__(self) -> Iterator[tuple[int, str]]:
        """Yield each line's number and text; what is no UTF-8 is read in the encoding that it seems to have.

        A line longer than `LONGEST_LINE` comes in parts, all with its number.
        """
        number, is_new = 0, True
        for text in iter(lambda: self._text.readline(LONGEST_LINE), ""):
            number += is_new
            is_new = text.endswith(self._newline)
            if "\0" in text:
                text = text.replace("\0", "")
                self._note_nulls(number)
            if not text.isascii() and self.is_utf8 and _ESCAPED.search(text):
                text = self._decode_again(number, text)
            yield number, text

    @property
    def is_utf8(self) -> bool:
        """Return whether the file begins as UTF-8."""
        return self.encoding.startswith("utf-8")

    def close(self) -> None:
        """Close the file."""
        self._text.close()

    def _note_nulls(self, number: int) -> None:
        if not self._has_nulls:
            self._has_nulls = True
            self.notes.append(f"null bytes are left out, the first in line {number:,}")

    def _decode_again(self, number: int, text: str) -> str:
        data = text.encode("utf-8", "surrogateescape")
        if not self._legacy:
            telling = data if _is_utf8(self.sample) else self.sample
            self._legacy = guess_legacy_encoding(telling, of_a_mac=self._newline == "\r")
            self.notes.append(f"read as {self._legacy}, because line {number:,} is no UTF-8")
        return data.decode(self._legacy, "replace")


def cut_lines(lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Yield each of the lines of `TextLines` once: of one in parts the first, of `LONGEST_LINE` characters at least."""
    for number, parts in groupby(lines, key=lambda line: line[0]):
        first, *more = islice(parts, 2)
        yield number, first[1].ljust(LONGEST_LINE) if more else first[1]


def guess_legacy_encoding(data: bytes, *, of_a_mac: bool = False) -> str:
    """Return the encoding that text which is no UTF-8 seems to have: Windows' of Western Europe, or
    that of old Macs where its lines end as theirs did, if nothing tells.

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
    if of_a_mac and "mac_roman" in fitting:
        return "mac_roman"
    fits = {name: match.coherence for match in found for name in (match.encoding, *match.could_be_from_charset)}
    closest = max(fitting, key=lambda name: fits.get(name, 0.0))
    first = fitting[0]
    return closest if fits.get(closest, 0.0) > fits.get(first, 0.0) + MOST_MARGIN else first


def _oddities(text: str) -> int:
    """Return how much in the words of a text no language has: signs and capitals amid letters, and some pairs."""
    odd = 0
    for word in _WORDS.findall(text):
        if word.isascii():
            continue
        letters = set(word.lower())
        odd += all(some & letters for some in _NEVER_TOGETHER) + word.count("\N{REPLACEMENT CHARACTER}")
        for before, letter, after in zip(word, word[1:], f"{word[2:]} ", strict=False):
            if letter.isalpha():
                is_amid = before.islower() or (before.isupper() and after.islower() and not letter.isascii())
                odd += letter.isupper() and is_amid and not (letter.isascii() and before.isascii())
            elif not letter.isascii() and before.isalpha() and after.isalpha() and letter not in _IN_WORDS:
                odd += 1
    return odd


def _newline(text: str) -> str:
    """Return what ends the lines of a text: a line feed, or a carriage return as in files of old Macs."""
    if "\r" not in text:
        return "\n"
    unquoted = QUOTED.sub("", text).replace("\r\n", "\n")
    return "\r" if unquoted.count("\r") > unquoted.count("\n") else "\n"


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
