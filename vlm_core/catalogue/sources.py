"""Sources of a catalogue's table and pictures: a folder or zip in Kaggle's layout, or any CSV file."""

from __future__ import annotations

import hashlib
import io
import posixpath
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from vlm_core.errors import UserError

TABLE: Final = "styles.csv"
REAL: Final = Path("data/raw/myntra_fashion_products")
SAMPLE: Final = Path("data/raw/sample")
MOST_PICTURE_BYTES: Final = 50_000_000
MOST_TABLE_BYTES: Final = 1_000_000_000


class Source(Protocol):
    """A table of products and the pictures that it names."""

    name: str

    def open_table(self) -> BinaryIO:
        """Open the table's bytes at the start."""

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
    if path.suffix.lower() in (".csv", ".tsv", ".txt"):
        return FolderSource(path.name, path.parent, path.name)
    if zipfile.is_zipfile(path):
        return ZipSource(path)
    raise UserError(f"data={data} is neither a folder, a zip nor a CSV file: give one of these.")


class FolderSource:
    """A table in a folder that has the pictures as well."""

    def __init__(self, name: str, folder: Path, table: str) -> None:
        self.name = name
        self._folder = folder.resolve()
        self._table = table

    def open_table(self) -> BinaryIO:
        """Open the table's bytes."""
        return (self._folder / self._table).open("rb")

    def _path(self, path: str) -> Path | None:
        try:
            file = (self._folder / path).resolve()
            return file if file.is_relative_to(self._folder) and file.is_file() else None
        except (OSError, ValueError):  # a name that is too long or not allowed
            return None

    def has_picture(self, path: str) -> bool:
        """Return whether the file exists inside the folder."""
        return self._path(path) is not None

    def read_picture(self, path: str) -> bytes:
        """Return the file's bytes."""
        file = self._path(path)
        if file is None:
            raise OSError(f"{path} is not a file of the folder")
        with file.open("rb") as stream:
            return stream.read(MOST_PICTURE_BYTES)

    def picture_states(self, paths: Iterable[str]) -> Iterator[str]:
        """Yield each picture's path, size and modification time."""
        for path in paths:
            state = (self._folder / path).stat()
            yield f"{path}|{state.st_size}|{state.st_mtime_ns}"


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open a zip for reading. Raises UserError when it is not one."""
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be opened as a zip ({error}): download it again.") from None


def read_entry(archive: zipfile.ZipFile, name: str) -> bytes:
    """Return the bytes of a picture in a zip, up to a limit. Raises OSError when they cannot be read."""
    try:
        with archive.open(name) as file:
            return file.read(MOST_PICTURE_BYTES)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, KeyError, EOFError) as error:
        raise OSError(f"the zip's entry is broken: {error}") from None


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
        """Open the table's bytes. Raises UserError when the zip is damaged there."""
        try:
            with self._zip.open(self._table) as table:
                return io.BytesIO(table.read(MOST_TABLE_BYTES))
        except (OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
            raise UserError(f"{self._table} of {self.name} cannot be read ({error}): download the zip again.") from None

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
