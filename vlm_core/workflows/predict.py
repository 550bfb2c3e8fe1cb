"""Predict the categories of unlabelled images (a folder, zip or table) and stream them to CSV or Parquet."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from vlm_core.atomic import building
from vlm_core.catalogue.reading import Columns, Refusal, read_header, read_rows
from vlm_core.catalogue.sources import FolderSource, open_zip, read_entry
from vlm_core.errors import UserError
from vlm_core.inference import REQUEST_BATCH, predict_records
from vlm_core.progress import track

if TYPE_CHECKING:
    from vlm_core.models.categoriser import Categoriser

EXTENSIONS: Final = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class UnlabelledPicture:
    """An image to categorise: its id, and a function that reads its bytes."""

    id: str
    read: Callable[[], bytes]


def find_pictures(place: Path, id_column: str, picture_column: str) -> list[UnlabelledPicture]:
    """Return the images of a folder or zip (the id is the path without its extension), or those that a CSV file names.

    Raises UserError when there are none.
    """
    if place.is_dir():
        pictures = _in_folder(place)
    elif place.suffix.lower() in (".csv", ".tsv") and place.is_file():
        pictures = _in_table(place, id_column, picture_column)
    elif place.is_file() and zipfile.is_zipfile(place):
        pictures = _in_zip(place)
    else:
        raise UserError(f"pictures={place} is not a folder, zip or CSV file.")
    if not pictures:
        raise UserError(f"pictures={place} contains no images ({', '.join(EXTENSIONS)}).")
    return pictures


def _in_folder(folder: Path) -> list[UnlabelledPicture]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS)
    return [UnlabelledPicture(str(path.relative_to(folder).with_suffix("")), path.read_bytes) for path in paths]


def _in_zip(path: Path) -> list[UnlabelledPicture]:
    archive = open_zip(path)
    names = sorted(name for name in archive.namelist() if name.lower().endswith(EXTENSIONS))
    return [
        UnlabelledPicture(str(PurePosixPath(name).with_suffix("")), partial(read_entry, archive, name))
        for name in names
    ]


def _in_table(path: Path, id_column: str, picture_column: str) -> list[UnlabelledPicture]:
    source = FolderSource(path.name, path.parent, path.name)
    with source.open_table() as table:
        header, delimiter = read_header(table, path.name)
        for name, column in (("picture_column", picture_column), ("id_column", "" if picture_column else id_column)):
            if column and column not in header:
                raise UserError(f"{name}={column} is not a column of {path.name}, which has: {', '.join(header)}.")
        columns = Columns(id_column, picture_column, "", "", ())
        rows = [row for row in read_rows(table, header, delimiter, columns) if not isinstance(row, Refusal)]

    return [
        UnlabelledPicture(
            row.values.get(id_column) or row.values[picture_column],
            partial(
                source.read_picture,
                row.values[picture_column] if picture_column else f"images/{row.values[id_column]}.jpg",
            ),
        )
        for row in rows
    ]


def predict_batches(model: Categoriser, pictures: Sequence[UnlabelledPicture]) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of `predict_records`, with the `id` first, batch by batch in the order of the images."""
    starts = range(0, len(pictures), REQUEST_BATCH)
    for start in track(starts, "predicting", len(starts)):
        batch = pictures[start : start + REQUEST_BATCH]
        rows = predict_records(model, [picture.read for picture in batch])
        yield [{"id": picture.id, **row} for picture, row in zip(batch, rows, strict=True)]


def write_predictions(path: Path, columns: Sequence[str], batches: Iterable[list[dict[str, Any]]]) -> int:
    """Write rows to a .csv or .parquet file, which appears when it is complete, and return their number.

    Raises UserError for another extension.
    """
    import pyarrow as pa
    from pyarrow import csv, parquet

    texts = ("id", "category", "text", "text_category", "error")
    schema = pa.schema([(name, pa.string() if name in texts else pa.float64()) for name in columns])
    writers = {".csv": csv.CSVWriter, ".parquet": parquet.ParquetWriter}
    if path.suffix.lower() not in writers:
        raise UserError(f"output={path} must end in .csv or .parquet.")
    count = 0
    with building(path) as partial, writers[path.suffix.lower()](partial, schema) as writer:
        for rows in batches:
            writer.write_table(pa.Table.from_pylist(rows, schema))
            count += len(rows)
    return count
