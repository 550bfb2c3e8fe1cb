"""States at a cut, computed once and kept on disk: shared by runs, seeds, modes and processes, bounded in size.

An entry is a folder of one picture view: a sparse array for each tensor of the state, with a row a product, and a file
that says which rows are there. Rows are written and synchronised before they are said to be there, so that a process
killed at any moment leaves nothing half-written that could be read.
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
from typing import Final, Literal

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from vlm_core.atomic import write_atomically
from vlm_core.errors import UserError
from vlm_core.models.stages import State

Rows = NDArray[np.int64]
Precision = Literal["fp16", "fp32"]
SCHEMA: Final = "1"  # of the entries: another number makes older ones stale
SECONDS_BETWEEN_SAVES: Final = 10.0
_DTYPES: Final[dict[str, np.dtype[np.floating]]] = {"fp16": np.dtype(np.float16), "fp32": np.dtype(np.float32)}


@dataclass(frozen=True)
class FeatureCache:
    """A folder of entries that together take no more than `limit_bytes`; the least recently used goes first."""

    folder: Path
    limit_bytes: int
    precision: Precision = "fp16"

    def entry(self, key: Mapping[str, str], products: int) -> CacheEntry:
        """The entry of a key, made or found when its rows are asked for; `products` is the catalogue's length."""
        content = {**key, "products": str(products), "precision": self.precision, "schema": SCHEMA}
        digest = hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()
        return CacheEntry(self.folder / digest, content, products, self.precision)

    def bytes_of(self, shapes: Iterable[tuple[int, ...]], rows: int) -> int:
        """What `rows` rows of a state of these shapes, without the batch, take."""
        return rows * sum(int(np.prod(shape)) for shape in shapes) * _DTYPES[self.precision].itemsize

    def make_room(self, wanted_bytes: int, keep: Sequence[CacheEntry]) -> None:
        """Remove entries not to keep, least recently used first, until `wanted_bytes` more stay below the limit.

        An entry that another process is filling stays. One that another process reads is lost to those who come
        later alone: open files outlive their names.
        """
        kept = {entry.folder for entry in keep}
        found = [folder for folder in self.folder.glob("*") if folder.is_dir()]
        sizes = {folder: _bytes_on_disk(folder) for folder in found}
        total = sum(sizes.values())
        for folder in sorted(found, key=_last_used):
            if total + wanted_bytes <= self.limit_bytes:
                return
            if folder in kept:
                continue
            with suppress(Timeout), FileLock(f"{folder}.lock", timeout=0):
                shutil.rmtree(folder, ignore_errors=True)
                total -= sizes[folder]


@dataclass(frozen=True)
class CacheEntry:
    """The states of one view of a catalogue's products, as far as they have been computed."""

    folder: Path
    key: Mapping[str, str]
    products: int
    precision: Precision

    def missing(self, rows: Rows) -> Rows:
        """Those of the rows that are not there yet, sorted, each once."""
        wanted: Rows = np.unique(rows)
        return wanted[~self._filled()[wanted]]

    def fill(self, rows: Rows, compute: Callable[[Rows], Iterator[tuple[Rows, State]]]) -> None:
        """Compute what is missing of the rows; another process that wants the same waits and finds it.

        `compute` gives the rows that it is asked for in batches, with their states (B, ...). Raises UserError when
        the disk is full, or a state has values that the precision cannot hold.
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
                        f"The states of frozen layers could not be kept in {self.folder.parent}: {error.strerror}. "
                        "Free disk space there, or lower views or cache_gib."
                    ) from None
        self._touch()

    def _write(self, computed: Iterator[tuple[Rows, State]]) -> None:
        filled, pending, saved = self._filled(), list[Rows](), time.monotonic()
        files: list[_RowFile] = []
        try:
            for rows, state in computed:
                files = files or [self._open_to_write(number, part.shape[1:]) for number, part in enumerate(state)]
                for file, part in zip(files, state, strict=True):
                    file.write(rows, self._rounded(part))
                pending.append(rows)
                if time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                    self._say_filled(files, filled, pending)
                    saved = time.monotonic()
            self._say_filled(files, filled, pending)
        finally:
            for file in files:
                file.close()

    def _rounded(self, part: torch.Tensor) -> NDArray[np.floating]:
        with np.errstate(over="ignore"):
            values: NDArray[np.floating] = part.cpu().numpy().astype(_DTYPES[self.precision])
        if not np.isfinite(values).all():
            raise UserError(f"A state has values that {self.precision} cannot hold: use cache_precision=fp32.")
        return values

    def _say_filled(self, files: Sequence[_RowFile], filled: NDArray[np.bool_], pending: list[Rows]) -> None:
        for file in files:
            file.synchronise()
        for rows in pending:
            filled[rows] = True
        pending.clear()
        write_atomically(self.folder / "filled.npy", lambda stream: np.save(stream, filled))

    def read(self, rows: Rows) -> StoredStates:
        """The states, open to be taken, or KeyError when some of the rows are not there."""
        try:
            parts = [np.load(path, mmap_mode="r", allow_pickle=False) for path in sorted(self.folder.glob("part-*"))]
        except FileNotFoundError:
            parts = []
        if not parts or len(self.missing(rows)):
            raise KeyError(f"{self.folder} does not hold all rows")
        return StoredStates(parts)

    def _filled(self) -> NDArray[np.bool_]:
        try:
            filled: NDArray[np.bool_] = np.load(self.folder / "filled.npy", allow_pickle=False)
        except FileNotFoundError:
            return np.zeros(self.products, dtype=bool)
        return filled

    def _touch(self) -> None:
        with suppress(FileNotFoundError):
            os.utime(self.folder / "key.json")

    def _open_to_write(self, number: int, shape: tuple[int, ...]) -> _RowFile:
        return _RowFile(self.folder / f"part-{number}.npy", (self.products, *shape), _DTYPES[self.precision])


class StoredStates:
    """States (n, ...) of an entry, memory-mapped: only what is taken is read."""

    def __init__(self, parts: Sequence[NDArray[np.floating]]) -> None:
        self._parts = parts

    def take(self, rows: Rows) -> State:
        """The states of the rows (B,), in their order, in single precision."""
        return tuple(torch.from_numpy(np.asarray(part[rows], dtype=np.float32)) for part in self._parts)


class _RowFile:
    """A .npy file whose rows are written in any order; those never written take no room on disk.

    Written, not mapped: a full disk is then an error, where a mapped page would kill the process.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[np.floating]) -> None:
        if not path.exists():
            self._create(path, shape, dtype)
        self._row_bytes = int(np.prod(shape[1:])) * dtype.itemsize
        self._start = path.stat().st_size - shape[0] * self._row_bytes
        self._file = path.open("r+b")

    @staticmethod
    def _create(path: Path, shape: tuple[int, ...], dtype: np.dtype[np.floating]) -> None:
        def write(file: object) -> None:
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)  # type: ignore[arg-type]
            file.truncate(file.tell() + int(np.prod(shape)) * dtype.itemsize)  # type: ignore[attr-defined]

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
