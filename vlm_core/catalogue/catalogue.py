"""A prepared catalogue: usable products in a table, their pictures in one memory-mapped file, and a reading report."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import TypeAdapter

from vlm_core.atomic import building
from vlm_core.catalogue.reading import Columns, ReadingReport, Refusal, TableRow, read_header, read_rows
from vlm_core.catalogue.sources import HashedTable, Source, open_source
from vlm_core.errors import UserError
from vlm_core.pixels.picture_store import PictureStore, UnreadablePicture, decode_picture, fit_picture
from vlm_core.progress import track

SCHEMA: Final = 4  # of the prepared folder: part of its name, so that an older one is never read
SIZES: Final = "sizes.npy"  # beside the pictures
LONGEST_SIDE: Final = 256  # pixels of a stored picture
PICTURES_MEASURED: Final = 200  # to choose the canvas
PICTURES_PER_BATCH: Final = 256
MOST_DECODERS: Final = 8  # threads: each may need some hundred megabytes


@dataclass(frozen=True)
class Catalogue:
    """The usable products of a catalogue and their pictures."""

    name: str
    products: pd.DataFrame  # row i belongs to pictures[i]; str columns, "" where nothing is known
    pictures: PictureStore
    reading: ReadingReport
    fingerprint: str  # 16 hex digits of the contents, independent of their location and order

    @property
    def pictures_fingerprint(self) -> str:
        """Return 16 hex digits of which picture is in which row, at which size."""
        content = "\n".join([str(self.pictures.canvas), *self.products["picture_digest"]])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def picture_sizes(self) -> NDArray[np.uint32]:
        """Return height and width (n, 2) of each picture before it was fitted to the canvas."""
        sizes: NDArray[np.uint32] = np.load(self.pictures.path.with_name(SIZES), allow_pickle=False)
        return sizes


def prepare_catalogue(data: str, columns: Columns, root: Path) -> Catalogue:
    """Return the catalogue that `data` names, decoded once and cached under `root/data/processed`.

    Raises UserError when there is nothing to read, a column is missing, or no product is usable.
    """
    source = open_source(data, root)
    rows, report, contents = _read(source, columns)
    key = hashlib.blake2b(f"{SCHEMA}|{contents}|{columns}".encode(), digest_size=8).hexdigest()
    name = re.sub(r"[^\w.-]", "_", Path(source.name).stem) or "catalogue"
    folder = root / "data" / "processed" / f"{name}-{key}"
    if not (folder / "reading.json").exists():
        _prepare(source, columns, rows, report, folder)
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


def with_products(catalogue: Catalogue, products: pd.DataFrame) -> Catalogue:
    """Return the catalogue with other values in its columns, prepared in a folder of its own.

    The rows stay as they are, and the pictures' file is shared. `find_prepared` finds it like any other.
    """
    fingerprint = _fingerprint(products)
    if fingerprint == catalogue.fingerprint:
        return catalogue
    source = catalogue.pictures.path.parent
    folder = source.parent / f"{source.name.rsplit('-', 1)[0]}-{fingerprint}"
    if not (folder / "reading.json").exists():
        with _preparing(folder) as partial:
            for array in source.glob("*.npy"):
                _share(array, partial / array.name)
            _finish(products, catalogue.reading, partial)
    return _load(catalogue.name, folder)


def _share(file: Path, place: Path) -> None:
    """Give a file another name, or copy it where the file system cannot."""
    try:
        os.link(file, place)
    except OSError:
        shutil.copyfile(file, place)


def _check_columns(name: str, header: Sequence[str], columns: Columns) -> None:
    """Raise UserError unless the header of the table `name` has every column that is needed."""
    needed = {"label": columns.label}
    if columns.picture:
        needed["picture_column"] = columns.picture
    else:
        needed["id_column"] = columns.id
    for setting, column in needed.items():
        if column not in header:
            raise UserError(f"{setting}={column} is not a column of {name}, which has: {', '.join(header)}.")


def _prepare(source: Source, columns: Columns, rows: list[TableRow], report: ReadingReport, folder: Path) -> None:
    """Read and decode everything into a temporary folder, which is renamed when it is complete."""
    with _preparing(folder) as partial:
        _write(source, columns, rows, report, partial)


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


def _write(source: Source, columns: Columns, rows: list[TableRow], report: ReadingReport, folder: Path) -> None:
    canvas = _canvas(source, rows, columns)
    unreadable: list[Refusal] = []
    usable: list[dict[str, str]] = []
    sizes: list[tuple[int, int]] = []
    with (folder / "pictures.npy").open("wb") as file:  # written, not mapped: a full disk is an error, not a SIGBUS
        _write_header(file, (len(rows), *canvas, 3))
        for row, decoded in track(_decode(source, rows, columns, canvas), "reading pictures", len(rows)):
            if isinstance(decoded, str):
                unreadable.append(Refusal(row.line, f"{_picture_path(row, columns)}: {decoded}"))
                continue
            file.write(decoded.picture.tobytes())
            usable.append(_product(row, decoded, columns))
            sizes.append(decoded.size)
        file.seek(0)
        _write_header(file, (len(usable), *canvas, 3))
    if not usable:
        raise UserError(
            f"{source.name} has no usable product: {report.rows_read:,} rows read, {len(report.refused):,} refused, "
            f"{report.pictures_missing:,} without a picture, {len(unreadable):,} with an unreadable one."
        )
    np.save(folder / SIZES, np.array(sizes, dtype=np.uint32))
    _finish(pd.DataFrame(usable), replace(report, pictures_unreadable=tuple(unreadable), products=len(usable)), folder)


def _finish(products: pd.DataFrame, report: ReadingReport, folder: Path) -> None:
    """Write what makes a folder of pictures a prepared catalogue."""
    products.to_parquet(folder / "products.parquet", index=False)
    content = {"fingerprint": _fingerprint(products), "report": _report_adapter().dump_python(report, mode="json")}
    (folder / "reading.json").write_text(json.dumps(content))


def _read(source: Source, columns: Columns) -> tuple[list[TableRow], ReadingReport, str]:
    """Return the rows that have a picture, the report before any decoding, and a key of the contents.

    The table is opened and read once. Raises UserError when a column is missing.
    """
    rows: list[TableRow] = []
    refused: list[Refusal] = []
    missing = count = repaired = 0
    with source.open_table() as file:
        table = HashedTable(file)
        names, delimiter = read_header(table, source.name)
        _check_columns(source.name, names, columns)
        for row in read_rows(table, names, delimiter, columns):
            count += 1
            if isinstance(row, Refusal):
                refused.append(row)
                continue
            repaired += row.repaired
            if source.has_picture(_picture_path(row, columns)):
                rows.append(row)
            else:
                missing += 1
        key = table.key(source.picture_states(_picture_path(row, columns) for row in rows))
    return rows, ReadingReport(count, repaired, tuple(refused), missing, (), 0), key


def _picture_path(row: TableRow, columns: Columns) -> str:
    return row.values[columns.picture] if columns.picture else f"images/{row.values[columns.id]}.jpg"


def _canvas(source: Source, rows: list[TableRow], columns: Columns) -> tuple[int, int]:
    """Return height and width for all pictures: the median of a sample, with a bounded longer side."""
    sizes = []
    for row in rows[:: max(1, len(rows) // PICTURES_MEASURED)][:PICTURES_MEASURED]:
        try:
            sizes.append(decode_picture(source.read_picture(_picture_path(row, columns))).size)
        except (OSError, UnreadablePicture):
            continue
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


def _decode(
    source: Source, rows: Iterable[TableRow], columns: Columns, canvas: tuple[int, int]
) -> Iterator[tuple[TableRow, _Decoded | str]]:
    """Yield each row with its picture, or with the reason why there is none; Pillow decodes without the GIL."""

    def decode(row: TableRow) -> tuple[TableRow, _Decoded | str]:
        try:
            data = source.read_picture(_picture_path(row, columns))
            original = decode_picture(data)
            picture = fit_picture(original, canvas)
        except (OSError, ValueError, UnreadablePicture) as error:
            return row, str(error)
        return row, _Decoded(
            picture, hashlib.blake2b(data, digest_size=16).hexdigest(), (original.height, original.width)
        )

    waiting = iter(rows)
    with ThreadPoolExecutor(max_workers=min(MOST_DECODERS, os.cpu_count() or 1)) as pool:
        while batch := list(islice(waiting, PICTURES_PER_BATCH)):
            yield from pool.map(decode, batch)


def _product(row: TableRow, decoded: _Decoded, columns: Columns) -> dict[str, str]:
    identity = row.values.get(columns.id) or row.values[columns.picture]
    return {
        **row.values,
        "product_id": identity,
        "title": row.values.get(columns.title, row.values.get("title", "")),
        "picture_digest": decoded.digest,
    }


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    """Write an array header; numpy pads it for any number of rows, so that it can be overwritten later."""
    layout = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, layout)


def _fingerprint(products: pd.DataFrame) -> str:
    """Return 16 hex digits of all rows, whatever their order."""
    lines = sorted("\x1f".join(values) for values in products.itertuples(index=False))
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
