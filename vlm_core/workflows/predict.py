"""Predict the categories of unlabelled images, wherever they are, and stream them to CSV or Parquet."""

from __future__ import annotations

import logging
import os
import posixpath
import zipfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from vlm_core.catalogue.catalogue import check_columns
from vlm_core.catalogue.containers.files import ENDINGS, Files
from vlm_core.catalogue.containers.folder import FolderFiles
from vlm_core.catalogue.containers.remote_files import RemoteFiles
from vlm_core.catalogue.containers.zip_files import readable_name
from vlm_core.catalogue.kinds import TABLES, is_table, problem_of
from vlm_core.catalogue.open_table import OpenTable
from vlm_core.catalogue.picture_files import PictureMissing, address_of, count_further
from vlm_core.catalogue.reading import (
    SHORTENED,
    Columns,
    Refusal,
    TableRow,
    id_index,
    is_shortened,
    number_of,
    writable_text,
)
from vlm_core.catalogue.sources import Place, RemotePlace, Source, find_place, open_path
from vlm_core.catalogue.zips import is_workbook, open_zip, read_entry
from vlm_core.errors import UserError
from vlm_core.evaluation.product_texts import TITLE, join_cells
from vlm_core.evaluation.spreadsheets import spreadsheet_text
from vlm_core.files.addresses import is_address
from vlm_core.files.atomic import building
from vlm_core.inference import REQUEST_BATCH, predict_records
from vlm_core.progress import track

if TYPE_CHECKING:
    from vlm_core.models.categoriser import Categoriser

logger = logging.getLogger(__name__)
ID: Final = "id"  # the column of ids unless another is named
MOST_NAMED: Final = 5  # files that are passed over
READ_AT_ONCE: Final = 8  # images at an address, of which each may have 50 MB
ROWS_PER_WRITE: Final = 4096  # a group of rows in Parquet, of which each takes some kilobytes of the file's index


@dataclass(frozen=True)
class UnlabelledPicture:
    """An image to categorise: its id, functions that read its bytes and its state, and the product's text or ""."""

    id: str
    read: Callable[[], bytes] | None  # None where a row of a table names no image, which a text may stand in for
    text: str = ""
    state: Callable[[], str] = str  # a text that changes with the bytes


@dataclass(frozen=True)
class UnlabelledPictures:
    """Images to categorise, which are read once, in their order, and how many there are."""

    pictures: Iterator[UnlabelledPicture]
    count: int
    at_address: bool = False  # where each takes requests, which are made several at once

    def __iter__(self) -> Iterator[UnlabelledPicture]:
        """Return what yields each image."""
        return self.pictures

    def __len__(self) -> int:
        """Return the number of images."""
        return self.count


@dataclass(frozen=True)
class Written:
    """How many rows were written, how many of them have no category, the first of these, and other errors."""

    rows: int
    failed: int
    errors: tuple[str, ...]
    without_image: int = 0  # predicted from their text, because their image could not be read


def find_pictures(
    places: Sequence[str],
    id_column: str,
    picture_column: str,
    root: Path,
    *,
    download: bool = False,
    text_columns: Sequence[str] = (),
) -> UnlabelledPictures:
    """Return the images of folders and zips, single ones, those of patterns such as *.jpg, and one per row of tables.

    Instead of these, `places` may be one address of a file system, such as s3://bucket/folder.
    A folder or zip without images may hold a table that has them. Outside of tables an image's id is its path without
    extension, from the folder that all of them share. A row that cannot be used gives an image that cannot be read.
    Tables are read as their images are asked for, so that any number of rows fits in memory.
    Images at web addresses are those downloaded into `root`, with `download` after downloading what is missing. What is
    passed over is logged. Rows of tables also have the text of `text_columns`. Raises UserError for no images.
    """
    files: list[_File] = []
    tables, in_tables = list[Source](), 0
    passed_over: list[str] = []
    columns = Columns(id_column, picture_column, "", "", ())
    names_columns = bool(picture_column) or id_column != ID
    for place, start in (located := _find_places(places, root)):
        is_one_table = _is_one_table(place)
        found, others = ([], []) if is_one_table else _in_place(place)
        holds_table = is_one_table or any(map(is_table, [*others, place.name]))  # also a folder or zip of Parquet files
        if holds_table and (not found or (names_columns and _has_columns(place, columns, root))):
            source = open_path(place, root)
            in_tables += _count(source, columns, text_columns)
            if download:
                source.download(columns)
            tables.append(source)
            continue
        files += [file._replace(name=posixpath.join(start, file.name) if file.name else start) for file in found]
        passed_over += [posixpath.join(start, name) for name in others]
    if passed_over:
        _log_skipped(passed_over)
    if not (number := len(files) + in_tables):
        zips = [name for name in passed_over if name.lower().endswith(".zip")]
        within = f" but another zip, {zips[0]}: unpack it, and give its folder" if zips else f" ({', '.join(ENDINGS)})"
        raise UserError(f"pictures={' '.join(places)} contains no images{within}.")
    of_tables = (picture for source in tables for picture in _in_source(source, columns, text_columns))
    at_address = any(isinstance(place, RemotePlace) for place, _ in located)
    return UnlabelledPictures(chain(_with_ids(files), of_tables), number, at_address)


