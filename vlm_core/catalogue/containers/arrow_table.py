"""A table of Arrow batches: Parquet files, and what the library `datasets` saves to disk.

Pictures stand in it as bytes, or as paths. Whoever reads the rows in their order gets each with its picture; in any
other order, their bytes are copied to a temporary file when the first is asked for. Memory holds a batch at most.

Shards (`catalogue/shards.py`) are Parquet files that say so in their schema. The cell of a picture in them is that of
the table which they were made of, and a row may say why it has none.
"""

from __future__ import annotations

import json
import os
import tempfile
import weakref
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import unquote

from vlm_core.catalogue.containers.files import MOST_PICTURE_BYTES, SeekableFile
from vlm_core.catalogue.containers.json_lines import cell_text
from vlm_core.catalogue.parts import PART, part_of_file
from vlm_core.catalogue.picture_files import MatchedFile, PictureMissing, Pictures
from vlm_core.catalogue.reading import Columns, Record, Refusal
from vlm_core.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_PER_BATCH: Final = 64
_CALLED: Final = ("image", "img", "pic", "photo", "jpg", "jpeg", "png", "bytes")  # columns of pictures
_NO_PARTITION: Final = "__HIVE_DEFAULT_PARTITION__"  # what stands for an empty cell
_ROW: Final = "row "  # how a picture in the table itself is named
_ARROW_FILE: Final = b"ARROW1"  # how Arrow files begin, but for streams
_FILE: Final = "file "  # how one is named that the table has only the path of, although it holds others
SHARDS: Final = b"vlm_shards"  # in the metadata of a schema
PATH, PROBLEM = "path", "problem"  # beside a picture's bytes in shards: its cell, and why it is missing
ArrowFiles = Mapping[str, Path | SeekableFile]  # by their names
Batches = Callable[[Sequence[str]], Iterator[tuple[str, "pa.RecordBatch"]]]  # with the name of their file


