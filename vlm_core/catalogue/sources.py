"""What `data=` may name, on this machine or at an address: it becomes a table and the pictures of its rows."""

from __future__ import annotations

import hashlib
import io
import json
import posixpath
import shutil
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any, BinaryIO, Final, cast

from vlm_core.catalogue.containers.arrow_table import (
    ArrowTable,
    EmbeddedPictures,
    open_arrow,
    open_parquet,
)
from vlm_core.catalogue.containers.files import Files, SeekableFile, is_picture
from vlm_core.catalogue.containers.folder import FolderFiles
from vlm_core.catalogue.containers.image_folder import ImageFolder, category_of, is_image_folder
from vlm_core.catalogue.containers.joined_table import JoinedTable
from vlm_core.catalogue.containers.json_lines import JsonLines
from vlm_core.catalogue.containers.remote_files import RemoteFiles, find_remote
from vlm_core.catalogue.containers.text_table import TextTable
from vlm_core.catalogue.containers.workbook import Workbook
from vlm_core.catalogue.containers.zip_files import ZipFiles
from vlm_core.catalogue.downloading import DOWNLOADS, DownloadedPictures
from vlm_core.catalogue.kinds import (
    ARROW,
    JSON,
    OLD_WORKBOOK,
    PACKED,
    PARQUET,
    TABLES,
    TEXT,
    UNSURE,
    endings_of,
    is_table,
    problem_of,
)
from vlm_core.catalogue.open_table import OpenTable
from vlm_core.catalogue.parts import part_of_file, part_order
from vlm_core.catalogue.picture_files import IMAGES, FilePictures, Pictures, address_of
from vlm_core.catalogue.reading import Columns, Record, TableReader, TableRow, number_of, read_products
from vlm_core.catalogue.zips import BROKEN_ENTRY, ZIP_START, is_workbook, starts_as_zip
from vlm_core.errors import UserError
from vlm_core.files.addresses import is_address

TABLE: Final = "styles.csv"
REAL: Final = Path("data/raw/myntra_fashion_products")
SAMPLE: Final = Path("data/raw/sample")
USUAL_LABEL: Final = "masterCategory"  # the setting's default: where a table lacks it, its own label may stand in
ROWS_LOOKED_AT: Final = 20  # of a table, for names of pictures
MOST_TABLE_BYTES: Final = 500_000_000
MOST_STATE_BYTES: Final = 10_000_000  # of what `datasets` says of a split
READABLE: Final = "a folder, a zip, or a table (CSV, TSV, JSON lines, Parquet or Excel workbook)"


@dataclass(frozen=True)
class Source:
    """A table of products and their pictures, whatever they lie in."""

    name: str
    pictures: Pictures
    _open: Callable[[Columns], tuple[TableReader, Callable[[], str]]]

    def download(self, columns: Columns) -> None:
        """Download the pictures of which the table has a web address, those that are not there yet."""
        if isinstance(self.pictures, DownloadedPictures):
            with self.open_table(columns) as table:
                rows = read_products(table.table, table.columns)
                self.pictures.download(table.picture_cell(row) for row in rows if isinstance(row, TableRow))

    def open_table(self, columns: Columns) -> OpenTable:
        """Open the table at its first row. Raises UserError, then and later, where it cannot be read."""
        with naming_table(self.name):
            table, digest = self._open(columns)
        own = table.pictures if isinstance(table, ArrowTable | ImageFolder) else None
        filled = _fill_in(columns, table)
        is_own = own is not None and filled.picture == table.picture
        if isinstance(own, EmbeddedPictures):
            own.elsewhere = self.pictures
        return OpenTable(table, filled, cast(Pictures, own) if is_own else self.pictures, digest)


def open_source(data: str, root: Path) -> Source:
    """Return the source that `data` names, after downloading or drawing it if necessary.

    Raises UserError if there is none.
    """
    if data == "auto":
        data = str(root / REAL) if (root / REAL / TABLE).exists() else "sample"
    if data == "sample":
        from vlm_core.catalogue.sample import draw_sample

        return _in_files(FolderFiles(draw_sample(root / SAMPLE)), "sample")
    if data in ("kaggle", "hf"):
        from vlm_core.catalogue.fetching import fetch_hf, fetch_kaggle

        return open_place((fetch_kaggle if data == "kaggle" else fetch_hf)(root))
    if is_address(data):
        return open_path(find_place(data, root), root)
    path = Path(data).expanduser()
    if not path.exists() and address_of(data):
        raise UserError(f"data={data} is a web address: download the file, and give its path.")
    if not path.exists():
        raise UserError(
            f"data={data} does not exist: give {READABLE}, or sample, kaggle or hf. Looked for {path.absolute()}."
        )
    return open_path(path, root)


