"""Sources of a catalogue's table and pictures: a folder or zip in Kaggle's layout, or any CSV file."""

from __future__ import annotations

import hashlib
import io
import os
import posixpath
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, Final, Protocol

from vlm_core.catalogue.zips import BROKEN_ENTRY, MOST_PICTURE_BYTES, open_zip, read_entry
from vlm_core.errors import UserError

TABLE: Final = "styles.csv"
REAL: Final = Path("data/raw/myntra_fashion_products")
SAMPLE: Final = Path("data/raw/sample")
MOST_TABLE_BYTES: Final = 500_000_000


class Source(Protocol):
    """A table of products and the pictures that it names."""

    name: str

    def open_table(self) -> BinaryIO:
        """Open the table's bytes at the start. Raises UserError, then and later, where they cannot be read."""

    def has_picture(self, path: str) -> bool:
        """Return whether there is a picture at that path, which cannot lead outside the source."""

    def read_picture(self, path: str) -> bytes:
        """Return a picture's bytes, truncated for a file that is far too large. Raises OSError."""

    def picture_states(self, paths: Iterable[str]) -> Iterator[str]:
        """Yield one line per picture that changes with the picture, without reading any."""


def open_source(data: str, root: Path) -> Source:
    """Return the source that `data` names, after downloading or drawing it if necessary.

    Raises UserError if there is none.
    """
    if data == "auto":
        data = str(root / REAL) if (root / REAL / TABLE).exists() else "sample"
    if data == "sample":
        from vlm_core.catalogue.sample import draw_sample

        return FolderSource("sample", draw_sample(root / SAMPLE), TABLE)
    if data in ("kaggle", "hf"):
        from vlm_core.catalogue.fetching import fetch_hf, fetch_kaggle

        return _open_folder((fetch_kaggle if data == "kaggle" else fetch_hf)(root))
    path = Path(data).expanduser()
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise UserError(f"data={data} does not exist: give a folder, a zip or a CSV file, or sample, kaggle or hf.")
    if not path.is_file():
        raise UserError(f"data={data} is neither a folder nor a regular file: give a folder, a zip or a CSV file.")
    if path.suffix.lower() in (".csv", ".tsv", ".txt"):
        return FolderSource(path.name, path.parent, path.name)
    if zipfile.is_zipfile(path):
        return ZipSource(path)
    raise UserError(f"data={data} is neither a folder, a zip nor a CSV file: give one of these.")


class _BoundedTable(io.RawIOBase):
    """The bytes of a table in another file; more than a limit are an error, whatever they are unpacked from."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._file, self._name = file, name
        self._left = MOST_TABLE_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _naming_table(self._name):
            part = self._file.read(len(buffer))
        self._left -= len(part)
        if self._left < 0:
            raise UserError(f"{self._name} is larger than {MOST_TABLE_BYTES // 1_000_000} MB: give a smaller table.")
        buffer[: len(part)] = part
        return len(part)

    def close(self) -> None:
        self._file.close()
        super().close()


@contextmanager
def _naming_table(name: str) -> Iterator[None]:
    """Turn what goes wrong with a table into a UserError that names it."""
    try:
        yield
    except (OSError, *BROKEN_ENTRY) as error:
        raise UserError(f"{name} cannot be read ({error}): give a whole and regular file.") from None


def _bounded(open_file: Callable[[], IO[bytes]], name: str) -> BinaryIO:
    """Return the table of that name, opened and bounded. Raises UserError, then and while it is read."""
    with _naming_table(name):
        return io.BufferedReader(_BoundedTable(open_file(), name), 1 << 16)


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading without waiting for anybody. Raises OSError for what is no regular file, as a FIFO."""
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(f"{path.name} is not a regular file")
    return file


class FolderSource:
    """A table in a folder that has the pictures as well."""

    def __init__(self, name: str, folder: Path, table: str) -> None:
        self.name = name
        self._folder = folder.resolve()
        self._table = table

    def open_table(self) -> BinaryIO:
        """Open the table's bytes. Raises UserError when it cannot be read."""
        return _bounded(lambda: open_regular(self._folder / self._table), self._table)

    def _path(self, path: str) -> Path | None:
        try:
            file = (self._folder / path).resolve()
            return file if file.is_relative_to(self._folder) and file.is_file() else None
        except (OSError, ValueError, RuntimeError):  # a name that is too long or not allowed, a link to itself
            return None

    def has_picture(self, path: str) -> bool:
        """Return whether the file exists inside the folder."""
        return self._path(path) is not None

    def read_picture(self, path: str) -> bytes:
        """Return the file's bytes, up to a limit."""
        file = self._path(path)
        if file is None:
            raise OSError(f"{path} is not a file of the folder")
        with open_regular(file) as stream:
            return stream.read(MOST_PICTURE_BYTES)

    def picture_states(self, paths: Iterable[str]) -> Iterator[str]:
        """Yield each picture's path, size and modification time."""
        for path in paths:
            state = (self._folder / path).stat()
            yield f"{path}|{state.st_size}|{state.st_mtime_ns}"


class ZipSource:
    """A zip in Kaggle's layout, read in place; the least nested of several tables is used."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._zip = open_zip(path)
        self._entries = {entry.filename: entry for entry in self._zip.infolist() if not entry.is_dir()}
        tables = [name for name in self._entries if posixpath.basename(name) == TABLE]
        if not tables:
            raise UserError(f"data={path} holds no {TABLE}: give a zip in Kaggle's layout ({TABLE} and images/).")
        self._table = min(tables, key=lambda name: (name.count("/"), name))
        self._top = self._table.removesuffix(TABLE)

    def open_table(self) -> BinaryIO:
        """Open the table's bytes, which are unpacked as they are read. Raises UserError when the zip is damaged."""
        return _bounded(lambda: self._zip.open(self._table), f"{self._table} of {self.name}")

    def has_picture(self, path: str) -> bool:
        """Return whether the zip has such an entry."""
        return self._top + path in self._entries

    def read_picture(self, path: str) -> bytes:
        """Return the entry's bytes, up to a limit, whatever size the zip states."""
        return read_entry(self._zip, self._top + path)

    def picture_states(self, paths: Iterable[str]) -> Iterator[str]:
        """Yield each picture's path, size and checksum."""
        for path in paths:
            entry = self._entries[self._top + path]
            yield f"{path}|{entry.file_size}|{entry.CRC}"


def _open_folder(path: Path) -> FolderSource:
    tables = sorted(path.rglob(TABLE), key=lambda table: (len(table.parts), str(table)))
    if not tables:
        raise UserError(
            f"data={path} holds no {TABLE}: give a folder in Kaggle's layout, or the path of your CSV file."
        )
    return FolderSource(path.name, tables[0].parent, TABLE)


class HashedTable:
    """A table that is read line by line, once, and hashed on the way."""

    def __init__(self, table: BinaryIO) -> None:
        self._table = table
        self._digest = hashlib.blake2b(digest_size=8)

    def readline(self, limit: int = -1, /) -> bytes:
        """Return the next line, or its first `limit` bytes."""
        line = self._table.readline(limit)
        self._digest.update(line)
        return line

    def key(self, picture_states: Iterable[str]) -> str:
        """Return sixteen hex digits that change with the table, which is read to its end, or with a picture's state."""
        while part := self._table.read(1 << 20):
            self._digest.update(part)
        digest = self._digest.copy()
        for state in sorted(picture_states):
            digest.update(state.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()