class ArrowTable:
    """A table that may hold the pictures themselves; opened once for each pass over it."""

    def __init__(
        self,
        name: str,
        files: ArrowFiles,
        schema: pa.Schema,
        batches: Batches,
        before: int = 0,
        may_lack: Callable[[str], bool] = lambda column: True,
    ) -> None:
        """Take files by their names, their schema, a function that reads the columns of those names, and rows before.

        Where there are any, `rows` alone knows the pictures in the table. `may_lack` returns whether rows may have no
        bytes in a column of pictures.
        """
        self.name, self.state = name, _state(files.values())
        self.notes: list[str] = []
        self._stored = tuple(schema.names)
        self._in_paths = {file: {PART: part_of_file(file), **_partitions(file)} for file in files}
        more = dict.fromkeys(name for values in self._in_paths.values() for name in values if name not in self._stored)
        if len({values[PART] for values in self._in_paths.values()}) == 1:
            more.pop(PART, None)
        self._own_names = (*self._stored, *more)
        self.names = list(self._own_names)
        self._files, self._schema = files, schema
        self.picture = _picture_column(schema)
        self.label = "label" if "label" in self.names else ""
        self._batches, self._before, self._may_lack = batches, before, may_lack
        self._classes = _class_names(schema)
        self._in_shards = _is_of_shards(schema, self.picture)
        holds = self._in_shards or (_holds_bytes(schema, self.picture) and self._some_have_bytes())
        self.pictures = EmbeddedPictures(name, self.picture, batches, self.state) if holds else None
        self._is_mixed = holds and not self._in_shards and _has_paths(schema, self.picture) and may_lack(self.picture)
        if holds and schema.field(self.picture).type != _item_type(schema.field(self.picture).type):
            self.notes.append(f"the first of several images in a row of column {self.picture} is used")

    def _some_have_bytes(self) -> bool:
        """Return whether any picture stands in the table, and not only its path; also where there are no rows."""
        rows = 0
        for _, batch in self._batches([self.picture]):
            rows += batch.num_rows
            if any(_bytes_of(value) for value in _column(batch, self.picture)):
                return True
        return rows == 0

    def records(self, columns: Columns) -> Iterator[Record | Refusal]:
        """Yield each row; the cell of a picture in the table itself is the row's number, in shards the source's.

        Where only its path stands in the table, it is that.
        """
        beside = [f"{self.picture}.{PATH}", f"{self.picture}.{PROBLEM}"] if self._in_shards else []
        wanted = [name for name in self._stored if not (self.pictures and name == self.picture)]
        for record, picture, value in self._read([*wanted, *beside, *([self.picture] if self._is_mixed else [])]):
            if self.pictures and picture.problem:
                self.pictures.problems[record.line] = picture.problem
            if self.pictures and self._is_mixed and (path := _path_alone(value)):
                self.pictures.paths[record.line] = path
            yield record

    def rows(self) -> Iterator[tuple[Record | Refusal, RowPicture]]:
        """Yield each row with its picture, which must stand in the table, in one pass over the files."""
        for record, picture, value in self._read(self._stored):
            if self.pictures and self._is_mixed and (path := _path_alone(value)):
                yield record, self.pictures.elsewhere_at(path)
            else:
                yield record, picture._replace(source=partial(_bytes_in, value, picture.path), state=lambda: self.state)

    def _read(self, columns: Sequence[str]) -> Iterator[tuple[Record | Refusal, RowPicture, Any]]:
        """Yield each row, its picture, and what stands in the column of pictures where that is read."""
        wanted = [name for name in self._stored if name in columns and not (self.pictures and name == self.picture)]
        line = self._before
        for file, batch in self._batches(columns):
            values = {name: self._texts(name, _column(batch, name)) for name in wanted}
            for name in self._own_names[len(self._stored) :]:
                values[name] = [self._in_paths[file].get(name, "")] * batch.num_rows
            found = batch.column(self.picture) if self.picture in batch.schema.names else None
            for place in range(batch.num_rows):
                line += 1
                value = None if found is None else found[place]
                cell, problem = f"{_ROW}{line}", ""
                if self._in_shards and value is not None:
                    cell, problem = (str(value[name].as_py() or "") for name in (PATH, PROBLEM))
                elif self._is_mixed and value is not None:
                    cell = _path_alone(value) or cell
                cells = [values[name][place] if name in values else cell for name in self._own_names]
                # A row of shards without any cell is the reason why the source's row could not be used
                record = Refusal(line, problem) if problem and not any(cells) else Record(line, cells)
                yield record, RowPicture(f"{_ROW}{line}", problem), value

    def close(self) -> None:
        """Do nothing: files are open only while they are read."""

    def again(self) -> ArrowTable:
        """Return the same table, to be read once more."""
        return ArrowTable(self.name, self._files, self._schema, self._batches, self._before, self._may_lack)

    def _texts(self, name: str, column: pa.Array) -> list[str]:
        try:
            values = column.to_pylist()
        except (ValueError, OverflowError):  # bytes that are no UTF-8, dates that no calendar has
            raise UserError(
                f"{self.name} holds values in the column {name} that cannot be read: write it anew."
            ) from None
        if name in self._classes:
            classes = self._classes[name]
            values = [
                classes[value] if isinstance(value, int) and 0 <= value < len(classes) else None for value in values
            ]
        return [_cell(value) for value in values]


class RowPicture(NamedTuple):
    """The picture of a row: its path in its container, why it is missing, and what reads its bytes."""

    path: str = ""
    problem: str = ""  # "" where it is there
    source: Callable[[], bytes] = bytes
    state: Callable[[], str] = str  # changes with the picture, of which it reads nothing; may raise OSError

    def read(self) -> bytes:
        """Return the bytes of the picture, up to a limit. Raises OSError."""
        if self.problem:
            raise PictureMissing(self.problem)
        return self.source()


