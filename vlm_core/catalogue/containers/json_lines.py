"""A table of JSON objects: one a line, or in one list."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any, BinaryIO, Final

from vlm_core.catalogue.reading import Columns, Record, Refusal
from vlm_core.errors import UserError

LONGEST_LINE: Final = 1_000_000
MOST_LIST_BYTES: Final = 100_000_000  # of a list, which is read as a whole
OBJECTS_FOR_NAMES: Final = 1000  # whose keys are the columns


class JsonLines:
    """A table of objects, opened at its start and read once; the keys of the first thousand are the columns."""

    picture = ""
    label = ""

    def __init__(self, file: BinaryIO, name: str) -> None:
        """Read the column names. Raises UserError when there are none."""
        self.name = name
        self.notes: list[str] = []
        self._file = file
        self._objects = self._read()
        self._first = list(islice(self._objects, OBJECTS_FOR_NAMES))
        self.names = list(dict.fromkeys(key for _, found in self._first if isinstance(found, dict) for key in found))
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
        self._file.close()

    def _record(self, line: int, found: Any) -> Record | Refusal:
        if not isinstance(found, dict):
            return Refusal(line, found if isinstance(found, str) else "not a JSON object")
        try:
            return Record(line, [cell_text(found.get(name)) for name in self.names])
        except RecursionError:
            return Refusal(line, "nested too deeply")

    def _read(self) -> Iterator[tuple[int, Any]]:
        """Yield the line and the object of each line, or what is wrong with it as a text."""
        for number, data in enumerate(iter(lambda: self._file.readline(LONGEST_LINE), b""), start=1):
            text = data.decode("utf-8-sig" if number == 1 else "utf-8", "replace").strip()
            if number == 1 and text.startswith("["):
                yield from self._read_list(data)
                return
            if text:
                yield number, _parse(text)

    def _read_list(self, start: bytes) -> Iterator[tuple[int, Any]]:
        data = start + self._file.read(MOST_LIST_BYTES + 1)
        if len(data) > MOST_LIST_BYTES:
            raise UserError(
                f"{self.name} is a list of more than {MOST_LIST_BYTES // 1_000_000} MB: save one object a line."
            )
        found = _parse(data.decode("utf-8-sig", "replace"))
        if not isinstance(found, list):
            raise UserError(f"{self.name} is not valid JSON: give one object a line, or a list of them.")
        yield from enumerate(found, start=1)


def _parse(text: str) -> Any:
    """Return what a text holds as JSON; a text that says so where it holds none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return "not valid JSON"


def _told(value: object) -> str:
    """Return a value that JSON has not as a text; of bytes only how many there are."""
    return f"{len(value):,} bytes" if isinstance(value, bytes) else str(value)


def cell_text(value: Any) -> str:
    """Return a value as it would stand in a table: nothing for None and NaN, whole numbers without a point."""
    if value is None or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=_told) if isinstance(value, dict | list) else str(value)