@dataclass(frozen=True)
class RemotePlace:
    """A folder at an address, or with a name a file of it."""

    files: RemoteFiles
    name: str = ""

    def __str__(self) -> str:
        """Return its address."""
        return f"{self.files.name}/{self.name}".rstrip("/")


Place = Path | RemotePlace


def find_place(address: str, root: Path) -> Place:
    """Return what is at an address; of a zip its copy, which is made in `root`. Raises UserError if there is nothing.

    A zip is one request, and from its copy as many reads as it has pictures.
    """
    files, name = find_remote(address)
    if not name or is_table(name) or is_picture(name) or problem_of(name):
        return RemotePlace(files, name)
    if endings_of(name)[0] != ".zip":
        with files.seekable(name).open() as file:
            if file.read(len(ZIP_START)) != ZIP_START:
                return RemotePlace(files, name)
    return files.copy(name, root / DOWNLOADS)


def open_path(place: Place, root: Path) -> Source:
    """Return the source at a place, with the pictures that were downloaded into `root`. Raises UserError."""
    source = open_place(place)
    return replace(source, pictures=DownloadedPictures(source.pictures, root / DOWNLOADS))


def open_place(place: Place) -> Source:
    """Return the source at a place that exists. Raises UserError if it is none."""
    if isinstance(place, RemotePlace):
        return _open_remote(place)
    if place.is_dir():
        return _in_files(FolderFiles(place), place.name)
    if not place.is_file():
        raise UserError(f"{place} is neither a folder nor a regular file: give {READABLE}.")
    if is_table(place.name) or is_workbook(place):
        return _of_named_table(FolderFiles(place.parent), place.name)
    if zipfile.is_zipfile(place):
        return _in_files(ZipFiles(place), place.name)
    if problem := problem_of(place.name):
        raise UserError(f"{place} is {problem}.")
    if starts_as_zip(place) or endings_of(place.name)[0] == ".zip":
        raise UserError(
            f"{place} is a broken or incomplete zip, whose end is missing: copy or download it again, and if it came "
            "in parts (.z01), unpack these first, and give the folder."
        )
    raise UserError(f"{place} is neither a folder, a zip nor a table: give {READABLE}.")


def _open_remote(place: RemotePlace) -> Source:
    if not place.name:
        return _in_files(place.files, posixpath.basename(place.files.name))
    if is_table(place.name):
        return _of_named_table(place.files, place.name)
    if problem := problem_of(place.name):
        raise UserError(f"{place} is {problem}.")
    raise UserError(f"{place} is neither a folder, a zip nor a table: give {READABLE}.")


def _of_named_table(files: Files, name: str) -> Source:
    """Return the source of a table that the user named."""
    if endings_of(name)[0] in (*PARQUET, *ARROW):
        return _of_arrow(_open_arrows(files, [name], name), FilePictures(files, outside=True))
    return _of_file(files, name, outside=True)


def _in_files(files: Files, name: str) -> Source:
    """Return the catalogue in a folder or zip."""
    paths = list(files.walk())
    if kaggle := [path for path in paths if path == TABLE or path.endswith(f"/{TABLE}")]:
        return _of_file(files, min(kaggle, key=lambda path: _nesting(files, path)), name=name)
    if saved := _saved_datasets(files, paths):
        return _of_arrow(_open_arrows(files, saved, name), FilePictures(files))
    if metadata := [
        path for path in paths if posixpath.basename(path).lower().startswith("metadata.") and is_table(path)
    ]:
        return _of_parts(files, sorted(metadata, key=part_order), name)
    pictures = [path for path in paths if is_picture(path)]
    top = _top_of_image_folder(pictures)
    below = [path.removeprefix(top or "") for path in pictures]
    tables = _tables(paths, [ending for ending in TABLES if ending not in UNSURE])
    others = [path for path in paths if not (is_picture(path) or path in tables)]
    folders = None if top is None else _of_image_folder(files, below, others, top, name)
    if folders and not tables and all(map(category_of, below)):
        return folders
    problem = _describe(files.name, paths, pictures)
    if tables := tables or _tables(paths, UNSURE):
        is_sure = not folders and (endings_of(tables[0])[0] not in UNSURE or not _zips(paths))
        make = _of_tables if is_sure else partial(_of_tables_unless_stray, folders, problem)
        return make(files, tables, name)
    if folders:
        return folders
    raise UserError(problem)


