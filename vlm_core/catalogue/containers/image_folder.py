"""A table made of folders: one folder a category, with or without folders for training and test around them."""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from vlm_core.catalogue.reading import Columns, Record, Refusal

# Names of folders and files that are parts of one catalogue, and their order
SPLITS: Final = {
    **dict.fromkeys(("train", "training"), 0),
    **dict.fromkeys(("val", "valid", "validation", "dev"), 1),
    **dict.fromkeys(("test", "testing", "eval"), 2),
}
FILE: Final = "file"  # the column with the path
_NUMBERS: Final = re.compile(r"(\d+)")
_PARTS: Final = re.compile(r"[/_.-]")


class ImageFolder:
    """Pictures whose category is the folder that they lie in."""

    picture = FILE
    label = ""

    def __init__(self, name: str, paths: Sequence[str], columns: Columns) -> None:
        """Take the paths of pictures from the folder on, for the names of columns that the user gave."""
        self.name = name
        self.names = [columns.id, columns.label, FILE]
        self.notes = [f"each folder is a category: {', '.join(sorted({category_of(path) for path in paths})[:10])}"]
        parts = sorted({path.partition("/")[0] for path in paths if path.partition("/")[0].lower() in SPLITS})
        if parts:
            self.notes.append(f"{', '.join(parts)} are parts of one catalogue, which is split anew")
        self._paths = paths

    def records(self, columns: Columns) -> Iterator[Record | Refusal]:
        """Yield each picture in the order of its id: its name, or its path where several have one name."""
        counts = Counter(posixpath.splitext(posixpath.basename(path))[0] for path in self._paths)
        rows = []
        for path in self._paths:
            stem = posixpath.splitext(posixpath.basename(path))[0]
            rows.append((stem if counts[stem] == 1 else path, category_of(path), path))
        for line, cells in enumerate(sorted(rows, key=lambda row: _natural(row[0])), start=1):
            yield Record(line, list(cells))

    def close(self) -> None:
        """Do nothing: no file is open."""


def category_of(path: str) -> str:
    """Return the first folder of a path that is not one of a split; empty where there is none."""
    folders = path.split("/")[:-1]
    if folders and folders[0].lower() in SPLITS:
        del folders[0]
    return folders[0] if folders else ""


def is_image_folder(paths: Sequence[str]) -> bool:
    """Return whether pictures at these paths lie in the folders of at least two categories."""
    categories = {category_of(path) for path in paths}
    return len(categories) >= 2 and "" not in categories


def split_order(path: str) -> tuple[int, str]:
    """Return a key that sorts what is for training before what is for validation and test."""
    return min((SPLITS[part] for part in _PARTS.split(path.lower()) if part in SPLITS), default=0), path


def _natural(text: str) -> list[tuple[int, str]]:
    """Return a key that sorts 9 before 10."""
    parts = (part.lstrip("0") if part.isdecimal() else part for part in _NUMBERS.split(text))
    return [(len(part) if part.isdecimal() else -1, part) for part in parts]
