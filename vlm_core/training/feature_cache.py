"""A feature cache on disk: outputs of the frozen prefix, shared by runs, seeds, modes and processes, with a size limit.

An entry is a folder for one view of the images. It holds a sparse array for each tensor of the state, with one row per
product, and a file that marks the filled rows. Rows are written and synchronised before they are marked, so that a
process killed at any moment leaves no half-written row that could be read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from vlm_core.atomic import write_atomically
from vlm_core.errors import UserError
from vlm_core.models.stages import State
from vlm_core.pixels.arrays import Rows

Precision = Literal["fp16", "fp32"]
SCHEMA: Final = "1"  # of the entries; another number invalidates older ones
SECONDS_BETWEEN_COMMITS: Final = 10.0
_DTYPES: Final[dict[str, np.dtype[np.floating]]] = {"fp16": np.dtype(np.float16), "fp32": np.dtype(np.float32)}


@dataclass(frozen=True)
class FeatureCache:
    """A folder of entries that together take at most `max_bytes`; the least recently used are evicted first."""

    folder: Path
    max_bytes: int
    precision: Precision = "fp16"

    def entry(self, key: Mapping[str, str], products: int) -> CacheEntry:
        """Return the entry of a key, which need not exist yet; `products` is the number of the catalogue's rows."""
        content = {**key, "products": str(products), "precision": self.precision, "schema": SCHEMA}
        digest = hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()
        return CacheEntry(self.folder / digest, content, products, self.precision)

    def size_bytes(self, shapes: Iterable[tuple[int, ...]], rows: int) -> int:
        """Return the size of `rows` rows of tensors of these shapes (without the batch dimension)."""
        return rows * sum(int(np.prod(shape)) for shape in shapes) * _DTYPES[self.precision].itemsize

    def free_space(self, needed_bytes: int, keep: Sequence[CacheEntry]) -> None:
        """Evict entries other than `keep`, least recently used first, until `needed_bytes` more fit below the limit.

        An entry that another process is filling stays. If another process is reading an evicted entry, it can finish:
        open files outlive their names.
        """
        protected = {entry.folder for entry in keep}
        folders = [folder for folder in self.folder.glob("*") if folder.is_dir()]
        sizes = {folder: _bytes_on_disk(folder) for folder in folders}
        total = sum(sizes.values())
        for folder in sorted(folders, key=_last_used):
            if total + needed_bytes <= self.max_bytes:
                return
            if folder in protected:
                continue
            with suppress(Timeout), FileLock(f"{folder}.lock", timeout=0):
                shutil.rmtree(folder, ignore_errors=True)
                total -= sizes[folder]


