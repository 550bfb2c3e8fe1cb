"""Categories for pictures that nobody has labelled: a folder, a zip or a table of them, streamed to CSV or Parquet."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from vlm_core.catalogue.reading import Columns, Refusal, read_header, read_rows
from vlm_core.catalogue.sources import FolderSource, open_zip, read_entry
from vlm_core.errors import UserError
from vlm_core.evaluation.texts import UNKNOWN_CATEGORY
from vlm_core.pixels.store import UnreadablePicture, decode_picture, fit_picture
from vlm_core.progress import Progress

if TYPE_CHECKING:
    from vlm_core.models.categoriser import Categoriser

PICTURES_A_BATCH: Final = 32
ENDINGS: Final = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Picture:
    """A picture to categorise: its id, and how its bytes are read."""

    id: str
    read: Callable[[], bytes]


def find_pictures(place: Path, id_column: str, picture_column: str) -> list[Picture]:
    """The pictures of a folder or zip (the id is the path without its ending), or those that a CSV file names.

    Raises UserError when there are none.
    """
    if place.is_dir():
        found = _in_folder(place)
    elif place.suffix.lower() in (".csv", ".tsv") and place.is_file():
        found = _in_table(place, id_column, picture_column)
    elif place.is_file() and zipfile.is_zipfile(place):
        found = _in_zip(place)
    else:
        raise UserError(f"pictures={place} is neither a folder, a zip nor a CSV file: give one of these.")
    if not found:
        raise UserError(f"pictures={place} holds no pictures ({', '.join(ENDINGS)}): give another place.")
    return found


def _in_folder(folder: Path) -> list[Picture]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)
    return [Picture(str(path.relative_to(folder).with_suffix("")), path.read_bytes) for path in paths]


def _in_zip(path: Path) -> list[Picture]:
    archive = open_zip(path)
    names = sorted(name for name in archive.namelist() if name.lower().endswith(ENDINGS))
    return [Picture(str(PurePosixPath(name).with_suffix("")), partial(read_entry, archive, name)) for name in names]


def _in_table(path: Path, id_column: str, picture_column: str) -> list[Picture]:
    source = FolderSource(path.name, path.parent, path.name)
    with source.open_table() as table:
        header, delimiter = read_header(table, path.name)
        for name, column in (("picture_column", picture_column), ("id_column", "" if picture_column else id_column)):
            if column and column not in header:
                raise UserError(f"{name}={column} is no column of {path.name}, which has: {', '.join(header)}.")
        columns = Columns(id_column, picture_column, "", "", ())
        rows = [row for row in read_rows(table, header, delimiter, columns) if not isinstance(row, Refusal)]

    return [
        Picture(
            row.values.get(id_column) or row.values[picture_column],
            partial(
                source.read_picture,
                row.values[picture_column] if picture_column else f"images/{row.values[id_column]}.jpg",
            ),
        )
        for row in rows
    ]


def predict_pictures(
    model: Categoriser, pictures: Sequence[Picture], progress: Progress
) -> Iterator[list[dict[str, Any]]]:
    """Rows of `answer_pictures`, with the `id` first, for one batch of pictures after another, in their order."""
    starts = range(0, len(pictures), PICTURES_A_BATCH)
    for start in progress(starts, "predicting", len(starts)):
        batch = pictures[start : start + PICTURES_A_BATCH]
        rows = answer_pictures(model, [picture.read for picture in batch])
        yield [{"id": picture.id, **row} for picture, row in zip(batch, rows, strict=True)]


def answer_pictures(model: Categoriser, readers: Sequence[Callable[[], bytes]]) -> list[dict[str, Any]]:
    """One row a picture: category, confidence, p_<category>, and text and text_category where the model writes.

    A picture that cannot be read (OSError, ValueError, UnreadablePicture) has an `error` and nothing else, and its
    neighbours are answered.
    """
    read = [_read(reader, model.canvas) for reader in readers]
    good = [picture for picture in read if not isinstance(picture, str)]
    answers = iter(_answers(model, np.stack(good)) if good else ())
    return [{"error": picture} if isinstance(picture, str) else next(answers) for picture in read]


def answer_columns(model: Categoriser) -> list[str]:
    """The columns of an answer, `error` last."""
    texts = ["text", "text_category"] if model.writes_text else []
    return ["category", "confidence", *(f"p_{name}" for name in model.categories), *texts, "error"]


def _read(reader: Callable[[], bytes], canvas: tuple[int, int]) -> NDArray[np.uint8] | str:
    try:
        return fit_picture(decode_picture(reader()), canvas)
    except (OSError, ValueError, UnreadablePicture) as error:
        return str(error)


def _answers(model: Categoriser, pictures: NDArray[np.uint8]) -> list[dict[str, Any]]:
    probabilities = np.exp(model.log_probabilities(pictures).astype(np.float64))  # (B, C)
    answers: list[dict[str, Any]] = [
        {"category": model.categories[int(row.argmax())], "confidence": float(row.max())}
        | {f"p_{name}": float(value) for name, value in zip(model.categories, row, strict=True)}
        for row in probabilities
    ]
    if described := model.describe(pictures):
        for answer, text, index in zip(answers, *described, strict=True):
            answer |= {"text": text, "text_category": model.categories[index] if index >= 0 else UNKNOWN_CATEGORY}
    return answers


def write_predictions(path: Path, columns: Sequence[str], batches: Iterable[list[dict[str, Any]]]) -> int:
    """How many rows were written to a .csv or .parquet file, which appears when all of them are in it.

    Raises UserError for another ending.
    """
    import pyarrow as pa
    from pyarrow import csv, parquet

    texts = ("id", "category", "text", "text_category", "error")
    schema = pa.schema([(name, pa.string() if name in texts else pa.float64()) for name in columns])
    writers = {".csv": csv.CSVWriter, ".parquet": parquet.ParquetWriter}
    if path.suffix.lower() not in writers:
        raise UserError(f"output={path} must end in .csv or .parquet.")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    count = 0
    try:
        with writers[path.suffix.lower()](temporary, schema) as writer:
            for rows in batches:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                count += len(rows)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return count
