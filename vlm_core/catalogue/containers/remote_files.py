"""Files of a folder at an address, such as s3://bucket/shop, on any file system that fsspec or Arrow can read.

A folder is listed once, and what its files are is known from that: none is asked for by itself before it is read.
"""

from __future__ import annotations

import hashlib
import io
import posixpath
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar, cast

from vlm_core.catalogue.containers.files import MOST_FILES, MOST_FOLDERS, MOST_PICTURE_BYTES, is_leftover
from vlm_core.errors import UserError, redact
from vlm_core.files.addresses import naming_address, open_address, shown_address
from vlm_core.files.atomic import building, remove
from vlm_core.progress import track

T = TypeVar("T")
BLOCK: Final = 1 << 22  # bytes that a request for a part of a file asks for
LISTED_APART: Final = 32  # folders in a folder, which are listed together from then on
_TELLING: Final = (  # what file systems say that changes with a file
    *("ETag", "etag", "md5Hash", "blob_id", "mtime", "LastModified", "last_modified", "updated", "created"),
)


@dataclass
class _Folder:
    """What is in a folder: the names of its folders, and of its files with their states."""

    folders: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)


def find_remote(address: str) -> tuple[RemoteFiles, str]:
    """Return the files of the folder at an address and ""; or those beside the file there, and its name.

    Raises UserError where there is neither, or it cannot be found out.
    """
    with naming_address(address):
        files, path = open_address(address)
        files.invalidate_cache()
        is_folder = files.info(path)["type"] == "directory"
    if is_folder:
        return RemoteFiles(files, path, shown_address(address), beside_table=False), ""
    folder, name = posixpath.split(path)
    return RemoteFiles(files, folder, shown_address(address).rpartition("/")[0], beside_table=True), name


