"""Files that say which part each product is in: lines of id and part, or the dataset_info.json of another split."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vlm_core.catalogue.containers.text_table import TextTable
from vlm_core.catalogue.parts import OWN_COLUMNS, PARTS, part_called
from vlm_core.catalogue.reading import Columns, Refusal, number_of, plain_id
from vlm_core.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

MOST_BYTES: Final = 500_000_000
_SHOWN: Final = 5


def read_part_file(path: Path) -> dict[str, str]:
    """Return the part of each id in a file, "" where its line names none.

    Raises UserError when the file cannot be read, a line has no id or names no part, or an id is in two of them.
    """
    parts: dict[str, str] = {}
    for line, name, part in _lines(path):
        if parts.setdefault(name, part) != part:
            raise UserError(
                f"split={path}, line {line:,}: the product {name} is in {part or 'no part'}, and in "
                f"{parts[name] or 'no part'} in an earlier line: keep one of them."
            )
    return parts


def parts_of_products(path: Path, ids: pd.Series[str]) -> tuple[pd.Series[str], str]:
    """Return the part (n,) that a file gives each product, "" for none, and a sentence on what does not fit, or "".

    Raises UserError when the file cannot be used, or has none of the products.
    """
    parts = read_part_file(path)
    strangers = sorted(parts.keys() - set(ids))
    if len(strangers) == len(parts):
        raise UserError(
            f"split={path} names no product of the catalogue: its ids are such as "
            f"{', '.join(strangers[:3]) or '(none)'}, the catalogue's such as {', '.join(ids.iloc[:3])}."
        )
    note = (
        f"{path.name} names {number_of(len(parts), 'product')}, of which the catalogue does not have "
        f"{len(strangers):,}, or no usable picture of them, such as {', '.join(strangers[:_SHOWN])}"
    )
    return ids.map(parts).fillna(""), note if strangers else ""


def _lines(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield line, id and part of each product in a file."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"split={path} is larger than {MOST_BYTES // 1_000_000} MB: give a file of ids and parts.")
        if path.suffix.lower() == ".json":
            yield from _of_dataset_info(path)
        else:
            yield from _of_table(path)
    except OSError as error:
        raise UserError(
            f"split={path} cannot be read ({error.strerror or error}): give a CSV file with the columns id and part."
        ) from None


def _of_dataset_info(path: Path) -> Iterator[tuple[int, str, str]]:
    try:
        ids = json.loads(path.read_bytes())["ids"]
        listed = {part: [str(name) for name in ids[part]] for part in PARTS}
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"split={path} is no dataset_info.json of `experiments.prepare` or of a run: give one, or a CSV file with "
            "the columns id and part."
        ) from None
    for part, names in listed.items():
        for name in dict.fromkeys(names):  # oversampled ones stand several times
            yield 1, name, part


def _of_table(path: Path) -> Iterator[tuple[int, str, str]]:
    with path.open("rb") as file:
        table = TextTable(file, f"split={path}")
        names = [name.strip().lower() for name in table.names]
        column = next((names.index(name) for name in OWN_COLUMNS if name in names), -1)
        at = names.index("id") if "id" in names else 0 if column == 1 else -1
        first: list[tuple[int, list[str]]] = []
        if column < 0 and len(names) == 2 and part_called(names[1]):  # no column names: the first line is a product
            at, column, first = 0, 1, [(1, table.names)]
        if at < 0 or column < 0:
            raise UserError(
                f"split={path} has the columns {', '.join(table.names)}: it needs id and part, which may be called "
                f"{' or '.join(name for name in OWN_COLUMNS if name != 'part')}."
            )
        rows = [*first, *_usable(path, table)]
    for line, cells in rows:
        name, said = plain_id(cells[at].strip()), cells[column].strip()
        if not any(cell.strip() for cell in cells):
            continue
        if not name:
            raise UserError(f"split={path}, line {line:,}: the id is empty.")
        if said and not part_called(said):
            raise UserError(
                f"split={path}, line {line:,}: {said} is no part: name {', '.join(PARTS)}, or nothing for a product "
                "that is in none."
            )
        yield line, name, part_called(said)


def _usable(path: Path, table: TextTable) -> Iterator[tuple[int, list[str]]]:
    for record in table.records(Columns("id", "", "", "", ())):
        if isinstance(record, Refusal):
            raise UserError(f"split={path}, line {record.line:,}: {record.reason}.")
        yield record.line, record.cells
