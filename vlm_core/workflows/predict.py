"""Predict the categories of unlabelled images (a folder, zip or table) and stream them to CSV or Parquet."""

from __future__ import annotations

import logging
import os
import posixpath
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, count
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from vlm_core.atomic import building
from vlm_core.catalogue.reading import Columns, Refusal, read_header, read_rows
from vlm_core.catalogue.sources import FolderSource
from vlm_core.catalogue.zips import open_zip, read_entry
from vlm_core.errors import UserError
from vlm_core.evaluation.spreadsheets import spreadsheet_text
from vlm_core.inference import REQUEST_BATCH, predict_records
from vlm_core.progress import track

if TYPE_CHECKING:
    from vlm_core.models.categoriser import Categoriser

logger = logging.getLogger(__name__)
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
    source = FolderSource(folder.name, folder, "")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS and not path.is_dir())
    names = [str(path.relative_to(folder)) for path in paths]
    return _with_ids(names, [partial(source.read_picture, name) for name in names])


def _in_zip(path: Path) -> list[UnlabelledPicture]:
    archive = open_zip(path)
    entries = [entry for entry in archive.infolist() if entry.filename.lower().endswith(EXTENSIONS)]
    entries.sort(key=lambda entry: entry.filename)
    names = [str(PurePosixPath(entry.filename)) for entry in entries]
    return _with_ids(names, [partial(read_entry, archive, entry) for entry in entries])


def _with_ids(names: Sequence[str], readers: Sequence[Callable[[], bytes]]) -> list[UnlabelledPicture]:
    """Return images whose ids are their names without extension; where two would be the same, with it or a number.

    What is no UTF-8 in a name is shown as \\xff.
    """
    names = [os.fsencode(name).decode("utf-8", "backslashreplace") for name in names]
    stems = Counter(posixpath.splitext(name)[0] for name in names)
    used: set[str] = set()
    pictures = []
    for name, read in zip(names, readers, strict=True):
        stem = posixpath.splitext(name)[0]
        wanted = stem if stems[stem] == 1 else name
        candidates = chain([wanted], (f"{wanted} ({number})" for number in count(2)))
        identity = next(candidate for candidate in candidates if candidate not in used)
        used.add(identity)
        pictures.append(UnlabelledPicture(identity, read))
    return pictures


def _in_table(path: Path, id_column: str, picture_column: str) -> list[UnlabelledPicture]:
    source = FolderSource(path.name, path.parent, path.name)
    with source.open_table() as table:
        header, delimiter = read_header(table, path.name)
        for name, column in (("picture_column", picture_column), ("id_column", "" if picture_column else id_column)):
            if column and column not in header:
                raise UserError(f"{name}={column} is not a column of {path.name}, which has: {', '.join(header)}.")
        columns = Columns(id_column, picture_column, "", "", ())
        read = list(read_rows(table, header, delimiter, columns))
    rows = [row for row in read if not isinstance(row, Refusal)]
    if refused := [row for row in read if isinstance(row, Refusal)]:
        logger.warning(
            f"{len(refused):,} rows of {path.name} are left out, the first in line {refused[0].line}: "
            f"{refused[0].reason}."
        )
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

    In CSV an apostrophe leads texts that a spreadsheet would evaluate. Raises UserError for another extension.
    """
    import pyarrow as pa
    from pyarrow import csv, parquet

    texts = ("id", "category", "text", "text_category", "error")
    schema = pa.schema([(name, pa.string() if name in texts else pa.float64()) for name in columns])
    writers = {".csv": csv.CSVWriter, ".parquet": parquet.ParquetWriter}
    if path.suffix.lower() not in writers:
        raise UserError(f"output={path} must end in .csv or .parquet.")
    written = 0
    safe = spreadsheet_text if path.suffix.lower() == ".csv" else lambda value: value
    with building(path) as partial, writers[path.suffix.lower()](partial, schema) as writer:
        for rows in batches:
            cells = [{name: safe(_valid(value)) for name, value in row.items()} for row in rows]
            writer.write_table(pa.Table.from_pylist(cells, schema))
            written += len(rows)
    return written


def _valid(value: Any) -> Any:
    """Return a text with what cannot be written in UTF-8, as parts of file names, escaped; any other value as it is."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
