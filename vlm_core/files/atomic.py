"""How files and folders are written: whole, or not at all, and with nothing left of a killed process."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final
from uuid import uuid4

_OF_COMMANDS: Final = "vlm-"  # how their folders in the temporary folder begin
_UNWRITABLE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
_MANY: Final = 1000  # files
_SYSTEM_ERROR: Final = re.compile(r"\(os error (\d+)\)")


@contextmanager
def errors_name(place: Path, unfinished: Path | None = None) -> Iterator[None]:
    """Have errors of writing inside the block name `place`, if they name no file or one of `unfinished`.

    What writes weights raises errors of its own, with the system's number in their text: they become an OSError.
    """
    within = str(unfinished or place)
    try:
        yield
    except OSError as error:
        if error.errno in _UNWRITABLE and str(error.filename or within).startswith(within):
            error.filename = str(place)
        raise
    except Exception as error:
        match = _SYSTEM_ERROR.search(str(error))
        if match is None or type(error).__name__ != "SafetensorError":
            raise
        raise OSError(int(match[1]), os.strerror(int(match[1])), str(place)) from error


@contextmanager
def building(target: Path, *, make_folder: bool = True) -> Iterator[Path]:
    """Yield the path where a file or a folder is built, which takes the place of `target` when the block ends well.

    Nothing is at that path yet; it lies beside `target`, in a folder that is made if it is missing, unless
    `make_folder` forbids it. After a failure `target` is as it was and nothing is left; what a killed process of this
    machine was building for the same `target` is removed. Raises OSError when `target` cannot be replaced, as a folder
    that is not empty; errors of the block name `target`, as in `errors_name`. A loss of power leaves either what was
    there or all that was built.
    """
    if make_folder:
        target.parent.mkdir(parents=True, exist_ok=True)
    for path in _of_dead(target.parent, re.escape(f".{target.name}.")):
        remove(path)
    partial = target.with_name(f".{target.name}.{_owner()}-{uuid4().hex[:8]}.part")
    try:
        with errors_name(target, partial):
            yield partial
            replace(partial, target)
    finally:
        remove(partial)


def replace(path: Path, target: Path) -> None:
    """Give a file, or a folder with all that it holds, the name `target`, once the disk has it."""
    built = [each for each in (*path.rglob("*"), path) if not each.is_symlink() and (each.is_file() or each.is_dir())]
    if len(built) > _MANY and hasattr(os, "sync"):
        synchronise(path)  # each by itself would take minutes
    else:
        for each in built:
            _synchronise(each)
    os.replace(path, target)
    _synchronise(target.parent)


def synchronise(folder: Path) -> None:
    """Wait until the disk has all that was written to the file system of `folder`. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if sync := getattr(ctypes.CDLL(None), "syncfs", None) if sys.platform == "linux" else None:
            sync(descriptor)
        elif hasattr(os, "sync"):
            os.sync()
    finally:
        os.close(descriptor)


def _synchronise(path: Path) -> None:
    """Wait until the disk has a file, or the names in a folder where the system knows of that."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # a folder of Windows
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def write_atomically(path: Path, write: Callable[[BinaryIO], object], *, make_folder: bool = True) -> None:
    """Let `write` fill a file that then takes the place of `path`, or leave `path` as it was if that failed.

    The folder is made if it is missing, unless `make_folder` forbids it. Raises what `write` raises, and OSError.
    """
    with building(path, make_folder=make_folder) as partial, partial.open("wb") as file:
        write(file)


@contextmanager
def own_temporary_folder(*, sweep: bool = True) -> Iterator[None]:
    """Keep the temporary files of this process, and of those that it starts, in one folder that goes with the block.

    With `sweep`, what killed processes of this machine left in theirs is removed first. Raises OSError.
    """
    before, variable = tempfile.tempdir, os.environ.get("TMPDIR")
    place = Path(tempfile.gettempdir())
    if sweep:
        for path in temporary_folders_of_dead(place):
            remove(path)
    folder = tempfile.mkdtemp(prefix=f"{_OF_COMMANDS}{_owner()}-", dir=place)
    tempfile.tempdir = os.environ["TMPDIR"] = folder
    try:
        yield
    finally:
        tempfile.tempdir = before
        os.environ.pop("TMPDIR")
        if variable is not None:
            os.environ["TMPDIR"] = variable
        remove(Path(folder))


def unfinished_of_dead(folder: Path) -> list[Path]:
    """Return what killed processes of this machine were building in `folder`."""
    return [path for path in _of_dead(folder, r"\..+\.") if path.suffix == ".part"]


def temporary_folders_of_dead(folder: Path) -> list[Path]:
    """Return the temporary folders, in `folder`, of this machine's commands that were killed."""
    return _of_dead(folder, _OF_COMMANDS)


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it, as far as this is possible; a link, and not what it names."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _machine() -> str:
    return f"{zlib.crc32(platform.node().encode()):08x}"


def _owner() -> str:
    """Return this machine and this process, as the names of unfinished files have them."""
    return f"{_machine()}-{os.getpid()}"


def _of_dead(folder: Path, start: str) -> list[Path]:
    """Return what is named by the pattern `start` and an owner of this machine whose process is dead."""
    import psutil

    name = re.compile(rf"{start}{_machine()}-(\d+)-.*")
    with suppress(FileNotFoundError):
        named = [(path, name.fullmatch(path.name)) for path in sorted(folder.iterdir())]
        return [path for path, match in named if match and not psutil.pid_exists(int(match[1]))]
    return []
