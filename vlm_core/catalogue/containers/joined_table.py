"""Several tables as one, as Hugging Face has a metadata file in each folder of pictures."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping

from vlm_core.catalogue.containers.files import Files, is_picture
from vlm_core.catalogue.parts import PART, part_of_file
from vlm_core.catalogue.reading import Columns, Record, Refusal, TableReader

FILE_NAMES = ("file_name", "image_file_name", "image", "file")  # of the column with the picture


class JoinedTable:
    """Tables one after the other; a picture is named from the folder of its own table on, if that holds pictures."""

    def __init__(self, name: str, tables: Mapping[str, TableReader], files: Files) -> None:
        """Take each table by its path in the files."""
        self.name = name
        self.names = list(dict.fromkeys(column for table in tables.values() for column in table.names))
        if len(set(map(part_of_file, tables))) > 1:
            self.names.append(PART)
        self.notes: list[str] = []
        self.picture = next((column for column in FILE_NAMES if column in self.names), "")
        self.label = "label" if "label" in self.names else ""
        self._own_names = list(self.names)
        self._tables, self._files = tables, files

    def records(self, columns: Columns) -> Iterator[Record | Refusal]:
        """Yield the rows of all tables; a column that a table lacks is empty there."""
        picture = columns.picture or self.picture
        for path, table in self._tables.items():
            folder, part = self._folder_of(path), part_of_file(path)
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

    def _folder_of(self, path: str) -> str:
        """Return the folder of a table; "" if pictures are neither in it nor below, as beside COCO's annotations."""
        folder = posixpath.dirname(path)
        inner, names = self._files.folder(folder)
        return folder if inner or any(map(is_picture, names)) else ""

    def close(self) -> None:
        """Close all tables."""
        for table in self._tables.values():
            table.close()