class EmbeddedPictures:
    """Pictures that stand in a table as bytes, by their rows; those of which it has only a path lie elsewhere."""

    def __init__(self, name: str, column: str, batches: Batches, state: str) -> None:
        self._name, self._column, self._batches, self._state = name, column, batches, state
        self._lock = Lock()
        self._copy: IO[bytes] | None = None
        self._ends = array("Q", [0])  # of each picture in the copy, where the next begins
        self.problems: dict[int, str] = {}  # why pictures are missing, by their rows, as far as these were read
        self.paths: dict[int, str] = {}  # of pictures elsewhere, by their rows, as far as these were read
        self.elsewhere: Pictures | None = None

    def of_row(self, line: int) -> MatchedFile:
        """Return the picture of a row. Raises PictureMissing."""
        if line in self.problems:
            raise PictureMissing(self.problems[line])
        if line in self.paths and self.elsewhere:
            found = self.elsewhere.find(self.paths[line])
            return MatchedFile(f"{_FILE}{found.path}", found.further)
        return MatchedFile(f"{_ROW}{line}")

    def elsewhere_at(self, path: str) -> RowPicture:
        """Return a picture of which the table has only the path."""
        if self.elsewhere is None:
            return RowPicture(problem=f"{path} is not in the table")
        try:
            found = self.elsewhere.find(path).path
        except PictureMissing as error:
            return RowPicture(problem=str(error))
        return RowPicture(found, "", partial(self.elsewhere.read, found), partial(self.elsewhere.state, found))

    def find(self, cell: str) -> MatchedFile:
        """Return the row that a cell names."""
        if not cell.startswith(_ROW):
            raise PictureMissing(f"{cell[:100]} is no row of {self._name}")
        return MatchedFile(cell)

    def read(self, path: str) -> bytes:
        """Return the bytes of a row's picture, up to a limit."""
        if self.elsewhere and path.startswith(_FILE):
            return self.elsewhere.read(path.removeprefix(_FILE))
        with self._lock:
            if self._copy is None:
                self._copy = self._copy_pictures()
        row = int(path.removeprefix(_ROW))
        start, end = self._ends[row - 1], self._ends[row]
        if start == end:
            raise PictureMissing(f"{path} has no picture")
        return os.pread(self._copy.fileno(), min(end - start, MOST_PICTURE_BYTES), start)

    def state(self, path: str) -> str:
        """Return a text that changes with the files."""
        if self.elsewhere and path.startswith(_FILE):
            return self.elsewhere.state(path.removeprefix(_FILE))
        return self._state

    def _copy_pictures(self) -> IO[bytes]:
        copy: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # kept for later reads
        for _, batch in self._batches([self._column]):
            for value in _column(batch, self._column):
                data = _bytes_of(value)
                copy.write(data)
                self._ends.append(self._ends[-1] + len(data))
        copy.flush()
        return copy


def open_parquet(
    files: ArrowFiles,
    name: str,
    cleanup: Callable[[], object] | None = None,
    *,
    group: int | None = None,
    before: int = 0,
) -> ArrowTable:
    """Return the table in Parquet files; `cleanup` is called when nobody can read them any more.

    With `group`, only that group of rows of each file, and so many rows `before` it. Raises UserError.
    """
    from pyarrow import parquet

    def batches(columns: Sequence[str]) -> Iterator[tuple[str, pa.RecordBatch]]:
        for called, path in files.items():
            with _opened(path) as source, parquet.ParquetFile(source, pre_buffer=False, buffer_size=1 << 20) as file:
                groups = range(file.num_row_groups) if group is None else [group]
                own = _of_schema(columns, file.schema_arrow)
                for batch in file.iter_batches(ROWS_PER_BATCH, groups, columns=own, use_threads=False):
                    yield called, batch

    def may_lack(column: str) -> bool:
        """Return whether the files say that all rows have bytes in a column, or do not say so."""
        for path in files.values():
            with _opened(path) as source:
                metadata = parquet.read_metadata(source)
            groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
            parts = (group.column(place) for group in groups for place in range(group.num_columns))
            of_bytes = [part.statistics for part in parts if part.path_in_schema == f"{column}.bytes"]
            if not of_bytes or any(each is None or each.null_count != 0 for each in of_bytes):
                return True
        return False

    def read_schema(path: Path | SeekableFile) -> pa.Schema:
        with _opened(path) as source:
            return parquet.read_schema(source)

    if cleanup:
        weakref.finalize(batches, cleanup)
    return ArrowTable(name, files, _schema(files.values(), read_schema), batches, before, may_lack)


