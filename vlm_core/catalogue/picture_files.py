"""From a table's cell to a picture, whatever the catalogue lies in and however the cell is written.

One file is meant by `pics\\1001.JPG`, `./pics/1001.jpg`, `pics/1001`, `1001` and `1001.0`. A spelling that could mean
several files means none.
"""

from __future__ import annotations

import json
import posixpath
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from functools import cached_property
from itertools import islice
from typing import Final, NamedTuple, Protocol
from urllib.parse import unquote

from vlm_core.catalogue.containers.files import ENDINGS, MOST_FOLDERS, Files, is_picture

IMAGES: Final = "images"
MOST_SHOWN: Final = 200  # characters of a cell in a message
MOST_BELOW: Final = 500_000  # files that are looked at for a name without its folder
_ADDRESS: Final = re.compile(r"(?!file:)(?:(?:[a-z][a-z0-9+.-]{1,9}:)?//[^/\s]|www\.)", re.IGNORECASE)
_ADDRESS_END: Final = re.compile(r"[\s|\"'<>]|[,;]\s*(?=[a-z]+://)", re.IGNORECASE)
_INLINE: Final = re.compile(  # also without what is before it, as the first bytes of JPEG, PNG, GIF, WebP and TIFF are
    r"(?i:data:image/).*|(?:[/_]9j[/_]|iVBORw0KGgo|R0lGOD[dl]|UklGR|SUkqA|TU0AK)[\w+/\s-]{32,}={0,2}\s*", re.DOTALL
)
_OBJECT: Final = re.compile(r"\s*\[?\s*\{\s*[\"']")
_PATH_KEYS: Final = ("path", "src", "url", "file_name")
# What spreadsheets, web pages, texts and Airtable write around a picture's path or address
_WRAPPED: Final = re.compile(
    r"""=(?:IMAGE|HYPERLINK)\(\s*"([^"]+)".*|.*?<img\s[^>]*?src=["']?([^"'\s>]+).*"""
    r"""|!?\[[^\]]*\]\(([^)\s]+)\)|[^()|]*\((https?://[^)\s]+)\).*""",
    re.IGNORECASE | re.DOTALL,
)
_FILE_ADDRESS: Final = re.compile(r"file:///?", re.IGNORECASE)
_DRIVE: Final = re.compile(r"[a-z]:(?=/)", re.IGNORECASE)
_SEPARATORS: Final = ("|", "\n", "\t", ";", ",", " ")  # between the pictures of one cell
_PICTURES: Final = frozenset(ENDINGS)
_WHOLE_NUMBER: Final = re.compile(r"(\d+)\.0+")


class PictureMissing(OSError):
    """Raised for a cell that names no picture of the catalogue; the message says why."""


class MatchedFile(NamedTuple):
    """A picture's path in its container, and how many further ones its cell names."""

    path: str
    further: int = 0


class Pictures(Protocol):
    """The pictures of a catalogue."""

    def find(self, cell: str) -> MatchedFile:
        """Return where the picture is that a cell names. Raises PictureMissing."""

    def read(self, path: str) -> bytes:
        """Return the bytes of a picture that was found, cut for one that is far too large. Raises OSError."""

    def state(self, path: str) -> str:
        """Return a text that changes with a picture that was found, without reading it. Raises OSError."""