def _of_file(files: Files, path: str, *, outside: bool = False, name: str = "") -> Source:
    """Return the source of a table that is a file of others; `outside` as in FilePictures."""

    def open_table(columns: Columns) -> tuple[TableReader, Callable[[], str]]:
        return open_table_file(files, path, columns)

    return Source(
        name or posixpath.basename(path), FilePictures(files, posixpath.dirname(path), outside=outside), open_table
    )


def open_table_file(files: Files, path: str, columns: Columns) -> tuple[TableReader, Callable[[], str]]:
    """Open a table that is read from its first byte to its last, and a function that returns a hash of all of them.

    The names of its columns are looked for in its first lines.
    """
    name = f"{path} of {files.name}" if isinstance(files, ZipFiles) else posixpath.basename(path)
    ending, packing = endings_of(path)
    with naming_table(name):
        file: Any = files.open(path)
        raw = TableBytes(PACKED[packing](file) if packing else file, name)
    stream = io.BufferedReader(raw, 1 << 16)
    needed = frozenset(columns.needed().values())
    is_text = ending in TEXT or (ending == OLD_WORKBOOK and not stream.peek(2).startswith(b"PK"))
    if not is_text and ending not in JSON:  # a workbook, whatever it is called
        copy = tempfile.TemporaryFile()  # noqa: SIM115  # the workbook closes it
        shutil.copyfileobj(stream, copy)
        copy.seek(0)
        digest = raw.digest()
        return Workbook(cast(BinaryIO, copy), name, needed), lambda: digest
    return (JsonLines if ending in JSON else TextTable)(stream, name, needed), raw.digest


def open_group(path: Path, group: int, before: int, columns: Columns) -> OpenTable:
    """Open a group of rows of a Parquet file that holds pictures, of which so many rows come before."""
    table = open_parquet({path.name: path}, path.name, group=group, before=before)
    return _of_arrow(table, FilePictures(FolderFiles(path.parent))).open_table(columns)


def _of_arrow(table: ArrowTable, pictures: Pictures) -> Source:
    return Source(table.name, pictures, lambda columns: (table.again(), lambda: table.state))


def _of_parts(files: Files, paths: Sequence[str], name: str) -> Source:
    """Return the source of several tables, such as Hugging Face's, each of which names pictures from its folder on."""

    def open_table(columns: Columns) -> tuple[TableReader, Callable[[], str]]:
        opened = {path: _open_any(files, path, columns) for path in paths}
        tables = {path: table for path, (table, _) in opened.items()}
        return JoinedTable(name, tables, files), lambda: "|".join(digest() for _, digest in opened.values())

    return Source(name, FilePictures(files), open_table)


def _open_any(files: Files, path: str, columns: Columns) -> tuple[TableReader, Callable[[], str]]:
    if endings_of(path)[0] not in (*PARQUET, *ARROW):
        return open_table_file(files, path, columns)
    return _open_arrows(files, [path], posixpath.basename(path)), lambda: files.state(path)


def _open_arrows(files: Files, paths: Sequence[str], name: str) -> ArrowTable:
    """Return the table in Parquet or Arrow files, which are unpacked first where they cannot be read in place."""
    places: dict[str, Path | SeekableFile] = {}
    for path in paths:
        if (place := files.seekable(path)) is None:
            return _unpack(files, paths, name)
        places[path] = place
    return _open_kind(paths)(places, name)


def _open_kind(paths: Sequence[str]) -> Callable[..., ArrowTable]:
    return open_arrow if endings_of(paths[0])[0] in ARROW else open_parquet


