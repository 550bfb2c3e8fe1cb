"""Zips from anywhere: damaged entries are errors of their own, and so are names."""

from __future__ import annotations

import io
import lzma
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any, Final

from vlm_core.errors import UserError
from vlm_core.pixels.picture_store import MAX_BYTES

MOST_PICTURE_BYTES: Final = MAX_BYTES + 1  # enough for the decoder to see that the file is too large
# What zipfile raises, beside OSError, for an entry that is damaged, encrypted, wrongly named or of an unknown method
BROKEN_ENTRY: Final = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError, RuntimeError),
    *(KeyError, ValueError, EOFError),
)
_MOST_AFTER_DIRECTORY: Final = 22 + 65_535  # bytes: the end record and its comment
_UTF8: Final = 0x800  # the flag of an entry whose name is said to be UTF-8


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open a zip for reading. Raises UserError when it is not one."""
    try:
        try:
            return zipfile.ZipFile(path)
        except UnicodeDecodeError:
            return zipfile.ZipFile(_reread_names(path))
    except (OSError, struct.error, *BROKEN_ENTRY) as error:
        raise UserError(f"{path} cannot be opened as a zip ({error}): download it again.") from None


def read_entry(archive: zipfile.ZipFile, entry: str | zipfile.ZipInfo) -> bytes:
    """Return the bytes of a picture in a zip, up to a limit. Raises OSError when they cannot be read."""
    try:
        with archive.open(entry) as file:
            return file.read(MOST_PICTURE_BYTES)
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
    (directory_size,) = struct.unpack_from("<I", end, record + 12)
    file.seek(size - len(end) + record - directory_size)
    tail = bytearray(file.read())
    place = 0
    while tail[place : place + 4] == b"PK\1\2":
        (flags,) = struct.unpack_from("<H", tail, place + 8)
        name, extra, comment = struct.unpack_from("<HHH", tail, place + 28)
        try:
            tail[place + 46 : place + 46 + name].decode()
        except UnicodeDecodeError:
            struct.pack_into("<H", tail, place + 8, flags & ~_UTF8)
        place += 46 + name + extra + comment
    return _WithTail(file, bytes(tail), size)  # type: ignore[return-value]  # io's raw files are no IO[bytes] to mypy


class _WithTail(io.RawIOBase):
    """A file whose end is replaced by other bytes, as many."""

    def __init__(self, file: IO[bytes], tail: bytes, size: int) -> None:
        self._file, self._tail, self._size = file, tail, size
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._place = max(0, (0, self._place, self._size)[whence] + offset)
        return self._place

    def readinto(self, buffer: Any) -> int:
        start = self._size - len(self._tail)
        if self._place < start:
            self._file.seek(self._place)
            part = self._file.read(min(len(buffer), start - self._place))
        else:
            part = self._tail[self._place - start :][: len(buffer)]
        buffer[: len(part)] = part
        self._place += len(part)
        return len(part)

    def close(self) -> None:
        self._file.close()
        super().close()