class FilePictures:
    """Pictures that are files of a folder or zip, looked for from the folder `top` of the table, then from those above.

    Only with `outside` may a cell lead out of the files, as in a table of the user's own.
    """

    def __init__(self, files: Files, top: str = "", *, outside: bool = False) -> None:
        self._files = files
        self._top = top
        self._start = f"{top}/" if top else ""
        self._outside = outside
        self._from_above = FilePictures(files, posixpath.dirname(top)) if top else None  # pictures beside the folder
        self._real_folders: dict[str, str | None] = {}
        self._inner_folders: dict[str, dict[str, list[str]]] = {}
        self._names: dict[str, _Names] = {}
        self._below: dict[str, _Names] = {}

    def read(self, path: str) -> bytes:
        """Return a file's bytes, up to a limit."""
        return self._files.read_picture(path)

    def state(self, path: str) -> str:
        """Return a text that changes with the file."""
        return self._files.state(path)

    def find(self, cell: str) -> MatchedFile:
        """Return the file that a cell names: as it is written if there is one, else in any other spelling."""
        literal = cell if cell.startswith("/") else self._start + cell
        may_be = self._outside or not (cell.startswith("/") or ".." in cell)
        if cell and may_be and self._files.contains(literal):
            return MatchedFile(literal)
        if not cell.strip(" \t\n[]{}"):
            raise PictureMissing("the cell with the picture is empty")
        if address_of(cell):
            raise PictureMissing(f"a web address, {_shown(cell.strip())}, and pictures are read from files")
        if _INLINE.fullmatch(cell.strip()):
            raise PictureMissing(
                "the cell holds a picture itself, as text, and pictures are read from files: save each as a file, and "
                "give a column with their paths"
            )
        cell = _unwrapped(cell)
        parts = split_cell(cell)
        if _OBJECT.match(parts[0]):
            raise PictureMissing(
                f"the cell holds JSON in which not exactly one of {', '.join(_PATH_KEYS)} names a picture: give a "
                "column with paths"
            )
        return MatchedFile(self._find_one(parts[0]), len(parts) - 1)

    def _find_one(self, name: str) -> str:
        path = tidy(name)
        if path.count("/") > MOST_FOLDERS:
            raise PictureMissing(f"no path of a file: {_shown(path)}")
        without_query = path.partition("?")[0]  # as in what was copied from a web shop
        for spelling in dict.fromkeys((path, without_query, unquote(path), unquote(without_query))):
            if (found := self._match_anywhere(spelling)) is not None:
                return found
        if self._outside and "/" in path and (found := self._match(posixpath.join(self._top, "..", path))) is not None:
            return found
        if self._from_above:
            with suppress(PictureMissing):
                return self._from_above.find(path).path
        raise PictureMissing(self._explain(path))

    def _match_anywhere(self, path: str) -> str | None:
        """Return the file of that path; else, without those of its first folders that are not here either."""
        if self._outside and (found := self._match(posixpath.join(self._top, path))) is not None:
            return found
        whole = path = path.lstrip("/")
        while not path.startswith("../"):
            if (found := self._match(posixpath.join(self._top, path))) is not None:
                return found
            first, slash, rest = path.partition("/")
            if not slash:  # 1/front.jpg is not the front of another product, whose folder is here
                deep = path == whole or whole.lower() == f"{IMAGES}/{path}".lower()
                return self._match_name(path) if deep else self._match(posixpath.join(self._top, IMAGES, path))
            if self._folder(posixpath.join(self._top, first)) is not None:
                return self._match_name(rest) if first.lower() == IMAGES and "/" not in rest else None
            path = rest
        return self._match(posixpath.join(self._top, path))

    def _match(self, path: str) -> str | None:
        """Return the file at a path from the root, whatever the case, the ending and the form of its letters."""
        path = posixpath.normpath(path)
        if not self._is_inside(path):
            return None
        if self._files.contains(path):
            return path
        folder, name = posixpath.split(path)
        real = self._folder(folder)
        if real is None:
            return None
        if real not in self._names:
            start = f"{real}/" if real and real != "/" else real
            self._names[real] = _Names((file, start + file) for file in self._files.folder(real)[1])
        return self._names[real].pick(name)

    def _match_name(self, name: str) -> str | None:
        """Return the picture of that name in images/, or the only one below it; without images/, below the table's."""
        images = self._folder(posixpath.join(self._top, IMAGES))
        base = self._top if images is None else images
        if (found := self._match(posixpath.join(base, name))) is not None:
            return found
        if base not in self._below:
            start = len(base) + 1 if base else 0
            paths = islice(self._files.walk(base), MOST_BELOW)
            self._below[base] = _Names((posixpath.basename(path), path) for path in paths if "/" in path[start:])
        return self._below[base].pick(name)

    def _folder(self, path: str) -> str | None:
        """Return the folder as it is really written; None where there is none, or more than one could be meant."""
        if path in ("", "/", ".", "..") or path.endswith("/.."):
            return path
        if path not in self._real_folders:
            above, name = posixpath.split(path)
            real = self._folder(above)
            same = [] if real is None else self._folders_in(real).get(_fold(name), [])
            chosen = name if name in same else same[0] if len(same) == 1 else None
            self._real_folders[path] = None if chosen is None else posixpath.join(real or "", chosen)
        return self._real_folders[path]

    def _folders_in(self, real: str) -> dict[str, list[str]]:
        """Return the folders in a folder by their names without case."""
        if real not in self._inner_folders:
            inner = self._inner_folders[real] = defaultdict(list)
            for name in self._files.folder(real)[0]:
                inner[_fold(name)].append(name)
        return self._inner_folders[real]

    def _is_inside(self, path: str) -> bool:
        if self._outside:
            return True
        path = posixpath.normpath(path)
        return not path.startswith("/") and path != ".." and not path.startswith("../")

    def _explain(self, path: str) -> str:
        tried = posixpath.normpath(posixpath.join(self._top, path))
        if not self._is_inside(tried) and not path.startswith("/"):  # of that, the last folders are looked for here
            return (
                f"the path {_shown(path)} leads out of {self._files.name}, of which only the files inside are read: "
                "only a table that is named itself may lead out of its folder"
            )
        if found := self._example or self._example_beside(tried):
            example = f"has {_shown(found)}"
        elif self._inner_zip:
            zipped = _shown(self._inner_zip)
            example = f"has no picture files but another zip, {zipped}: unpack it, so that its pictures lie in a folder"
        else:
            example = "has no picture files: give the folder or zip that has both the table and the pictures"
        return f"there is no {_shown(tried)} in {self._files.name}, which {example}"

    @cached_property
    def _example(self) -> str:
        """A picture that does exist, from the table's folder on; empty if there is none."""
        images = self._folder(posixpath.join(self._top, IMAGES))
        return next(
            (path for path in islice(self._files.walk(images or self._top), MOST_BELOW) if is_picture(path)), ""
        )

    def _example_beside(self, path: str) -> str:
        """Return a picture in the folder of a path; "" if there is none. A store lists what its table names alone."""
        folder = posixpath.dirname(path)
        return next((posixpath.join(folder, name) for name in self._files.folder(folder)[1] if is_picture(name)), "")

    @cached_property
    def _inner_zip(self) -> str:
        """A zip among the files; empty if there is none."""
        return next((path for path in islice(self._files.walk(), MOST_BELOW) if path.lower().endswith(".zip")), "")


