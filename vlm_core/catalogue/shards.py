"""Packing a catalogue into Parquet shards: its table and its pictures in a few large files, which stream well.

A shard has every column of the table as text and a column of pictures: their bytes as they are, their cell in the
table, and why one is missing. Shards are written one after the other into a folder beside the place, which takes its
name when the last one is done; a packing that was killed resumes after the shards that are whole.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from pydantic import TypeAdapter

from vlm_core.catalogue.catalogue import check_columns
from vlm_core.catalogue.containers.arrow_table import PATH, PROBLEM, SHARDS, RowPicture
from vlm_core.catalogue.open_table import OpenTable
from vlm_core.catalogue.parts import PART, part_of_picture
from vlm_core.catalogue.reading import Columns, Refusal, writable_text
from vlm_core.catalogue.sources import Source
from vlm_core.errors import UserError
from vlm_core.files import atomic
from vlm_core.files.atomic import building, write_atomically
from vlm_core.progress import track

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)
MANIFEST: Final = "_shards.json"  # Arrow and Spark pass over such names
PICTURE_NAMES: Final = ("image", "picture", "picture_bytes", "vlm_picture")  # of the column, the first that is free
READ_AT_ONCE: Final = 16  # pictures, of which each may have 50 MB
ROWS_PER_GROUP: Final = 1024
BYTES_PER_GROUP: Final = 16_000_000
WHOLE_BATCHES: Final = 32  # rows of a group are a multiple, so that batches of a prediction do not cross groups
REASONS_KEPT: Final = 3


@dataclass(frozen=True)
class Shard:
    """A file of rows and the checksums of its bytes, and of the rows that it was made of."""

    file: str
    rows: int
    bytes: int
    checksum: str
    content: str
    missing: int = 0  # rows without a picture
    reasons: tuple[str, ...] = ()  # why the first of them have none


@dataclass(frozen=True)
class Packed:
    """All shards of a catalogue; the content of their manifest."""

    source: str
    shards: tuple[Shard, ...] = ()
    whole: bool = False
    schema: Literal[1] = 1

    @property
    def rows(self) -> int:
        """Return the number of rows."""
        return sum(shard.rows for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Return the size of all shards."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def missing(self) -> int:
        """Return the number of rows without a picture."""
        return sum(shard.missing for shard in self.shards)

    @property
    def reasons(self) -> list[str]:
        """Return why the first of them have none."""
        return [reason for shard in self.shards for reason in shard.reasons][:REASONS_KEPT]

    def write(self, folder: Path) -> None:
        """Write the manifest into the folder of the shards."""
        content = _MANIFEST.dump_json(self, indent=1)
        write_atomically(folder / MANIFEST, lambda file: file.write(content))

    @classmethod
    def read(cls, folder: Path) -> Packed | None:
        """Return the manifest in a folder; None where there is none that can be read."""
        try:
            return _MANIFEST.validate_json((folder / MANIFEST).read_bytes())
        except (OSError, ValueError):
            return None


_MANIFEST: Final = TypeAdapter(Packed)


class ShardRow(NamedTuple):
    """What a row of a shard is made of."""

    cells: Sequence[str | None]  # None for all of a row that could not be read
    cell: str  # of the picture
    picture: RowPicture

    def content(self) -> bytes:
        """Return what the row says, and the state of its picture, of which no byte is read."""
        try:
            state = self.picture.problem or self.picture.state()
        except OSError as error:
            state = str(error)
        parts = [*(cell or "" for cell in self.cells), self.cell, state]
        return "\x1f".join(parts).encode("utf-8", "backslashreplace") + b"\n"


class ShardRows(NamedTuple):
    """What is packed: where it comes from, the names of its columns, that of the pictures, and its rows."""

    source: str
    names: Sequence[str]
    picture: str
    rows: Iterator[ShardRow]


_Filled = tuple[ShardRow, bytes | None, str]  # with the picture's bytes, or why they are missing


def pack(source: Source, columns: Columns, output: Path, *, rows_per_shard: int, bytes_per_shard: int) -> Packed:
    """Pack a catalogue into shards in the folder `output`, as `pack_rows` does, and return what is in it.

    Raises UserError when a column is missing, and as `pack_rows` does.
    """
    with source.open_table(columns) as table:
        check_columns(source.name, replace(table, columns=replace(table.columns, label="")))
        own = table.columns.picture
        named = [name for name in dict.fromkeys(table.table.names) if name and name != own]
        names = [*named, *([] if PART in named else [PART])]
        picture = own or next(name for name in PICTURE_NAMES if name not in names)
        rows = ShardRows(source.name, names, picture, _rows_of(table, names))
        return pack_rows(rows, output, rows_per_shard=rows_per_shard, bytes_per_shard=bytes_per_shard)


def _rows_of(table: OpenTable, names: Sequence[str]) -> Iterator[ShardRow]:
    for row, picture in table.rows():
        if isinstance(row, Refusal):
            reason = f"{row.place} of {table.table.name}: {row.reason}"
            yield ShardRow([None] * len(names), "", RowPicture(problem=reason))
        else:
            values = row.values | {PART: row.values.get(PART) or part_of_picture(picture.path)}
            yield ShardRow([values[name] for name in names], table.picture_cell(row), picture)


def pack_rows(rows: ShardRows, output: Path, *, rows_per_shard: int, bytes_per_shard: int) -> Packed:
    """Pack rows into shards in the folder `output`, and return what is in it.

    A shard ends with the batch of pictures that makes it as large as one of the limits. What a killed call packed into
    the same place stays if the rows are still the same. Raises UserError when there is none, or `output` holds
    something else.
    """
    unfinished = output.with_name(f".{output.name}.packing")
    if is_done := output.exists():
        if not (Packed.read(output) or Packed("")).whole:
            raise UserError(f"output={output} is there already and is no packed catalogue: give a new folder.")
        unfinished = output
    with alone(unfinished, output):
        known = Packed.read(unfinished) or Packed("")
        packed = _Packing(rows, unfinished, rows_per_shard, bytes_per_shard, is_done).run(known)
        if not is_done:
            if not packed.rows:
                atomic.remove(unfinished)
                raise UserError(f"{rows.source} has no rows: there is nothing to pack.")
            replace(packed, whole=True).write(unfinished)
            atomic.replace(unfinished, output)
    return replace(packed, whole=True)


@contextmanager
def alone(folder: Path, output: Path) -> Iterator[None]:
    """Make a folder, in which `output` is built, and keep other processes from it. Raises UserError."""
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f".{output.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"output={output} is being written by another process: wait for it, or stop it.") from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


class _Packing:
    """Packs rows; `read_only` raises UserError where a shard is not as the rows say."""

    def __init__(
        self, rows: ShardRows, folder: Path, rows_per_shard: int, bytes_per_shard: int, read_only: bool
    ) -> None:
        self._source, self._names, self._picture, self._rows = rows
        self._folder, self._read_only = folder, read_only
        self._most_rows, self._most_bytes = rows_per_shard, bytes_per_shard

    def run(self, known: Packed) -> Packed:
        """Write the shards that are not there yet, and return all."""
        rows: Iterator[ShardRow] = track(self._rows, "packing rows")
        packed = Packed(self._source)
        for number in count():
            kept = known.shards[number] if number < len(known.shards) else None
            shard, rows = self._keep(kept, rows) if kept else (None, rows)
            if shard is None:
                if self._read_only and (kept or next(rows, None)):
                    raise UserError(
                        f"output={self._folder} was packed from another state of {self._source}, or is damaged: remove "
                        "it, or give a new folder."
                    )
                if (shard := self._write(number, rows)) is None:
                    break
                replace(packed, shards=(*packed.shards, shard, *known.shards[number + 1 :])).write(self._folder)
            packed = replace(packed, shards=(*packed.shards, shard))
        self._remove_others({shard.file for shard in packed.shards})
        return packed

    def _keep(self, known: Shard, rows: Iterator[ShardRow]) -> tuple[Shard | None, Iterator[ShardRow]]:
        """Return a shard that is whole and as the table says, or None; and the rows that come next."""
        path = self._folder / known.file
        if not path.is_file() or path.stat().st_size != known.bytes or _checksum(path) != known.checksum:
            return None, rows
        some = list(islice(rows, known.rows))
        content = hashlib.blake2b(digest_size=16)
        for row in some:
            content.update(row.content())
        if len(some) != known.rows or content.hexdigest() != known.content:
            return None, chain(some, rows)
        return known, rows

    def _write(self, number: int, rows: Iterator[ShardRow]) -> Shard | None:
        """Write a shard of the next rows; None where there are no more."""
        from pyarrow import parquet

        if (first := next(rows, None)) is None:
            return None
        path = self._folder / f"shard-{number:05}.parquet"
        content = hashlib.blake2b(digest_size=16)
        schema = self._schema()
        written = missing = 0
        reasons: list[str] = []
        with (
            building(path) as partial,
            parquet.ParquetWriter(
                partial,
                schema,
                compression={**dict.fromkeys(schema.names, "zstd"), f"{self._picture}.bytes": "none"},
                use_dictionary=list(self._names),
                write_statistics=False,
            ) as writer,
        ):
            for group in self._groups(chain([first], rows)):
                writer.write_table(self._table_of(group, schema))
                written += len(group)
                why = [problem for _, _, problem in group if problem]
                missing += len(why)
                reasons += why[: REASONS_KEPT - len(reasons)]
                for row, _, _ in group:
                    content.update(row.content())
        size = path.stat().st_size
        return Shard(path.name, written, size, _checksum(path), content.hexdigest(), missing, tuple(reasons))

    def _groups(self, rows: Iterator[ShardRow]) -> Iterator[list[_Filled]]:
        """Yield rows with their pictures, or why these are missing, until the shard is as large as a limit."""
        group: list[_Filled] = []
        written = size = group_size = 0
        with ThreadPoolExecutor(READ_AT_ONCE // 2) as pool:
            while written < self._most_rows and size < self._most_bytes:
                some = list(islice(rows, min(READ_AT_ONCE, self._most_rows - written)))
                if not some:
                    break
                found = pool.map(_read, (row.picture for row in some))
                filled = [(row, *picture) for row, picture in zip(some, found, strict=True)]
                group += filled
                read = sum(len(data or b"") for _, data, _ in filled)
                written, size, group_size = written + len(some), size + read, group_size + read
                is_large = len(group) >= ROWS_PER_GROUP or group_size >= BYTES_PER_GROUP
                if is_large and len(group) % WHOLE_BATCHES == 0:
                    yield group
                    group, group_size = [], 0
        if group:
            yield group

    def _schema(self) -> pa.Schema:
        import pyarrow as pa

        picture = pa.struct([("bytes", pa.binary()), (PATH, pa.string()), (PROBLEM, pa.string())])
        fields = [(name, pa.string()) for name in self._names]
        return pa.schema([*fields, (self._picture, picture)], metadata={SHARDS: b"1"})

    def _table_of(self, group: Sequence[_Filled], schema: pa.Schema) -> pa.Table:
        import pyarrow as pa

        columns: list[Any] = [
            pa.array([(cell := row.cells[place]) and writable_text(cell) for row, _, _ in group], pa.string())
            for place in range(len(self._names))
        ]
        pictures = [
            {"bytes": data, PATH: writable_text(row.cell), PROBLEM: writable_text(why)} for row, data, why in group
        ]
        return pa.table([*columns, pa.array(pictures, schema.field(self._picture).type)], schema=schema)

    def _remove_others(self, files: set[str]) -> None:
        """Remove what an earlier state of the table left."""
        for path in () if self._read_only else self._folder.glob("shard-*.parquet"):
            if path.name not in files:
                path.unlink()


def _read(picture: RowPicture) -> tuple[bytes | None, str]:
    try:
        return picture.read(), ""
    except OSError as error:
        return None, str(error) or type(error).__name__


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
