"""The table in a JSON document: a list of objects, in whatever else programs wrap them, or COCO's annotations."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any, Final, NamedTuple

ID: Final = "id"
FILE_NAME, LABEL = "file_name", "label"  # COCO's column with the picture, and what its annotations become


class DocumentRows(NamedTuple):
    """The objects of a table; one that is a text says why there is none. The columns of picture and category."""

    objects: list[Any]
    picture: str = ""
    label: str = ""
    note: str = ""  # what was assumed


def rows_in(document: Any, needed: Collection[str]) -> DocumentRows:
    """Return the table in a document; an object that holds none is a row itself.

    `needed` columns tell whether an object of objects holds rows by their ids, or columns as pandas writes them.
    """
    if isinstance(document, list):
        is_table = len(document) > 1 and all(isinstance(row, list) for row in document) and _are_texts(document[0])
        return rows_in({"columns": document[0], "data": document[1:]}, needed) if is_table else DocumentRows(document)
    if _lists(document, "images", "annotations", "categories"):
        return _of_coco(document)
    if _lists(document, "columns", "data"):
        names, rows = document["columns"], document["data"]
        return DocumentRows(
            [dict(zip(map(str, names), row, strict=False)) if _fits(row, names) else row for row in rows]
        )
    tables = [name for name, value in document.items() if isinstance(value, list) and value and _are_objects(value)]
    if len(tables) == 1:
        return DocumentRows(document[tables[0]], note=f"the list {tables[0]} is the table")
    values = list(document.values())
    if values and _are_objects(values):
        inner = _lists_inside(values)
        return rows_in(inner, needed) if inner else _of_objects(document, set(needed))
    return DocumentRows([document])


def _of_objects(document: Mapping[str, dict[str, Any]], needed: set[str]) -> DocumentRows:
    """Return rows that stand under their ids, or the rows of columns that stand under their names."""
    found = dict(document)
    if _are_columns(document, needed):
        keys = dict.fromkeys(key for column in document.values() for key in column)
        found = {key: {name: column.get(key) for name, column in document.items()} for key in keys}
    are_counted = list(found) == [str(number) for number in range(len(found))]
    return DocumentRows(list(found.values()) if are_counted else [{ID: key, **row} for key, row in found.items()])


def _are_columns(document: Mapping[str, dict[str, Any]], needed: set[str]) -> bool:
    """Return whether the names of an object of objects are columns: by those that are needed, or else by numbers."""
    first = next(iter(document.values()))
    if needed <= {ID, *first}:
        return False
    return needed <= set(document) or (all(map(str.isdecimal, first)) and not any(map(str.isdecimal, document)))


def _of_coco(document: Mapping[str, Any]) -> DocumentRows:
    """Return a row for each image, whose category is that of its annotations."""
    names = {str(found.get("id")): str(found.get("name", "")) for found in document["categories"] if _is_object(found)}
    categories = defaultdict[str, dict[str, None]](dict)
    for found in document["annotations"]:
        if _is_object(found) and (number := str(found.get("category_id"))) in names:
            categories[str(found.get("image_id"))][names[number]] = None
    rows = [
        _coco_row(found, list(categories[str(found.get("id"))])) for found in document["images"] if _is_object(found)
    ]
    return DocumentRows(rows, FILE_NAME, LABEL, "COCO: the category of an image is that of its annotations")


def _coco_row(image: dict[str, Any], categories: list[str]) -> dict[str, Any] | str:
    if len(categories) > 1:
        return f"the image {image.get(FILE_NAME, '')} has several categories: {', '.join(categories[:5])}"
    return {**image, LABEL: categories[0] if categories else ""}


def _lists(document: Mapping[str, Any], *names: str) -> bool:
    return all(isinstance(document.get(name), list) for name in names)


def _lists_inside(values: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the only object, as {"data": {"products": [...]}} has it, if it holds a list of objects."""
    is_wrapped = len(values) == 1 and any(
        isinstance(inner, list) and _are_objects(inner) for inner in values[0].values()
    )
    return values[0] if is_wrapped else {}


def _fits(row: Any, names: list[Any]) -> bool:
    return isinstance(row, list) and len(row) == len(names)


def _are_texts(values: list[Any]) -> bool:
    return bool(values) and all(isinstance(value, str) for value in values)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _are_objects(values: list[Any]) -> bool:
    return bool(values) and all(map(_is_object, values))