class _Names:
    """Files by their names, in the spellings that people and programs give them."""

    def __init__(self, files: Iterable[tuple[str, str]]) -> None:
        self._first: dict[str, str] = {}  # by name, of pictures without the ending
        self._further: dict[str, list[str]] = defaultdict(list)  # of the same names
        self._by_number: dict[str, list[str]] = defaultdict(list)
        for name, path in files:
            folded = _fold(name)
            stem, dot, ending = folded.rpartition(".")
            key = stem if dot + ending in _PICTURES else folded
            if key in self._first:
                self._further[key].append(path)
            else:
                self._first[key] = path
            if key.startswith("0") and key is stem and stem.isdecimal():
                self._by_number[stem.lstrip("0")].append(path)

    def pick(self, name: str) -> str | None:
        """Return the path of the file that a name means; None for none. Raises PictureMissing for several."""
        folded = _fold(name)
        stem = posixpath.splitext(folded)[0] if is_picture(name) else folded
        number = match[1] if (match := _WHOLE_NUMBER.fullmatch(stem)) else stem
        alike = self._called(stem)
        found = (
            [path for path in alike if _fold(posixpath.basename(path)) == folded]
            or alike
            or self._called(number)
            or (self._with_number(number) if number.isdecimal() else [])
        )
        return _single(found, name) if found else None

    def _called(self, key: str) -> list[str]:
        return [self._first[key], *self._further.get(key, ())] if key in self._first else []

    def _with_number(self, number: str) -> list[str]:
        """Return the files whose names are that number with any zeros before it."""
        plain = number.lstrip("0")
        return [*self._called(plain), *self._by_number.get(plain, ())]


