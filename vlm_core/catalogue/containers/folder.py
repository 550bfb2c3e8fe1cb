"""Files of a folder on this machine."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from vlm_core.catalogue.containers.files import MOST_FILES, MOST_PICTURE_BYTES, is_leftover


class FolderFiles:
    """The files of a folder; links are followed, because whoever owns the folder made them."""

    def __init__(self, root: Path) -> None:
        self.name = str(root)
        self._root = root

    def contains(self, path: str) -> bool:
        """Return whether there is a regular file at that path."""
        try:
            return Path(self._root, path).is_file()
        except (OSError, ValueError):  # a name that is too long or not allowed, a link to itself
            return False

    def folder(self, path: str, *, everything: bool = False) -> tuple[list[str], list[str]]:
        """Return the names of the folders and of the files in a folder; none where it cannot be listed.

        With `everything`, leftovers, hidden files and what cannot be read, as a FIFO, are among the files.
        """
        folders: list[str] = []
        files: list[str] = []
        with suppress(OSError, ValueError), os.scandir(Path(self._root, path)) as entries:
            for entry in entries:
                if everything or not is_leftover(entry.name):
                    is_folder, is_file = _kind(entry)
                    if is_folder:
                        folders.append(entry.name)
                    elif is_file or everything:
                        files.append(entry.name)
        return sorted(folders), sorted(files)

    def walk(self, path: str = "", *, everything: bool = False) -> Iterator[str]:
        """Yield the paths of all files below a folder, of the first two million; a folder linked twice counts once.

        With `everything` also what `folder` adds then, and the path of a folder that cannot be listed, with a slash.
        """
        seen: set[tuple[int, int]] = set()
        left = MOST_FILES
        waiting = [path]
        while waiting:
            folder = waiting.pop()
            try:
                found = Path(self._root, folder).stat()
            except (OSError, ValueError):
                continue
            if (found.st_dev, found.st_ino) in seen:
                continue
            seen.add((found.st_dev, found.st_ino))
            folders, files = self.folder(folder, everything=everything)
            if everything and not (folders or files or self._can_list(folder)):
                files = [""]
            for name in files:
                left -= 1
                if left < 0:
                    return
                yield f"{folder}/{name}" if folder else name
            waiting.extend(f"{folder}/{name}" if folder else name for name in reversed(folders))

    def unreadable(self) -> list[str]:
        """Return the paths of what is no regular file, as links to nothing, and of folders that cannot be listed."""
        files = set(self.walk())
        return [path for path in self.walk(everything=True) if path not in files and not is_leftover(path)]

    def _can_list(self, path: str) -> bool:
        try:
            with os.scandir(Path(self._root, path)):
                return True
        except OSError:
            return False

    def open(self, path: str) -> BinaryIO:
        """Open a file without waiting for anybody. Raises OSError for what is no regular file, as a FIFO."""
        return open_regular(Path(self._root, path))

    def seekable(self, path: str) -> Path:
        """Return where a file is."""
        return Path(self._root, path)

    def read_picture(self, path: str) -> bytes:
        """Return a file's bytes, up to a limit."""
        with self.open(path) as file:
            return file.read(MOST_PICTURE_BYTES)

    def state(self, path: str) -> str:
        """Return size and modification time."""
        found = Path(self._root, path).stat()
        return f"{found.st_size}|{found.st_mtime_ns}"


def _kind(entry: os.DirEntry[str]) -> tuple[bool, bool]:
    """Return whether an entry, or what it is a link to, is a folder, and whether it is a regular file."""
    try:
        return entry.is_dir(), entry.is_file()
    except OSError:  # a link to itself
        return False, False


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading without waiting for anybody. Raises OSError for what is no regular file, as a FIFO."""
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(f"{path.name} is not a regular file")
    return file
