"""A table made of folders: one folder a category, with or without folders for training and test around them."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from vlm_core.catalogue.containers.files import is_picture
from vlm_core.catalogue.parts import part_called
from vlm_core.catalogue.picture_files import Pictures
from vlm_core.catalogue.reading import Columns, Record, Refusal, number_of

FILE: Final = "file"  # the column with the path
MOST_NAMED: Final = 5  # files that are passed over


class ImageFolder:
    """Pictures whose category is the folder that they lie in."""

    picture = FILE
    label = ""

    def __init__(
        self, name: str, paths: Sequence[str], columns: Columns, pictures: Pictures, others: Sequence[str] = ()
    ) -> None:
        """Take the paths of pictures from the folder on, for the names of columns that the user gave.

        `others` are what else lies there: files of other kinds, and what cannot be read, as links to nothing.
        """
        self.name, self.pictures = name, pictures
        self.names = [columns.id, columns.label, FILE]
        self.notes = [
            f"each folder is a category: {', '.join(sorted({category_of(path) for path in paths} - {''})[:10])}"
        ]
        self._paths = paths
        self._broken = [path for path in others if is_picture(path)]
        if passed_over := [path for path in others if not is_picture(path)]:
            more = f" and {len(passed_over) - MOST_NAMED:,} more" if len(passed_over) > MOST_NAMED else ""
            number = number_of(len(passed_over), "file that is no picture", "files that are no pictures")
            self.notes.append(f"{number} passed over: {', '.join(passed_over[:MOST_NAMED])}{more}")

    def records(self, columns: Columns) -> Iterator[Record | Refusal]:
        """Yield each picture; its id is its name, or its path where several have one name."""
        stems = [posixpath.splitext(posixpath.basename(path))[0] for path in self._paths]
        counts = Counter(stems)
        for line, (stem, path) in enumerate(zip(stems, self._paths, strict=True), start=1):
            if category := category_of(path):
                yield Record(line, [stem if counts[stem] == 1 else path, category, path])
            else:
                yield Refusal(line, f"the picture {path} is in no category's folder")
        for line, path in enumerate(self._broken, start=len(self._paths) + 1):
            yield Refusal(line, f"the picture {path} is a link to nothing, or no regular file")

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
