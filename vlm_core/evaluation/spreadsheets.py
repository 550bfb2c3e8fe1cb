"""Texts that go into CSV files, which people open with spreadsheets."""

from __future__ import annotations

from typing import Final, TypeVar

T = TypeVar("T")
# OWASP, "CSV Injection": the wide forms are read as the narrow ones where Chinese or Japanese is set
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def spreadsheet_text(value: T) -> T | str:
    """Return a text with an apostrophe before it if a spreadsheet would evaluate it; any other value as it is."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
