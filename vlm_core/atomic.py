"""How files and folders are written: whole, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4


@contextmanager
def building(target: Path, *, make_folder: bool = True) -> Iterator[Path]:
    """Yield the path where a file or a folder is built, which takes the place of `target` when the block ends well.

    Nothing is at that path yet; it lies beside `target`, in a folder that is made if it is missing, unless
    `make_folder` forbids it. After a failure `target` is as it was and nothing is left. Raises OSError when `target`
    cannot be replaced, as a folder that is not empty.
    """
    if make_folder:
        target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{uuid4().hex[:8]}.part")
    try:
        yield partial
        os.replace(partial, target)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def write_atomically(path: Path, write: Callable[[BinaryIO], object], *, make_folder: bool = True) -> None:
    """Let `write` fill a file that then takes the place of `path`, or leave `path` as it was if that failed.

    The folder is made if it is missing, unless `make_folder` forbids it. Raises what `write` raises, and OSError.
    """
    with building(path, make_folder=make_folder) as partial, partial.open("wb") as file:
        write(file)
