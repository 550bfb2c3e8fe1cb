"""Lists in settings."""

from __future__ import annotations

import csv


def split_list(text: str) -> tuple[str, ...]:
    """Return the parts of a comma-separated setting; one with a comma in it stands in double quotes."""
    try:
        (parts,) = csv.reader([text], skipinitialspace=True, strict=True)
    except (csv.Error, ValueError):  # a stray quote, an empty setting, a line break
        parts = text.split(",")
    return tuple(part.strip() for part in parts if part.strip())
