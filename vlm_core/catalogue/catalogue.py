"""A prepared catalogue: usable products in a table, their pictures in one memory-mapped file, and a reading report."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import TypeAdapter

from vlm_core.catalogue.containers.files import is_picture
from vlm_core.catalogue.open_table import OpenTable
from vlm_core.catalogue.ordering import places_in_order
from vlm_core.catalogue.parts import PART, part_of_picture
from vlm_core.catalogue.picture_files import PictureMissing, Pictures, tidy
from vlm_core.catalogue.processes import in_processes
from vlm_core.catalogue.reading import FURTHER, Columns, ReadingReport, Refusal, number_of, read_products, writable_text
from vlm_core.catalogue.sources import Source, open_source
from vlm_core.errors import UserError
from vlm_core.files.atomic import building, write_atomically
from vlm_core.pixels.arrays import Rows
from vlm_core.pixels.picture_store import (
    MEMORY_SETTING,
    PictureStore,
    UnreadablePicture,
    decode_picture,
    fit_picture,
    fit_pictures,
)
from vlm_core.progress import track

SCHEMA: Final = 6  # of the prepared folder: part of its name, so that an older one is never read
SIZES: Final = "sizes.npy"  # beside the pictures
LONGEST_SIDE: Final = 256  # pixels of a stored picture
PICTURES_MEASURED: Final = 200  # to choose the canvas
PICTURES_PER_BATCH: Final = 256
MOST_NAMES: Final = 50  # of columns in a message
LONGEST_NAME: Final = 80  # characters of a column's name in a message
LEFT_OUT: Final = "left_out.csv"  # which rows and pictures are of no use, and why
MOST_SHARED: Final = 100_000  # cells that are looked for in other rows
WORTH_PROCESSES: Final = 5000  # rows
READ_AT_ONCE: Final = 8  # pictures, of which each may have 50 MB
ROWS_PER_BATCH, BYTES_PER_BATCH = 64, 4_000_000  # decoded by one process


@dataclass(frozen=True)
class Catalogue:
    """The usable products of a catalogue and their pictures."""

    name: str
    products: pd.DataFrame  # row i belongs to pictures[i]; str columns, "" where nothing is known
    pictures: PictureStore
    reading: ReadingReport
    fingerprint: str  # 16 hex digits of the contents, independent of their location and order

    @property
    def left_out(self) -> Path:
        """Return the CSV file with all rows and pictures that are of no use; there is none if all are."""
        return self.pictures.path.with_name(LEFT_OUT)

    @property
    def pictures_fingerprint(self) -> str:
        """Return 16 hex digits of which picture is in which row, at which size."""
        content = "\n".join([str(self.pictures.canvas), *self.products["picture_digest"]])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def picture_sizes(self) -> NDArray[np.uint32]:
        """Return height and width (n, 2) of each picture before it was fitted to the canvas."""
        sizes: NDArray[np.uint32] = np.load(self.pictures.path.with_name(SIZES), allow_pickle=False)
        return sizes


def prepare_catalogue(
    data: str, columns: Columns, root: Path, *, download: bool = False, by_id: bool = True
) -> Catalogue:
    """Return the catalogue that `data` names, decoded once and cached under `root/data/processed`.

    With `download` pictures at web addresses are downloaded first, those that are not there yet. Products are in the
    order of their ids, or without `by_id` in that of the table's rows.
    Raises UserError when there is nothing to read, a column is missing, or no product is usable.
    """
    source = open_source(data, root)
    if download:
        source.download(columns)
    with source.open_table(columns) as table:
        reading = _read(source, table, by_id)
    memory = os.environ.get(MEMORY_SETTING, "")  # which pictures are read depends on it
    contents = f"{SCHEMA}|{reading.key}|{columns}|{by_id}{f'|{memory}' if memory else ''}"
    key = hashlib.blake2b(contents.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    name = re.sub(r"[^\w.-]", "_", Path(source.name).stem) or "catalogue"
    folder = root / "data" / "processed" / f"{name}-{key}"
    if not (folder / "reading.json").exists():
        _prepare(source, reading, folder, folder.with_name(f"{name}-{LEFT_OUT}"))
    return _load(source.name, folder)


def find_prepared(root: Path, fingerprint: str) -> Path | None:
    """Return the folder in `root/data/processed` of a prepared catalogue with that fingerprint; None if none has it."""
    for report in sorted((root / "data" / "processed").glob("*/reading.json")):
        try:
            if json.loads(report.read_text())["fingerprint"] == fingerprint:
                return report.parent
        except (OSError, ValueError, KeyError):
            continue
    return None


def load_prepared(folder: Path) -> Catalogue:
    """Return the catalogue in a folder from `find_prepared`."""
    return _load(folder.name.rsplit("-", 1)[0], folder)


def own_columns(catalogue: Catalogue) -> list[str]:
    """Return the columns of the table itself, without those that preparing adds; an empty title is none."""
    products = catalogue.products
    empty = [name for name in ("title",) if not products[name].any()]
    return [str(name) for name in products if name not in ("product_id", "picture_digest", PART, *empty)]


def with_products(catalogue: Catalogue, products: pd.DataFrame) -> Catalogue:
    """Return the catalogue with other values in its columns, prepared in a folder of its own.

    The rows stay as they are, and the pictures' file is shared. `find_prepared` finds it like any other.
    """
    fingerprint = _fingerprint(products, catalogue.reading.picture_column)
    if fingerprint == catalogue.fingerprint:
        return catalogue
    source = catalogue.pictures.path.parent
    key = hashlib.blake2b(f"{source.name}|{fingerprint}".encode(), digest_size=8).hexdigest()
    folder = source.parent / f"{source.name.rsplit('-', 1)[0]}-{key}"
    if not (folder / "reading.json").exists():
        with _preparing(folder) as partial:
            for array in source.glob("*.npy"):
                _share(array, partial / array.name)
            _finish(products, catalogue.reading, catalogue.name, partial)
    return _load(catalogue.name, folder)


def joined_catalogue(
    old: Catalogue | None, old_rows: Rows, new: Catalogue, added: pd.DataFrame, canvas: tuple[int, int], root: Path
) -> Catalogue:
    """Return a catalogue of some rows of one, then of rows of another, prepared in a folder of its own.

    `added` are the rows of `new`, by their number, as they shall be; an id that `old` has becomes "<id> (<name>)".
    Columns with paths of pictures are left out. The pictures have the canvas (height, width). Rows stand in the order
    in which they are given, whatever order a catalogue of the same products has that was joined before.
    """
    parts = [(old, old_rows), (new, added.index.to_numpy())] if old else [(new, added.index.to_numpy())]
    tables = [added.assign(product_id=_distinct(added["product_id"], new.name, old))]
    if old:
        tables.insert(0, old.products.iloc[old_rows])
    paths = {part.reading.picture_column for part, _ in parts} - {""}
    products = pd.concat(tables, ignore_index=True).fillna("").drop(columns=paths, errors="ignore")
    reading = replace(new.reading, products=len(products), picture_column="")
    name = " + ".join(part.name for part, _ in parts)
    contents = "\n".join([_fingerprint(products, ""), str(canvas), *products["product_id"]])
    key = hashlib.blake2b(contents.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    folder = root / "data" / "processed" / f"extended-{key}"
    if not (folder / "reading.json").exists():
        with _preparing(folder) as partial:
            with (partial / "pictures.npy").open("wb") as file:
                _write_header(file, (len(products), *canvas, 3))
                for part, rows in parts:
                    for start in range(0, len(rows), PICTURES_PER_BATCH):
                        pictures = part.pictures.take(rows[start : start + PICTURES_PER_BATCH])
                        file.write(fit_pictures(pictures, canvas).tobytes())
            np.save(partial / SIZES, np.concatenate([part.picture_sizes()[rows] for part, rows in parts]))
            _finish(products, reading, name, partial)
    return _load(name, folder)


def _distinct(ids: pd.Series[str], name: str, old: Catalogue | None) -> list[str]:
    """Return ids of which none is in `old`."""
    taken = set(old.products["product_id"]) if old else set[str]()
    endings = ["", f" ({name})", *(f" ({name}, {number})" for number in range(2, 100))]
    ending = next(each for each in endings if not any(f"{value}{each}" in taken for value in ids if value in taken))
    return [f"{value}{ending}" if value in taken else value for value in ids]


def _share(file: Path, place: Path) -> None:
    """Give a file another name, or copy it where the file system cannot."""
    try:
        os.link(file, place)
    except OSError:
        shutil.copyfile(file, place)


class _Placed(NamedTuple):
    """A row of the table and the path of its picture; a dictionary a row would take three times as much memory."""

    line: int
    sheet: str
    cells: tuple[str, ...]
    path: str


@dataclass(frozen=True)
class _Reading:
    """A table that was read: rows with the paths of their pictures, and the report before any decoding."""

    names: tuple[str, ...]  # of the cells
    rows: list[_Placed]
    report: ReadingReport
    columns: Columns
    pictures: Pictures
    key: str  # of the contents
    hint: str  # a sentence with the column that seems to hold the pictures, if the one that was given does not


def check_columns(name: str, table: OpenTable) -> None:
    """Raise UserError unless the table has every column that is needed; a label only if one is asked for."""
    for setting, column in table.columns.needed().items():
        if column not in table.table.names:
            raise UserError(no_column(setting, column, name, table.table.names))


def no_column(setting: str, column: str, table: str, names: Iterable[str]) -> str:
    """Return that a table has no such column, which it has, and which was perhaps meant."""
    known = [name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}..." for name in names if name]
    more = f" and {len(known) - MOST_NAMES:,} more" if len(known) > MOST_NAMES else ""
    folded = {name.casefold(): name for name in known}
    near = get_close_matches(column.casefold(), folded, n=1)
    meant = f" Did you mean {setting}={folded[near[0]]}?" if near else ""
    if any(map(is_picture, known)):
        meant = " Its first line seems to be a product: put a line above it that names the columns."
    return f"{setting}={column} is not a column of {table}, which has: {', '.join(known[:MOST_NAMES])}{more}.{meant}"


def _prepare(source: Source, reading: _Reading, folder: Path, left_out: Path) -> None:
    """Read and decode everything into a temporary folder, which is renamed when it is complete."""
    with _preparing(folder) as partial:
        _write(source, reading, partial, left_out)


@contextmanager
def _preparing(folder: Path) -> Iterator[Path]:
    """Give a new folder, which takes the place of `folder` when it is complete; another process may be faster."""
    try:
        with building(folder) as partial:
            partial.mkdir()
            yield partial
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError(f"The disk of {folder.parent} is full: free some space and start again.") from None
        if not (folder / "reading.json").exists():  # otherwise another process was faster
            raise


def _write(source: Source, reading: _Reading, folder: Path, left_out: Path) -> None:
    canvas = _canvas(reading)
    unreadable: list[Refusal] = []
    usable: dict[str, list[str]] = {}  # by column: a dictionary a product would take ten times as much memory
    sizes: list[tuple[int, int]] = []
    with (folder / "pictures.npy").open("wb") as file:  # written, not mapped: a full disk is an error, not a SIGBUS
        _write_header(file, (len(reading.rows), *canvas, 3))
        for row, decoded in track(_decode(reading, canvas), "reading pictures", len(reading.rows)):
            if isinstance(decoded, str):
                unreadable.append(Refusal(row.line, f"the picture {row.path}: {decoded}", row.sheet))
                continue
            file.write(decoded.picture.tobytes())
            for name, cell in _product(row, decoded, reading).items():
                usable.setdefault(name, []).append(writable_text(cell))
            sizes.append(decoded.size)
        file.seek(0)
        _write_header(file, (len(sizes), *canvas, 3))
    report = replace(reading.report, pictures_unreadable=tuple(unreadable), products=len(sizes))
    if not usable:
        raise _nothing_usable(source.name, report, left_out, reading.hint)
    np.save(folder / SIZES, np.array(sizes, dtype=np.uint32))
    products = pd.DataFrame(usable)
    if len(set(products[PART]) - {""}) < 2:
        del products[PART]
    _finish(products, report, source.name, folder)


def _finish(products: pd.DataFrame, report: ReadingReport, name: str, folder: Path) -> None:
    """Write what makes a folder of pictures a prepared catalogue."""
    products.to_parquet(folder / "products.parquet", index=False)
    _write_left_out(report, name, folder / LEFT_OUT)
    content = {
        "fingerprint": _fingerprint(products, report.picture_column),
        "report": _report_adapter().dump_python(report, mode="json"),
    }
    (folder / "reading.json").write_text(json.dumps(content))


def _nothing_usable(name: str, report: ReadingReport, left_out: Path, hint: str) -> UserError:
    """Return the error of a table without a usable product, after writing why each row is none."""
    reasons = report.left_out()
    if not reasons:
        return UserError(f"{name} has no usable product: it has no rows.")
    _write_left_out(report, name, left_out)
    return UserError(
        f"{name} has no usable product: {number_of(report.rows_read, 'row')} read, {len(report.refused):,} refused, "
        f"{report.pictures_missing:,} without a picture, {len(report.pictures_unreadable):,} with an unreadable one. "
        f"The first: {report.first_reasons()} {left_out} lists all.{hint}"
        + (f" Assumed: {'; '.join(report.notes)}." if report.notes else "")
    )


def _write_left_out(report: ReadingReport, table: str, path: Path) -> None:
    """Write a CSV file with the line and the reason of everything that is left out, if there is any."""
    if reasons := report.left_out():
        rows = [
            (f"{table}, sheet {found.sheet}" if found.sheet else table, found.line, found.reason) for found in reasons
        ]
        text = pd.DataFrame(rows, columns=["table", "line", "reason"]).to_csv(index=False)
        write_atomically(path, lambda file: file.write(text.encode("utf-8", "backslashreplace")))


def _read(source: Source, table: OpenTable, by_id: bool) -> _Reading:
    """Return the rows that have a picture, with `by_id` in the order of ids. Raises UserError for a missing column."""
    check_columns(source.name, table)
    names: tuple[str, ...] = ()
    rows: list[_Placed] = []
    shared: dict[str, str] = {}  # cells that stand in many rows, each of which is kept once
    refused: list[Refusal] = []
    missing: list[Refusal] = []
    hint = ""
    unlabelled: list[Refusal] = []
    count = repaired = further = 0
    for row in read_products(table.table, table.columns):
        count += 1
        if isinstance(row, Refusal):
            refused.append(row)
            continue
        repaired += row.repaired
        try:
            found = table.find(row)
        except PictureMissing as error:
            hint = hint or ("" if rows or missing else table.propose_column(row))
            missing.append(Refusal(row.line, str(error), row.sheet))
            continue
        names = names or tuple(row.values)
        if len(shared) < MOST_SHARED:
            shared.update((cell, cell) for cell in row.values.values() if cell not in shared)
        cells = tuple(shared.get(cell, cell) for cell in row.values.values())
        rows.append(_Placed(row.line, row.sheet, cells, found.path))
        further += found.further
        if not row.values[table.columns.label]:
            reason = f"no category: the column {table.columns.label} is empty"
            unlabelled.append(Refusal(row.line, reason, row.sheet))
    report = ReadingReport(
        rows_read=count,
        rows_repaired=repaired,
        refused=tuple(refused),
        pictures_missing=len(missing),
        pictures_unreadable=(),
        products=0,
        missing=tuple(missing),
        unlabelled=tuple(unlabelled),
        further_pictures=further + sum(found.reason.endswith(FURTHER) for found in refused),
        notes=tuple(table.table.notes),
        picture_column=table.columns.picture,
    )
    if by_id:
        ids = [_identity(dict(zip(names, row.cells, strict=True)), table.columns) for row in rows]
        rows = [rows[place] for place in places_in_order(ids)]
    key = table.key(row.path for row in rows)
    return _Reading(names, rows, report, table.columns, table.pictures, key, hint)


def _canvas(reading: _Reading) -> tuple[int, int]:
    """Return height and width for all pictures: the median of a sample, with a bounded longer side."""
    rows = reading.rows

    def measure(row: _Placed) -> tuple[int, int] | None:
        try:
            return decode_picture(reading.pictures.read(row.path)).size
        except (OSError, UnreadablePicture):
            return None

    with ThreadPoolExecutor(READ_AT_ONCE) as pool:
        found = pool.map(measure, rows[:: max(1, len(rows) // PICTURES_MEASURED)][:PICTURES_MEASURED])
        sizes = [size for size in found if size]
    if not sizes:
        return 80, 60
    width, height = np.median(sizes, axis=0)
    scale = min(1.0, LONGEST_SIDE / max(width, height))
    return max(1, round(height * scale)), max(1, round(width * scale))


@dataclass(frozen=True)
class _Decoded:
    picture: NDArray[np.uint8]
    digest: str
    size: tuple[int, int]  # height and width before it was fitted


def _decode(reading: _Reading, canvas: tuple[int, int]) -> Iterator[tuple[_Placed, _Decoded | str]]:
    """Yield each row with its picture, or the reason why there is none."""
    worth = len(reading.rows) > WORTH_PROCESSES
    batches = in_processes(partial(_decode_batch, canvas), _read_batches(reading), worth=worth)
    yield from zip(reading.rows, chain.from_iterable(batches), strict=True)


def _read_batches(reading: _Reading) -> Iterator[list[bytes | str]]:
    """Yield the bytes of all pictures, or why one has none, some at a time."""

    def read(row: _Placed) -> bytes | str:
        try:
            return reading.pictures.read(row.path)
        except (OSError, ValueError) as error:
            return str(error)

    waiting = iter(reading.rows)
    batch: list[bytes | str] = []
    size = 0
    with ThreadPoolExecutor(READ_AT_ONCE) as pool:
        while some := list(islice(waiting, READ_AT_ONCE)):
            found = list(pool.map(read, some))
            batch += found
            size += sum(map(len, found))
            if size >= BYTES_PER_BATCH or len(batch) >= ROWS_PER_BATCH:
                yield batch
                batch, size = [], 0
    yield batch


def _decode_batch(canvas: tuple[int, int], batch: Sequence[bytes | str]) -> list[_Decoded | str]:
    return [data if isinstance(data, str) else _decode_one(canvas, data) for data in batch]


def _decode_one(canvas: tuple[int, int], data: bytes) -> _Decoded | str:
    try:
        original = decode_picture(data)
        picture = fit_picture(original, canvas)
    except (OSError, ValueError, UnreadablePicture) as error:
        return str(error)
    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    return _Decoded(picture, digest, (original.height, original.width))


def _identity(values: Mapping[str, str], columns: Columns) -> str:
    return values.get(columns.id) or tidy(values[columns.picture])


def _product(row: _Placed, decoded: _Decoded, reading: _Reading) -> dict[str, str]:
    values = dict(zip(reading.names, row.cells, strict=True))
    return {
        **values,
        "product_id": _identity(values, reading.columns),
        "title": values.get(reading.columns.title, values.get("title", "")),
        "picture_digest": decoded.digest,
        PART: values.get(PART) or part_of_picture(row.path),
    }


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    """Write an array header; numpy pads it for any number of rows, so that it can be overwritten later."""
    layout = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, layout)


def _fingerprint(products: pd.DataFrame, picture_column: str) -> str:
    """Return 16 hex digits of all rows, in whatever order, place and spelling of paths they and their pictures came."""
    contents = products.drop(columns=[name for name in (picture_column, PART) if name in products])
    lines = sorted("\x1f".join(values) for values in contents.itertuples(index=False))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


@cache
def _report_adapter() -> TypeAdapter[ReadingReport]:
    return TypeAdapter(ReadingReport)


def _load(name: str, folder: Path) -> Catalogue:
    content = json.loads((folder / "reading.json").read_text())
    return Catalogue(
        name,
        pd.read_parquet(folder / "products.parquet"),
        PictureStore(folder / "pictures.npy"),
        _report_adapter().validate_python(content["report"]),
        content["fingerprint"],
    )