def _find_places(places: Sequence[str], root: Path) -> list[tuple[Place, str]]:
    """Return what the places stand for, each with what the names of its images begin with. Raises UserError."""
    if address := next((place for place in places if is_address(place)), ""):
        if len(places) > 1:
            raise UserError(
                f"pictures={address} is an address, which is predicted alone: give no other place beside it."
            )
        place = find_place(address, root)
        if isinstance(place, RemotePlace):
            if problem := problem_of(place.name):
                raise UserError(f"pictures={place} is {problem}.")
            return [(place, place.name)]
        places = [str(place)]
    paths = list(dict.fromkeys(path.absolute() for place in places for path in _expand(place)))
    for path in paths:
        if path.exists() and not (path.is_file() or path.is_dir()):  # whose opening may wait for ever
            raise UserError(f"pictures={path} is neither a folder nor a regular file: give images, folders or tables.")
        if len(paths) == 1 and path.is_file() and (problem := problem_of(path.name)):
            raise UserError(f"pictures={path} is {problem}.")
    top = Path(os.path.commonpath([path.parent for path in paths]))
    if len(paths) == 1 and (paths[0].is_dir() or zipfile.is_zipfile(paths[0])):
        top = paths[0]
    return [(path, "" if path == top else path.relative_to(top).as_posix()) for path in paths]


def _is_one_table(place: Place) -> bool:
    if isinstance(place, RemotePlace):
        return is_table(place.name)
    return place.is_file() and (is_table(place.name) or is_workbook(place))


def _has_columns(place: Place, columns: Columns, root: Path) -> bool:
    """Return whether a folder or zip has a table with the columns that are needed."""
    try:
        with open_path(place, root).open_table(columns) as table:
            return set(table.columns.needed().values()) <= set(table.table.names)
    except UserError:
        return False


def _log_skipped(passed_over: Sequence[str]) -> None:
    """Log which files are no images, and how the rows of a table among them are predicted."""
    number = number_of(len(passed_over), "file that is no image", "files that are no images")
    more = f" and {len(passed_over) - MOST_NAMED:,} more" if len(passed_over) > MOST_NAMED else ""
    table = next((name for name in passed_over if name.lower().endswith((".csv", ".xlsx", ".parquet", ".tsv"))), "")
    way = f" To predict the rows of {table}, name its columns: id_column=, picture_column=." if table else ""
    logger.info(f"Passed over {number}: {', '.join(passed_over[:MOST_NAMED])}{more}.{way}")


def _expand(place: str) -> list[Path]:
    """Return the path, or those that a pattern such as photos/**/*.jpg stands for. Raises UserError for none."""
    path = Path(place).expanduser()
    try:
        if path.exists():
            return [path]
        is_pattern = any(sign in place for sign in "*?[")
        found = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor)))) if is_pattern else []
    except (OSError, ValueError):  # a name that is too long or not allowed
        found = []
    if not found and address_of(place):
        raise UserError(f"pictures={place} is a web address: download the image, and give its file.")
    if not found:
        raise UserError(
            f"pictures={place} does not exist: give images, folders, zips, patterns in quotes such as 'photos/*.jpg', "
            f"or tables ({', '.join(TABLES)})."
        )
    return found


class _File(NamedTuple):
    """The file of an image: its name in its place, and what reads its bytes and its state."""

    name: str
    read: Callable[[], bytes]
    state: Callable[[], str]


def _in_place(place: Place) -> tuple[list[_File], list[str]]:
    """Return the images of a folder or zip, by their path in it, or one without a name; and the other files' names."""
    if isinstance(place, RemotePlace):
        return ([_file(place.files, place.name)._replace(name="")], []) if place.name else _in_files(place.files)
    if place.is_dir():
        return _in_files(FolderFiles(place))
    if place.is_file() and zipfile.is_zipfile(place):
        return _in_zip(place)
    if place.suffix.lower() == ".zip":
        raise UserError(f"pictures={place} is a damaged zip: copy or download it again.")
    return [_file(FolderFiles(place.parent), place.name)._replace(name="")], []