def _unpack(files: Files, paths: Sequence[str], name: str) -> ArrowTable:
    """Return the table in Parquet or Arrow files, copied to where they can be read from any place on."""
    place = Path(tempfile.mkdtemp())
    copies = {path: place / str(number) for number, path in enumerate(paths)}
    for path, copy in copies.items():
        with naming_table(path), files.open(path) as file, copy.open("wb") as target:
            shutil.copyfileobj(file, target)
    return _open_kind(paths)(copies, name, lambda: shutil.rmtree(place, ignore_errors=True))


def _of_tables(files: Files, tables: Sequence[str], name: str) -> Source:
    """Return the source of the only table, of those called train and test, or of all Parquet files."""
    if all(endings_of(path)[0] in PARQUET for path in tables):
        return _of_arrow(_open_arrows(files, tables, name), FilePictures(files, posixpath.dirname(tables[0])))
    if len(tables) == 1:
        return _of_file(files, tables[0], name=name)
    if all(map(part_of_file, tables)):
        return _of_parts(files, tables, name)
    raise UserError(
        f"data={name} holds several tables ({', '.join(tables[:5])}): unpack it, and give the path of one."
        if isinstance(files, ZipFiles)
        else f"data={name} holds several tables ({', '.join(tables[:5])}): give the path of one, or call it {TABLE}."
    )


def _of_tables_unless_stray(
    folders: Source | None, problem: str, files: Files, tables: Sequence[str], name: str
) -> Source:
    """Return the source of tables; where none is one of products, that of the folders in their place, or an error."""

    def open_table(columns: Columns) -> tuple[TableReader, Callable[[], str]]:
        if any(_is_of_products(files, path, columns) for path in tables):
            return _of_tables(files, tables, name)._open(columns)
        if folders is None:
            raise UserError(problem)
        table, digest = folders._open(columns)
        table.notes.append(f"{', '.join(tables[:5])} passed over, without a column {columns.label or columns.id}")
        return table, digest

    return Source(name, FilePictures(files, posixpath.dirname(tables[0])), open_table)


def _is_of_products(files: Files, path: str, columns: Columns) -> bool:
    """Return whether a table has the columns that are needed, or else names products or pictures.

    A text must have the columns. Any other table is taken where the user named a column.
    """
    is_text = endings_of(path)[0] in UNSURE
    if not is_text and (columns.picture or columns.label not in ("", USUAL_LABEL)):
        return True
    try:
        table, _ = _open_any(files, path, columns)
    except UserError:
        return not is_text
    try:
        if set(_fill_in(columns, table).needed().values()) <= set(table.names):
            return True
        rows = (found for found in islice(table.records(columns), ROWS_LOOKED_AT) if isinstance(found, Record))
        return not is_text and (
            columns.id in table.names or any(is_picture(cell) for row in rows for cell in row.cells)
        )
    finally:
        table.close()


def _of_image_folder(files: Files, paths: Sequence[str], others: Sequence[str], top: str, name: str) -> Source:
    """Return the source of pictures at these paths from `top` on; `others` are the files of other kinds."""
    pictures = FilePictures(files, top.rstrip("/"))

    def open_table(columns: Columns) -> tuple[TableReader, Callable[[], str]]:
        beside = sorted([*others, *files.unreadable()])
        return ImageFolder(name, paths, columns, pictures, [path.removeprefix(top) for path in beside]), lambda: ""

    return Source(name, pictures, open_table)


def _nesting(files: Files, path: str) -> tuple[bool, int, str]:
    """Return a key by which the table beside the pictures comes first, then the least nested one."""
    beside = posixpath.join(posixpath.dirname(path), IMAGES)
    return not files.folder(beside)[1], path.count("/"), path


def _saved_datasets(files: Files, paths: Sequence[str]) -> list[str]:
    """Return the Arrow files of what `datasets` saved: of all splits, in the order that each split's state names."""
    saved: list[str] = []
    for path in sorted((path for path in paths if posixpath.basename(path) == "state.json"), key=part_order):
        try:
            with files.open(path) as file:
                state = json.loads(file.read(MOST_STATE_BYTES))
            names = [str(part["filename"]) for part in state["_data_files"]]
        except (OSError, TypeError, *BROKEN_ENTRY):
            continue
        saved += [posixpath.join(posixpath.dirname(path), Path(name).name) for name in names]
    return list(dict.fromkeys(saved))


