"""Files of a zip, read in place, however it was packed: on Windows, on a Mac, or by a program that knows no UTF-8."""

from __future__ import annotations

import logging
import re
import zipfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, Final, cast

from vlm_core.catalogue.containers.files import MOST_FOLDERS, is_leftover
from vlm_core.catalogue.zips import open_zip, read_entry

logger = logging.getLogger(__name__)
_ABSOLUTE: Final = re.compile(r"(?:[a-z]:)?/+", re.IGNORECASE)  # the beginning of a path from the top of a disk
_UTF8: Final = 0x800  # of an entry's flags: its name is said to be UTF-8


class ZipFiles:
    """The files of a zip; no path leads out of it."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._zip = open_zip(path)
        self._entries: dict[str, zipfile.ZipInfo] = {}
        twice: list[str] = []
        for entry in self._zip.infolist():
            name = readable_name(entry)
            if not name.endswith("/") and name.count("/") <= MOST_FOLDERS:
                twice += [name] if name in self._entries else []
                self._entries[name] = entry
        if twice:
            logger.warning(
                f"{self.name} has {len(twice):,} of its files twice, such as {twice[0]}: the last one is read."
            )
        self._folders: dict[str, tuple[list[str], list[str]]] | None = None

    def contains(self, path: str) -> bool:
        """Return whether the zip has such an entry."""
        return path in self._entries

    def folder(self, path: str) -> tuple[list[str], list[str]]:
        """Return the names of the folders and of the files in a folder."""
        if self._folders is None:
            self._folders = _folders(self._sorted_names)
        return self._folders.get(path, ([], []))

    def walk(self, path: str = "") -> Iterator[str]:
        """Yield the paths of all entries below a folder, without leftovers."""
        below = f"{path}/" if path else ""
        for name in self._sorted_names:
            if name.startswith(below):
                yield name

    def unreadable(self) -> list[str]:
        """Return nothing: what cannot be unpacked is found when it is read."""
        return []

    @cached_property
    def _sorted_names(self) -> list[str]:
        return sorted(name for name in self._entries if not is_leftover(name))

    def open(self, path: str) -> BinaryIO:
        """Open an entry, which is unpacked as it is read."""
        return cast(BinaryIO, self._zip.open(self._entries[path]))

    def seekable(self, path: str) -> None:
        """Return nothing: what is unpacked is read from its beginning."""

    def read_picture(self, path: str) -> bytes:
        """Return an entry's bytes, up to a limit, whatever size the zip states."""
        entry = self._entries.get(path)
        if entry is None:
            raise OSError(f"{path} is not in {self.name}")
        return read_entry(self._zip, entry)

    def state(self, path: str) -> str:
        """Return size and checksum."""
        entry = self._entries[path]
        return f"{entry.file_size}|{entry.CRC}"


def readable_name(entry: zipfile.ZipInfo) -> str:
    """Return an entry's name with slashes, in one line, below the zip; UTF-8 is read as such, said to be or not."""
    name = entry.filename
    if not name.isascii() and not entry.flag_bits & _UTF8:
        try:
            name = name.encode("cp437").decode()
        except UnicodeError:
            name = entry.filename
    name = " ".join(name.replace("\\", "/").splitlines())
    return name[match.end() :] if (match := _ABSOLUTE.match(name)) else name


def _folders(paths: Sequence[str]) -> dict[str, tuple[list[str], list[str]]]:
    """Return the folders and files in each folder, of sorted paths."""
    folders: dict[str, tuple[list[str], list[str]]] = {"": ([], [])}
    for path in paths:
        above, _, name = path.rpartition("/")
        is_new = above not in folders
        folders.setdefault(above, ([], []))[1].append(name)
        while is_new and above:
            above, _, name = above.rpartition("/")
            is_new = above not in folders
            folders.setdefault(above, ([], []))[0].append(name)
    return {path: (sorted(inner), files) for path, (inner, files) in folders.items()}
