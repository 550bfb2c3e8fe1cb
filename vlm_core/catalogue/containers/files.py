"""Files below a place, whatever holds them: what each container of files can do, and which files are of no use."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from vlm_core.pixels.picture_store import MAX_BYTES

MOST_PICTURE_BYTES: Final = MAX_BYTES + 1  # enough for the decoder to see that the file is too large
MOST_FILES: Final = 2_000_000
MOST_FOLDERS: Final = 100  # around a file
# Of picture files, in the order in which one is taken where a name exists with several
ENDINGS: Final = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".avif", ".heic", ".heif"),
)
_LEFTOVER: Final = re.compile(
    r"(?:^|/)(?:\.(?!\.?/)|__MACOSX(?:/|$)|\$RECYCLE\.BIN(?:/|$)|(?:thumbs\.db|desktop\.ini)$)", re.IGNORECASE
)


class SeekableFile(Protocol):
    """A file that is not on this machine, of which any part can be read; its text names it."""

    def open(self) -> BinaryIO:
        """Open it. Raises UserError, then and while it is read."""

    def state(self) -> str:
        """Return a text that changes with the file. Raises OSError."""


class Files(Protocol):
    """The files of a folder, of a zip or at an address, by their paths with slashes."""

    name: str

    def contains(self, path: str) -> bool:
        """Return whether there is a file at that path."""

    def folder(self, path: str) -> tuple[list[str], list[str]]:
        """Return the names of the folders and of the files in a folder; none where there is no such folder."""

    def walk(self, path: str = "") -> Iterator[str]:
        """Yield the paths of all files below a folder in a fixed order, without leftovers and hidden files."""

    def unreadable(self) -> list[str]:
        """Return the paths of what `walk` leaves out because it cannot be read, as links to nothing."""

    def open(self, path: str) -> BinaryIO:
        """Open a file. Raises OSError, and what BROKEN_ENTRY names, then and while it is read."""

    def seekable(self, path: str) -> Path | SeekableFile | None:
        """Return a file of which any part can be read; None where it must be unpacked for that."""

    def read_picture(self, path: str) -> bytes:
        """Return a file's bytes, cut for a file that is far too large. Raises OSError."""

    def state(self, path: str) -> str:
        """Return a text that changes with the file, without reading it. Raises OSError."""


def is_leftover(path: str) -> bool:
    """Return whether a file or folder, or one around it, is hidden, or was left by a Mac or by Windows."""
    return _LEFTOVER.search(path) is not None


def is_picture(path: str) -> bool:
    """Return whether a path has the ending of a picture."""
    _, dot, ending = path.rpartition(".")
    return (dot + ending).lower() in ENDINGS