def _tables(paths: Sequence[str], endings: Sequence[str]) -> list[str]:
    """Return the least nested tables with one of the endings; of parts for training and test the former first."""
    found = [path for path in paths if endings_of(path)[0] in endings]
    least = min((path.count("/") for path in found), default=0)
    return sorted((path for path in found if path.count("/") == least), key=part_order)


def _top_of_image_folder(pictures: Sequence[str]) -> str | None:
    """Return the folder, with a slash at its end, below which each folder is a category; None where there is none.

    A folder that is alone in its own, as most zips have one, is no category.
    """
    top = ""
    while pictures:
        if is_image_folder([path.removeprefix(top) for path in pictures]):
            return top
        first, slash, _ = pictures[0].removeprefix(top).partition("/")
        top = f"{top}{first}/"
        if not slash or not all(path.startswith(top) for path in pictures):
            return None
    return None


def _zips(paths: Sequence[str]) -> list[str]:
    return [path for path in paths if path.lower().endswith(".zip")]


def _describe(name: str, paths: Sequence[str], pictures: Sequence[str]) -> str:
    """Return one sentence: what was found where a catalogue was expected, and the way out."""
    way = f"give {READABLE}; a folder or zip has {TABLE} and {IMAGES}/, one table of its own, or a folder a category"
    nothing = f"{name} holds no {TABLE}"
    if zips := _zips(paths):
        return f"{nothing} but another zip, {zips[0]}: unpack {name}, and give data={posixpath.basename(zips[0])}."
    places = {posixpath.dirname(path) for path in pictures}
    if len(places) == 1 and "" not in places:
        found = f"{number_of(len(pictures), 'picture')} of only one category, {posixpath.basename(places.pop())}"
    elif pictures:
        found = f"{number_of(len(pictures), 'picture that is', 'pictures that are')} not in folders by category"
    elif paths:
        kinds = Counter(posixpath.splitext(path)[1] or "no ending" for path in paths).most_common(3)
        found = ", ".join(f"{number_of(count, 'file')} with {kind}" for kind, count in kinds)
    else:
        return f"{nothing}, because it is empty: {way}."
    foreign = next(filter(problem_of, paths), "")
    also = f" {foreign} is {problem_of(foreign)}." if foreign else ""
    return f"{nothing} and no other table, but {found}: {way}.{also}"


def _fill_in(columns: Columns, table: TableReader) -> Columns:
    """Return the columns, with those that the container itself names where the user gave none.

    A label of the container's own takes the name of the usual one.
    """
    if columns.label == USUAL_LABEL and USUAL_LABEL not in table.names and table.label in table.names and table.label:
        table.notes.append(f"column {table.label} is the category")
        table.names[table.names.index(table.label)] = USUAL_LABEL
    return replace(columns, picture=columns.picture or table.picture)


class TableBytes(io.RawIOBase):
    """The bytes of a table in another file, hashed as they are read; more than a limit are an error."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._file, self._name = file, name
        self._left = MOST_TABLE_BYTES
        self._digest = hashlib.blake2b(digest_size=16)

    def readable(self) -> bool:
        """Return that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer. Raises UserError."""
        with naming_table(self._name):
            part = self._file.read(len(buffer))
        self._left -= len(part)
        if self._left < 0:
            raise UserError(f"{self._name} is larger than {MOST_TABLE_BYTES // 1_000_000} MB: give a smaller table.")
        self._digest.update(part)
        buffer[: len(part)] = part
        return len(part)

    def digest(self) -> str:
        """Return a hash of all bytes, after reading those that are left."""
        while self.read(1 << 20):
            pass
        return self._digest.hexdigest()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


@contextmanager
def naming_table(name: str) -> Iterator[None]:
    """Turn what goes wrong with a table into a UserError that names it."""
    try:
        yield
    except NotImplementedError as error:
        raise UserError(
            f"{name} is packed in a way that is not read ({error}): unpack the zip, and give its folder."
        ) from None
    except (OSError, *BROKEN_ENTRY) as error:
        raise UserError(f"{name} cannot be read ({error}): give a whole and regular file.") from None
