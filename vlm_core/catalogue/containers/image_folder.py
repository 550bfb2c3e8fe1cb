"""A table made of folders: one folder a category, with or without folders for training and test around them."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from vlm_core.catalogue.parts import part_called
from vlm_core.catalogue.pictures import Pictures
from vlm_core.catalogue.reading import Columns, Record, Refusal

FILE: Final = "file"  # the column with the path


class ImageFolder:
    """Pictures whose category is the folder that they lie in."""

    picture = FILE
    label = ""

    def __init__(self, name: str, paths: Sequence[str], columns: Columns, pictures: Pictures) -> None:
        """Take the paths of pictures from the folder on, for the names of columns that the user gave."""
        self.name, self.pictures = name, pictures
        self.names = [columns.id, columns.label, FILE]
        self.notes = [
            f"each folder is a category: {', '.join(sorted({category_of(path) for path in paths} - {''})[:10])}"
        ]
        self._paths = paths

    def records(self, columns: Columns) -> Iterator[Record | Refusal]:
        """Yield each picture; its id is its name, or its path where several have one name."""
        stems = [posixpath.splitext(posixpath.basename(path))[0] for path in self._paths]
        counts = Counter(stems)
        for line, (stem, path) in enumerate(zip(stems, self._paths, strict=True), start=1):
            if category := category_of(path):
                yield Record(line, [stem if counts[stem] == 1 else path, category, path])
            else:
                yield Refusal(line, f"the picture {path} is in no category's folder")

    def close(self) -> None:
        """Do nothing: no file is open."""


def category_of(path: str) -> str:
    """Return the first folder of a path that is not of training, validation or test; empty where there is none."""
    folders = path.split("/")[:-1]
    if folders and part_called(folders[0]):
        del folders[0]
    return folders[0] if folders else ""


def is_image_folder(paths: Sequence[str]) -> bool:
    """Return whether pictures at these paths, but for loose ones, lie in the folders of at least two categories."""
    return len({category_of(path) for path in paths} - {""}) >= 2