def open_arrow(files: ArrowFiles, name: str, cleanup: Callable[[], object] | None = None) -> ArrowTable:
    """Return the table in Arrow files, also of streams as `datasets` saves them; `cleanup` as in `open_parquet`.

    Raises UserError when they cannot be read.
    """

    def batches(columns: Sequence[str]) -> Iterator[tuple[str, pa.RecordBatch]]:
        for called, path in files.items():
            with _arrow(path) as (schema, found):
                own = _of_schema(columns, schema)
                for batch in found:
                    for start in range(0, batch.num_rows, ROWS_PER_BATCH):
                        yield called, batch.slice(start, ROWS_PER_BATCH).select(own)

    def read_schema(path: Path | SeekableFile) -> pa.Schema:
        with _arrow(path) as (schema, _):
            return schema

    if cleanup:
        weakref.finalize(batches, cleanup)
    return ArrowTable(name, files, _schema(files.values(), read_schema), batches)


@contextmanager
def _opened(path: Path | SeekableFile, map_it: bool = False) -> Iterator[pa.NativeFile]:
    """Open a file as Arrow reads it. Raises UserError, also for what Arrow raises while it is open."""
    import pyarrow as pa

    open_local = pa.memory_map if map_it else pa.OSFile
    with naming(path), open_local(str(path)) if isinstance(path, Path) else pa.PythonFile(path.open(), "r") as file:
        yield file


@contextmanager
def _arrow(path: Path | SeekableFile) -> Iterator[tuple[pa.Schema, Iterable[pa.RecordBatch]]]:
    """Open an Arrow file, or what was saved of a stream, and give its schema and batches."""
    import pyarrow as pa

    with _opened(path, map_it=True) as file:
        is_stream = file.read(len(_ARROW_FILE)) != _ARROW_FILE
        file.seek(0)
        with (pa.ipc.open_stream if is_stream else pa.ipc.open_file)(file) as reader:
            batches = reader if is_stream else map(reader.get_batch, range(reader.num_record_batches))
            yield reader.schema, batches


def _schema(paths: Iterable[Path | SeekableFile], read: Callable[[Path | SeekableFile], pa.Schema]) -> pa.Schema:
    """Return the schema of the first file, with the columns that only others have."""
    schemas: list[pa.Schema] = []
    for path in paths:
        schemas.append(read(path))
        if twice := [name for name, count in Counter(schemas[-1].names).items() if count > 1]:
            raise UserError(f"{path} has more than one column called {', '.join(twice)}: rename all but one.")
    schema = schemas[0]
    for field in chain.from_iterable(schemas[1:]):
        schema = schema if field.name in schema.names else schema.append(field)
    return schema


def _of_schema(columns: Sequence[str], schema: pa.Schema) -> list[str]:
    """Return those of the columns, or of their parts such as image.path, that a file has."""
    return [name for name in columns if name in schema.names or name.partition(".")[0] in schema.names]


def _column(batch: pa.RecordBatch, name: str) -> pa.Array:
    """Return a column of a batch; of nulls where its file has none."""
    import pyarrow as pa

    return batch.column(name) if name in batch.schema.names else pa.nulls(batch.num_rows)


class naming:  # noqa: N801  # read as a statement
    """Turn what Arrow raises for a file into a UserError that names it."""

    def __init__(self, path: Path | SeekableFile) -> None:
        self._path = path

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        import pyarrow as pa

        if isinstance(error, OSError | pa.ArrowException):
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"{self._path} cannot be read ({reason}): give a whole file.") from None