class RemoteFiles:
    """The files of the folder at an address, all of which are of use; or those beside a table, which names them.

    Beside a table, folders are listed as it names them, so that nobody waits for what else a bucket may hold. Whatever
    the file system raises, but for a single file that cannot be read, becomes a UserError.
    """

    def __init__(self, files: Any, root: str, name: str, *, beside_table: bool) -> None:
        """Take a file system of fsspec's, the path of the folder in it, and its address."""
        self.name = name
        self._files, self._root, self._beside_table = files, root, beside_table
        self._folders: dict[str, _Folder] = {}  # by their paths in the file system, as far as they were listed
        self._listed_wholly: list[str] = []
        self._listed_in: Counter[str] = Counter()  # by folder, of how many of its folders each was listed by itself
        self._unreadable: list[str] = []

    def contains(self, path: str) -> bool:
        """Return whether there is a file at that path."""
        return self._state(path) is not None

    def folder(self, path: str, *, everything: bool = False) -> tuple[list[str], list[str]]:
        """Return the names of the folders and of the files in a folder; with `everything` also of leftovers."""
        where = self._where(path)
        found = _Folder() if where is None else self._in(where)
        names = (sorted(found.folders), sorted(found.files))
        folders, files = ([name for name in some if everything or not is_leftover(name)] for some in names)
        return folders, files

    def walk(self, path: str = "", *, everything: bool = False) -> Iterator[str]:
        """Yield the paths of all files below a folder; beside a table, those in its own folder alone.

        Raises UserError for more than two million.
        """
        is_shallow = self._beside_table and posixpath.normpath(path) == "."
        where = self._where(path)
        if where is not None and not is_shallow:
            self._list_wholly(where)
        left = MOST_FILES
        waiting = [path]
        while waiting:
            folder = waiting.pop()
            folders, files = self.folder(folder, everything=everything)
            for name in files:
                left -= 1
                if left < 0:
                    raise UserError(f"{self.name} has more than {MOST_FILES:,} files: give a part of it.")
                yield posixpath.join(folder, name)
            waiting.extend([] if is_shallow else [posixpath.join(folder, name) for name in reversed(folders)])

    def unreadable(self) -> list[str]:
        """Return the paths of what has no place in a folder, as names with empty or upward steps."""
        return sorted(self._unreadable)

    def open(self, path: str) -> BinaryIO:
        """Open a file, which is asked for in large parts, one after the other."""
        return io.BufferedReader(self.open_part(path), BLOCK)

    def seekable(self, path: str) -> RemoteFile:
        """Return a file that can be read from any place on."""
        return RemoteFile(self, path)

    def read_picture(self, path: str) -> bytes:
        """Return a file's bytes, up to a limit. Raises OSError, or UserError where nothing can be read any more."""
        where = self._where(path) or path
        try:
            return self._read(where)
        except FileNotFoundError:
            raise OSError(f"{path} is not in {self.name} any more") from None
        except Exception:  # each file system has its own
            with naming_address(self.name):  # where the place itself does not answer, no other picture would be read
                self._files.invalidate_cache()
                self._files.info(self._root)
        try:
            return self._read(where)
        except Exception as error:
            raise OSError(f"{path} cannot be read from {self.name} ({redact(str(error))})") from None

    def state(self, path: str) -> str:
        """Return what the listing of its folder says of a file: its size, and its checksum or time."""
        if (state := self._state(path)) is None:
            raise FileNotFoundError(f"{path} is not in {self.name}")
        return state

    def copy(self, path: str, folder: Path) -> Path:
        """Return a copy of a file below `folder`, made unless it is there; copies of its earlier states go.

        Raises UserError where the disk has no room for it.
        """
        with naming_address(f"{self.name}/{path}"):
            found = self._files.info(self._where(path))
        size, copies = int(found["size"]), folder / _digest(f"{self.name}/{path}")
        copy = copies / _digest(_state(found)) / posixpath.basename(path)
        if copy.exists():
            return copy
        copy.parent.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(copies).free) < size:
            raise UserError(
                f"{self.name}/{path} is copied to {copies}, where its {size / 1e6:,.0f} MB do not fit into the "
                f"{free / 1e6:,.0f} MB that are free: free some space."
            )
        with self.open(path) as file, building(copy) as partial, partial.open("wb") as target:
            for block in track(iter(lambda: file.read(BLOCK), b""), f"copying {path}", -(-size // BLOCK)):
                target.write(block)
        for other in copies.iterdir():
            if other != copy.parent:
                remove(other)
        return copy

    def _read(self, where: str) -> bytes:
        with self._files.open(where, "rb") as file:
            return bytes(file.read(MOST_PICTURE_BYTES))

    def open_part(self, path: str) -> io.RawIOBase:
        """Open a file of which parts are asked for as they are read."""
        name = f"{self.name}/{path}"
        with naming_address(name):
            return _Part(self._files.open(self._where(path) or path, "rb"), name)

    def _where(self, path: str) -> str | None:
        """Return a path in the file system; None for one from the top of a disk, or out of the bucket.

        Beside a table it may be an address in the same bucket, as of a cell.
        """
        if path.startswith("/") or not _is_text(path):
            return None
        scheme, sign, place = path.partition("://")
        is_address = sign and self._beside_table and self.name == f"{scheme}://{self._root}"
        where = posixpath.normpath(place if is_address else posixpath.join(self._root, path))
        top = self._root.strip("/").partition("/")[0]
        return where if where.strip("/").partition("/")[0] == top or not top else None

    def _state(self, path: str) -> str | None:
        where = self._where(path)
        if where is None or path.count("/") > MOST_FOLDERS:
            return None
        folder, name = posixpath.split(where)
        return self._in(folder).files.get(name)

    def _in(self, folder: str) -> _Folder:
        """Return what is in a folder; nothing where there is none."""
        if folder in self._folders:
            return self._folders[folder]
        if any(f"{folder}/".startswith(_start(each)) for each in self._listed_wholly):
            return _Folder()
        above = posixpath.dirname(folder)
        self._listed_in[above] += 1
        if self._listed_in[above] > LISTED_APART and not _start(self._root).startswith(_start(above)):
            self._list_wholly(above)
        else:
            self._folders[folder] = _Folder()
            self._list(folder, wholly=False)
        return self._folders.get(folder, _Folder())

    def _list_wholly(self, folder: str) -> None:
        """List a folder and all below it."""
        start = _start(folder)
        if any(start.startswith(_start(each)) for each in self._listed_wholly):
            return
        self._folders = {path: found for path, found in self._folders.items() if not _start(path).startswith(start)}
        self._listed_wholly.append(folder)
        self._folders[folder] = _Folder()
        self._list(folder, wholly=True)

    def _list(self, folder: str, *, wholly: bool) -> None:
        start = _start(folder)
        with naming_address(self.name):
            for path, is_folder, state in _entries(self._files, folder, wholly):
                below = path.removeprefix(start)
                above, name = posixpath.split(path)
                if not path.startswith(start) or not name:
                    continue
                if {"", ".", ".."} & {*below.split("/")}:
                    self._unreadable.append(below)
                elif not is_folder:
                    self._at(above).files[name] = state
                elif not wholly:
                    self._folders[folder].folders.append(name)

    def _at(self, folder: str) -> _Folder:
        """Return the entry of a folder, made with those around it."""
        if folder not in self._folders:
            self._folders[folder] = _Folder()
            above, name = posixpath.split(folder)
            self._at(above).folders.append(name)
        return self._folders[folder]


@dataclass(frozen=True)
class RemoteFile:
    """A file at an address, which can be read from any place on."""

    files: RemoteFiles
    path: str

    def __str__(self) -> str:
        """Return its address."""
        return f"{self.files.name}/{self.path}"

    def open(self) -> BinaryIO:
        """Open it; each part that is read is asked for by itself."""
        return cast(BinaryIO, self.files.open_part(self.path))

    def state(self) -> str:
        """Return what its listing says of it."""
        return self.files.state(self.path)


class _Part(io.RawIOBase):
    """An open file at an address, whose errors name it."""

    def __init__(self, file: Any, address: str) -> None:
        self._file, self._address = file, address

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        with naming_address(self._address):
            self._file.seek(offset, whence)
            return int(self._file.tell())

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        with naming_address(self._address):
            return int(self._file.readinto(buffer))

    def close(self) -> None:
        self._file.close()
        super().close()


def _entries(files: Any, folder: str, wholly: bool) -> Iterator[tuple[str, bool, str]]:
    """Yield what is in a folder, or `wholly` also below it: its path, whether it is a folder, and its state."""
    from fsspec.implementations.arrow import ArrowFSWrapper

    if isinstance(files, ArrowFSWrapper):  # whose own listing of all below a folder asks for each folder
        from pyarrow.fs import FileSelector, FileType

        selected = FileSelector(folder, allow_not_found=True, recursive=wholly)
        for found in _interruptibly(lambda: files.fs.get_file_info(selected)):
            if found.type in (FileType.File, FileType.Directory):
                yield found.path, found.type == FileType.Directory, f"{found.size}|{found.mtime_ns}"
        return
    waiting = [folder]
    while waiting:
        try:
            entries = files.ls(waiting.pop(), detail=True)
        except FileNotFoundError:
            continue
        for entry in entries:
            path, is_folder = str(entry["name"]), entry["type"] == "directory"
            yield path, is_folder, _state(entry)
            if wholly and is_folder:
                waiting.append(path)


def _state(entry: Mapping[str, Any]) -> str:
    """Return what changes with a file, of what its file system says of it."""
    return "|".join(str(entry[name]) for name in ("size", *_TELLING) if entry.get(name) is not None)


def _interruptibly(work: Callable[[], T]) -> T:
    """Return what `work` returns, from a thread: Ctrl-C ends the wait, which may be minutes for a million files."""
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return result.result()


def _start(folder: str) -> str:
    """Return how the paths of what is below a folder begin."""
    return folder if folder in ("", "/") else f"{folder}/"


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in path