def _single(paths: list[str], name: str) -> str:
    """Return the only path, or the first by ending of those that differ in nothing else. Raises PictureMissing."""
    if len(paths) == 1:
        return paths[0]
    same = [path for path in paths if posixpath.basename(path) == name]
    if len(same) == 1:
        return same[0]
    if len({posixpath.splitext(path)[0] for path in paths}) == 1:
        return min(paths, key=lambda path: (_rank(posixpath.splitext(path)[1].lower()), path.swapcase()))
    raise PictureMissing(f"several files could be {_shown(name)}: {_shown(paths[0])}, {_shown(paths[1])}")


def _rank(ending: str) -> int:
    return ENDINGS.index(ending) if ending in ENDINGS else len(ENDINGS)


def tidy(path: str) -> str:
    """Return a path with slashes, without quotes, a drive and steps that lead nowhere, in composed letters."""
    path = _DRIVE.sub("", _FILE_ADDRESS.sub("/", path.strip().strip("\"'")).replace("\\", "/"), count=1)
    if path.startswith("//"):  # a share, as //server/pics, which normpath would keep
        path = "/" + path.lstrip("/")
    return unicodedata.normalize("NFC", posixpath.normpath(path))


def split_cell(cell: str) -> list[str]:
    """Return the pictures that a cell names: one, or those of a list."""
    text = cell.strip()
    if text.startswith(("[", "{")):
        try:
            read = json.loads(text if _OBJECT.match(text) and '"' in text else text.replace("'", '"'))
        except (ValueError, RecursionError):
            read = None
        named = [_path_in(part) for part in (read if isinstance(read, list) else [read])]
        if named and all(name.strip() for name in named):
            return named
        if _OBJECT.match(text):
            return [cell]
    for separator in _SEPARATORS:
        parts = [part for name in text.split(separator) if (part := name.strip(" \t\n\"'"))]
        if len(parts) > 1 and all(is_picture(part.partition("?")[0]) for part in parts):
            return parts
    return [cell]


def count_further(cell: str) -> int:
    """Return how many pictures a cell names beside the first."""
    return max(0, cell.count("://") - 1) if address_of(cell) else len(split_cell(cell)) - 1


def _unwrapped(cell: str) -> str:
    """Return the path or address that a formula, an element of HTML or a link of Markdown holds; else the cell."""
    match = _WRAPPED.fullmatch(cell.strip()) if "(" in cell or "<" in cell else None
    return next(filter(None, match.groups()), cell) if match else cell


def _path_in(value: object) -> str:
    """Return a text, or the only one that an object has as a path; "" for anything else."""
    if isinstance(value, dict):
        found = {text for key in _PATH_KEYS if isinstance(text := value.get(key), str) and text.strip()}
        return found.pop() if len(found) == 1 else ""
    return value if isinstance(value, str) else ""


def address_of(cell: str) -> str:
    """Return the first web address that a cell holds; "" if it holds none."""
    if "//" not in cell and "www." not in cell.lower():
        return ""
    cell = _unwrapped(cell)
    text = (split_cell(cell)[0] if _OBJECT.match(cell) else cell).strip(" \n\"'[]")
    return _ADDRESS_END.split(text, maxsplit=1)[0] if _ADDRESS.match(text) else ""


def _fold(name: str) -> str:
    """Return a name without the difference between cases and between composed and decomposed letters."""
    return name.lower() if name.isascii() else unicodedata.normalize("NFC", name).casefold()


def _shown(text: str) -> str:
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."