def _partitions(file: str) -> dict[str, str]:
    """Return what the folders around a file say of its rows, as Spark and pandas write them: kind=Shoes/0.parquet."""
    pairs = (folder.partition("=") for folder in file.split("/")[:-1] if "=" in folder)
    return {name: "" if value == _NO_PARTITION else unquote(value) for name, _, value in pairs}


def _state(paths: Iterable[Path | SeekableFile]) -> str:
    return "|".join(
        f"{path.stat().st_size}|{path.stat().st_mtime_ns}" if isinstance(path, Path) else path.state() for path in paths
    )


def _holds_bytes(schema: pa.Schema, column: str) -> bool:
    import pyarrow as pa

    if not column:
        return False
    kind = _item_type(schema.field(column).type)
    return _is_binary(kind) or (pa.types.is_struct(kind) and _has_bytes(kind))


def _is_of_shards(schema: pa.Schema, column: str) -> bool:
    import pyarrow as pa

    if SHARDS not in (schema.metadata or {}) or not _holds_bytes(schema, column):
        return False
    kind = schema.field(column).type
    return pa.types.is_struct(kind) and {PATH, PROBLEM} <= {field.name for field in kind.fields}


def _picture_column(schema: pa.Schema) -> str:
    """Return the column of pictures: bytes with a path as Hugging Face stores them, or bytes called so or alone.

    A list of either comes last.
    """
    import pyarrow as pa

    fields = sorted(
        ((str(field.name), field.type) for field in schema), key=lambda field: _item_type(field[1]) != field[1]
    )
    kinds = {name: _item_type(kind) for name, kind in fields}
    pairs = [name for name, kind in kinds.items() if pa.types.is_struct(kind) and _has_bytes(kind)]
    binary = [name for name, kind in kinds.items() if _is_binary(kind)]
    called = [name for name in binary if any(word in name.lower() for word in _CALLED)]
    return next(iter(pairs or called or (binary if len(binary) == 1 else [])), "")


def _has_paths(schema: pa.Schema, column: str) -> bool:
    """Return whether a column of pictures also has their paths."""
    import pyarrow as pa

    kind = _item_type(schema.field(column).type)
    return bool(pa.types.is_struct(kind)) and any(field.name == PATH for field in kind.fields)


def _first_of(value: Any) -> Any:
    """Return a picture, or the first in a list; a null where there is none."""
    import pyarrow as pa

    if value is None:
        return pa.scalar(None)
    if value.is_valid and _item_type(value.type) != value.type:
        return value[0] if len(value) else pa.scalar(None)
    return value


def _path_alone(value: Any) -> str:
    """Return the path of a picture that has no bytes; "" where there is none."""
    first = _first_of(value)
    return str(first[PATH].as_py() or "") if first.is_valid and not _bytes_of(first) else ""


def _bytes_of(value: Any) -> Any:
    """Return the buffer of a picture, or of the first in a list; an empty one where there is none."""
    value = _first_of(value)
    if not value.is_valid:
        return b""
    found = value["bytes"] if hasattr(value, "items") else value
    return found.as_buffer() if found.is_valid else b""


def _bytes_in(value: Any, path: str) -> bytes:
    """Return the bytes of a picture, up to a limit. Raises PictureMissing where there are none."""
    data = memoryview(_bytes_of(value))[:MOST_PICTURE_BYTES]
    if not data:
        raise PictureMissing(f"{path} has no picture")
    return bytes(data)


def _item_type(kind: Any) -> Any:
    """Return what lists of this type hold; the type itself where it is none of lists."""
    import pyarrow as pa

    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return kind.value_type if is_list else kind


def _has_bytes(kind: Any) -> bool:
    return any(field.name == "bytes" and _is_binary(field.type) for field in kind.fields)


def _is_binary(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Return the names of the classes that columns hold as numbers, which Hugging Face keeps in the schema."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            name: [str(label) for label in feature["names"]]
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _cell(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, dict) and isinstance(value.get("path"), str) and not value.get("bytes"):
        return str(value["path"])
    return cell_text(value)
