"""A feature cache on disk: outputs of the frozen prefix, shared by runs, seeds, modes and processes, with a size limit.

An entry is a folder for one view of the images. It holds a sparse array for each tensor of the state, with one row per
product, and a file with the checksum of each filled row. Rows are written and synchronised before their checksums are,
so that a process killed at any moment leaves no half-written row that could be read. A row counts only if its bytes
have that checksum: whatever is deleted, cut or changed in the folder, at any moment, is computed again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from vlm_core.errors import UserError
from vlm_core.files.atomic import write_atomically
from vlm_core.models.stages import State
from vlm_core.pixels.arrays import Rows

Precision = Literal["fp16", "fp32"]
_COST: Final = "cost.json"  # rows computed for an entry, and the seconds that took
SCHEMA: Final = "2"  # of the entries; another number invalidates older ones
SECONDS_BETWEEN_COMMITS: Final = 10.0
_ROWS_VERIFIED_AT_ONCE: Final = 256
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
            if remove_entry(folder):
                total -= sizes[folder]


def idle_entries(folder: Path, days: float) -> list[Path]:
    """Return the entries of a cache that no run has used for so many days, or that this version cannot read."""
    limit = time.time() - days * 24 * 60 * 60
    return [entry for entry in sorted(folder.glob("*/")) if _last_used(entry) < limit or not _is_readable(entry)]


def remove_entry(folder: Path) -> bool:
    """Remove an entry, unless a process is filling it, and return whether it is gone."""
    with suppress(Timeout), FileLock(f"{folder}.lock", timeout=0):
        shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()


def _is_readable(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / "key.json").read_text())["schema"] == SCHEMA)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def to_precision(part: torch.Tensor, precision: Precision) -> NDArray[np.floating]:
    """Return a tensor of the state as it is kept. Raise UserError if the precision cannot represent a value."""
    with np.errstate(over="ignore"):
        values: NDArray[np.floating] = part.cpu().numpy().astype(_DTYPES[precision])
    if not np.isfinite(values).all():
        raise UserError(f"A feature has a value that {precision} cannot represent: use cache_precision=fp32.")
    return values


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
        missing: Rows = unique[self._open()[1][unique] == 0]
        return missing

    def fill(self, rows: Rows, compute: Callable[[Rows], Iterator[tuple[Rows, State]]]) -> None:
        """Compute the missing ones of the rows; a process that needs the same rows waits for the result.

        `compute` yields batches of the rows it receives, with their states (B, ...). Raise KeyError if the entry is
        removed meanwhile, UserError if the disk is full or the precision cannot represent a value.
        """
        if not len(self.missing(rows)):
            self._touch()
            return
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.folder}.lock"):
            missing = self.missing(rows)
            if len(missing):
                self.folder.mkdir(exist_ok=True)
                try:
                    self._write_file("key.json", lambda file: file.write(json.dumps(self.key).encode()))
                    self._write(compute(missing))
                except OSError as error:
                    if not self.folder.exists():
                        raise KeyError(f"{self.folder} was removed while it was filled") from error
                    raise UserError(
                        f"The features of frozen layers could not be written to {self.folder.parent}: "
                        f"{error.strerror}. Free disk space there, or lower views or cache_gib."
                    ) from None
        self._touch()

    def add_cost(self, rows: int, seconds: float) -> None:
        """Record what computing so many rows of the entry took; a record that is lost is only not known."""
        known_rows, known_seconds = self._cost()
        cost = {"rows": known_rows + rows, "seconds": known_seconds + seconds}
        with suppress(OSError):
            self._write_file(_COST, lambda file: file.write(json.dumps(cost).encode()))

    def seconds_per_row(self) -> float:
        """Return what computing a row of the entry took on average; nan where that was not recorded."""
        rows, seconds = self._cost()
        return seconds / rows if rows else nan

    def _cost(self) -> tuple[int, float]:
        try:
            cost = json.loads((self.folder / _COST).read_text(encoding="utf-8"))
            return int(cost["rows"]), float(cost["seconds"])
        except (OSError, ValueError, TypeError, KeyError):
            return 0, 0.0

    def _write(self, batches: Iterator[tuple[Rows, State]]) -> None:
        checksums, committed = self._open()[1], time.monotonic()
        pending, files = list[tuple[Rows, NDArray[np.uint32]]](), list[_RowFile]()
        try:
            for rows, state in batches:
                files = files or [self._open_to_write(number, part.shape[1:]) for number, part in enumerate(state)]
                parts = [to_precision(part, self.precision) for part in state]
                for file, part in zip(files, parts, strict=True):
                    file.write(rows, part)
                pending.append((rows, _checksums(parts)))
                if time.monotonic() - committed > SECONDS_BETWEEN_COMMITS:
                    self._commit(files, checksums, pending)
                    committed = time.monotonic()
            self._commit(files, checksums, pending)
        finally:
            for file in files:
                file.close()

    def _commit(
        self,
        files: Sequence[_RowFile],
        checksums: NDArray[np.uint32],
        pending: list[tuple[Rows, NDArray[np.uint32]]],
    ) -> None:
        """Synchronise the files, then write the checksums of the pending rows. Raise KeyError if a file is gone."""
        for file in files:
            file.synchronise()
        if not all(file.is_in_place() for file in files):
            raise KeyError(f"{self.folder} was removed while it was filled")
        for rows, sums in pending:
            checksums[rows] = sums
        pending.clear()
        self._write_file("filled.npy", lambda stream: np.save(stream, checksums))

    def _write_file(self, name: str, write: Callable[[BinaryIO], object]) -> None:
        """Write a file atomically. Raise FileNotFoundError if the folder was removed: it is not made again."""
        write_atomically(self.folder / name, write, make_folder=False)

    def read(self, rows: Rows) -> CachedFeatures:
        """Return the entry's memory-mapped features, whose rows are verified.

        Raise KeyError if some of the rows are missing; an entry of which some have changed is removed.
        """
        parts, checksums = self._open()
        unique: Rows = np.unique(rows)
        if not checksums[unique].all():
            raise KeyError(f"{self.folder} does not hold all rows")
        for start in range(0, len(unique), _ROWS_VERIFIED_AT_ONCE):
            some = unique[start : start + _ROWS_VERIFIED_AT_ONCE]
            if not np.array_equal(_checksums([part[some] for part in parts]), checksums[some]):
                with FileLock(f"{self.folder}.lock"):
                    shutil.rmtree(self.folder, ignore_errors=True)
                raise KeyError(f"{self.folder} was changed after it was filled")
        return CachedFeatures(parts)

    def _open(self) -> tuple[list[NDArray[np.floating]], NDArray[np.uint32]]:
        """Return the parts (n, ...), memory-mapped, and the checksum (n,) of each row, 0 where it is not filled."""
        try:
            with (self.folder / "filled.npy").open("rb") as file:
                checksums: NDArray[np.uint32] = np.lib.format.read_array(file, allow_pickle=False)
            parts: list[NDArray[np.floating]] = [
                np.lib.format.open_memmap(path, mode="r") for path in sorted(self.folder.glob("part-*.npy"))
            ]
        except (OSError, ValueError):  # absent, cut or changed
            parts = []
        layout = [(len(part), part.dtype) for part in parts]
        if not parts or layout != [(self.products, _DTYPES[self.precision])] * len(parts):
            return [], np.zeros(self.products, dtype=np.uint32)
        return parts, checksums

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
        if not self._is_whole(path, shape, dtype):
            self._create(path, shape, dtype)
        self._path, self._row_bytes = path, int(np.prod(shape[1:])) * dtype.itemsize
        self._file = path.open("r+b")
        self._start = os.fstat(self._file.fileno()).st_size - shape[0] * self._row_bytes

    @staticmethod
    def _is_whole(path: Path, shape: tuple[int, ...], dtype: np.dtype[np.floating]) -> bool:
        try:
            rows = np.lib.format.open_memmap(path, mode="r")
        except (OSError, ValueError):  # absent, cut or changed
            return False
        return rows.shape == shape and rows.dtype == dtype

    @staticmethod
    def _create(path: Path, shape: tuple[int, ...], dtype: np.dtype[np.floating]) -> None:
        def write(file: BinaryIO) -> None:
            header: dict[str, Any] = {
                "descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape
            }  # fmt: skip
            np.lib.format.write_array_header_1_0(file, header)
            file.truncate(file.tell() + int(np.prod(shape)) * dtype.itemsize)

        write_atomically(path, write, make_folder=False)

    def write(self, rows: Rows, values: NDArray[np.floating]) -> None:
        for row, value in zip(rows, values, strict=True):
            self._file.seek(self._start + int(row) * self._row_bytes)
            self._file.write(value.tobytes())

    def synchronise(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def is_in_place(self) -> bool:
        """Return whether this file is still the one at its path."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self._path.stat())
        except FileNotFoundError:
            return False

    def close(self) -> None:
        self._file.close()


def _checksums(parts: Sequence[NDArray[np.floating]]) -> NDArray[np.uint32]:
    """Return the CRC-32 (B,) of each row of all parts (B, ...) together, never 0."""
    sums = np.zeros(len(parts[0]), dtype=np.uint32)
    for part in parts:
        sums[:] = [zlib.crc32(row.tobytes(), before) for row, before in zip(part, sums.tolist(), strict=True)]
    return np.maximum(sums, 1)


def _bytes_on_disk(folder: Path) -> int:
    with suppress(FileNotFoundError):
        return sum(path.stat().st_blocks * 512 for path in folder.iterdir())
    return 0


def _last_used(folder: Path) -> float:
    try:
        return (folder / "key.json").stat().st_mtime
    except FileNotFoundError:
        return 0.0
