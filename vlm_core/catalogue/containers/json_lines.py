"""A table of JSON objects: one a line, or those of a document that is read as a whole."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from itertools import chain, islice
from typing import Any, BinaryIO, Final

from vlm_core.catalogue.containers.json_documents import DocumentRows, rows_in
from vlm_core.catalogue.containers.text_lines import LONGEST_LINE, TOO_LONG, TextLines, cut_lines
from vlm_core.catalogue.reading import Columns, Record, Refusal
from vlm_core.errors import UserError

MOST_LETTERS: Final = 100_000_000  # of a document
OBJECTS_FOR_NAMES: Final = 1000  # whose keys are the columns
_NOT_JSON: Final = "not valid JSON"
_NO_BLANK: Final = re.compile(r"\S")


class _KeyTwice(ValueError):
    """Raised for an object that has a key twice; the message says so."""


class JsonLines:
    """A table of objects, opened at its start and read once; the keys of the first thousand are the columns."""

    def __init__(self, file: BinaryIO, name: str, needed: Collection[str] = ()) -> None:
        """Read the column names; `needed` ones as in `rows_in`. Raises UserError when there are none."""
        self.name = name
        self.picture = self.label = ""
        self._needed = needed
        self._lines = TextLines(file)
        self.notes = self._lines.notes
        self._objects = self._read()
        self._first = list(islice(self._objects, OBJECTS_FOR_NAMES))
        self.names = list(dict.fromkeys(key for _, found in self._first if isinstance(found, dict) for key in found))
        self._keys = list(self.names)
        if not self.names:
            raise UserError(f"{name} holds no JSON objects: give one object a line, or a list of them.")

    def records(self, columns: Columns) -> Iterator[Record | Refusal]:
        """Yield each object's values, or why a line is no object."""
        while self._first:
            yield self._record(*self._first.pop(0))
        for line, found in self._objects:
            yield self._record(line, found)

    def close(self) -> None:
        """Close the file."""
        self._lines.close()

    def _record(self, line: int, found: Any) -> Record | Refusal:
        if not isinstance(found, dict):
            return Refusal(line, found if isinstance(found, str) else "not a JSON object")
        try:
            return Record(line, [cell_text(found.get(key)) for key in self._keys])
        except RecursionError:
            return Refusal(line, "nested too deeply")

    def _read(self) -> Iterator[tuple[int, Any]]:
        """Yield the line and the object of each line, or those of a document, or what is wrong with it as a text."""
        lines = ((number, text) for number, text in self._lines if text.strip())
        first = list(islice(lines, 2))
        one_each = len(first) > 1 and not first[0][1].lstrip().startswith("[")
        if one_each and any(isinstance(_parse(text), dict) for _, text in first):
            whole = cut_lines(chain(first, lines))
            yield from ((number, TOO_LONG if len(text) >= LONGEST_LINE else _parse(text)) for number, text in whole)
        else:
            yield from self._read_document(chain(first, lines))

    def _read_document(self, lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, Any]]:
        kept: list[tuple[int, str]] = []
        letters = 0
        for line in lines:
            kept.append(line)
            letters += len(line[1])
            if letters > MOST_LETTERS:
                raise UserError(
                    f"{self.name} is one JSON document of more than {MOST_LETTERS // 1_000_000} MB: save one object a "
                    "line."
                )
        try:
            documents = _parse_all("".join(text for _, text in kept))
        except _KeyTwice as error:
            raise UserError(f"{self.name} cannot be used, because {error}: rename one of them.") from None
        if not documents:
            yield from ((number, _NOT_JSON) for number, _ in kept)
            return
        rows = rows_in(documents[0], self._needed) if len(documents) == 1 else DocumentRows(documents)
        self.picture, self.label = rows.picture, rows.label
        self.notes += [rows.note] if rows.note else []
        yield from enumerate(rows.objects, start=1)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of these keys and values. Raises _KeyTwice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise _KeyTwice(f"the key {twice} stands twice in one object")
    return found


def _parse(text: str) -> Any:
    """Return what a text holds as JSON; a text that says what is wrong where it holds none."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except _KeyTwice as error:
        return str(error)
    except (ValueError, RecursionError):
        return _NOT_JSON


def _parse_all(text: str) -> list[Any]:
    """Return the objects and lists that a text holds one after the other; none if there is anything else in it."""
    found: list[Any] = []
    decoder, place = json.JSONDecoder(object_pairs_hook=_object), 0
    while next_one := _NO_BLANK.search(text, place):
        try:
            value, place = decoder.raw_decode(text, next_one.start())
        except _KeyTwice:
            raise
        except (ValueError, RecursionError):
            return []
        found.append(value)
    return found if all(isinstance(value, dict | list) for value in found) else []


def _told(value: object) -> str:
    """Return a value that JSON has not as a text; of bytes only how many there are."""
    return f"{len(value):,} bytes" if isinstance(value, bytes) else str(value)


def cell_text(value: Any) -> str:
    """Return a value as it would stand in a table: nothing for None and NaN, whole numbers without a point.

    A list of one text is that text.
    """
    if value is None or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        value = value[0]
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=_told) if isinstance(value, dict | list) else str(value)
