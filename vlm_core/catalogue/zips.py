"""Zips from anywhere: damaged entries are errors of their own, and so are names."""

from __future__ import annotations

import io
import lzma
import struct
import zipfile
import zlib
from bisect import bisect_left
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Final, cast

from vlm_core.catalogue.containers.files import MOST_PICTURE_BYTES
from vlm_core.errors import UserError

# What zipfile raises, beside OSError, for an entry that is damaged, encrypted, wrongly named or of an unknown method
BROKEN_ENTRY: Final = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError, RuntimeError),
    *(KeyError, ValueError, EOFError),
)
ZIP_START: Final = b"PK\3\4"
_MOST_AFTER_DIRECTORY: Final = 22 + 65_535  # bytes: the end record and its comment
_UTF8: Final = 0x08  # of the flags' second byte: the name is said to be UTF-8


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open a zip for reading. Raises UserError when it is not one."""
    try:
        try:
            archive = zipfile.ZipFile(path)
        except UnicodeDecodeError:
            archive = zipfile.ZipFile(_reread_names(path))
    except (OSError, struct.error, IndexError, *BROKEN_ENTRY) as error:
        raise UserError(f"{path} cannot be opened as a zip ({error}): download it again.") from None
    entries = [entry for entry in archive.infolist() if not entry.filename.endswith("/")]  # a broken one has no name
    if 2 * sum(map(_is_encrypted, entries)) > len(entries):
        archive.close()
        raise UserError(f"{path} has a password: unpack it, and give the folder.")
    return archive


def is_workbook(path: Path) -> bool:
    """Return whether a file is an Excel workbook, whatever it is called but for .zip."""
    if path.suffix.lower() == ".zip" or not zipfile.is_zipfile(path):
        return False
    with open_zip(path) as archive:
        return {"[Content_Types].xml", "xl/workbook.xml"} <= set(archive.namelist())


def starts_as_zip(path: Path) -> bool:
    """Return whether a file begins as zips do, whose end may be missing."""
    try:
        with path.open("rb") as file:
            return file.read(len(ZIP_START)) == ZIP_START
    except OSError:
        return False


def _is_encrypted(entry: zipfile.ZipInfo) -> bool:
    return bool(entry.flag_bits & 1)


def read_entry(archive: zipfile.ZipFile, entry: str | zipfile.ZipInfo) -> bytes:
    """Return the bytes of a picture in a zip, up to a limit. Raises OSError when they cannot be read."""
    if _is_encrypted(archive.getinfo(entry) if isinstance(entry, str) else entry):
        raise OSError("it has a password: unpack the zip, and give the folder")
    try:
        with archive.open(entry) as file:
            return file.read(MOST_PICTURE_BYTES)
    except NotImplementedError:
        raise OSError("it is packed in a way that is not read: unpack the zip, and give its folder") from None
    except BROKEN_ENTRY as error:
        raise OSError(f"the zip's entry is broken: {error}") from None


def _reread_names(path: Path) -> IO[bytes]:
    """Return a zip whose names are no longer said to be UTF-8 where they are not.

    For zipfile, one such name would make the whole zip unreadable.
    """
    file = path.open("rb")
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - _MOST_AFTER_DIRECTORY))
    end = file.read()
    record = end.rindex(b"PK\5\6")
    length, offset = struct.unpack_from("<II", end, record + 12)
    start = size - len(end) + record - length  # of the directory, which says that it is at `offset`
    file.seek(start)
    directory = file.read(length)
    changes: dict[int, int] = {}
    place = 0
    while directory[place : place + 4] == b"PK\1\2":
        name, extra, comment = struct.unpack_from("<HHH", directory, place + 28)
        try:
            directory[place + 46 : place + 46 + name].decode()
        except UnicodeDecodeError:
            (header,) = struct.unpack_from("<I", directory, place + 42)
            for flags in (start + place + 9, start - offset + header + 7):
                file.seek(flags)
                changes[flags] = file.read(1)[0] & ~_UTF8
        place += 46 + name + extra + comment
    return cast(IO[bytes], io.BufferedReader(_Changed(file, changes)))


class _Changed(io.RawIOBase):
    """A file of which some bytes, by their place, are read as others."""

    def __init__(self, file: IO[bytes], changes: Mapping[int, int]) -> None:
        self._file, self._changes = file, changes
        self._places = sorted(changes)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        start = self._file.tell()
        part = bytearray(self._file.read(len(buffer)))
        stop = start + len(part)
        for place in self._places[bisect_left(self._places, start) : bisect_left(self._places, stop)]:
            part[place - start] = self._changes[place]
        buffer[: len(part)] = part
        return len(part)

    def close(self) -> None:
        self._file.close()
        super().close()