@dataclass(frozen=True)
class CacheEntry:
    """The features of one view of a catalogue's products, as far as they are computed."""

    folder: Path
    key: Mapping[str, str]
    products: int
    precision: Precision

    def missing(self, rows: Rows) -> Rows:
        """Return those of the rows that are not filled yet, sorted and unique."""
        unique: Rows = np.unique(rows)
        return unique[~self._filled()[unique]]

    def fill(self, rows: Rows, compute: Callable[[Rows], Iterator[tuple[Rows, State]]]) -> None:
        """Compute the missing ones of the rows; a process that needs the same rows waits for the result.

        `compute` yields batches of the rows it receives, with their states (B, ...). Raise UserError if the disk is
        full, or the precision cannot represent a value.
        """
        if not len(self.missing(rows)):
            self._touch()
            return
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.folder}.lock"):
            missing = self.missing(rows)
            if len(missing):
                self.folder.mkdir(exist_ok=True)
                write_atomically(self.folder / "key.json", lambda file: file.write(json.dumps(self.key).encode()))
                try:
                    self._write(compute(missing))
                except OSError as error:
                    raise UserError(
                        f"The features of frozen layers could not be written to {self.folder.parent}: "
                        f"{error.strerror}. Free disk space there, or lower views or cache_gib."
                    ) from None
        self._touch()

    def _write(self, batches: Iterator[tuple[Rows, State]]) -> None:
        filled, pending, committed = self._filled(), list[Rows](), time.monotonic()
        files: list[_RowFile] = []
        try:
            for rows, state in batches:
                files = files or [self._open_to_write(number, part.shape[1:]) for number, part in enumerate(state)]
                for file, part in zip(files, state, strict=True):
                    file.write(rows, self._to_precision(part))
                pending.append(rows)
                if time.monotonic() - committed > SECONDS_BETWEEN_COMMITS:
                    self._commit(files, filled, pending)
                    committed = time.monotonic()
            self._commit(files, filled, pending)
        finally:
            for file in files:
                file.close()

    def _to_precision(self, part: torch.Tensor) -> NDArray[np.floating]:
        with np.errstate(over="ignore"):
            values: NDArray[np.floating] = part.cpu().numpy().astype(_DTYPES[self.precision])
        if not np.isfinite(values).all():
            raise UserError(f"A feature has a value that {self.precision} cannot represent: use cache_precision=fp32.")
        return values

    def _commit(self, files: Sequence[_RowFile], filled: NDArray[np.bool_], pending: list[Rows]) -> None:
        """Synchronise the files, then mark the pending rows as filled."""
        for file in files:
            file.synchronise()
        for rows in pending:
            filled[rows] = True
        pending.clear()
        write_atomically(self.folder / "filled.npy", lambda stream: np.save(stream, filled))

    def read(self, rows: Rows) -> CachedFeatures:
        """Return the entry's memory-mapped features. Raise KeyError if some of the rows are missing."""
        try:
            parts = [np.load(path, mmap_mode="r", allow_pickle=False) for path in sorted(self.folder.glob("part-*"))]
        except FileNotFoundError:
            parts = []
        if not parts or len(self.missing(rows)):
            raise KeyError(f"{self.folder} does not hold all rows")
        return CachedFeatures(parts)

    def _filled(self) -> NDArray[np.bool_]:
        try:
            filled: NDArray[np.bool_] = np.load(self.folder / "filled.npy", allow_pickle=False)
        except FileNotFoundError:
            return np.zeros(self.products, dtype=bool)
        return filled

    def _touch(self) -> None:
        """Mark the entry as just used."""
        with suppress(FileNotFoundError):
            os.utime(self.folder / "key.json")

    def _open_to_write(self, number: int, shape: tuple[int, ...]) -> _RowFile:
        return _RowFile(self.folder / f"part-{number}.npy", (self.products, *shape), _DTYPES[self.precision])


class CachedFeatures:
    """An entry's features (n, ...), memory-mapped: only the rows that are taken are read."""

    def __init__(self, parts: Sequence[NDArray[np.floating]]) -> None:
        self._parts = parts

    def take(self, rows: Rows) -> State:
        """Return the features of the rows (B,), in their order, in float32."""
        return tuple(torch.from_numpy(np.asarray(part[rows], dtype=np.float32)) for part in self._parts)


class _RowFile:
    """A sparse .npy file whose rows are written in any order; rows never written take no disk space.

    Rows are written through the file, not a memory map: a full disk then raises an error, where a mapped page would
    kill the process.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[np.floating]) -> None:
        if not path.exists():
            self._create(path, shape, dtype)
        self._row_bytes = int(np.prod(shape[1:])) * dtype.itemsize
        self._start = path.stat().st_size - shape[0] * self._row_bytes
        self._file = path.open("r+b")

    @staticmethod
    def _create(path: Path, shape: tuple[int, ...], dtype: np.dtype[np.floating]) -> None:
        def write(file: BinaryIO) -> None:
            header: dict[str, Any] = {
                "descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape
            }  # fmt: skip
            np.lib.format.write_array_header_1_0(file, header)
            file.truncate(file.tell() + int(np.prod(shape)) * dtype.itemsize)

        write_atomically(path, write)

    def write(self, rows: Rows, values: NDArray[np.floating]) -> None:
        for row, value in zip(rows, values, strict=True):
            self._file.seek(self._start + int(row) * self._row_bytes)
            self._file.write(value.tobytes())

    def synchronise(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _bytes_on_disk(folder: Path) -> int:
    with suppress(FileNotFoundError):
        return sum(path.stat().st_blocks * 512 for path in folder.iterdir())
    return 0


def _last_used(folder: Path) -> float:
    try:
        return (folder / "key.json").stat().st_mtime
    except FileNotFoundError:
        return 0.0
