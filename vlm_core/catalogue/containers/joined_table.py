"""Several tables as one, as Hugging Face has a metadata file in each folder of pictures."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping

from vlm_core.catalogue.parts import PART, part_of_file
from vlm_core.catalogue.reading import Columns, Record, Refusal, Table

FILE_NAMES = ("file_name", "image_file_name", "image", "file")  # of the column with the picture


class JoinedTable:
    """Tables one after the other; a picture is named from the folder of its own table on."""

    def __init__(self, name: str, tables: Mapping[str, Table]) -> None:
        """Take each table by its path."""
        self.name = name
        self.names = list(dict.fromkeys(column for table in tables.values() for column in table.names))
        if len(set(map(part_of_file, tables))) > 1:
            self.names.append(PART)
        self.notes: list[str] = []
        self.picture = next((column for column in FILE_NAMES if column in self.names), "")
        self.label = "label" if "label" in self.names else ""
        self._own_names = list(self.names)
        self._tables = tables

    def records(self, columns: Columns) -> Iterator[Record | Refusal]:
        """Yield the rows of all tables; a column that a table lacks is empty there."""
        picture = columns.picture or self.picture
        for path, table in self._tables.items():
            folder, part = posixpath.dirname(path), part_of_file(path)
            places = [table.names.index(name) if name in table.names else -1 for name in self._own_names]
            at = self.names.index(picture) if picture in self.names else -1
            for record in table.records(columns):
                if isinstance(record, Refusal):
                    yield record
                    continue
                cells = [record.cells[place] if place >= 0 else "" for place in places]
                if PART in self._own_names:
                    cells[self._own_names.index(PART)] = part
                if at >= 0 and folder and cells[at]:
                    cells[at] = posixpath.join(folder, cells[at])
                yield record._replace(cells=cells)
            self.notes += table.notes

    def close(self) -> None:
        """Close all tables."""
        for table in self._tables.values():
            table.close()
