"""A table that is open at its first row, with the pictures of its rows, whatever both lie in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from vlm_core.catalogue.containers.arrow_table import ArrowTable, EmbeddedPictures, RowPicture
from vlm_core.catalogue.picture_files import IMAGES, MatchedFile, PictureMissing, Pictures, address_of
from vlm_core.catalogue.reading import Columns, Record, Refusal, TableReader, TableRow, id_index, plain_id


@dataclass(frozen=True)
class OpenTable:
    """A table that is open at its first row, and the pictures of its rows."""

    table: TableReader
    columns: Columns  # as the user gave them, and where they gave none as the container has them
    pictures: Pictures
    digest: Callable[[], str]

    def __enter__(self) -> OpenTable:
        """Return the table itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the table."""
        self.table.close()

    def picture_cell(self, row: TableRow) -> str:
        """Return what a row says of its picture."""
        columns = self.columns
        return row.values[columns.picture] if columns.picture else f"{IMAGES}/{row.values[columns.id]}.jpg"

    def find(self, row: TableRow) -> MatchedFile:
        """Return a row's picture. Raises PictureMissing."""
        if isinstance(self.pictures, EmbeddedPictures):
            return self.pictures.of_row(row.line)
        return self.pictures.find(self.picture_cell(row))

    def propose_column(self, row: TableRow) -> str:
        """Return a sentence with the column that holds a row's picture, where the user named none or another."""
        for name, cell in row.values.items():
            if name in (self.columns.picture, self.columns.id, self.columns.label):
                continue
            if address_of(cell):
                return f" The column {name} holds web addresses: give picture_column={name} and download=true."
            with suppress(PictureMissing):
                self.pictures.find(cell)
                return f" The column {name} seems to name the pictures: give picture_column={name}."
        return ""

    def records(self) -> Iterator[TableRow | Refusal]:
        """Yield each row that is not empty, its cells without blanks around them.

        Unlike `read_products` it keeps rows without an id, or with one of another row: it holds no row in memory.
        """
        return (row for row in map(self._row, self.table.records(self.columns)) if row)

    def rows(self) -> Iterator[tuple[TableRow | Refusal, RowPicture]]:
        """Yield each row of `records` with its picture, in one pass."""
        if isinstance(self.table, ArrowTable) and self.pictures is self.table.pictures:
            yield from ((row, picture) for record, picture in self.table.rows() if (row := self._row(record)))
            return
        for row in self.records():
            yield row, RowPicture(problem=row.reason) if isinstance(row, Refusal) else self._look_for(row)

    def _row(self, record: Record | Refusal) -> TableRow | Refusal | None:
        """Return a row; None for an empty one."""
        if isinstance(record, Refusal):
            return record
        cells = [cell.strip() for cell in record.cells]
        at = id_index(self.table.names, self.columns)
        cells[at] = plain_id(cells[at])
        values = dict(zip(self.table.names, cells, strict=True))
        return TableRow(record.line, values, record.repaired, record.sheet) if any(cells) else None

    def _look_for(self, row: TableRow) -> RowPicture:
        """Return a row's picture, which is no part of the table."""
        try:
            path = self.find(row).path
        except PictureMissing as error:
            return RowPicture(problem=str(error))
        return RowPicture(path, source=partial(self.pictures.read, path), state=partial(self.pictures.state, path))

    def key(self, paths: Iterable[str]) -> str:
        """Return sixteen hex digits that change with the table, which is read to its end, or with a picture's state."""
        digest = hashlib.blake2b(self.digest().encode(), digest_size=8)
        for state in sorted(f"{path}|{self.pictures.state(path)}" for path in paths):
            digest.update(state.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()