def _in_files(files: FolderFiles | RemoteFiles) -> tuple[list[_File], list[str]]:
    images, others = _images(sorted(files.walk(everything=True), key=lambda name: name.split("/")))
    return [_file(files, name) for name in images], others


def _file(files: Files, name: str) -> _File:
    return _File(name, partial(files.read_picture, name), partial(files.state, name))


def _in_zip(path: Path) -> tuple[list[_File], list[str]]:
    archive = open_zip(path)
    named = sorted(((readable_name(entry), entry) for entry in archive.infolist()), key=lambda each: each[0])
    images, others = _images([name for name, _ in named if not name.endswith("/")])
    wanted = set(images)
    found = [(name, entry) for name, entry in named if name in wanted]
    return [_File(name, partial(read_entry, archive, entry), partial(_state, entry)) for name, entry in found], others


def _state(entry: zipfile.ZipInfo) -> str:
    return f"{entry.file_size}|{entry.CRC}"


def _images(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divide names of files into those of images and others; what a Mac adds to folders and zips is no image."""
    is_image = {name: name.lower().endswith(ENDINGS) and not _is_of_a_mac(name) for name in names}
    return [name for name in names if is_image[name]], [name for name in names if not is_image[name]]


def _is_of_a_mac(name: str) -> bool:
    *folders, last = name.split("/")
    return last.startswith("._") or "__MACOSX" in folders


def _with_ids(files: Sequence[_File]) -> Iterator[UnlabelledPicture]:
    """Yield images whose ids are their names without extension; where two would be the same, with it or a number.

    What is no UTF-8 in a name is shown as \\xff.
    """
    names = [writable_text(file.name) for file in files]
    stems = Counter(posixpath.splitext(name)[0] for name in names)
    used: set[str] = set()
    for name, file in zip(names, files, strict=True):
        stem = posixpath.splitext(name)[0]
        wanted = stem if stems[stem] == 1 else name
        candidates = chain([wanted], (f"{wanted} ({number})" for number in count(2)))
        identity = next(candidate for candidate in candidates if candidate not in used)
        used.add(identity)
        yield UnlabelledPicture(identity, file.read, state=file.state)


def _count(source: Source, columns: Columns, text_columns: Sequence[str]) -> int:
    """Return how many images the rows of a table give, of which none is read; log what users should know of it.

    Raises UserError when a column is missing, or the table cannot be read to its end.
    """
    hashes = array("q")  # of all ids, eight bytes each
    further, shortened = 0, ""
    with source.open_table(columns) as table:
        check_table(source.name, table, text_columns)
        for row in table.records():
            name = _name(row, table)
            if isinstance(row, TableRow):
                if not hashes:
                    _propose_column(table, row)
                further += count_further(row.values[table.columns.picture]) if table.columns.picture else 0
            shortened = shortened or (name if is_shortened(name) else "")
            hashes.append(hash(name))
    if table.table.notes:
        logger.info(f"Assumed of {source.name}: {'; '.join(table.table.notes)}.")
    if further:
        logger.info(f"{number_of(further, 'further picture')} in cells of {source.name} not used: the first counts.")
    if shortened:
        logger.warning(f"{source.name} has ids {SHORTENED.format(shortened)}")
    _, counts = np.unique(np.frombuffer(hashes, np.int64), return_counts=True)
    if repeated := int((counts > 1).sum()):
        logger.info(
            f"{number_of(repeated, 'id')} of {source.name} stand{'s' * (repeated == 1)} in several rows: "
            "what is written is in the table's order."
        )
    return len(hashes)


def _propose_column(table: OpenTable, row: TableRow) -> None:
    """Log which column holds the pictures if a table's first row has none where they are looked for."""
    try:
        table.find(row)
    except PictureMissing:
        if proposal := table.propose_column(row):
            logger.info(proposal.strip())


def check_table(name: str, table: OpenTable, texts: Sequence[str]) -> None:
    """Raise UserError when a column is missing; a column of `texts` may be, of which is warned."""
    check_columns(name, table)
    if absent := [column for column in texts if column not in table.table.names]:
        logger.warning(f"{name} has no column {', '.join(absent)}: the model reads no text there.")


def text_columns(model: Categoriser, title_column: str) -> list[str]:
    """Return the columns of a table that a model reads as texts."""
    named = {TITLE: title_column}
    return [named.get(name, name) for name in model.reads.columns] if model.reads else []


def _in_source(source: Source, columns: Columns, texts: Sequence[str]) -> Iterator[UnlabelledPicture]:
    with source.open_table(columns) as table:
        yield from pictures_in(table, texts)


def pictures_in(table: OpenTable, texts: Sequence[str]) -> Iterator[UnlabelledPicture]:
    """Yield one image for each row, in its order; that of a row that cannot be used cannot be read.

    With columns of `texts`, a row whose cell of the picture is empty has no image, but perhaps a text.
    """
    for row, picture in table.rows():
        values = row.values if isinstance(row, TableRow) else {}
        has_none = bool(texts and values) and values.get(table.columns.picture, "picture") == ""
        text = join_cells(values.get(name, "") for name in texts)
        yield UnlabelledPicture(_name(row, table), None if has_none else picture.read, text, picture.state)


def _name(row: TableRow | Refusal, table: OpenTable) -> str:
    """Return a row's id, or what stands for it where it has none."""
    names = table.table.names
    identity = row.values[names[id_index(names, table.columns)]] if isinstance(row, TableRow) else ""
    return identity or f"line {row.line}" + (f" of sheet {row.sheet}" if row.sheet else "")


def predict_batches(
    model: Categoriser, pictures: Iterable[UnlabelledPicture], count: int = 0
) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of `predict_records`, with the `id` first, batch by batch in the order of the images.

    Progress is shown where their `count` is given.
    """
    is_far = isinstance(pictures, UnlabelledPictures) and pictures.at_address
    waiting = _read_ahead(pictures) if is_far else iter(pictures)
    batches = iter(lambda: list(islice(waiting, REQUEST_BATCH)), [])
    for batch in track(batches, "predicting", -(-count // REQUEST_BATCH)) if count else batches:
        rows = predict_records(model, [picture.read for picture in batch], texts=[picture.text for picture in batch])
        yield [{"id": picture.id, **row} for picture, row in zip(batch, rows, strict=True)]


def _read_ahead(pictures: Iterable[UnlabelledPicture]) -> Iterator[UnlabelledPicture]:
    """Yield the images, some of which are read together."""
    waiting = iter(pictures)
    with ThreadPoolExecutor(READ_AT_ONCE) as pool:
        while some := list(islice(waiting, READ_AT_ONCE)):
            read = [pool.submit(picture.read) if picture.read else None for picture in some]
            yield from (
                replace(picture, read=future.result if future else None)
                for picture, future in zip(some, read, strict=True)
            )


def write_predictions(path: Path, columns: Sequence[str], batches: Iterable[list[dict[str, Any]]]) -> Written:
    """Write rows to a .csv or .parquet file, which appears when it is complete, and return what was written.

    In CSV an apostrophe leads texts that a spreadsheet would evaluate. Raises UserError for another extension.
    """
    import pyarrow as pa
    from pyarrow import csv, parquet

    numbers = [name == "confidence" or name.startswith(("confidence_", "p_")) for name in columns]
    schema = pa.schema(
        [(name, pa.float64() if number else pa.string()) for name, number in zip(columns, numbers, strict=True)]
    )
    writers = {".csv": csv.CSVWriter, ".parquet": parquet.ParquetWriter}
    if path.suffix.lower() not in writers:
        raise UserError(f"output={path} must end in .csv or .parquet.")
    written, failed, without_image, first = 0, 0, 0, list[str]()
    safe = spreadsheet_text if path.suffix.lower() == ".csv" else lambda value: value
    with building(path) as unfinished, writers[path.suffix.lower()](unfinished, schema) as writer:
        rows_of_all = chain.from_iterable(batches)
        while rows := list(islice(rows_of_all, ROWS_PER_WRITE)):
            cells = [{name: safe(_valid(value)) for name, value in row.items()} for row in rows]
            writer.write_table(pa.Table.from_pylist(cells, schema))
            written += len(rows)
            errors = [f"{row['id']}: {row['error']}" for row in rows if row.get("error") and not row.get("category")]
            failed += len(errors)
            without_image += sum(bool(row.get("error") and row.get("category")) for row in rows)
            first += errors[: MOST_NAMED - len(first)]
    return Written(written, failed, tuple(first), without_image)


def _valid(value: Any) -> Any:
    return writable_text(value) if isinstance(value, str) else value
